"""What is read of records, by type: older ones have no seal, and what has one may be of another program's making.

A value of another type than it must have would be an error of its own somewhere in a stage, a table or the page; here
it is one sentence that names the record.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ditbench.faults import Fault
from ditbench.mistakes import lines_of

# Whoever adds and squares such numbers gets numbers still; nothing that is measured comes near.
Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e100, le=1e100)]
# As arrays of whole numbers and files' names can hold them.
Whole = Annotated[int, Field(ge=-(2**62), le=2**62)]
Count = Annotated[int, Field(ge=0, le=2**62)]
# What a record may lack; where it is, it must be of its type.
LACKING: Any = Field(default=None)


def _moment(text: str) -> str:
    try:
        datetime.fromisoformat(text).timestamp()
    except (OverflowError, OSError, ValueError):
        raise ValueError("is no date") from None
    return text


def _file(name: str) -> str:
    if name in ("", ".", "..") or set("/\\\0") & set(name):
        raise ValueError("must be the name of a file beside the record")
    return name


Date = Annotated[str, AfterValidator(_moment)]
File = Annotated[str, AfterValidator(_file)]


class _Shape(BaseModel):
    model_config = ConfigDict(strict=True)


class Provenance(_Shape):
    """Where and how a record came to be."""

    created: Date = LACKING
    ditbench: str | None = None
    git: str | None = None
    dirty: bool | None = None
    code: str | None = None
    timings: dict[str, Number | None] | None = None
    threads: Count | None = None
    hardware: dict[str, Any] | None = None


class Made(_Shape):
    """Any record."""

    provenance: Provenance = LACKING


class SpecShape(Made):
    """What is asked of a cell, and what its method found."""

    world: str = LACKING
    arm: str = LACKING
    method: str = LACKING
    knobs: dict[str, Any] = LACKING
    steps: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    seed: Count = LACKING
    images: Count = LACKING
    captions: str = LACKING
    captions_sha256: str | None = None
    dtype: str = LACKING
    weights: str | None = None
    learning: str | None = None
    weights_of: str | None = None
    hash: str = LACKING
    plan_sha256: str | None = None
    found: dict[str, Any] | None = None
    lent: dict[str, str] | None = None


class _OfCell(Made):
    spec_hash: str = LACKING


class _Measure(_Shape):
    name: str
    value: Number
    low: Number | None = None
    high: Number | None = None
    n: Count | None = None
    unit: str = ""
    direction: str
    method_of_interval: str = ""
    left_out: list[Number] = []


class _Paired(_Shape):
    name: str
    difference: Number
    low: Number
    high: Number
    n: Count
    against: str


class _References(_Shape):
    name: str | None = None
    sha256: str | None = None
    count: Count | None = None


class ScoresShape(_OfCell):
    """What judges say."""

    measures: list[_Measure] = LACKING
    paired: list[_Paired] = LACKING
    reference_set: _References | None = None
    judge_weights: dict[str, Any] = LACKING
    judge_seconds: dict[str, Any] = LACKING
    samples_sha256: str | None = None


class CostShape(_OfCell):
    """The ledger's numbers."""

    linear: Number = LACKING
    attention: Number = LACKING
    thop: Number = LACKING
    total: Number = LACKING
    selecting: Number = LACKING
    cache_bytes: Number = LACKING
    nominal_ratio: Number | None = None
    realised_ratio: Number = LACKING
    steps: Count = LACKING
    cfg_branches: Count = LACKING


class _Spread(_Shape):
    value: Number
    low: Number
    high: Number


class _Calls(_Shape):
    baseline: list[Number] = LACKING
    arm: list[Number] = LACKING
    kinds: list[str] = LACKING

    @model_validator(mode="after")
    def _of_each(self) -> _Calls:
        for calls in (self.baseline, self.arm):
            if calls == []:
                raise ValueError("has no calls")
        if self.kinds is not None and len(self.kinds) != len(self.arm or ()):
            raise ValueError("must have a kind for each of the arm's calls")
        return self


class _Lap(_Shape):
    mode: str
    batch: Count
    refused: str | None = None
    speedup: _Spread | None = None

    @model_validator(mode="after")
    def _told(self) -> _Lap:
        if not self.refused and self.speedup is None:
            raise ValueError("has no speed, and was not refused")
        return self


Block = Annotated[int, Field(ge=0, le=1_000_000)]
Layout = Annotated[list[Annotated[tuple[Block, str], Field(strict=False)]], Field(min_length=1)]
Rows = list[list[Whole]]


class _Trace(_Shape):
    """What was executed, at every step of every branch."""

    steps: Annotated[int, Field(ge=1)]
    layout: Layout
    tokens: Annotated[int, Field(ge=1, le=2**31)]
    samples: Annotated[int, Field(ge=0, le=2**31)]
    computed: Rows
    squares: Rows
    ran: Rows
    whole: Rows
    entered: list[Count]
    selecting: list[Whole] = []
    noted: dict[str, list[Whole]]
    cache_bytes: Annotated[Number, Field(ge=0)]
    widths: list[list[Number]] = []
    spared: Rows = []

    @model_validator(mode="after")
    def _of_one_shape(self) -> _Trace:
        for name, optional in {**dict.fromkeys(("computed", "squares", "ran", "whole"), False), **_MAY_LACK}.items():
            rows = getattr(self, name)
            if not (optional and not rows) and [len(row) for row in rows] != [len(self.layout)] * self.steps:
                raise ValueError(f"must have a number for every branch at every step as `{name}`")
        if any(len(counts) != self.steps for counts in (self.entered, *self.noted.values())):
            raise ValueError("must have a number for every step as `entered` and `noted`")
        if self.samples and not any(self.entered):
            raise ValueError("must have a step that ran, as there are images")
        if len(self.selecting) not in (0, self.steps):
            raise ValueError("must have a number for every step as `selecting`, or none")
        return self


_MAY_LACK = {"widths": True, "spared": True}


class _Strict(_Shape):
    model_config = ConfigDict(strict=True, extra="forbid")


class _Work(_Strict):
    linear: Whole
    norm: Whole = 0


class _UnitCost(_Strict):
    per_token: Whole
    once: Whole = 0
    keys: Count | Literal["computed"] = 0
    joined: Whole = 0
    width: Whole = 0
    norm: Whole = 0
    norm_once: Whole = 0
    attending: Whole = 0
    apart: Whole = 0


class _Costs(_Shape):
    """What each part of a network costs."""

    branches: list[_UnitCost]
    step: _Work
    noted: dict[str, _Work]


class _Ran(_OfCell):
    """Whatever tells what was executed, and of which weights."""

    weights: str | None = None
    trace: _Trace = LACKING
    costs: _Costs = LACKING

    @model_validator(mode="after")
    def _of_one_network(self) -> _Ran:
        if self.trace and self.costs:
            if len(self.costs.branches) != len(self.trace.layout):
                raise ValueError("must have costs for every branch of its trace")
            if unknown := sorted(set(self.trace.noted) - set(self.costs.noted)):
                raise ValueError(f"has no costs for {', '.join(unknown)}, which its trace notes")
        return self


class LatencyShape(_Ran):
    """The stopwatch's numbers; none where it refused."""

    refused: str | None = None
    rounds: Count = LACKING
    batch: Count = LACKING
    mode: str = LACKING
    speedup: _Spread | None = None
    seconds_per_image: _Spread | None = None
    others: list[_Lap] = LACKING
    p50_seconds: Number | None = None
    p90_seconds: Number | None = None
    joules_per_image: Number | None = None
    forward_seconds: _Calls | None = None
    peak_bytes: Number | None = None
    peak_bytes_baseline: Number | None = None
    contended: bool = LACKING
    note: str = LACKING
    gpu_load: Number | None = None
    not_timed: dict[str, str] = LACKING

    @model_validator(mode="after")
    def _told(self) -> LatencyShape:
        said = self.model_fields_set
        if not self.refused and any(
            name in said and getattr(self, name) is None for name in ("speedup", "seconds_per_image")
        ):
            raise ValueError("has no speed, and was not refused")
        return self


class ShardShape(_Ran):
    """Some images of a cell."""

    first: Count = LACKING
    last: Count = LACKING
    count: Annotated[int, Field(ge=1, le=2**62)] = LACKING
    file: File = LACKING
    sha256: str | None = None
    bytes: Count = LACKING
    ids: list[str] = LACKING
    images_per_second: Annotated[Number, Field(gt=0)] = LACKING


class _Caption(_Shape):
    id: Annotated[str, AfterValidator(_file)]
    text: str


class CaptionsShape(Made):
    """What every arm is given to draw."""

    world: str = LACKING
    name: str = LACKING
    split: str = LACKING
    count: Count = LACKING
    sha256: str = LACKING
    captions: list[_Caption] = LACKING

    @model_validator(mode="after")
    def _each_once(self) -> CaptionsShape:
        if self.captions is not None and len({caption.id for caption in self.captions}) < len(self.captions):
            raise ValueError("must give each of its captions an id of its own")
        return self


class ReferencesShape(Made):
    """Which images a cell's are compared with."""

    world: str = LACKING
    name: str = LACKING
    count: Annotated[int, Field(ge=0, le=10_000_000)] | None = None  # each gets a name
    sha256: str = LACKING
    file: File = LACKING


class FeaturesShape(Made):
    """What a network says of the reference images."""

    network: str = LACKING
    weights: str | None = None
    references: str = LACKING
    count: Count | None = None
    file: File = LACKING
    sha256: str | None = None


class EmbeddingsShape(Made):
    """What a text encoder says of captions."""

    world: str = LACKING
    captions_sha256: str | None = None
    count: Count = LACKING
    file: File = LACKING
    weights: str | None = None
    sha256: str | None = None


class PartShape(Made):
    """Images of a shard that is begun."""

    maker: str = LACKING
    begin: Count = LACKING
    count: Count = LACKING
    file: File = LACKING
    sha256: str = LACKING
    trace: _Trace = LACKING
    costs: _Costs = LACKING
    seconds: Annotated[Number, Field(ge=0)] = LACKING


class _Packed(_Shape):
    cell: str
    hash: str
    files: dict[str, str]


class PackShape(Made):
    """Which cells a file has that were finished elsewhere."""

    cells: list[_Packed] = LACKING
    weights: dict[str, dict[str, str]] = LACKING


def _share(value: float) -> float:
    if value != -1 and not 0 <= value <= 1:
        raise ValueError("must be from 0 to 1, or -1 where it is decided while sampling")
    return value


class PlanShape(_Shape):
    """A plan: of every unit at every step the share of tokens that it computes."""

    steps: Annotated[int, Field(ge=1)]
    layout: Layout
    units: Annotated[list[Annotated[tuple[int, int], Field(strict=False)]], Field(min_length=1)]
    shares: list[list[Annotated[Number, AfterValidator(_share)]]]

    @model_validator(mode="after")
    def _of_one_shape(self) -> PlanShape:
        if any(not 0 <= start < stop <= len(self.layout) for start, stop in self.units):
            raise ValueError("has units that are not of its layout")
        if len(self.shares) != self.steps or any(len(step) != len(self.units) for step in self.shares):
            raise ValueError("must have a share for every unit at every step")
        return self


SHAPES: dict[str, type[Made]] = {
    "spec": SpecShape,
    "scores": ScoresShape,
    "cost": CostShape,
    "latency": LatencyShape,
    "shard": ShardShape,
    "captions": CaptionsShape,
    "references": ReferencesShape,
    "features": FeaturesShape,
    "embeddings": EmbeddingsShape,
    "pack": PackShape,
    "part": PartShape,
}


def check_record(path: Path, kind: str, body: Mapping[str, Any]) -> None:
    """A Fault where a record of a kind holds what those who read such records cannot read."""
    _check(path, body, SHAPES.get(kind, Made), f"no whole {kind} record")
    if kind == "spec" and body.get("found"):
        _check_found(path, body["found"])


def _check_found(path: Path, found: Mapping[str, Any]) -> None:
    from ditbench.methods.forms import check_shown

    try:
        check_shown(found)
    except Fault as wrong:
        raise Fault(f"{path} is no whole spec record: {wrong}; delete it and run again") from wrong


def check_trace(path: Path, body: Any) -> None:
    """A Fault where a file does not hold what was executed."""
    _check(path, body, _Trace, "no whole trace")


def check_plan(path: Path, body: Any) -> None:
    """A Fault where a file does not hold a plan that can be drawn."""
    _check(path, body, PlanShape, "no whole plan")


def _check(path: Path, body: Any, shape: type[_Shape], what: str) -> None:
    try:
        shape.model_validate(dict(body) if isinstance(body, Mapping) else body)
    except ValidationError as error:
        first = lines_of(error, shape)[0].removeprefix(": ")
        if first.startswith("trace"):
            first = f"its trace cannot be read ({first})"
        raise Fault(f"{path} is {what}: {first}; delete it and run again") from error
