"""The full network's images of training captions: drawn once, kept beside what is learned, shared by all who learn."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ditbench.storage import replacing

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Teacher:
    """Images by caption, in half precision, in a file for each caption; `of` says what they hang on besides."""

    def __init__(self, folder: Path, of: object) -> None:
        text = json.dumps(of, sort_keys=True, separators=(",", ":"))
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:12]

    def images(self, ids: Sequence[str], draw: Callable[[list[int]], Tensor]) -> Tensor:
        """The images of some captions; `draw` makes those at some places among them that are not there yet."""
        from safetensors.torch import load_file, save

        paths = [self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.safetensors" for name in ids]
        missing = [place for place, path in enumerate(paths) if not path.exists()]
        if missing:
            self.folder.mkdir(parents=True, exist_ok=True)
            # A video's frames are images of one caption.
            drawn = draw(missing).half().cpu().unflatten(0, (len(missing), -1))
            for place, images in zip(missing, drawn, strict=True):
                with replacing(paths[place]) as partial:
                    partial.write_bytes(save({"images": images.contiguous()}))
        return torch.cat([load_file(path)["images"] for path in paths]).float()
