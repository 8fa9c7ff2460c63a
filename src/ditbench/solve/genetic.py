"""Genetic search over choices within a budget, as DiffSparse compares itself with (A.5.4).

The paper says: 50 choices that meet the sparsity, fitness FID, the best as parents, crossover, mutation with
probability 0.01. How many parents, which crossover and how a child's total is mended it does not say: half, each site
of either parent, and single moves by chance.
"""

from __future__ import annotations

import numpy as np

from ditbench.faults import Fault
from ditbench.solve.plans import Space
from ditbench.solve.random_search import Fitness, Searched, measured


def genetic_search(
    fitness: Fitness,
    space: Space,
    generations: int,
    population: int = 50,
    mutation: float = 0.01,
    parents: float = 0.5,
    seed: int = 0,
) -> Searched:
    """The best choice after some generations; parents live on, so that it never gets worse.

    `fitness` is asked for `population` choices at first, and for every child: (1 - parents) x population of them in a
    generation.
    """
    if population < 2 or generations < 0:
        raise Fault(f"a population of {population} over {generations} generations: it takes 2 and 0 at least")
    if not 0 <= mutation <= 1 or not 0 < parents < 1:
        raise Fault(f"mutation: {mutation:g} must lie within 0 and 1, parents: {parents:g} between them")
    sites, rng = space.sites, np.random.default_rng(seed)
    history: list[float] = []

    def tried(choice: np.ndarray) -> tuple[float, np.ndarray]:
        found = measured(fitness, choice)
        history.append(min(found, history[-1]) if history else found)
        return found, choice

    living = [tried(space.draw(rng)) for _ in range(population)]
    kept = max(2, round(parents * population)) if population > 2 else 2
    for _ in range(generations):
        living.sort(key=lambda pair: pair[0])
        del living[kept:]
        for _ in range(population - kept):
            one, other = (living[number][1] for number in rng.choice(kept, 2, replace=False))
            child = np.where(rng.random(sites) < 0.5, one, other)
            mutated = rng.random(sites) < mutation
            child[mutated] = rng.integers(0, space.levels, int(mutated.sum()))
            living.append(tried(space.mend(child, rng)))
    least, best = min(living, key=lambda pair: pair[0])
    return Searched(best, least, history)
