"""How MLflow's user interface shows an experiment of ours: its columns, their order, and what it says about itself.

MLflow keeps saved views as experiment tags in a form that it does not document; where a version does not know it,
the link still opens the plain table of runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from ditbench.report.escapes import markdown
from ditbench.study import Axes, Study

VIEW = "ditbench"
# Of a study without a figure.
DEFAULT_AXES = Axes(x="speedup", y="macs-linear")
# Columns around a study's measures. The run's name is the arm.
FIRST = ("params.`knobs`", "params.`steps`")
LAST = ("params.`nominal_ratio`", "params.`realised_ratio`", "tags.`state`")
PIXELS_PER_LETTER, PADDING = 8, 48


def metric_name(measure: str) -> str:
    """A measure's name as MLflow shows it best: flat."""
    name = re.sub(r"[^A-Za-z0-9_]+", "_", measure)
    return f"{name}_G" if name.startswith("macs_") else f"{name}_GB" if name == "peak_memory" else name


def view_state(studies: Sequence[Study]) -> dict[str, object]:
    """The state of the runs page: arm, quality, speed and cost in its table and in its charts."""
    axes = next((study.figure for study in studies if study.figure), DEFAULT_AXES)
    measures = list(dict.fromkeys(column.measure for study in studies for column in study.columns))
    # What the study is about comes first, because few columns fit a window.
    leading = [m for m in (axes.y, axes.x, "seconds-per-image", "macs-linear") if m in measures]
    ordered = list(dict.fromkeys([*leading, *measures]))
    metrics = [metric_name(measure) for measure in ordered if not measure.endswith("-ratio")]
    columns = [*FIRST, *(f"metrics.`{name}`" for name in metrics), *LAST]
    places = ["attributes.`Run Name`", *columns]
    longest = max((len(row.arm) for study in studies for row in study.rows), default=0)
    section = "ditbench-section"
    charts = [_scatter(section, metric_name(axes.x), metric_name(axes.y)), *(_bars(section, name) for name in metrics)]
    return {
        "selectedColumns": columns,
        "columnOrder": places,
        "columnWidths": {place: _width(place) for place in columns} | {places[0]: _width_of_names(longest)},
        "orderByKey": f"metrics.`{metric_name(axes.y)}`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "searchFilter": "",
        "compareRunCharts": charts,
        "compareRunSections": [_section(section, "Quality, speed and cost")],
        "hideEmptyCharts": True,
        # All runs in the charts: left alone, MLflow draws the first ten of its list.
        "runsHiddenMode": "SHOWALL",
    }


def _width(place: str) -> int:
    """Wide enough for a column's name, and for the values of those that hold words."""
    name = place.partition("`")[2].rstrip("`")
    return max(PADDING + PIXELS_PER_LETTER * len(name), 160 if name == "knobs" else 0)


def _width_of_names(longest: int) -> int:
    """Wide enough for the names of arms, those of a sweep differ at their ends; not so wide that no number is seen."""
    return min(max(160, 2 * PADDING + PIXELS_PER_LETTER * longest), 320)


def _section(uuid: str, name: str) -> dict[str, object]:
    kept = {"display": True, "isReordered": True, "deleted": False, "isGenerated": False}
    return {"uuid": uuid, "name": name, **kept}


def _scatter(section: str, x: str, y: str) -> dict[str, object]:
    axes = {"xaxis": {"key": x, "type": "METRIC"}, "yaxis": {"key": y, "type": "METRIC"}}
    return {"type": "SCATTER", "uuid": "ditbench-figure", **_card(section), **axes}


def _bars(section: str, metric: str) -> dict[str, object]:
    return {"type": "BAR", "uuid": f"ditbench-{metric}", **_card(section), "metricKey": metric}


def _card(section: str) -> dict[str, object]:
    return {"metricSectionId": section, "isGenerated": False, "deleted": False, "runsCountToCompare": 100}


def experiment_tags(world: str, studies: Sequence[Study]) -> dict[str, str]:
    """The tags of a world's experiment."""
    ours = [study for study in studies if study.world == world]
    titles = "\n".join(f"- {markdown(study.title)}" for study in ours)
    told = (
        f"Cells of ditbench in the world **{world}**, one run each. Studies:\n{titles}\n\n"
        "A run's note has the 95 % intervals (of speed and time: slowest and fastest round). Start and duration are "
        "those of the cell's jobs. The records under `results.path` are the source; "
        "tables with marks and the figure are in `report/index.html`."
    )
    tags = {"mlflow.note.content": told, "mlflow.experimentKind": "custom_model_development"}
    if ours:
        state = json.dumps(view_state(ours), separators=(",", ":"))
        tags[f"mlflow.sharedViewState.{VIEW}"] = state
    return tags
