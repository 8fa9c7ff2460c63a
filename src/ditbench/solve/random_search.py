"""Random search: as many choices of a total as one can afford to measure, and the best of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ditbench.faults import Fault
from ditbench.solve.plans import Space
from ditbench.solve.units import Ints

Fitness = Callable[[Ints], float]


@dataclass(frozen=True)
class Searched:
    """The best choice that was measured, its fitness (lower is better), and the best after each measurement."""

    choices: Ints
    fitness: float
    history: list[float]


def random_search(fitness: Fitness, space: Space, measurements: int, seed: int = 0) -> Searched:
    """Measures `measurements` choices of a space, drawn by chance."""
    if measurements < 1:
        raise Fault(f"measurements: {measurements} must be at least 1")
    rng = np.random.default_rng(seed)
    best, least, history = None, np.inf, []
    for _ in range(measurements):
        choice = space.draw(rng)
        found = measured(fitness, choice)
        if best is None or found < least:
            best, least = choice, found
        history.append(float(least))
    assert best is not None
    return Searched(best, float(least), history)


def measured(fitness: Fitness, choice: Ints) -> float:
    """A choice's fitness, which must be a number."""
    found = float(fitness(choice))
    if not np.isfinite(found):
        raise Fault(f"the fitness of a choice is {found}: it must be finite")
    return found
