"""A figure of a study, as data: what kind it is, which arms it draws, and what else its kind asks for.

How each kind is drawn is the business of `report/drawn`; this says which keys belong to which kind.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ditbench.mistakes import ARM, possible

Text = Annotated[str, Field(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=ARM, max_length=80)]


@dataclass(frozen=True)
class Kind:
    """What a kind of figure shows, which keys it needs and which it may have besides."""

    summary: str
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()


KINDS = {
    "macs-by-branch": Kind("MACs of each kind of branch, in several worlds", ("arms",), ("worlds", "counted")),
    "macs-by-step": Kind("MACs of each kind of branch along the steps", ("arms",), ("counted", "marked")),
    "plan": Kind("the share of tokens left out at every step and block", ("arms",), ("first_step",)),
    "ratios": Kind("how ratios of blocks came about in training", ("arms",)),
    "routers": Kind("what routers say of an image's tokens", ("arms", "caption"), ("seed",)),
    "correlation": Kind("learned ratios against what routers say", ("arms", "caption"), ("seed",)),
    "redundancy": Kind("structure, detail and most similar tokens along the steps", (), ("captions", "seed")),
    "trade-off": Kind("two measures of arms against each other", ("x", "y"), ("arms", "size", "joined")),
}  # fmt: skip
# Kinds of figures that show what was seen while a network drew: `ditbench look` makes their data.
LOOKED = ("routers", "correlation", "redundancy")
# What every kind may have.
COMMON = ("kind", "name", "title")


class Figure(BaseModel):
    """One figure of a study."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    kind: Text
    title: Text
    name: Name | None = None  # of its files; its kind if not given
    arms: Annotated[list[Name], Field(min_length=1)] | None = None
    worlds: Annotated[list[Text], Field(min_length=1)] | None = None  # the study's own if not given
    counted: Literal["linear", "attention", "total"] = "linear"
    marked: list[Count] = []  # steps whose values are written in the figure
    first_step: Count = 1
    caption: Text | None = None
    captions: Count = 16
    seed: Annotated[int, Field(ge=0)] = 0
    x: Text | None = None
    y: Text | None = None
    size: Text | None = None  # the measure that a mark's area shows
    joined: bool = False  # a line through the arms of each group, in the order of their rows

    @property
    def file(self) -> str:
        """What its files are called, without what says their kind."""
        return f"figure-{self.name or self.kind}"

    def drawn_arms(self, every: Iterable[str]) -> list[str]:
        """The arms that it draws: all where it names none."""
        return list(every) if self.arms is None else list(self.arms)


def problems(figures: Sequence[Figure], arms: Sequence[str], measures: Sequence[str]) -> Iterator[str]:
    """What no type can say of a study's figures, given its arms and columns."""
    from ditbench.worlds import world_names

    named: dict[str, int] = {}
    for i, figure in enumerate(figures):
        kind = KINDS.get(figure.kind)
        if kind is None:
            yield f"figures.{i}.kind: no kind of figure is called {figure.kind!r}{possible(figure.kind, KINDS)}"
            continue
        if figure.file in named:
            yield f"figures.{i}: its files would be called like those of figures.{named[figure.file]}; give it a `name`"
        named.setdefault(figure.file, i)
        given = figure.model_fields_set - set(COMMON)
        for key in kind.needs:
            if key not in given:
                yield f"figures.{i}.{key}: missing; kind {figure.kind} needs it"
        valid = [*COMMON, *kind.needs, *kind.takes]
        for key in sorted(given - set(valid)):
            yield f"figures.{i}.{key}: kind {figure.kind} has no such key{possible(key, valid)}"
        yield from _unknown(i, "arms", figure.arms or (), arms, "no row has arm {!r}")
        yield from _unknown(i, "worlds", figure.worlds or (), world_names(), "no world {!r}")
        for key in ("x", "y", "size"):
            value: Any = getattr(figure, key)
            yield from _unknown(i, key, () if value is None else (value,), measures, "{!r} is not a column")


def _unknown(i: int, key: str, names: Iterable[str], valid: Sequence[str], said: str) -> Iterator[str]:
    for name in names:
        if name not in valid:
            yield f"figures.{i}.{key}: {said.format(name)}{possible(name, valid)}"
