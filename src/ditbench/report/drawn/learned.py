"""How compression ratios came about in training (DiffCR): those of blocks, their mean, and what they became."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ditbench.report.drawn.drawing import Drawing, canvas, why_missing
from ditbench.report.figures import INK
from ditbench.report.ratios import draw_ratios, noted_steps

if TYPE_CHECKING:
    from ditbench.report.results import Results
    from ditbench.study import Study
    from ditbench.study_figures import Figure


def ratios(study: Study, figure: Figure, results: Results) -> Drawing:
    """Three panels for each arm: trajectories of blocks, of their mean with its target, and what was learned."""
    found: dict[str, tuple[dict[str, Any], float]] = {}
    missing: list[str] = []
    for arm in figure.drawn_arms(row.arm for row in study.rows):
        row = study.row(arm)
        cells = results.of_arm(study.world, arm) if row.method else []
        cell = next((cell for cell in cells if cell.spec.get("found")), None)
        if cell is None:
            missing.append(why_missing(study, row, results))
        elif not cell.spec["found"].get("trajectory") or not cell.spec["found"].get("ratios"):
            missing.append(f"{row.label}: its record of learning tells no trajectory of ratios.")
        else:
            found[arm] = cell.spec["found"], float(cell.spec["knobs"]["ratio"])
    if not found:
        return Drawing(figure, missing=missing)
    picture = canvas(9.6, 3.0 * len(found))
    parts = picture.subfigures(len(found), 1, squeeze=False)[:, 0]
    rows: list[dict[str, Any]] = []
    for part, (arm, (learned, target)) in zip(parts, found.items(), strict=True):
        part.patch.set_alpha(0)
        if len(found) > 1:
            part.suptitle(study.row(arm).label, fontsize=10, color=INK)
        draw_ratios(part.subplots(1, 3), learned, target)
        rows += _rows(arm, learned)
    caption = (
        "Compression ratios in training: of each block (the mean over regions of timesteps), their mean with its "
        "target (dashed), and what they became."
    )
    return Drawing(figure, picture, rows, caption, missing)


def _rows(arm: str, learned: dict[str, Any]) -> list[dict[str, Any]]:
    """Every ratio that was noted, by region and block, and the mean at every step of training."""
    noted = zip(noted_steps(learned), learned["trajectory"], strict=True)
    rows = [
        {"arm": arm, "what": "ratio", "step": int(step), "region": region + 1, "block": block + 1, "value": value}
        for step, regions in [*noted, (len(learned["history"]["ratio"]), learned["ratios"])]
        for region, blocks in enumerate(regions)
        for block, value in enumerate(blocks)
    ]
    rows += [
        {"arm": arm, "what": f"mean, {what}", "step": step, "value": value}
        for what, key in (("learned", "ratio"), ("in bins", "deployed"))
        for step, value in enumerate(learned["history"][key])
    ]
    return rows
