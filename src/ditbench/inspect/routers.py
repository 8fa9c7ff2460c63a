"""What routers say of an image's tokens: their maps by block and step, beside the image that was drawn (DiffCR)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ditbench.faults import Fault

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Generator

    from ditbench.backbones import Stream
    from ditbench.engine.layout import Shape, Unit
    from ditbench.engine.selectors import Selector
    from ditbench.methods.tuned import Routed

# As many blocks and steps are shown, from the first to the last.
SHOWN_BLOCKS, SHOWN_STEPS = 8, 5


@dataclass(frozen=True)
class Maps:
    """Of one image: scores [step, block, tokens] of its conditional branch, and the share that passes by there."""

    caption: str
    image: NDArray[np.uint8]
    scores: NDArray[np.float64]
    left_out: NDArray[np.float64]
    grid: tuple[int, int]

    @property
    def correlation(self) -> float:
        """Between what is left out at a site and the mean score there: -1 where low scores and high ratios agree."""
        means = self.scores.mean(-1).ravel()
        ratios = self.left_out.ravel()
        if means.std() == 0 or ratios.std() == 0:
            return float("nan")
        return float(np.corrcoef(ratios, means)[0, 1])


def router_maps(record: Path, caption: str, seed: int, device: str = "cpu", weights: str | None = None) -> Maps:
    """Draws a caption with what a record of learning holds, and notes what its routers say on the way."""
    from ditbench.generate import Sampler, Texts
    from ditbench.learn.job import learned_method
    from ditbench.methods.tuned import Routed
    from ditbench.records import read_record
    from ditbench.worlds import get_world

    body = read_record(record, "learned")
    method = learned_method(record)
    if not isinstance(method, Routed):
        raise Fault(f"{record} is of {method.name}, which has no routers")
    world = get_world(body["world"])
    reading = world.load(device, weights, "text")
    texts = Texts(["routers"], world.embed(reading, [caption]), world.embed(reading, [""]))
    sampler = Sampler(body["world"], device, weights)
    seen: dict[tuple[int, int], NDArray[np.float64]] = {}
    images, _ = sampler.run(noting(method, seen), body["steps"], seed, texts)
    shape = world.shape(method.steps(body["steps"] or world.default_steps))
    steps, blocks = shape.steps, shape.layout.blocks
    scores = np.full((steps, blocks, shape.tokens), np.nan)
    for (step, block), values in seen.items():
        scores[step, block] = values
    rows, columns = (int(side) for side in world.size_text.split("x")[-2:])
    grid = (round((shape.tokens * rows / columns) ** 0.5), round((shape.tokens * columns / rows) ** 0.5))
    return Maps(caption, images[0], scores, 1 - method.plan(shape).shares, grid)


def noting(method: Routed, seen: dict[tuple[int, int], NDArray[np.float64]]) -> Routed:
    """The method, whose routers' scores of a batch's last sample are noted by step and block."""
    from ditbench.engine.routing import RoutedTokens

    class Noting(RoutedTokens):
        def enter(self, unit: Unit, step: int, stream: Stream) -> None:
            super().enter(unit, step, stream)
            assert self._scores is not None
            seen[step, self._block_of[unit.start]] = self._scores[-1].double().cpu().numpy()

    class Looked(type(method)):  # type: ignore[misc]
        def selector(self, shape: Shape, generator: Generator) -> Selector:
            return Noting(self._routers(), shape.layout, self.score, self.guidance)

    looked: Any = Looked(**{name: getattr(method, name) for name in method.knobs()})
    return looked.knowing(method.found)  # type: ignore[no-any-return]


def maps_figure(maps: Maps) -> Figure:
    """The image, maps of blocks (down) by steps (across), and mean scores against ratios."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=maps_size(maps), layout="constrained")
    FigureCanvasAgg(figure)
    draw_maps(figure, maps)
    return figure


def _shown(maps: Maps) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The blocks and the steps that are shown."""
    steps, blocks, _ = maps.scores.shape
    down = np.unique(np.linspace(0, blocks - 1, min(blocks, SHOWN_BLOCKS)).round().astype(int))
    across = np.unique(np.linspace(0, steps - 1, min(steps, SHOWN_STEPS)).round().astype(int))
    return down, across


def maps_size(maps: Maps) -> tuple[float, float]:
    """Width and height of the picture, in inches."""
    down, across = _shown(maps)
    return 3.4 + 1.05 * len(across), 0.5 + 1.05 * len(down)


def draw_maps(figure: Any, maps: Maps) -> None:
    """Draws the maps into a figure, or a part of one."""
    steps, blocks, _ = maps.scores.shape
    down, across = _shown(maps)
    halves: Any = figure.subfigures(1, 2, width_ratios=[3.2, 1.05 * len(across)])
    left, right = halves
    top, bottom = left.subplots(2, 1)
    top.imshow(maps.image, interpolation="nearest")
    top.set_axis_off()
    top.set_title("\n".join(_wrapped(maps.caption, 34)), fontsize=8)
    means, ratios = maps.scores.mean(-1), maps.left_out
    points = bottom.scatter(
        100 * ratios.ravel(), means.ravel(), c=np.repeat(np.arange(1, steps + 1), blocks), cmap="viridis_r", s=14
    )
    bottom.set_xlabel("tokens that pass by, %", fontsize=8)
    bottom.set_ylabel("mean score", fontsize=8)
    alike = np.isnan(maps.correlation)
    told = "the same share everywhere" if alike else f"correlation {maps.correlation:.2f}"
    bottom.set_title(f"{told}; colour: step", fontsize=8)
    bottom.tick_params(labelsize=7)
    figure.colorbar(points, ax=bottom, shrink=0.8).ax.tick_params(labelsize=7)
    highest = 1.0 if np.nanmax(maps.scores) <= 1 else 2.0
    right.suptitle(f"scores of tokens, from 0 (dark) to {highest:g} (light)", fontsize=8)
    shown = right.subplots(len(down), len(across), squeeze=False)
    for i, block in enumerate(down):
        for j, step in enumerate(across):
            axes = shown[i][j]
            axes.imshow(maps.scores[step, block].reshape(maps.grid), vmin=0, vmax=highest, cmap="magma")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_xlabel(f"{100 * maps.left_out[step, block]:.0f} % pass by", fontsize=6, labelpad=1)
            if i == 0:
                axes.set_title(f"step {step + 1}", fontsize=8)
            if j == 0:
                axes.set_ylabel(f"block {block + 1}", fontsize=8)


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width)
