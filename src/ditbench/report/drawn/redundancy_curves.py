"""How much structure, detail and likeness there was among tokens along the steps: curves and tables of them (SDTM)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ditbench.report.figures import COLOURS, plain_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BANDS = ("LL", "LH", "HL", "HH")


@dataclass
class Redundancy:
    """By [step, block, sample]: norms of the sub-bands (last axis), cosines and distances of most similar tokens."""

    world: str
    bands: NDArray[np.float64]
    cosines: NDArray[np.float64]
    distances: NDArray[np.float64]


def redundancy_figure(found: Redundancy) -> Figure:
    """SDTM's Figure 2: structure and detail, and distance and likeness of the most similar tokens, over steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.8), layout="constrained")
    FigureCanvasAgg(figure)
    panels: Sequence[Any] = figure.subplots(1, 4)
    _spread(panels[0], [("LL", found.bands[..., 0])], "norm of LL (structure)")
    detail = [(name, found.bands[..., number]) for number, name in enumerate(BANDS) if number]
    _spread(panels[1], detail, "norm of LH, HL, HH (detail)")
    _spread(panels[2], [("", found.distances)], "distance to the most similar token")
    _spread(panels[3], [("", found.cosines)], "cosine to the most similar token")
    return figure


def _spread(axes: Any, curves: Sequence[tuple[str, NDArray[np.float64]]], label: str) -> None:
    """Mean, least and greatest over blocks and samples, step by step."""
    plain_axes(axes)
    for (name, values), colour in zip(curves, COLOURS, strict=False):
        flat = values.reshape(len(values), -1)
        steps = np.arange(1, len(values) + 1)
        axes.fill_between(steps, flat.min(1), flat.max(1), color=colour, alpha=0.15, linewidth=0)
        axes.plot(steps, flat.mean(1), color=colour, linewidth=1.6, label=name)
    if len(curves) > 1:
        axes.legend(frameon=False, fontsize=8)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("step", fontsize=9)
    axes.set_title(label, fontsize=9)


def as_data(found: Redundancy) -> dict[str, Any]:
    """Means over blocks and samples by step, and over samples by step and block."""
    bands = {name: found.bands[..., number] for number, name in enumerate(BANDS)}
    return {
        "world": found.world,
        "samples": found.cosines.shape[2],
        "by_step": {
            **{f"norm_{name}": values.mean((1, 2)).tolist() for name, values in bands.items()},
            "distance": found.distances.mean((1, 2)).tolist(),
            "cosine": found.cosines.mean((1, 2)).tolist(),
        },
        "by_step_and_block": {
            "distance": found.distances.mean(2).tolist(),
            "cosine": found.cosines.mean(2).tolist(),
        },
    }


def as_rows(found: Redundancy) -> list[dict[str, Any]]:
    """Mean, least and greatest over images of every quantity, step and block, for a table."""
    named = {f"norm_{name}": found.bands[..., number] for number, name in enumerate(BANDS)}
    named |= {"distance": found.distances, "cosine": found.cosines}
    return list(_rows(named))


def _rows(named: dict[str, NDArray[np.float64]]) -> Iterator[dict[str, Any]]:
    for name, values in named.items():
        for step, block in np.ndindex(values.shape[:2]):
            images = values[step, block]
            spread = {"mean": float(images.mean()), "least": float(images.min()), "greatest": float(images.max())}
            yield {"quantity": name, "step": int(step) + 1, "block": int(block) + 1, **spread}
