"""Images from bytes, and as a network takes them."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ditbench.faults import Fault

if TYPE_CHECKING:
    from pathlib import Path


def picture(data: bytes, where: str | Path) -> Image.Image:
    """An image; a Fault that says where bytes are that are none."""
    try:
        return Image.open(io.BytesIO(data)).convert("RGB")
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise Fault(f"{where}: not an image that can be read ({error})") from error


def cropped(image: Image.Image, height: int, width: int) -> Tensor:
    """The middle of an image at a size, [3, height, width] from -1 to 1."""
    scale = max(height / image.height, width / image.width)
    size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    resized = image.resize(size, Image.Resampling.LANCZOS)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    pixels = np.asarray(resized.crop((left, top, left + width, top + height)), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1
