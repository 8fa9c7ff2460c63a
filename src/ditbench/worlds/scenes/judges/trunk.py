"""The small convolutional network that every judge of scenes looks through."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

FINE, MIDDLE, COARSE = 48, 64, 96
FEATURES = FINE + MIDDLE + COARSE


class Maps(NamedTuple):
    """What the trunk sees of 64 x 64 pictures, at three resolutions."""

    fine: torch.Tensor  # [n, FINE, 16, 16], informed by the coarser ones
    middle: torch.Tensor  # [n, MIDDLE, 8, 8]
    coarse: torch.Tensor  # [n, COARSE, 4, 4]

    def pooled(self) -> torch.Tensor:
        """The mean of each channel, [n, FEATURES]."""
        return torch.cat([level.mean((2, 3)) for level in self], 1)


def convolution(inside: int, outside: int, stride: int = 1) -> nn.Sequential:
    """A 3 x 3 convolution, batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inside, outside, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outside),
        nn.ReLU(),
    )


class Trunk(nn.Module):
    """Pixels [n, 3, height, width] from 0 to 255 in, `Maps` out."""

    def __init__(self) -> None:
        super().__init__()
        # Three colours and two coordinates: patterns have a phase, and a place is asked for.
        self.stem = nn.Sequential(convolution(5, 16, 2), convolution(16, 32, 2))
        self.middle = nn.Sequential(convolution(32, MIDDLE, 2), *(convolution(MIDDLE, MIDDLE) for _ in range(4)))
        self.coarse = nn.Sequential(convolution(MIDDLE, COARSE, 2), *(convolution(COARSE, COARSE) for _ in range(2)))
        self.coarse_to_middle = nn.Conv2d(COARSE, MIDDLE, 1)
        self.middle_to_stem = nn.Conv2d(MIDDLE, 32, 1)
        self.fine = nn.Sequential(nn.Conv2d(32, FINE, 1), convolution(FINE, FINE))

    def forward(self, pixels: torch.Tensor) -> Maps:
        stem = self.stem(torch.cat([pixels / 127.5 - 1, coordinates(pixels)], 1))
        middle = self.middle(stem)
        coarse = self.coarse(middle)
        middle = middle + F.interpolate(self.coarse_to_middle(coarse), scale_factor=2.0)
        stem = stem + F.interpolate(self.middle_to_stem(middle), scale_factor=2.0)
        return Maps(self.fine(stem), middle, coarse)


def coordinates(pixels: torch.Tensor) -> torch.Tensor:
    """The place of every pixel from -1 to 1, [n, 2, height, width]."""
    count, _, height, width = pixels.shape
    rows = torch.linspace(-1, 1, height, device=pixels.device, dtype=pixels.dtype)
    columns = torch.linspace(-1, 1, width, device=pixels.device, dtype=pixels.dtype)
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None].expand(count, -1, -1, -1)
