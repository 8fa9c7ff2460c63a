"""Figures of what a network says while it draws images: `ditbench look` draws them and keeps what was seen.

What was seen lies in `looked/WORLD` of the results, named by what was asked, so that figures may share it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ditbench.faults import Fault
from ditbench.report.drawn.drawing import Drawing, canvas, why_missing
from ditbench.report.drawn.redundancy_curves import Redundancy, as_rows, redundancy_figure
from ditbench.report.drawn.router_maps import Maps, correlation_text, draw_maps, maps_size, scatter
from ditbench.report.figures import INK, plain_axes

if TYPE_CHECKING:
    from ditbench.report.results import Results
    from ditbench.study import Row, Study
    from ditbench.study_figures import Figure


def learned_record(root: Path, world: str, arm: str) -> Path:
    """Where the record of an arm's training is."""
    return root / "learned" / world / arm / "learned.json"


def routers_file(root: Path, world: str, arm: str, figure: Figure) -> Path:
    """Where what an arm's routers said of a caption is kept."""
    key = hashlib.sha256(f"{figure.caption}\n{figure.seed}".encode()).hexdigest()[:12]
    return root / "looked" / world / f"routers-{arm}-{key}.npz"


def redundancy_file(root: Path, world: str, figure: Figure) -> Path:
    """Where what was seen of so many captions' tokens is kept."""
    return root / "looked" / world / f"redundancy-{figure.captions}-seed{figure.seed}.npz"


def routers(study: Study, figure: Figure, results: Results) -> Drawing:
    """The image of a caption, and the maps of an arm's routers by block and step."""
    found, missing = _maps(study, figure, results)
    if not found:
        return Drawing(figure, missing=missing)
    sizes = [maps_size(maps) for maps in found.values()]
    picture = canvas(max(width for width, _ in sizes), sum(height for _, height in sizes))
    ratios = [height for _, height in sizes]
    parts = picture.subfigures(len(found), 1, squeeze=False, height_ratios=ratios)[:, 0]
    for part, (arm, maps) in zip(parts, found.items(), strict=True):
        part.patch.set_alpha(0)
        if len(found) > 1:
            part.suptitle(study.row(arm).label, fontsize=10, color=INK)
        draw_maps(part, maps)
    caption = (
        "Scores that routers give the tokens of one image, by block (down) and step (across), with the share that "
        "passes by; their means are in the data, the maps themselves under looked/."
    )
    return Drawing(figure, picture, _rows(found), caption, missing)


def correlation(study: Study, figure: Figure, results: Results) -> Drawing:
    """Maps of the blocks of the highest, a middle and the lowest ratio, and all mean scores against ratios."""
    found, missing = _maps(study, figure, results)
    if not found:
        return Drawing(figure, missing=missing)
    picture = canvas(12.4, 2.9 * len(found))
    panels = picture.subplots(len(found), 5, squeeze=False, width_ratios=(1, 1, 1, 1, 1.5))
    for line, (arm, maps) in zip(panels, found.items(), strict=True):
        middle = len(maps.scores) // 2
        ratios = maps.left_out[middle]
        half = (ratios.max() + ratios.min()) / 2
        chosen = (int(ratios.argmax()), int(np.abs(ratios - half).argmin()), int(ratios.argmin()))
        line[0].imshow(maps.image, interpolation="nearest")
        line[0].set_title(study.row(arm).label, fontsize=9, color=INK)
        highest = 1.0 if np.nanmax(maps.scores) <= 1 else 2.0
        for axes, block in zip(line[1:4], chosen, strict=True):
            axes.imshow(maps.scores[middle, block].reshape(maps.grid), vmin=0, vmax=highest, cmap="magma")
            axes.set_title(f"block {block + 1}: ratio {ratios[block]:.0%}", fontsize=9, color=INK)
        for axes in line[:4]:
            axes.set_xticks([])
            axes.set_yticks([])
        _scatter(line[4], maps)
    caption = (
        "Blocks of the highest, a middle and the lowest learned ratio with their routers' scores at the middle step, "
        "from dark (0) to light; and the mean score of every block and step against the share of tokens that passes by."
    )
    return Drawing(figure, picture, _rows(found), caption, missing)


def _scatter(axes: Any, maps: Maps) -> None:
    plain_axes(axes)
    points = scatter(axes, maps, fontsize=9)
    axes.set_title(correlation_text(maps), fontsize=9, color=INK)
    axes.figure.colorbar(points, ax=axes).set_label("step", fontsize=8, color=INK)


def redundancy(study: Study, figure: Figure, results: Results) -> Drawing:
    """Structure and detail, distance and likeness of the most similar tokens, over steps."""
    path = redundancy_file(results.root, study.world, figure)
    if not path.is_file():
        return Drawing(figure, missing=[_to_look(study, "Nobody has looked at the network yet")])
    with np.load(path, allow_pickle=False) as seen:
        found = Redundancy(study.world, seen["bands"], seen["cosines"], seen["distances"])
    caption = (
        f"Of what every block gives out, over {found.cosines.shape[2]} images: norms of the sub-bands of Haar's "
        "wavelet, and how far the most similar token lies and how alike it is. Lines are means, bands go from the "
        "least to the greatest of blocks and images."
    )
    return Drawing(figure, redundancy_figure(found), as_rows(found), caption)


def _maps(study: Study, figure: Figure, results: Results) -> tuple[dict[str, Maps], list[str]]:
    found: dict[str, Maps] = {}
    missing: list[str] = []
    for arm in figure.drawn_arms(()):
        try:
            seen = _seen(study, study.row(arm), figure, results)
        except Fault as fault:
            missing.append(str(fault))
            continue
        grid = (int(seen["grid"][0]), int(seen["grid"][1]))
        found[arm] = Maps(str(figure.caption), seen["image"], seen["scores"], seen["left_out"], grid)
    return found, missing


def _seen(study: Study, row: Row, figure: Figure, results: Results) -> dict[str, Any]:
    from ditbench.storage import hash_file

    record = learned_record(results.root, study.world, row.arm)
    if not record.is_file():
        if any(cell.elsewhere is not None for cell in results.of_arm(study.world, row.arm)):
            raise Fault(f"{row.label}: it was trained elsewhere, so that its routers cannot be looked at here.")
        raise Fault(why_missing(study, row, results))
    path = routers_file(results.root, study.world, row.arm, figure)
    if not path.is_file():
        raise Fault(_to_look(study, f"{row.label}: nobody has looked at its routers yet"))
    with np.load(path, allow_pickle=False) as seen:
        body = {name: seen[name] for name in seen.files}
    if str(body["learned"]) != hash_file(record):
        raise Fault(_to_look(study, f"{row.label}: its routers were looked at before it was trained anew"))
    return body


def _to_look(study: Study, why: str) -> str:
    return f"{why}; `ditbench look {study.name}` does, with the same --config and --results."


def _rows(found: dict[str, Maps]) -> list[dict[str, Any]]:
    return [
        {
            "arm": arm,
            "step": step + 1,
            "block": block + 1,
            "left_out": float(maps.left_out[step, block]),
            "mean_score": float(scores.mean()),
            "least_score": float(scores.min()),
            "greatest_score": float(scores.max()),
        }
        for arm, maps in found.items()
        for step in range(len(maps.scores))
        for block, scores in enumerate(maps.scores[step])
    ]
