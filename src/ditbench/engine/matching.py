"""Which tokens are alike: matchings of an image's tokens, each a function of their features and at times of chance.

Features are [samples, tokens, width]. Nothing here keeps state, waits for a device or knows a method.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ditbench.engine.merging import Groups
from ditbench.faults import Fault

Grid = tuple[int, int]


class Windows:
    """A grid of tokens cut into squares of `side`; rows and columns that fill no square belong to none."""

    def __init__(self, grid: Grid, side: int, device: torch.device) -> None:
        self.grid, self.side = grid, side
        self.down, self.across = grid[0] // side, grid[1] // side
        if not (self.down and self.across):
            raise Fault(f"a grid of {grid[0]} x {grid[1]} tokens holds no square of {side} x {side}")
        tokens = torch.arange(grid[0] * grid[1], device=device).view(grid)
        tokens = tokens[: self.down * side, : self.across * side]
        cells = tokens.view(self.down, side, self.across, side).transpose(1, 2)
        self.members = cells.reshape(self.down * self.across, side * side)  # [windows, tokens of one]

    def __len__(self) -> int:
        return self.down * self.across

    @property
    def size(self) -> int:
        """Tokens of one window."""
        return self.side**2

    def of(self, values: Tensor) -> Tensor:
        """What is known of each token [samples, tokens, ...], by window: [samples, windows, tokens of one, ...]."""
        return values[:, self.members]


def unit(features: Tensor) -> Tensor:
    """Features of length 1, so that products are cosines."""
    return functional.normalize(features, dim=-1)


def one_of_each(windows: Windows, values: Tensor) -> Tensor:
    """The token of each window with the highest value [samples, tokens]: its number, [samples, windows]."""
    members = windows.members.expand(values.shape[0], -1, -1)
    best: Tensor = windows.of(values).argmax(2, keepdim=True)
    return members.gather(2, best)[..., 0]


class Bipartite(NamedTuple):
    """Every source's best destination. `sources` and `destinations` are token numbers, [samples, sources] each."""

    sources: Tensor
    destinations: Tensor
    cosines: Tensor

    def closest(self, count: int) -> tuple[Tensor, Tensor]:
        """The `count` sources that are closest to their destinations, and these."""
        # Sorted, not topk: of equal ones the first, whatever device or batch it is.
        order = self.cosines.argsort(dim=1, descending=True, stable=True)[:, :count]
        return self.sources.gather(1, order), self.destinations.gather(1, order)


def bipartite(features: Tensor, destinations: Tensor) -> Bipartite:
    """Matches every token that is no destination [samples, k] to the destination that is most like it."""
    samples, tokens, _ = features.shape
    is_source = destinations.new_ones(samples, tokens).scatter_(1, destinations, 0)
    sources = is_source.argsort(dim=1, descending=True, stable=True)[:, : tokens - destinations.shape[1]]
    normed = unit(features)
    best, where = (_at(normed, sources) @ _at(normed, destinations).transpose(1, 2)).max(dim=2)
    return Bipartite(sources, destinations.gather(1, where), best)


def bipartite_macs(features: Tensor, destinations: int) -> int:
    """What such a matching takes, of all samples together."""
    samples, tokens, width = features.shape
    return samples * width * (tokens + (tokens - destinations) * destinations)


def window_similarity(features: Tensor, windows: Windows) -> Tensor:
    """The mean cosine of the pairs of different tokens of each window, [samples, windows]."""
    inside = windows.of(unit(features))
    sums = inside.sum(2)
    # The square of a sum of unit vectors holds every ordered pair, and each vector with itself.
    pairs = (sums * sums).sum(-1) - (inside * inside).sum((2, 3))
    return pairs / (windows.size * (windows.size - 1))


def window_macs(features: Tensor) -> int:
    """What `window_similarity` takes, of all samples together: norms, sums and squares of each token once or twice."""
    return 3 * features.numel()


def whole_windows(windows: Windows, chosen: Tensor, destination: Tensor, tokens: int, mean: bool) -> Groups:
    """Every `chosen` window [samples, k] as one group, kept at its `destination`'s place in it [samples, k]."""
    members = windows.members[chosen]  # [samples, k, tokens of one]
    kept = members.gather(2, destination[..., None])
    places = torch.arange(windows.size, device=chosen.device)
    # Every place but the destination's: those before it as they are, those after it one further.
    others = places[: windows.size - 1] + (places[: windows.size - 1] >= destination[..., None])
    sources = members.gather(2, others)
    return Groups.of(sources.flatten(1), kept.expand_as(sources).flatten(1), tokens, mean)


def nearest(features: Tensor, sources: Tensor, grid: Grid, side: int) -> Tensor:
    """For each of the `sources` [samples, k] the most alike of the other tokens; one of its own window if there is any.

    The answer holds token numbers, [samples, k].
    """
    samples, tokens, _ = features.shape
    normed = unit(features)
    cosines = _at(normed, sources) @ normed.transpose(1, 2)  # [samples, k, tokens]
    away = torch.zeros(samples, tokens, dtype=torch.bool, device=features.device).scatter_(1, sources, True)
    numbers = torch.arange(tokens, device=features.device)
    window = (numbers // grid[1] // side) * (grid[1] // side + 1) + numbers % grid[1] // side
    same = window[sources][..., None] == window
    # Cosines differ by 2 at most.
    found: Tensor = (cosines + 3 * same).masked_fill(away[:, None], -torch.inf).argmax(2)
    return found


def nearest_kept(features: Tensor, gone: Tensor) -> Groups:
    """All tokens but those `gone` [samples, k] are computed as they are; these receive what the most alike one does."""
    samples, tokens, _ = features.shape
    normed = unit(features)
    left = torch.zeros(samples, tokens, dtype=torch.bool, device=features.device).scatter_(1, gone, True)
    cosines = _at(normed, gone) @ normed.transpose(1, 2)
    best = cosines.masked_fill(left[:, None], -torch.inf).argmax(2)
    return Groups.of(gone, best, tokens, mean=False)


def _at(features: Tensor, index: Tensor) -> Tensor:
    """Some tokens' features, [samples, k, width]."""
    return features.gather(1, index[..., None].expand(-1, -1, features.shape[-1]))
