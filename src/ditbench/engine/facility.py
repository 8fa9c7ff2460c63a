"""Tokens that stand for all others, by greedy facility location; merging as a product with attention's weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ditbench.engine.matching import unit

if TYPE_CHECKING:
    from ditbench.engine.matching import Windows


def facilities(features: Tensor, windows: Windows, count: int) -> Tensor:
    """The places in each window [samples, windows, count] that cover it best, ascending.

    One after the other is added that raises most the sum, over the window's tokens, of the cosine to the nearest of
    those chosen: at least 1 - 1/e of the best set's (Nemhauser et al. 1978), in `count` small steps for all windows.
    """
    inside = windows.of(unit(features))
    cosines = inside @ inside.transpose(2, 3)  # [samples, windows, token, candidate]
    covered = torch.full_like(cosines[..., :1], -1.0)
    taken = torch.zeros_like(cosines[:, :, 0], dtype=torch.bool)
    chosen = []
    for _ in range(count):
        gains = (cosines - covered).clamp_min(0).sum(2).masked_fill(taken, -torch.inf)
        best = gains.argmax(2, keepdim=True)
        chosen.append(best)
        taken = taken.scatter(2, best, True)
        column = best[:, :, None].expand(-1, -1, windows.size, 1)
        covered = torch.maximum(covered, cosines.gather(3, column))
    return torch.cat(chosen, dim=2).sort(dim=2).values


def facility_macs(features: Tensor, windows: Windows) -> int:
    """What `facilities` takes in products, of all samples together."""
    return features.numel() * (1 + windows.size)


@dataclass(frozen=True, eq=False)
class Weighted:
    """Tokens of windows as weighted means, and back: two products, no scattered memory.

    `places` are token numbers of the windows in the order of their rows [samples, windows x tokens of one], `merging`
    [samples, windows, groups, tokens] has rows that sum to 1, `spreading` [samples, windows, tokens, groups] as well.
    """

    kept: Tensor
    merging: Tensor
    spreading: Tensor
    places: Tensor

    @classmethod
    def of(cls, features: Tensor, windows: Windows, destinations: Tensor, temperature: float) -> Weighted:
        """Every token is shared among its window's `destinations` [samples, windows, k] by softmax of its cosines."""
        inside = windows.of(unit(features))
        width = inside.shape[-1]
        targets = inside.gather(2, destinations[..., None].expand(-1, -1, -1, width))
        shares = (targets @ inside.transpose(2, 3) / temperature).softmax(2)
        members = windows.members.expand(features.shape[0], -1, -1)
        kept = members.gather(2, destinations).flatten(1)
        merging = shares / shares.sum(3, keepdim=True)
        return cls(kept, merging, shares.transpose(2, 3), windows.members.flatten())

    @property
    def shared(self) -> Tensor:
        return torch.ones(self.kept.shape[0], len(self.places), dtype=torch.bool, device=self.kept.device)

    def before(self, read: Tensor) -> Tensor:
        inside = read[:, self.places].unflatten(1, (self.merging.shape[1], -1))
        return (self.merging.to(read.dtype) @ inside).flatten(1, 2)

    def after(self, output: Tensor) -> Tensor:
        groups = output.unflatten(1, (self.merging.shape[1], -1))
        spread = (self.spreading.to(output.dtype) @ groups).flatten(1, 2)
        return torch.empty_like(spread).index_copy_(1, self.places, spread)

    def macs(self, width: int) -> int:
        """What merging and spreading take in products, of all samples together."""
        return 2 * self.merging.numel() * width
