"""What the report reads of records, by type: older records have no seal, and may hold anything.

A value of another type than it must have would be an error of its own somewhere in a table or the page; here it is one
sentence that names the record.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from ditbench.faults import Fault
from ditbench.mistakes import lines_of

Number = Annotated[float, Field(allow_inf_nan=False)]
# What a record may lack; where it is, it must be of its type.
LACKING: Any = Field(default=None)


def _moment(text: str) -> str:
    try:
        datetime.fromisoformat(text).timestamp()
    except (OverflowError, OSError, ValueError):
        raise ValueError("is no date") from None
    return text


class _Shape(BaseModel):
    model_config = ConfigDict(strict=True)


class Provenance(_Shape):
    """Where and how a record came to be."""

    created: Annotated[str, AfterValidator(_moment)] = LACKING
    timings: dict[str, Number | None] | None = None
    threads: int | None = None
    hardware: dict[str, Any] | None = None


class Made(_Shape):
    """Any record."""

    provenance: Provenance = LACKING


class SpecShape(Made):
    """What is asked of a cell, and what its method found."""

    hash: str = LACKING
    plan_sha256: str | None = None
    found: dict[str, Any] | None = None


class _OfCell(Made):
    spec_hash: str = LACKING


class _Measure(_Shape):
    name: str
    value: Number
    low: Number | None = None
    high: Number | None = None
    n: int | None = None
    unit: str = ""
    direction: str
    method_of_interval: str = ""


class _Paired(_Shape):
    name: str
    difference: Number
    low: Number
    high: Number
    n: int
    against: str


class _References(_Shape):
    name: str = LACKING
    sha256: str | None = None
    count: int | None = None


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
    steps: int = LACKING
    cfg_branches: int = LACKING


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
    batch: int
    refused: str | None = None
    speedup: _Spread | None = None

    @model_validator(mode="after")
    def _told(self) -> _Lap:
        if not self.refused and self.speedup is None:
            raise ValueError("has no speed, and was not refused")
        return self


class LatencyShape(_OfCell):
    """The stopwatch's numbers; none where it refused."""

    refused: str | None = None
    rounds: int = LACKING
    batch: int = LACKING
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


class ShardShape(_OfCell):
    """Some images of a cell."""

    file: str = LACKING
    sha256: str | None = None


class PlanShape(_Shape):
    """A plan: of every unit at every step the share of tokens that it computes."""

    steps: Annotated[int, Field(ge=1)]
    layout: Annotated[list[Annotated[tuple[int, str], Field(strict=False)]], Field(min_length=1)]
    units: Annotated[list[Annotated[tuple[int, int], Field(strict=False)]], Field(min_length=1)]
    shares: list[list[Number]]

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
}


def read_shaped(path: Path, kind: str) -> dict[str, Any]:
    """A record of a kind, of whose values the report can read what it reads; else a Fault."""
    from ditbench.records import read_record

    body = read_record(path, kind)
    _check(path, body, SHAPES.get(kind, Made), f"no whole {kind} record")
    if "trace" in body and str(body["schema"]).endswith("@1"):  # what has a seal holds what a trace wrote
        _check_trace(path, body["trace"])
    return body


def check_plan(path: Path, body: Any) -> None:
    """A Fault where a file does not hold a plan that can be drawn."""
    _check(path, body, PlanShape, "no whole plan")


def _check(path: Path, body: Any, shape: type[_Shape], what: str) -> None:
    try:
        shape.model_validate(dict(body) if isinstance(body, Mapping) else body)
    except ValidationError as error:
        first = lines_of(error, shape)[0].removeprefix(": ")
        raise Fault(f"{path} is {what}: {first}; delete it and run again") from error


def _check_trace(path: Path, body: Any) -> None:
    from ditbench.engine.trace import Trace

    try:
        Trace.from_summary(body)
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())
        raise Fault(f"{path} is no whole record: its trace cannot be read ({said}); delete it and run again") from error
