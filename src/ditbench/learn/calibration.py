"""Calibration: the threshold at which a method reaches its target, and the polynomial that its changes go through.

Both are found by sampling: thresholds are tried until the MACs that training captions cost fit the target. MACs, not
seconds, so that a threshold is the same on every machine; linear layers and attention's products together, which
seconds follow more closely than either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ditbench.engine.plan import ASK, Plan
from ditbench.faults import Fault
from ditbench.methods import get_method
from ditbench.methods.base import Method, Thresholded, Trio

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Generator

    from ditbench.engine.layout import Shape
    from ditbench.engine.observer import Moves
    from ditbench.learn.lesson import Lesson

TOLERANCE = 0.015  # how near the target is near enough
TRIES = 14
FIRST = 0.1  # the first threshold that is tried
NEAREST, FARTHEST = 1e-7, 1e4  # relative changes beyond these will never come
DEGREE = 4  # of the published polynomials


def learn(lesson: Lesson) -> dict[str, Any]:
    """What a method with a threshold must know: a polynomial if it takes one, and the threshold for its target."""
    method = lesson.method
    if not isinstance(method, Thresholded):
        raise Fault(f"{method.name} has no threshold to calibrate")
    found: dict[str, Any] = {}
    if method.fits_polynomial():
        found |= lesson.notebook.once("polynomial", lambda: fit(*observe(lesson, method)))
        lesson.say(f"polynomial of {found['points']:,} changes explains {found['explained']:.0%} of the output's")
    if not method.target:
        return found
    _, full = lesson.run(get_method("full"), lesson.batches()[:1])

    def speed(threshold: float) -> float:
        candidate = method.knowing({**found, "threshold": threshold})
        reached = float(lesson.notebook.once(f"{threshold!r}", lambda: full.total / lesson.run(candidate)[1].total))
        lesson.say(f"threshold {threshold:.4g} is {reached:.3f} times as cheap as full, {method.target:g} is wanted")
        return reached

    tried = search(speed, method.target)
    threshold, reached = nearest(tried, method.target)
    if abs(math.log(reached / method.target)) > 0.1:
        raise Fault(
            f"no threshold of {method.name} makes it {method.target:g} times as cheap as full: the nearest is "
            f"{reached:.2f} times, at {threshold:.4g}; what it always computes, other knobs say"
        )
    return {**found, "threshold": threshold, "reached": reached, "tried": [list(pair) for pair in tried]}


def search(speed: Callable[[float], float], target: float) -> list[tuple[float, float]]:
    """Thresholds and their speed-ups, tried until one fits the target; a larger threshold is never slower."""
    slow, fast, threshold, stride = 0.0, math.inf, FIRST, 4.0
    tried: list[tuple[float, float]] = []
    while len(tried) < TRIES and NEAREST < threshold < FARTHEST:
        reached = speed(threshold)
        tried.append((threshold, reached))
        # Farther each time on a plateau: it may be the end of all speeds, or there may be more behind it.
        stride = 4 * stride if len(tried) > 1 and tried[-2][1] == reached else 4.0
        if abs(math.log(reached / target)) <= TOLERANCE:
            break
        if reached < target:
            slow = threshold
        else:
            fast = threshold
        if math.isinf(fast):
            threshold = slow * stride
        elif slow == 0:
            threshold = fast / stride
        else:
            threshold = math.sqrt(slow * fast)
            if fast / slow < 1 + 1e-4:  # a jump of the speed-up, with nothing between
                break
    return tried


def nearest(tried: Sequence[tuple[float, float]], target: float) -> tuple[float, float]:
    """The threshold whose speed-up comes nearest to the target, and that speed-up."""
    return min(tried, key=lambda pair: abs(math.log(pair[1] / target)))


@dataclass(frozen=True)
class _Observing(Method):
    """All of the network at every step, watched."""

    name: ClassVar[str] = "observing"
    moves: Moves = field(kw_only=True)
    pool: str = field(kw_only=True)
    watch: str = field(kw_only=True)

    def plan(self, shape: Shape) -> Plan:
        return Plan(shape.layout, (shape.layout.span(0, shape.layout.blocks),), np.full((shape.steps, 1), ASK))

    def parts(self, shape: Shape, generator: Generator) -> Trio:
        from ditbench.engine.observer import Observer

        both = Observer(self.moves, self.pool, self.watch == "projection")  # type: ignore[arg-type]
        return Trio(both, None, both)


def observe(lesson: Lesson, method: Method) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How far input and output of the network moved at each step of sampling the training captions."""
    from ditbench.engine.observer import Moves

    moves = Moves()
    pool, watch = getattr(method, "pool", "sample"), getattr(method, "watch", "input")
    lesson.run(_Observing(moves=moves, pool=pool, watch=watch))
    return moves.arrays()


def fit(moved: NDArray[np.float64], answered: NDArray[np.float64]) -> dict[str, Any]:
    """The polynomial of least squares from the input's changes to the output's, and the range it was fitted in."""
    if len(np.unique(moved)) <= DEGREE:
        raise Fault(f"{len(np.unique(moved))} distinct changes are too few for a polynomial of degree {DEGREE}")
    polynomial = np.polynomial.Polynomial.fit(moved, answered, DEGREE)
    rest, spread = answered - polynomial(moved), answered - answered.mean()
    return {
        "coefficients": [float(c) for c in polynomial.convert().coef[::-1]],
        "least": float(moved.min()),
        "most": float(moved.max()),
        "points": len(moved),
        "explained": float(1 - (rest**2).sum() / max((spread**2).sum(), 1e-300)),
    }
