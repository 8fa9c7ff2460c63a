"""Plans that are tried, by what images of training captions they make; every plan that was tried is noted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ditbench.learn.real import fid_to_references
from ditbench.learn.sources import place_of
from ditbench.learn.sparsity import School, pixels, transferred
from ditbench.methods.plan_search import PlanSearch
from ditbench.solve.genetic import genetic_search
from ditbench.solve.random_search import random_search
from ditbench.statistics import FrechetTo

if TYPE_CHECKING:
    from ditbench.learn.lesson import Lesson

KEPT = 0.5  # of a population, as parents of the next
RENDERS = 2000  # as many as the embedded judge compares with: FID to fewer is mostly about which they are
AT_ONCE = 250  # of them, whose features are made together


def learn(lesson: Lesson) -> dict[str, Any]:
    """The shares of tokens of the best plan, and how good the best one was after each measurement."""
    method = lesson.method
    assert isinstance(method, PlanSearch)
    if method.plan_file:
        return transferred(place_of(method.plan_file, lesson.notebook.path.parent), method)
    # FID asks for no loss: the one that needs no weights stands for it.
    school = School(lesson, method, "l2" if method.fitness == "fid" else method.fitness, method.training_seed)
    measure = _fid(school) if method.fitness == "fid" else _Measure(school.off_of_all)
    steps, branches = school.shape.sites
    budget, tried = school.budget, 0

    def levels_of(choice: NDArray[np.int64]) -> NDArray[np.int64]:
        levels = np.full((steps, branches), len(budget.candidates) - 1, dtype=np.int64)
        levels[1:] = choice.reshape(-1, branches)
        return levels

    def fitness(choice: NDArray[np.int64]) -> float:
        nonlocal tried
        name = hashlib.sha256(choice.astype(np.int8).tobytes() + measure.mark.encode()).hexdigest()[:16]
        found = float(lesson.notebook.once(name, lambda: measure.of(levels_of(choice))))
        tried += 1
        lesson.say(f"plan {tried} of {method.measurements}: {method.fitness} {found:.4g}")
        return found

    space, seed = budget.space(), method.training_seed
    if method.search == "random":
        found = random_search(fitness, space, method.measurements, seed)
    else:
        children = method.population - max(2, round(KEPT * method.population))
        generations = (method.measurements - method.population) // children if children else 0
        found = genetic_search(fitness, space, generations, method.population, method.mutation, KEPT, seed)
    levels = levels_of(found.choices)
    return {
        "shares": budget.candidates[levels].tolist(),
        "left_out": budget.used(levels),
        "fitness": found.fitness,
        "history": {"best": found.history},
        **({"compared_with": measure.mark} if measure.mark else {}),
    }


class _Measure(NamedTuple):
    """How good the images of a plan are, lower is better; `mark` tells a measure from others of its name."""

    of: Callable[[NDArray[np.int64]], float]
    mark: str = ""


def _fid(school: School) -> _Measure:
    """The Frechet distance to real images: in the features of the world's own FID, or as the judge inception-fid."""
    features = school.world.frechet_features(school.sampler.device)
    if features is None:
        real = fid_to_references(school.lesson)
        return _Measure(
            lambda levels: real.of(np.concatenate([images for _, images in school.images(levels)])), real.mark
        )
    # Other scenes than any evaluation compares with: their seed is nobody else's.
    renders = torch.split(pixels(school.world.references(RENDERS, school.seed)), AT_ONCE)
    to = FrechetTo(torch.cat([features(some).cpu() for some in renders]).double().numpy())

    def measure(levels: NDArray[np.int64]) -> float:
        own = torch.cat([features(pixels(images)) for _, images in school.images(levels)])
        return to(own.double().cpu().numpy())

    return _Measure(measure, f"renders-{RENDERS}, seed {school.seed}")
