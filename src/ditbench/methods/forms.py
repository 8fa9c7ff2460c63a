"""What a value must look like that a learner finds and its method reads, and what is wrong with one that does not.

A record of learning is a file that anyone can hand on; what does not have these forms is refused where the record is
read (`ditbench.learn.record`, and where a spec holds it), so that methods compute with what they are given.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ditbench.faults import Fault
from ditbench.mistakes import shown


class Form(Protocol):
    """What a value must be."""

    @property
    def needed(self) -> bool:
        """Whether there must be one."""

    def check(self, value: Any, place: str) -> None:
        """A Fault that says what is wrong with a value at a place, if anything is."""


@dataclass(frozen=True)
class Numbers:
    """One number (no dimensions), a list of numbers (one), rows that are equally long (two), and so on.

    `length` is of the innermost lists. `words` may stand among the numbers of what is only shown.
    """

    dimensions: int = 0
    least: float = -math.inf
    most: float = math.inf
    length: int | None = None
    words: bool = False
    needed: bool = True

    def check(self, value: Any, place: str) -> None:
        self._shape(value, self.dimensions, place)

    def _shape(self, value: Any, dimensions: int, place: str) -> tuple[int, ...]:
        if dimensions == 0:
            self._number(value, place)
            return ()
        if not isinstance(value, list) or not (value or self.words):
            raise Fault(f"{place} is {described(value)} and must be a list with something in it")
        shapes = [self._shape(part, dimensions - 1, f"{place}[{number}]") for number, part in enumerate(value)]
        for number, shape in enumerate(shapes):
            if shape != shapes[0]:
                raise Fault(f"{place}[{number}] has other lengths ({_by(shape)}) than {place}[0] ({_by(shapes[0])})")
        if dimensions == 1 and self.length not in (None, len(value)):
            raise Fault(f"{place} has {len(value)} numbers and must have {self.length}")
        return (len(value), *(shapes[0] if shapes else ()))

    def _number(self, value: Any, place: str) -> None:
        if self.words and isinstance(value, str | bool | None):
            return
        if isinstance(value, bool) or not isinstance(value, int | float) or not is_finite(value):
            raise Fault(f"{place} is {described(value)} and must be a finite number")
        if not self.least <= value <= self.most:
            raise Fault(f"{place} is {value:g} and must be from {self.least:g} to {self.most:g}")


@dataclass(frozen=True)
class Text:
    """A text that matches a pattern; `says` is what that asks for."""

    says: str = "a text"
    pattern: str = r"[^\x00-\x1f]*"
    needed: bool = True

    def check(self, value: Any, place: str) -> None:
        if not isinstance(value, str) or not re.fullmatch(self.pattern, value):
            raise Fault(f"{place} is {described(value)} and must be {self.says}")


@dataclass(frozen=True)
class Keyed:
    """Names with a value each, all of one form."""

    of: Form
    needed: bool = True

    def check(self, value: Any, place: str) -> None:
        if not isinstance(value, dict):
            raise Fault(f"{place} is {described(value)} and must be names with a value each")
        for name, part in value.items():
            self.of.check(part, f"{place}.{shown_name(name)}")


@dataclass(frozen=True)
class Each:
    """A list of names with values, each by the same forms."""

    of: Mapping[str, Form]
    needed: bool = True

    def check(self, value: Any, place: str) -> None:
        if not isinstance(value, list):
            raise Fault(f"{place} is {described(value)} and must be a list")
        for number, part in enumerate(value):
            if not isinstance(part, dict):
                raise Fault(f"{place}[{number}] is {described(part)} and must be names with values")
            check_forms(part, self.of, f"{place}[{number}].")


# A file of weights beside its record: a name alone, so that no record leads anywhere else.
FILE = Text("the name of a file beside the record", r"[A-Za-z0-9][\w.-]{0,99}")
SHA256 = Text("a sha256, 64 hexadecimal digits", "[0-9a-f]{64}")
WEIGHTS: dict[str, Form] = {"file": FILE, "sha256": SHA256}
# The share of tokens that is computed, or the probability that computing is worth it, at every step and branch.
SHARES = Numbers(2, least=0, most=1)
# What timesteps may be: of networks that are told a time of a thousand, and far beyond.
TIMES = Numbers(1, least=0, most=1e6)
# What several learners note, and pages and MLflow show.
SHOWN: dict[str, Form] = {
    "file": Text(FILE.says, FILE.pattern, needed=False),
    "sha256": Text(SHA256.says, SHA256.pattern, needed=False),
    "history": Keyed(Numbers(1, words=True), needed=False),
    "losses": Numbers(1, words=True, needed=False),
    "tried": Numbers(2, length=2, needed=False),
    "ratios": Numbers(2, needed=False),
    "trajectory": Numbers(3, needed=False),
}
# Of a training that noted how its ratios came about.
RATIOS: dict[str, Form] = {name: Numbers(1) for name in ("ratio", "deployed")}


def check_forms(values: Mapping[str, Any], forms: Mapping[str, Form], place: str = "") -> None:
    """A Fault for the first value that has not its form, or is missing."""
    for name, form in forms.items():
        if name in values:
            form.check(values[name], f"{place}{name}")
        elif form.needed:
            raise Fault(f"{place}{name} is missing")


def check_found(found: Mapping[str, Any], forms: Mapping[str, Form]) -> None:
    """A Fault where what was found is not what a method reads, whose `forms` these are."""
    check_forms(unplaced(found), forms, "found.")


def check_shown(found: Mapping[str, Any]) -> None:
    """A Fault where pages and MLflow could not show what was found."""
    check_forms(unplaced(found), SHOWN, "found.")
    if "trajectory" in found:
        check_forms(found.get("history", {}), RATIOS, "found.history.")
    for name, value in found.items():
        if isinstance(value, int | float) and not is_finite(value):
            raise Fault(f"found.{name} is {described(value)} and must be a finite number")


def unplaced(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """What was found as its record has it: specs name a file of weights with its folder."""
    file = found.get("file")
    return {**found, "file": Path(file).name} if isinstance(file, str) and Path(file).name else found


def is_finite(value: float) -> bool:
    """Whether a number is one that computing can hold; whole ones may be too long for it."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def described(value: Any) -> str:
    """A value in a sentence: as it is where it is one, else its kind."""
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    if isinstance(value, dict):
        return "names with values"
    return "none at all" if value is None else shown(value)


def shown_name(name: str) -> str:
    """The name of a key, where it is one that can stand in a sentence."""
    return name if re.fullmatch(r"[\w.-]{1,40}", name) else shown(name)


def _by(shape: tuple[int, ...]) -> str:
    return " by ".join(map(str, shape)) or "a number"
