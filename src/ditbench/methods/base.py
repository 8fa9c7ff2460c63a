"""What a method is: a plan maker, a selector and a fill, with its knobs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from ditbench.engine.fills import Fill, Reuse
from ditbench.engine.layout import Shape
from ditbench.engine.plan import ASK, Plan
from ditbench.faults import Fault

if TYPE_CHECKING:
    from torch import Generator

    from ditbench.engine.deciders import Decider
    from ditbench.engine.selectors import Selector


class Knob(NamedTuple):
    """One setting of a method, as users see it."""

    type: type
    default: Any
    doc: str
    least: float | None
    most: float | None
    choices: tuple[Any, ...] | None


class Trio(NamedTuple):
    """The parts of one run beside its plan."""

    fill: Fill
    selector: Selector | None
    decider: Decider | None


# Of a threshold: nobody has said one. There is none that fits all networks, and one that does not fit does nothing.
UNSET = -1.0


def needs_threshold(method: Method, threshold: float) -> None:
    """A Fault where a threshold is not set."""
    if threshold < 0:
        doc = method.knobs()["threshold"].doc
        raise Fault(f"{method.name} needs a threshold ({doc}): which one fits hangs on network, steps and guidance")


def knob(
    default: Any,
    doc: str,
    *,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[Any, ...] | None = None,
) -> Any:
    """A dataclass field that is a knob, with the range of its values."""
    return dataclasses.field(default=default, metadata={"doc": doc, "least": least, "most": most, "choices": choices})


@dataclass(frozen=True)
class Method:
    """Base of all methods; a subclass overrides what it changes."""

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]

    def __post_init__(self) -> None:
        problems = [p for p in (self.problem(n, getattr(self, n)) for n in self.knobs()) if p]
        if problems:
            raise Fault("; ".join(problems))

    @classmethod
    def knobs(cls) -> dict[str, Knob]:
        """The method's knobs by name."""
        return {
            field.name: Knob(
                type(field.default),
                field.default,
                field.metadata["doc"],
                field.metadata["least"],
                field.metadata["most"],
                field.metadata["choices"],
            )
            for field in dataclasses.fields(cls)
        }

    @classmethod
    def problem(cls, name: str, value: Any) -> str | None:
        """What is wrong with a knob's value, in one line; None if nothing is."""
        knobs = cls.knobs()
        if name not in knobs:
            return f"{cls.name} has no knob {name!r}; it has {', '.join(knobs) or 'none'}"
        wanted = knobs[name]
        numeric = wanted.type is float and isinstance(value, int) and not isinstance(value, bool)
        if type(value) is not wanted.type and not numeric:
            return f"{name}: {value!r} must be of type {wanted.type.__name__}"
        if wanted.choices is not None and value not in wanted.choices:
            return f"{name}: {value!r} must be one of {', '.join(map(str, wanted.choices))}"
        if wanted.least is not None and not value >= wanted.least:
            return f"{name}: {value!r} must be >= {wanted.least:g}"
        if wanted.most is not None and not value <= wanted.most:
            return f"{name}: {value!r} must be <= {wanted.most:g}"
        return None

    def steps(self, default: int) -> int:
        """How many sampling steps the method takes where a full run takes `default`."""
        return default

    def plan(self, shape: Shape) -> Plan:
        """What happens at every site."""
        raise NotImplementedError

    def fill(self, shape: Shape) -> Fill:
        """What the tokens that are not computed receive, with fresh state for one run."""
        return Reuse()

    def selector(self, shape: Shape, generator: Generator) -> Selector | None:
        """Which tokens are computed where a plan computes some, with fresh state for one run."""
        return None

    def decider(self, shape: Shape) -> Decider | None:
        """Who decides, where a plan leaves it to sampling, with fresh state for one run."""
        return None

    @staticmethod
    def probing(shape: Shape, probe: int) -> Plan:
        """The first `probe` blocks at every step; the others where a decider says so."""
        layout = shape.layout
        shares = np.tile([1.0, ASK], (shape.steps, 1))
        return Plan(layout, (layout.span(0, probe), layout.span(probe, layout.blocks)), shares)

    def parts(self, shape: Shape, generator: Generator) -> Trio:
        """All three; overridden where one object is two of them."""
        return Trio(self.fill(shape), self.selector(shape, generator), self.decider(shape))
