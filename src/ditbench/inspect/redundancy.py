"""Where tokens are alike while an image is drawn: SDTM's preliminaries (its Figure 2), for any world of images.

Of what every block gives out at every step: how much lies in each sub-band of a Haar wavelet (LL is structure, the
others are detail), how alike each token's most similar other token is, and how far from it on the grid it lies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from ditbench.engine.fills import Pass
from ditbench.engine.layout import Shape
from ditbench.engine.plan import Plan
from ditbench.faults import Fault
from ditbench.methods.base import Method
from ditbench.report.drawn.redundancy_curves import Redundancy

if TYPE_CHECKING:
    from ditbench.backbones import Stream
    from ditbench.engine.fills import Fill
    from ditbench.generate import Texts

# As many rows of a similarity matrix are held at once.
ROWS = 1024


def measure(
    world_name: str,
    captions: int,
    seed: int,
    batch: int,
    device: str = "cpu",
    weights: str | None = None,
    embedded: Callable[[str | None], Texts] | None = None,
) -> Redundancy:
    """Looks on while so many captions are drawn by the full network: the world's own where none are `embedded`.

    `embedded` gives those of a run, for weights of a name.
    """
    from ditbench.generate import Sampler, Texts
    from ditbench.worlds import get_world

    world = get_world(world_name)
    if world.frames is not None:
        raise Fault(f"world {world_name} draws videos; tokens are compared on the grid of an image")
    if embedded is not None:
        sampler = Sampler(world_name, device, weights)
        whole = embedded(sampler.handle.weights)
    else:
        texts = world.draw_captions(captions, seed)
        reading = world.load(device, weights, "text")
        given, negative = world.embed(reading, texts), world.embed(reading, [""] if world.text_tokens else texts[:1])
        whole = Texts(texts, given, negative)
        sampler = Sampler(world_name, device, weights)
    rows, columns = (int(side) for side in world.size_text.split("x")[-2:])
    grid = (round((world.tokens * rows / columns) ** 0.5), round((world.tokens * columns / rows) ** 0.5))
    found: list[Looking] = []
    for first in range(0, len(whole.ids), batch):
        looking = Looking(grid, world.halves)
        sampler.run(_Looked(looking), None, seed, whole.part(first, first + batch))
        found.append(looking)
    return Redundancy(
        world_name,
        np.concatenate([_stacked(looking.bands) for looking in found], axis=2),
        np.concatenate([_stacked(looking.cosines) for looking in found], axis=2),
        np.concatenate([_stacked(looking.distances) for looking in found], axis=2),
    )


def _stacked(by_site: dict[tuple[int, int], Tensor]) -> NDArray[np.float64]:
    steps, blocks = (1 + max(place[axis] for place in by_site) for axis in (0, 1))
    rows = [[by_site[step, block].double().cpu().numpy() for block in range(blocks)] for step in range(steps)]
    return np.array(rows)


@dataclass
class Looking(Pass):
    """A fill of a full plan of blocks: it is shown what leaves each of them, and leaves nothing out."""

    wants_all: ClassVar[bool] = True

    grid: tuple[int, int]
    halves: int
    bands: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    cosines: dict[tuple[int, int], Tensor] = field(default_factory=dict)
    distances: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def keep_stream(self, unit: int, step: int, stream: Stream) -> None:
        """Notes what a block gave out, of the conditional branch."""
        tokens = stream.hidden.chunk(self.halves)[-1].float()
        self.bands[step, unit] = band_norms(tokens, self.grid)
        self.cosines[step, unit], self.distances[step, unit] = most_similar(tokens, self.grid)

    def replace(self, unit: int, step: int, stream: Stream) -> None:
        raise AssertionError("nothing is left out")


@dataclass(frozen=True)
class _Looked(Method):
    """The full network, with somebody who looks on."""

    name: ClassVar[str] = "full"
    summary: ClassVar[str] = ""
    paper: ClassVar[str] = ""

    looking: Any = None

    def plan(self, shape: Shape) -> Plan:
        return Plan(shape.layout, shape.layout.by_block, np.ones((shape.steps, shape.layout.blocks)))

    def fill(self, shape: Shape) -> Fill:
        fill: Fill = self.looking
        return fill


def band_norms(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """The L2 norm of every sub-band of one level of Haar's wavelet, [samples, 4], in the order of `BANDS`.

    LH is detail from row to row, HL from column to column. A row or column beyond an even number is left out.
    """
    picture = tokens.unflatten(1, grid)[:, : grid[0] // 2 * 2, : grid[1] // 2 * 2]
    upper, lower = picture[:, ::2], picture[:, 1::2]
    a, b, c, d = upper[:, :, ::2], upper[:, :, 1::2], lower[:, :, ::2], lower[:, :, 1::2]
    bands = (a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d)
    return torch.stack([(band / 2).flatten(1).norm(dim=1) for band in bands], dim=1)


def most_similar(tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Each sample's mean cosine of a token and the other one most like it, and their mean distance on the grid."""
    unit = functional.normalize(tokens, dim=-1)
    count = tokens.shape[1]
    places = torch.arange(count, device=tokens.device)
    where = torch.stack([places // grid[1], places % grid[1]], dim=1).float()
    cosines, distances = [], []
    for first in range(0, count, ROWS):
        alike = unit[:, first : first + ROWS] @ unit.transpose(1, 2)
        mine = places[first : first + ROWS]
        alike[:, torch.arange(len(mine), device=tokens.device), mine] = -torch.inf
        best = alike.max(dim=2)
        cosines.append(best.values)
        distances.append((where[mine] - where[best.indices]).norm(dim=-1))
    return torch.cat(cosines, dim=1).mean(1), torch.cat(distances, dim=1).mean(1)
