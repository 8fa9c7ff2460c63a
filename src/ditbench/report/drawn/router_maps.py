"""Maps of what routers say of an image's tokens, by block and step, beside the image that was drawn (DiffCR)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ditbench.report.figures import in_words

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
        scored = ~np.isnan(means)  # MoD may leave blocks alone
        means, ratios = means[scored], self.left_out.ravel()[scored]
        if means.std() == 0 or ratios.std() == 0:
            return float("nan")
        return float(np.corrcoef(ratios, means)[0, 1])


@in_words
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
    down, across = _shown(maps)
    halves: Any = figure.subfigures(1, 2, width_ratios=[3.2, 1.05 * len(across)])
    left, right = halves
    top, bottom = left.subplots(2, 1)
    top.imshow(maps.image, interpolation="nearest")
    top.set_axis_off()
    top.set_title("\n".join(_wrapped(maps.caption, 34)), fontsize=8)
    points = scatter(bottom, maps, fontsize=8)
    bottom.set_title(f"{correlation_text(maps)}; colour: step", fontsize=8)
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


def scatter(axes: Any, maps: Maps, fontsize: float) -> Any:
    """The mean score of every block and step against what passes by there, coloured by step."""
    steps, blocks, _ = maps.scores.shape
    axes.set_xlabel("tokens that pass by, %", fontsize=fontsize)
    axes.set_ylabel("mean score", fontsize=fontsize)
    colours = np.repeat(np.arange(1, steps + 1), blocks)
    return axes.scatter(100 * maps.left_out.ravel(), maps.scores.mean(-1).ravel(), c=colours, cmap="viridis_r", s=14)


def correlation_text(maps: Maps) -> str:
    """How ratios and mean scores go together, in words."""
    none = np.isnan(maps.correlation)
    return "the same share everywhere" if none else f"correlation {maps.correlation:.2f}"


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width)
