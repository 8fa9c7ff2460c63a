"""How far apart two pictures look to the attribute reader: LPIPS' form, on the trunk that is shipped.

At each of its three resolutions the channels of every place are scaled to length 1, and the squared differences are
summed over channels and averaged over places (Zhang et al. 2018, without learned weights of channels).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from ditbench.worlds.scenes.judges.trunk import Trunk


class Perceptual:
    """The distance of pictures [n, 3, 64, 64] from -1 to 1, one for each pair, with gradients to both."""

    def __init__(self, trunk: Trunk) -> None:
        self.trunk = trunk

    def __call__(self, pictures: torch.Tensor, originals: torch.Tensor) -> torch.Tensor:
        pairs = zip(self._seen(pictures), self._seen(originals), strict=True)
        return torch.stack([(a - b).square().sum(1).mean((1, 2)) for a, b in pairs]).sum(0)

    def _seen(self, pictures: torch.Tensor) -> list[torch.Tensor]:
        pixels = (pictures.float() + 1) * 127.5
        return [functional.normalize(level, dim=1, eps=1e-6) for level in self.trunk(pixels)]
