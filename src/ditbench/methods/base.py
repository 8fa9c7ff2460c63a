"""What a method is: a plan maker, a selector and a fill, with its knobs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np

from ditbench.engine.fills import Fill, Reuse
from ditbench.engine.layout import Shape
from ditbench.engine.plan import ASK, Plan
from ditbench.faults import Fault
from ditbench.methods.forms import Form, Numbers

if TYPE_CHECKING:
    from torch import Generator

    from ditbench.engine.deciders import Decider
    from ditbench.engine.merging import Merging
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
    selector: Selector | Merging | None
    decider: Decider | None


# Of a threshold: nobody has said one. There is none that fits all networks, and one that does not fit does nothing.
UNSET = -1.0


def knob(
    default: Any,
    doc: str,
    *,
    least: float | None = None,
    most: float | None = None,
    choices: tuple[Any, ...] | None = None,
    later: bool = False,
) -> Any:
    """A dataclass field that is a knob, with the range of its values.

    One that was given to a method `later` is no part of what cells are known by while it has its default: cells that
    were finished before keep their hashes.
    """
    told = {"doc": doc, "least": least, "most": most, "choices": choices, "later": later}
    return dataclasses.field(default=default, metadata=told)


@dataclass(frozen=True)
class Method:
    """Base of all methods; a subclass overrides what it changes."""

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str]
    # The module of `ditbench.learn` that fits what the method needs to know before it samples.
    learner: ClassVar[str | None] = None
    # Whether that fine-tunes the network, on pairs of images and captions; others are fitted on captions alone.
    fine_tunes: ClassVar[bool] = False

    # Whether it looks at captions even where it takes over what another training has found.
    fits_what_it_takes: ClassVar[bool] = False

    # Whether that has a stand-in for what it fits, where weights are random: the method can be timed with those then.
    has_stand_in: ClassVar[bool] = False

    # Whether other methods may run on the weights that its learner trained.
    lends_weights: ClassVar[bool] = False

    # What the learner found; no knob, since nobody types it.
    found: Mapping[str, Any] | None = dataclasses.field(default=None, kw_only=True, repr=False, hash=False)
    # What another arm's learner found, whose fine-tuned weights the network wears.
    lent: Mapping[str, Any] | None = dataclasses.field(default=None, kw_only=True, repr=False, hash=False)

    def taken_from(self) -> str:
        """The record of learning that is taken instead of learning anew; empty where there is something to learn."""
        return str(getattr(self, "plan_file", "") or getattr(self, "weights_file", ""))

    @property
    def compares_with_real_images(self) -> bool:
        """Whether its learner needs real images, in worlds that render none: the run's references."""
        return False

    def needs_captions(self) -> bool:
        """Whether its learner is given training captions."""
        return not self.fine_tunes and (not self.taken_from() or self.fits_what_it_takes)

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
            if "doc" in field.metadata
        }

    @classmethod
    def telling(cls, knobs: Mapping[str, Any]) -> dict[str, Any]:
        """The knobs that a cell is known by: all but those that came later and are as if they had not."""
        later = {field.name: field.default for field in dataclasses.fields(cls) if field.metadata.get("later")}
        return {name: value for name, value in knobs.items() if name not in later or value != later[name]}

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
        if isinstance(value, float) and not math.isfinite(value):
            return f"{name}: {value!r} must be a finite number"
        if wanted.choices is not None and value not in wanted.choices:
            return f"{name}: {value!r} must be one of {', '.join(map(str, wanted.choices))}"
        if wanted.least is not None and not value >= wanted.least:
            return f"{name}: {value!r} must be >= {wanted.least:g}"
        if wanted.most is not None and not value <= wanted.most:
            return f"{name}: {value!r} must be <= {wanted.most:g}"
        return None

    def waits(self) -> bool:
        """Whether the method's learner must run before it can sample."""
        return False

    def finds(self) -> Mapping[str, Form]:
        """What the method reads of `found`, and the form of each: a record without it is refused where it is read."""
        return {}

    def knowing(self, found: Mapping[str, Any] | None) -> Self:
        """The method with what its learner found."""
        return dataclasses.replace(self, found=found)

    def at_times(self, times: Sequence[float]) -> Self:
        """The method for a sampler that gives its network these timesteps, one for each step."""
        return self

    def on(self, lent: Mapping[str, Any] | None) -> Self:
        """The method on weights that another arm's learner trained."""
        return dataclasses.replace(self, lent=lent)

    @property
    def worn(self) -> Mapping[str, Any] | None:
        """Where the weights are that the network wears: its own learner's, or lent ones; None: the world's."""
        return self.found if self.found and "file" in self.found else self.lent

    def unlearned(self) -> Fault:
        """What is said where a method that waits for its learner is asked to sample."""
        return Fault(
            f"{self.name} must be fitted first: the workflow does it, so does `ditbench learn`, whose record "
            f"`ditbench.accelerate(pipeline, learned=...)` takes"
        )

    def misfit(self, said: str) -> Fault:
        """That what was found is of another run than this one; it names the record, where that is known."""
        record = (self.found or {}).get("record")
        return Fault(f"{record}: {said}" if record else said)

    def steps(self, default: int) -> int:
        """How many sampling steps the method takes where a full run takes `default`."""
        return default

    def plan(self, shape: Shape) -> Plan:
        """What happens at every site."""
        raise NotImplementedError

    def guided(self, shape: Shape) -> list[bool] | None:
        """Which steps compute both branches of guidance; None: all. The others go on with the conditional one alone."""
        return None

    def fill(self, shape: Shape) -> Fill:
        """What the tokens that are not computed receive, with fresh state for one run."""
        return Reuse()

    def selector(self, shape: Shape, generator: Generator) -> Selector | Merging | None:
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


@dataclass(frozen=True)
class Thresholded(Method):
    """Base of methods that compute where something has changed by a threshold: a given one, or one that is fitted."""

    learner: ClassVar[str | None] = "calibration"

    threshold: float = knob(UNSET, "", least=UNSET)
    target: float = knob(
        0.0,
        "times fewer MACs than full, which a threshold is fitted to on training captions; 0: the threshold is given",
        least=0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target and self.threshold >= 0:
            raise Fault(f"{self.name} takes a threshold or a target that one is fitted to, not both")
        if 0 < self.target <= 1:
            raise Fault(f"target: {self.target:g} must be above 1, the cost of full")

    def waits(self) -> bool:
        return self.target > 0 and self.found is None

    def finds(self) -> Mapping[str, Form]:
        return {"threshold": Numbers(needed=self.target > 0)}

    def fits_polynomial(self) -> bool:
        """Whether calibration fits a polynomial as well."""
        return False

    @property
    def bound(self) -> float:
        """The threshold that is given, or was fitted."""
        if self.waits():
            raise self.unlearned()
        return float(self.found["threshold"]) if self.found and "threshold" in self.found else self.threshold

    def need_threshold(self) -> None:
        """A Fault where there is no threshold, and none will be fitted."""
        if self.threshold < 0 and not self.target and not (self.found and "threshold" in self.found):
            doc = self.knobs()["threshold"].doc
            raise Fault(
                f"{self.name} needs a threshold ({doc}) or a target, for which one is fitted: "
                "which one fits hangs on network, steps and guidance"
            )
