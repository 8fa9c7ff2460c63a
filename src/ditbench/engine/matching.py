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


class Partners(NamedTuple):
    """Whom each of some tokens joins [samples, k], and the MACs of finding that out, of all samples together."""

    tokens: Tensor
    macs: int


def nearest(features: Tensor, sources: Tensor, grid: Grid, side: int) -> Partners:
    """For each of the `sources` [samples, k] the most alike of the other tokens; one of its own window if there is any.

    Windows at the grid's edge may hold fewer tokens. All are looked for inside windows; where no token of a window
    stays, its sources are compared with all that do. How many of a sample do so is asked of the device, but where it
    cannot tell: without data, or while a CUDA graph is captured, as many as there can be are looked for.
    """
    samples, tokens, width = features.shape
    normed = unit(features)
    members, real, place = _cells(grid, side, features.device)
    away = _marked(sources, tokens)
    inside = normed[:, members]  # [samples, cells, tokens of one, width]
    leaves = away[:, members] | ~real
    cosines = (inside @ inside.transpose(2, 3)).masked_fill(leaves[:, :, None], -torch.inf)
    partner = members.expand(samples, -1, -1).gather(2, cosines.argmax(3))
    found = partner.flatten(1)[:, place].gather(1, sources)
    alone = leaves.all(2)[:, place // members.shape[1]].gather(1, sources)
    seeking = _most_seeking(alone, tokens, grid, side)
    macs = samples * width * (tokens + members.numel() * members.shape[1] + seeking * (tokens - sources.shape[1]))
    if seeking:
        order = alone.int().argsort(dim=1, descending=True, stable=True)[:, :seeking]
        best = _most_alike(normed, sources.gather(1, order), _unmarked(away, tokens - sources.shape[1]))
        found = found.scatter(1, order, torch.where(alone.gather(1, order), best, found.gather(1, order)))
    return Partners(found, macs)


def nearest_kept(features: Tensor, gone: Tensor) -> Groups:
    """All tokens but those `gone` [samples, k] are computed as they are; these receive what the most alike one does."""
    tokens = features.shape[1]
    kept = _unmarked(_marked(gone, tokens), tokens - gone.shape[1])
    return Groups.of(gone, _most_alike(unit(features), gone, kept), tokens, mean=False)


def nearest_kept_macs(features: Tensor, gone: int) -> int:
    """What `nearest_kept` takes, of all samples together."""
    samples, tokens, width = features.shape
    return samples * width * (tokens + gone * (tokens - gone))


def _cells(grid: Grid, side: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """A grid cut into squares, those at its edge too: each one's tokens, which of these there are, [cells, tokens of
    one] both, and every token's place among all of them.
    """
    down, across = -(-grid[0] // side), -(-grid[1] // side)
    numbers = torch.arange(grid[0] * grid[1], device=device)
    edge = (0, across * side - grid[1], 0, down * side - grid[0])
    squares = functional.pad(numbers.view(grid), edge, value=-1).view(down, side, across, side)
    members = squares.transpose(1, 2).reshape(down * across, side * side)
    row, column = numbers // grid[1], numbers % grid[1]
    cell, within = row // side * across + column // side, row % side * side + column % side
    return members.clamp_min(0), members >= 0, cell * side * side + within


def _most_alike(normed: Tensor, seekers: Tensor, kept: Tensor) -> Tensor:
    """For each of the `seekers` [samples, k] the most alike of the tokens that are `kept` [samples, n]: its number."""
    cosines = _at(normed, seekers) @ _at(normed, kept).transpose(1, 2)
    return kept.gather(1, cosines.argmax(2))


def _marked(index: Tensor, tokens: int) -> Tensor:
    """Which tokens are among those at `index` [samples, k], [samples, tokens]."""
    return torch.zeros(len(index), tokens, dtype=torch.bool, device=index.device).scatter_(1, index, True)


def _unmarked(marked: Tensor, count: int) -> Tensor:
    """The `count` tokens of each sample that are not marked, ascending."""
    return marked.int().argsort(dim=1, stable=True)[:, :count]


def _most_seeking(alone: Tensor, tokens: int, grid: Grid, side: int) -> int:
    """The sources without one that stays in their window, of the sample that has most of them."""
    if alone.is_meta or (alone.is_cuda and torch.cuda.is_current_stream_capturing()):
        if grid[0] % side or grid[1] % side:
            return alone.shape[1]
        return alone.shape[1] // side**2 * side**2  # whole windows of them
    return int(alone.sum(1).max())


def _at(features: Tensor, index: Tensor) -> Tensor:
    """Some tokens' features, [samples, k, width]."""
    return features.gather(1, index[..., None].expand(-1, -1, features.shape[-1]))
