"""A study: a table and a figure as data, read from `studies/<name>.yaml` and checked before anything runs.

Rows are arms, columns are measures. Measures of judges carry their world's name (`fid/scenes`); drift to the
baseline (`psnr-to-full`) and the costs below do not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ditbench.faults import Fault
from ditbench.mistakes import ARM, lines_of, possible, shown, told

# Measures that no judge gives: where each comes from is the business of report/results.py.
COSTS = (
    "macs-linear",
    "macs-attention",
    "macs-thop",  # as the thop tool counts: linear layers and LayerNorms
    "macs-total",
    "cache-bytes",  # kept between steps, for one sample
    "speedup",
    "seconds-per-image",
    "peak-memory",  # GB on a GPU; none on a CPU
    "latency-p50",  # seconds of a sampling run of the main batch
    "latency-p90",
    "forward-ms",  # the median call of the network
    "energy-per-image",  # joules, where the device tells them
    "nominal-ratio",
    "realised-ratio",
)

# Of the main mode and batch, and of others that were timed besides: speedup-b16, speedup-compiled, speedup-graphs-b1.
_SPEEDUPS = re.compile(r"speedup(-(compiled|graphs|eager))?(-b[0-9]+)?")


def is_cost(measure: str) -> bool:
    """Whether a measure is of what an arm costs, not of what a judge says."""
    return measure in COSTS or _SPEEDUPS.fullmatch(measure) is not None


ArmName = Annotated[str, Field(pattern=ARM, max_length=80)]
Text = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Published(_Part):
    """A value that others printed, with its source; never mixed with what was measured here."""

    value: float
    source: Text


class Row(_Part):
    """One arm of a study: a method at one operating point."""

    arm: ArmName
    method: str
    knobs: dict[str, Any] = {}
    steps: Annotated[int, Field(ge=1)] | None = None
    label: Text
    note: str = ""
    published: dict[str, Published] = {}


class Column(_Part):
    """One measure of a study, and how it is printed."""

    measure: Text
    label: Text
    digits: Annotated[int, Field(ge=0, le=9)] = 2


class Axes(_Part):
    """The two measures of the quality-versus-speed figure."""

    x: Text
    y: Text


class Study(_Part):
    """A table and a figure: which cells, which columns, which published values."""

    name: str
    title: Text
    world: str
    rows: Annotated[list[Row], Field(min_length=1)]
    columns: Annotated[list[Column], Field(min_length=1)]
    figure: Axes
    baseline: str
    controls: list[str] = []

    def row(self, arm: str) -> Row:
        """The row of an arm."""
        return next(row for row in self.rows if row.arm == arm)

    def column(self, measure: str) -> Column:
        """The column of a measure."""
        return next(column for column in self.columns if column.measure == measure)


def studies_folder() -> Path:
    """Where the studies of this checkout are: `studies` in the working folder, else in the repository."""
    here = Path("studies")
    return here if here.is_dir() else Path(__file__).parents[2] / "studies"


def study_names(kind: str = "study") -> list[str]:
    """The names of the studies in the studies folder; those of another kind (`audit`) are no studies of arms."""
    return sorted(path.stem for path in studies_folder().glob("*.yaml") if study_kind(path) == kind)


def study_kind(path: Path) -> str:
    """What kind of study a file holds: what its key `kind` says, else a study of arms (`study`)."""
    # Not parsed: a file that is no YAML at all is told when it is loaded.
    found = re.search(r"^kind:\s*[\"']?([\w-]+)", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return found[1] if found else "study"


def not_of_arms(path: Path) -> str | None:
    """Why a study's file is not for `studies` of a configuration; None where it is a study of arms."""
    kind = study_kind(path)
    if kind == "study":
        return None
    return f"{path.stem} is of kind {kind!r}, no study of arms; `uv run snakemake {path.stem}` makes it by itself"


def study_path(name_or_path: str | Path) -> Path:
    """The file of a study, by its name or by its path."""
    text = str(name_or_path)
    if text.endswith((".yaml", ".yml")):
        if Path(text).is_file():
            return Path(text)
        raise Fault(f"no study file {text!r}")
    path = studies_folder() / f"{text}.yaml"
    if path.is_file():
        return path
    raise Fault(f"no study {text!r}{possible(text, study_names())}")


def load_study(name_or_path: str | Path) -> Study:
    """A study by its name or path; all mistakes of its file are told in one Fault, one line each."""
    import yaml

    path = study_path(name_or_path)
    if problem := not_of_arms(path):
        raise Fault(f"{path}: {problem}")
    try:
        body = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Fault(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(body, dict):
        raise Fault(f"{path} must hold keys and values (title, world, rows, columns, …), not {shown(body)}")
    if "name" in body:
        raise Fault(f"{path}: name: a study is called like its file ({path.stem}); remove the key")
    try:
        study = Study.model_validate({"name": path.stem, **body})
    except ValidationError as error:
        raise Fault(told(str(path), lines_of(error, Study, hidden=("name",)))) from error
    problems = list(_problems(study))
    if problems:
        raise Fault(told(str(path), problems))
    return study


def _problems(study: Study) -> Iterator[str]:
    """What no type can say: names that must exist, names that must be unique."""
    from ditbench.methods import get_method, method_names
    from ditbench.worlds import world_names

    if study.world not in world_names():
        yield f"world: no world {study.world!r}{possible(study.world, world_names())}"
    arms = [row.arm for row in study.rows]
    measures = [column.measure for column in study.columns]
    yield from (f"rows: arm {arm!r} is listed twice" for arm in _twice(arms))
    yield from (f"columns: measure {measure!r} is listed twice" for measure in _twice(measures))
    for i, row in enumerate(study.rows):
        if row.method not in method_names():
            yield f"rows.{i}.method: no method {row.method!r}{possible(row.method, method_names())}"
            continue
        try:
            get_method(row.method, row.knobs)
        except Fault as fault:
            yield f"rows.{i}.knobs: {fault}"
    for i, measure in enumerate(measures):
        world = measure.rpartition("/")[2]
        if "/" in measure and world != study.world:
            yield f"columns.{i}.measure: {measure!r} belongs to world {world!r}, this study to {study.world!r}"
    for axis, measure in (("x", study.figure.x), ("y", study.figure.y)):
        if measure not in measures:
            yield f"figure.{axis}: {measure!r} is not a column{possible(measure, measures)}"
    for key, names in (("baseline", [study.baseline]), ("controls", study.controls)):
        yield from (f"{key}: no row has arm {name!r}{possible(name, arms)}" for name in names if name not in arms)
    for i, row in enumerate(study.rows):
        for measure in row.published:
            if measure not in measures:
                yield f"rows.{i}.published: {measure!r} is not a column{possible(measure, measures)}"


def _twice(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]
