"""Images as a network takes them."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def cropped(image: Image.Image, height: int, width: int) -> Tensor:
    """The middle of an image at a size, [3, height, width] from -1 to 1."""
    scale = max(height / image.height, width / image.width)
    size = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    resized = image.resize(size, Image.Resampling.LANCZOS)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    pixels = np.asarray(resized.crop((left, top, left + width, top + height)), dtype=np.float32)
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1
