"""How an arm's compression ratios came about: those of blocks, their mean, and what they became (DiffCR)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ditbench.report.figures import INK, inline_svg, plain_axes, saved

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Blocks in their order, from dark to light: both ends stand on white and on near-black.
BLOCKS = "viridis"


def ratios_svg(found: Mapping[str, Any], knobs: Mapping[str, Any], label: str, prefix: str) -> str | None:
    """The figure for a page; None where there are no ratios, or nobody noted how they came about."""
    drawn = ratios_figure(found, knobs, "svg")
    return None if drawn is None else inline_svg(drawn, f"Compression ratios of {label} while it was trained", prefix)


def ratios_figure(found: Mapping[str, Any], knobs: Mapping[str, Any], kind: str) -> bytes | None:
    """Trajectories of blocks (the mean over regions of timesteps), their mean with its target, and what was learned."""
    if not found.get("trajectory") or not found.get("ratios"):
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 2.9), layout="constrained")
    FigureCanvasAgg(figure)
    draw_ratios(figure.subplots(1, 3), found, float(knobs["ratio"]))
    return saved(figure, kind, "ratios")


def draw_ratios(axes: Sequence[Any], found: Mapping[str, Any], target: float) -> None:
    """Draws what training noted into three panels."""
    path = np.array(found["trajectory"])  # [noted, regions, blocks]
    _trajectories(axes[0], noted_steps(found), path.mean(1))
    _mean(axes[1], found["history"], target)
    _learned(axes[2], np.array(found["ratios"]))


def noted_steps(found: Mapping[str, Any]) -> NDArray[np.int64]:
    """The steps of training at which ratios were noted."""
    noted = len(found["trajectory"])
    steps: NDArray[np.int64] = np.arange(noted) * max(len(found["history"]["ratio"]) // max(noted - 1, 1), 1)
    return steps


def _trajectories(axes: Any, steps: NDArray[np.int64], blocks: NDArray[np.float64]) -> None:
    from matplotlib import colormaps

    plain_axes(axes)
    colours = colormaps[BLOCKS](np.linspace(0.1, 0.9, blocks.shape[1]))
    for block, colour in enumerate(colours):
        axes.plot(steps, 100 * blocks[:, block], color=colour, linewidth=1.3)
        axes.annotate(str(block + 1), (steps[-1], 100 * blocks[-1, block]), color=INK, fontsize=7, va="center")
    axes.set_xlabel("step of training", color=INK, fontsize=9)
    axes.set_ylabel("compression of each block, %", color=INK, fontsize=9)


def _mean(axes: Any, history: Mapping[str, Any], target: float) -> None:
    plain_axes(axes)
    axes.axhline(100 * target, color=INK, alpha=0.5, linewidth=1, linestyle="--")
    axes.plot(100 * np.array(history["deployed"]), color="#56b4e9", linewidth=1, label="in bins, as it samples")
    axes.plot(100 * np.array(history["ratio"]), color="#0072b2", linewidth=1.6, label="mean ratio")
    axes.set_xlabel("step of training", color=INK, fontsize=9)
    axes.set_ylabel("mean compression, %", color=INK, fontsize=9)
    axes.legend(frameon=False, labelcolor=INK, fontsize=8)


def _learned(axes: Any, learned: NDArray[np.float64]) -> None:
    """Bars of blocks; where regions differ, a map of regions, noise at the top."""
    if len(learned) == 1:
        plain_axes(axes)
        axes.bar(np.arange(learned.shape[1]) + 1, 100 * learned[0], color="#0072b2")
        axes.set_ylabel("learned compression, %", color=INK, fontsize=9)
    else:
        axes.imshow(100 * learned[::-1], aspect="auto", cmap="viridis", vmin=0, vmax=100 * max(learned.max(), 0.01))
        for row, values in enumerate(learned[::-1]):
            for block, value in enumerate(values):
                dark = value < 0.55 * learned.max()
                axes.text(
                    *(block, row, f"{100 * value:.0f}"),
                    **{"ha": "center", "va": "center", "fontsize": 7, "color": "#ffffff" if dark else "#111111"},
                )
        axes.set_xticks(range(learned.shape[1]), [str(block + 1) for block in range(learned.shape[1])])
        axes.set_yticks(range(len(learned)), ["noisy", *[""] * (len(learned) - 2), "clean"])
        axes.set_title("learned compression, %", color=INK, fontsize=9)
        axes.tick_params(colors=INK, labelsize=8)
    axes.set_xlabel("block", color=INK, fontsize=9)
