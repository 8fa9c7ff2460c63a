"""What an audit is: printed MACs figures as data, each with the reading under which ditbench counts it.

Read from `studies/<name>.yaml` with `kind: audit`. No verdict stands in it: verdicts are computed.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=80)]
Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
# Digits as the paper has them: how many there are is what "exact" is measured by.
Printed = Annotated[str, Field(pattern=r"^\d+(\.\d+)?(E[+-]?\d+)?$")]
Ratio = Annotated[str, Field(pattern=r"^\d+(\.\d+)? ?%$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Reading(_Part):
    """How a figure was counted.

    `count`: what of a network is counted (`thop`: linear layers and LayerNorms, as that tool does; `selecting`: none of
    it, but what a method takes to choose tokens or find alike ones). `branches`: of
    classifier-free guidance. `per`: one sampling run, or one call of the network. `operations`: 2 where a
    multiplication and an addition count apart. `as_published`: parts that diffusers repeats, as often as the
    original network has them.
    """

    count: Literal["linear", "attention", "thop", "total", "selecting"] = "thop"
    branches: Literal[1, 2] = 1
    per: Literal["run", "call"] = "run"
    images: Count = 1
    operations: Literal[1, 2] = 1
    text_tokens: Count | None = None
    as_published: bool = False


class PlanGiven(_Part):
    """What a run computes, for methods that ditbench does not have; exactly one of the first four keys.

    `full_steps`: steps that compute everything; the others compute `blocks` blocks (0 if not given). `kept`: tokens
    that every block computes, or its `branches` only. `share`: of the tokens, at every branch and step. `left_out`: of
    the full run's cost, as a percentage whose rounding leaves a band; no plan is run for it. `norms: whole`: LayerNorms
    see all tokens although the layers behind them do not. `router`: every block scores all tokens with one linear unit.
    """

    full_steps: list[Annotated[int, Field(ge=0)]] | None = None
    kept: Count | None = None
    share: Annotated[float, Field(gt=0, le=1)] | None = None
    left_out: Ratio | None = None
    blocks: Annotated[int, Field(ge=0)] = 0
    branches: list[Text] | None = None
    norms: Literal["computed", "whole"] = "computed"
    router: bool = False

    @model_validator(mode="after")
    def _one_kind(self) -> PlanGiven:
        kinds = [name for name in ("full_steps", "kept", "share", "left_out") if getattr(self, name) is not None]
        if len(kinds) != 1:
            raise ValueError("takes exactly one of full_steps, kept, share and left_out")
        if self.full_steps is None and self.blocks:
            raise ValueError("blocks goes with full_steps")
        if self.kept is None and (self.branches is not None or self.norms != "computed" or self.router):
            raise ValueError("branches, norms and router go with kept")
        return self


class Tried(_Part):
    """Another reading of a figure, shown with what it gives; it decides no verdict."""

    label: Text
    world: str | None = None
    method: str | None = None
    knobs: dict[str, Any] = {}
    plan: PlanGiven | None = None
    steps: Count | None = None
    reading: dict[str, Any] = {}


class Figure(_Part):
    """One number of a paper. What it leaves out, its table says."""

    id: Name
    table: Name
    row: Text
    column: str = ""
    block: str = ""
    printed: Printed
    ratio: Ratio | None = None
    unit: Literal["T", "G"] | None = None
    world: str | None = None
    steps: Count | None = None
    method: str | None = None
    knobs: dict[str, Any] = {}
    plan: PlanGiven | None = None
    # null: nothing that is known reproduces it, not even nearly.
    reading: dict[str, Any] | None = {}
    tried: list[Tried] = []
    note: str = ""

    @model_validator(mode="after")
    def _one_source(self) -> Figure:
        if self.method is None and self.plan is None:
            raise ValueError("needs a method or a plan")
        return self


class PrintedTable(_Part):
    """A table of a paper, and what its figures have in common; `baseline`: rows that the others are compared with."""

    paper: Name
    place: Text
    about: Text
    counts: Literal["MACs", "FLOPs"]
    unit: Literal["T", "G"]
    baseline: list[Text] = []
    world: str | None = None
    steps: Count | None = None
    reading: dict[str, Any] = {}
    note: str = ""


class Paper(_Part):
    """A paper, what it is called for short, and which parts of it were at hand."""

    short: Text
    title: Text
    source: Text
    read: Text


class Awaited(_Part):
    """Names that figures cite before ditbench has what they name, and how papers call them."""

    methods: dict[str, Text] = {}
    worlds: dict[str, Text] = {}


class Audit(_Part):
    """The whole file."""

    name: str
    kind: Literal["audit"]
    title: Text
    papers: dict[Name, Paper]
    tables: dict[Name, PrintedTable]
    awaited: Awaited = Awaited()
    figures: Annotated[list[Figure], Field(min_length=1)]

    def reading(self, figure: Figure, tried: Tried | None = None) -> Reading | None:
        """A figure's reading: its table's, with its own keys over it, and those of a tried one over these."""
        if figure.reading is None and tried is None:
            return None
        own = {**self.tables[figure.table].reading, **(figure.reading or {}), **(tried.reading if tried else {})}
        return Reading.model_validate(own)

    def world(self, figure: Figure) -> str:
        """The world that a figure is counted in."""
        return figure.world or self.tables[figure.table].world or ""

    def steps(self, figure: Figure) -> int | None:
        """The sampling steps of a figure's run; None for the world's own number."""
        return figure.steps or self.tables[figure.table].steps

    def unit(self, figure: Figure) -> str:
        """T or G."""
        return figure.unit or self.tables[figure.table].unit


def half_unit(text: str) -> tuple[Decimal, Decimal]:
    """A printed number and half a unit of its last digit; of `43 %`, as a share."""
    number = Decimal(text.removesuffix("%").strip())
    half = Decimal(5).scaleb(int(number.as_tuple().exponent) - 1)
    return (number / 100, half / 100) if text.endswith("%") else (number, half)
