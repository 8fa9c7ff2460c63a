"""A study: a table and its figures as data, read from `studies/<name>.yaml` and checked before anything runs.

Rows are arms, columns are measures. Measures of judges of the embedded world carry its name (`fid/scenes`); drift to
the baseline (`psnr-to-full`) and the costs below do not. A row whose method ditbench lacks says what it `awaits`: it
shows what was published and no cell is made for it. `ablations` make further rows of one by varying its knobs.

A file in a folder is called with it: `studies/diffsparse/table1.yaml` is the study `diffsparse-table1`.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ditbench.faults import Fault
from ditbench.mistakes import ARM, lines_of, possible, read_yaml, shown, told
from ditbench.study_figures import Figure
from ditbench.study_figures import problems as problems_of_figures
from ditbench.traits import TRAITS, place_of

# Measures that no judge gives, each with its unit: where it comes from is the business of report/results.py.
COSTS = {
    "macs-linear": "G",
    "macs-attention": "G",
    "macs-thop": "G",  # as the thop tool counts: linear layers and LayerNorms
    "macs-total": "G",
    "macs-selecting": "G",  # of choosing tokens or finding which are alike: in no other column
    "cache-bytes": "B",  # kept between steps, for one sample
    "speedup": "x",
    "seconds-per-image": "s",
    "peak-memory": "GB",  # on a GPU; none on a CPU
    "latency-p50": "s",  # of a sampling run of the main batch
    "latency-p90": "s",
    "forward-ms": "ms",  # the mean call of the network, of as many samples as guidance makes of the main batch
    "energy-per-image": "J",  # where the device tells it
    "nominal-ratio": "",
    "realised-ratio": "",
}
# A measure's own unit and a column's, and what turns one into the other.
FACTORS = {("G", "T"): 1e-3, ("B", "MB"): 1e-6, ("B", "GB"): 1e-9, ("s", "ms"): 1e3, ("", "%"): 1e2}
ARM_LENGTH = 80
BASELINE = "full"

# Of the main mode and batch, and of others that were timed besides: speedup-b16, speedup-compiled, speedup-graphs-b1.
_SPEEDUPS = re.compile(r"speedup(-(compiled|graphs|eager))?(-b[0-9]+)?")


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def is_cost(measure: str) -> bool:
    """Whether a measure is of what an arm costs or is, not of what a judge says."""
    return measure in COSTS or measure in TRAITS or _SPEEDUPS.fullmatch(measure) is not None


ArmName = Annotated[str, Field(pattern=ARM, max_length=ARM_LENGTH)]
Text = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Published(_Part):
    """A value that others printed, with its source; never mixed with what was measured here."""

    value: Annotated[float, Field(allow_inf_nan=False)]
    source: Text


class Row(_Part):
    """One arm of a study: a method at one operating point, or one that `awaits` what ditbench does not have yet."""

    arm: ArmName
    method: str | None = None
    awaits: Text | None = None
    group: str = ""
    knobs: dict[str, Any] = {}
    steps: Annotated[int, Field(ge=1)] | None = None
    weights_of: ArmName | None = None  # the arm whose fine-tuned weights it runs on
    label: Text
    note: str = ""
    published: dict[str, Published] = {}


class Column(_Part):
    """One measure of a study, and how it is printed."""

    measure: Text
    label: Text
    digits: Annotated[int, Field(ge=0, le=9)] = 2
    unit: Literal["", "T", "GB", "MB", "ms", "%"] = ""  # other than the measure's own; published values are in it


class Ablation(_Part):
    """Rows that vary one arm: each knob's values by themselves, or with `grid` all their combinations."""

    base: ArmName
    vary: Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)]
    grid: bool = False
    group: str = ""


class Borrowed(_Part):
    """Rows of another study of the same world: some of its arms, or all."""

    study: Text
    arms: Annotated[list[ArmName], Field(min_length=1)] | None = None
    group: str | None = None  # the heading they stand under here; each its own if not given


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
    baseline: str | None  # the arm that the others are held against; null where the original shows none
    figure: Axes | None = None
    figures: list[Figure] = []  # others than quality against speed
    controls: list[str] = []
    # The hash of the reference images, or its beginning: values of sets against others are not shown.
    references: Annotated[str, Field(pattern="^[0-9a-f]{12,64}$")] | None = None
    rows_of: list[Borrowed] = []  # rows of other studies, behind its own
    ablations: list[Ablation] = []
    source: Text | None = None  # of published values that name none
    awaits: Text | None = None  # what ditbench lacks for any row of it: the world may then be one that it has not
    twin: Text | None = None  # the study that asks the same of the embedded world
    notes: list[Text] = []
    not_printed: Text | None = None  # what of the original has no digits that could be read

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
    return sorted(name_of(path) for path in _study_files() if study_kind(path) == kind)


def _study_files() -> list[Path]:
    """The files of the studies folder; a folder or a link to nothing is none, whatever it is called."""
    return [path for path in studies_folder().rglob("*.yaml") if path.is_file()]


def name_of(path: Path) -> str:
    """What the study of a file is called: its folders within the studies folder and its own name, with hyphens."""
    folder = studies_folder().resolve()
    whole = path.resolve().with_suffix("")
    return "-".join(whole.relative_to(folder).parts) if whole.is_relative_to(folder) else whole.name


def study_kind(path: Path) -> str:
    """What kind of study a file holds: what its key `kind` says, else a study of arms (`study`)."""
    # Not parsed: a file that is no YAML at all, or cannot be read, is told when it is loaded.
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "study"
    found = re.search(r"^kind:\s*[\"']?([\w-]+)", text, re.MULTILINE)
    return found[1] if found else "study"


def not_of_arms(path: Path) -> str | None:
    """Why a study's file is not for `studies` of a configuration; None where it is a study of arms."""
    kind = study_kind(path)
    if kind == "study":
        return None
    name = name_of(path)
    return f"{name} is of kind {kind!r}, no study of arms; `uv run snakemake {name}` makes it by itself"


def study_path(name_or_path: str | Path) -> Path:
    """The file of a study, by its name (`diffsparse-table1` or `diffsparse/table1`) or by its path."""
    text = str(name_or_path)
    if text.endswith((".yaml", ".yml")):
        if os.path.isfile(text):  # unlike pathlib's, says so of names that can be no file's too
            return Path(text)
        raise Fault(f"no study file {text!r}")
    for path in sorted(_study_files()):
        if name_of(path) == text.replace("/", "-"):
            return path
    raise Fault(f"no study {text!r}{possible(text, study_names())}")


def load_study(name_or_path: str | Path) -> Study:
    """A study by its name or path; all mistakes of its file are told in one Fault, one line each."""
    path = study_path(name_or_path)
    if problem := not_of_arms(path):
        raise Fault(f"{path}: {problem}")
    if not _NAME.fullmatch(name_of(path)):
        raise Fault(
            f"{path}: a study is called like its file, and folders and files of results like the study: rename it to "
            "letters, digits and . _ -, a letter or digit first"
        )
    body, wrong = read_yaml(path)
    if wrong:
        raise Fault(told(str(path), wrong))
    if not isinstance(body, dict):
        raise Fault(f"{path} must hold keys and values (title, world, rows, columns, …), not {shown(body)}")
    if "name" in body:
        raise Fault(f"{path}: name: a study is called like its file ({name_of(path)}); remove the key")
    body, unclear = _cleared(_sourced(body))
    try:
        study = Study.model_validate({"name": name_of(path), **body})
    except ValidationError as error:
        raise Fault(told(str(path), [*unclear, *lines_of(error, Study, hidden=("name",))])) from error
    if unclear:
        raise Fault(told(str(path), unclear))
    # What hangs on rows that are still to come is looked at when they are there.
    own = study if not study.rows_of else study.model_copy(update={"figures": [], "controls": [], "ablations": []})
    if problems := list(_problems(own)):
        raise Fault(told(str(path), problems))
    study = study.model_copy(update={"rows": [*study.rows, *_borrowed(study, path)]})
    if problems := list(_problems(study)):
        raise Fault(told(str(path), [f"rows_of: {problem}" for problem in problems]))
    varied = [row for ablation in study.ablations for row in varied_rows(study, ablation)]
    whole = study.model_copy(update={"rows": [*study.rows, *varied]})
    if problems := list(_problems(whole)):
        raise Fault(told(str(path), [f"ablations: {problem}" for problem in problems]))
    return whole


def _borrowed(study: Study, path: Path) -> Iterator[Row]:
    """The rows that a study takes from others; what is there already, under whatever name, is not taken once more."""
    known = {row.arm: _what_it_is(row) for row in study.rows}
    for place, wanted in enumerate(study.rows_of):
        where = f"{path}: rows_of.{place}"
        source = study_path(wanted.study)
        if "rows_of" in source.read_text(encoding="utf-8"):
            raise Fault(f"{where}: {wanted.study} takes rows of others itself; name those studies")
        other = load_study(source)
        if other.world != study.world:
            raise Fault(f"{where}: {wanted.study} is of world {other.world}, this study of {study.world}")
        arms = [row.arm for row in other.rows]
        for arm in wanted.arms or arms:
            if arm not in arms:
                raise Fault(f"{where}: {wanted.study} has no arm {arm!r}{possible(arm, arms)}")
            row = other.row(arm)
            what = _what_it_is(row)
            if known.get(arm, what) != what:
                raise Fault(f"{where}: arm {arm!r} is something else in {wanted.study} than in a row before")
            if what not in known.values():
                known[arm] = what
                group = row.group if wanted.group is None else wanted.group
                yield row.model_copy(update={"group": group, "published": {}})


def _what_it_is(row: Row) -> tuple[Any, ...]:
    """What of a row makes its cells, knobs at their defaults included."""
    from ditbench.methods import get_method

    method = get_method(row.method, row.knobs) if row.method else None
    knobs = {} if method is None else {name: getattr(method, name) for name in method.knobs()}
    return row.method or row.arm, knobs, row.steps, row.weights_of


def _sourced(body: dict[str, Any]) -> dict[str, Any]:
    """A study whose published values that are plain numbers have its own source."""
    if not isinstance(body.get("source"), str) or not isinstance(body.get("rows"), list):
        return body
    return {**body, "rows": [_sourced_row(row, body["source"]) for row in body["rows"]]}


def _sourced_row(row: Any, source: str) -> Any:
    values = row.get("published") if isinstance(row, dict) else None
    if not isinstance(values, dict):
        return row
    plain = {m: n for m, v in values.items() if (n := _number(m, v)) is not None}
    return {**row, "published": values | {m: {"value": n, "source": source} for m, n in plain.items()}}


def _number(measure: str, value: Any) -> float | None:
    """A published value that stands by itself as a number: a trait is a word."""
    if measure in TRAITS:
        return place_of(measure, value) if isinstance(value, str | bool) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _cleared(body: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What YAML makes something else of than was meant, told in words of the file; a stand-in takes its place."""
    unclear: list[str] = []
    if isinstance(body.get("references"), int):
        unclear.append("references: a hash of digits alone must stand in quotes, else it is a number")
        body = {**body, "references": None}
    rows = body.get("rows")
    for number, row in enumerate(rows if isinstance(rows, list) else ()):
        values = row.get("published") if isinstance(row, dict) else None
        for measure, value in values.items() if isinstance(values, dict) else ():
            if measure in TRAITS and not isinstance(value, dict) and _number(measure, value) is None:
                words = ", ".join(TRAITS[measure]).replace("✗, ✓", "yes, no")
                unclear.append(f"rows.{number}.published.{measure}: {shown(value)} is no word of this trait: {words}")
            elif _number(measure, value) is not None:
                unclear.append(
                    f"rows.{number}.published.{measure}: {value} has no source; name the `source` of all published "
                    f"values of the study, or of this one: {{value: {value}, source: …}}"
                )
    if unclear and isinstance(rows, list):
        body = {**body, "rows": [_sourced_row(row, "-") for row in rows]}
    return body, unclear


def varied_rows(study: Study, ablation: Ablation) -> Iterator[Row]:
    """The rows of an ablation; the point where the base stands already is not made once more."""
    from ditbench.methods import get_method

    base = study.row(ablation.base)
    own = get_method(str(base.method), base.knobs)
    if ablation.grid:
        points = [dict(zip(ablation.vary, p, strict=True)) for p in itertools.product(*ablation.vary.values())]
    else:
        points = [{knob: value} for knob, values in ablation.vary.items() for value in values]
    for point in points:
        if all(getattr(own, knob, None) == value for knob, value in point.items()):
            continue
        said = ", ".join(f"{knob} = {value}" for knob, value in point.items())
        yield base.model_copy(
            update={
                "arm": arm_name(base.arm, point),
                "knobs": {**base.knobs, **point},
                "label": f"{base.label}: {said}",
                "group": ablation.group or base.group,
                "published": {},
            }
        )


def arm_name(base: str, point: dict[str, Any]) -> str:
    """The name of an arm that varies another: `toca.fresh-0.3`; a longer one ends in a hash of what it varies."""
    parts = [f"{knob}-{value}".lower() for knob, value in point.items()]
    name = ".".join([base, *(re.sub(r"[^a-z0-9._-]+", "-", part).strip("-") for part in parts)])
    if len(name) <= ARM_LENGTH:
        return name
    mark = hashlib.sha256(repr(sorted(point.items(), key=str)).encode()).hexdigest()[:8]
    return f"{name[: ARM_LENGTH - 9].rstrip('.-_')}-{mark}"


def _judged_as(world: str) -> str:
    """The name that measures of a world's own judges carry."""
    from ditbench.worlds import get_world, world_names

    return get_world(world).judged_as if world in world_names() else world


def _problems(study: Study) -> Iterator[str]:
    """What no type can say: names that must exist, names that must be unique."""
    from ditbench.judges.registry import measures_of
    from ditbench.methods import get_method, method_names
    from ditbench.worlds import world_names

    if study.world not in world_names() and study.awaits is None:
        yield f"world: no world {study.world!r}{possible(study.world, world_names())}"
    arms = [row.arm for row in study.rows]
    measures = [column.measure for column in study.columns]
    yield from (f"rows: arm {arm!r} is listed twice" for arm in _twice(arms))
    yield from (f"columns: measure {measure!r} is listed twice" for measure in _twice(measures))
    if study.awaits is not None and any(row.method or row.awaits for row in study.rows):
        yield "awaits: what a whole study waits for leaves its rows neither `method` nor `awaits`"
    for i, row in enumerate(study.rows):
        if study.awaits is not None:
            continue
        if (row.method is None) == (row.awaits is None):
            yield f"rows.{i}: needs either `method` or `awaits`, what ditbench lacks for it"
        if row.method is None:
            continue
        if row.method not in method_names():
            yield f"rows.{i}.method: no method {row.method!r}{possible(row.method, method_names())}"
            continue
        try:
            get_method(row.method, row.knobs)
        except Fault as fault:
            yield f"rows.{i}.knobs: {fault}"
    printed = {measure for row in study.rows for measure in row.published}
    for i, measure in enumerate(measures):
        world = measure.rpartition("/")[2]
        if "/" in measure and world != _judged_as(study.world):
            yield f"columns.{i}.measure: {measure!r} belongs to world {world!r}, this study to {study.world!r}"
        elif study.world in world_names() and measure not in printed and not is_cost(measure):
            known = measures_of(study.world)
            if measure not in known:
                yield f"columns.{i}.measure: nothing measures {measure!r}{possible(measure, [*COSTS, *known])}"
    for i, column in enumerate(study.columns):
        own = "x" if _SPEEDUPS.fullmatch(column.measure) else COSTS.get(column.measure, "")
        if column.unit and column.unit != own and (own, column.unit) not in FACTORS:
            units = [unit for of, unit in FACTORS if of == own]
            can = f"it can be {' or '.join(units)}, or be left out" if units else "leave it out"
            yield f"columns.{i}.unit: {column.measure} cannot be shown in {column.unit}; {can}"
    if study.baseline not in (None, BASELINE):
        yield (
            f"baseline: differences and speed-ups are measured to the arm {BASELINE}; a study stands on it or on none "
            f"(null), not on {study.baseline!r}"
        )
    if study.twin is not None and study.twin not in study_names():
        yield f"twin: no study {study.twin!r}{possible(study.twin, study_names())}"
    axes = (("x", study.figure.x), ("y", study.figure.y)) if study.figure else ()
    for axis, measure in axes:
        if measure not in measures:
            yield f"figure.{axis}: {measure!r} is not a column{possible(measure, measures)}"
    yield from problems_of_figures(study.figures, arms, measures)
    bases = [ablation.base for ablation in study.ablations]
    single = [study.baseline] if study.baseline is not None else []
    for key, names in (("baseline", single), ("controls", study.controls), ("ablations", bases)):
        yield from (f"{key}: no row has arm {name!r}{possible(name, arms)}" for name in names if name not in arms)
    for i, row in enumerate(study.rows):
        for measure, printed_as in row.published.items():
            if measure not in measures:
                yield f"rows.{i}.published: {measure!r} is not a column{possible(measure, measures)}"
            if measure in TRAITS and printed_as.value not in range(len(TRAITS[measure])):
                yield f"rows.{i}.published.{measure}: {printed_as.value:g} stands for no word of it; write the word"


def _twice(names: Iterable[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]
