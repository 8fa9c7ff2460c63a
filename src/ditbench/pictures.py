"""An image from bytes of others, which may be anything."""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING

from ditbench.faults import Fault

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image


def picture(data: bytes, where: str | Path) -> Image:
    """An image in colours; a Fault that says where bytes are that are none, or more pixels than memory should hold."""
    from PIL import Image

    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except Image.DecompressionBombError as error:
        raise Fault(f"{where}: not read, it may be made to fill the memory ({error}); make it smaller") from error
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error) as error:
        raise Fault(f"{where}: not an image that can be read ({error})") from error
