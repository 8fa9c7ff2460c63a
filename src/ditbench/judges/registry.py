"""Finds the judge files of this package."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Literal

from ditbench.faults import Fault
from ditbench.judges.base import IMAGES, VIDEOS, Judge
from ditbench.judges.weights import identity

# What is known of the references: the images, means and covariances of their features, or nothing.
Given = Literal["images", "moments", "none"]

_NOT_JUDGES = {"base", "blip", "packages", "videos", "registry", "references", "weights", "sets", "kernels", "networks"}


@cache
def judge_classes() -> dict[str, type[Judge]]:
    """Every judge by its name."""
    found: dict[str, type[Judge]] = {}
    for info in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if info.name in _NOT_JUDGES:
            continue
        module = importlib.import_module(f"{__package__}.{info.name}")
        for value in vars(module).values():
            if not (isinstance(value, type) and issubclass(value, Judge) and value.__module__ == module.__name__):
                continue
            if not value.__name__.startswith("_"):  # what several judges of a file have in common
                if value.name in found:
                    raise Fault(
                        f"two judges are called {value.name!r}: {found[value.name].__module__}, {module.__name__}"
                    )
                found[value.name] = value
    return dict(sorted(found.items()))


def judge_names() -> list[str]:
    """The names of all judges."""
    return list(judge_classes())


def judges_of(world: str) -> list[str]:
    """The names of the judges that can judge a world."""
    kind = VIDEOS if _draws_videos(world) else IMAGES
    return [name for name, judge in judge_classes().items() if world in judge.worlds or kind in judge.worlds]


@cache
def judge_of(measure: str) -> str | None:
    """The name of the judge that gives a measure; None where none does."""
    return next((name for name, judge in judge_classes().items() if measure in judge.measures()), None)


def measures_of(world: str) -> list[str]:
    """The names of all that judges may say of a world."""
    return [measure for name in judges_of(world) for measure in judge_classes()[name].measures()]


def _draws_videos(world: str) -> bool:
    from ditbench.worlds import get_world, world_names

    return world in world_names() and get_world(world).frames is not None


def default_judges(world: str, places: Mapping[str, str] | None = None, references: Given = "images") -> list[str]:
    """The judges of a world that need nothing besides what is at hand: what runs where `judges` is not set."""
    found = []
    for name in judges_of(world):
        judge = judge_classes()[name]
        lacks = judge.needs_references and (references == "none" or (references == "moments" and not judge.by_moments))
        if not lacks and judge.ready(places or {}):
            found.append(name)
    return found


def networks_of(names: Iterable[str]) -> list[str]:
    """The networks whose features of the references some judges read."""
    found = (judge_classes()[name].network_name for name in names if name in judge_classes())
    return sorted({network for network in found if network is not None})


def weight_keys() -> dict[str, list[str]]:
    """The keys that `judge_weights` may have, each with the judges that need it."""
    found: dict[str, list[str]] = {}
    for name, judge in judge_classes().items():
        for weights in judge.needs:
            found.setdefault(weights.key, []).append(name)
    return found


def grammar_judges(world: str) -> list[str]:
    """The names of those judges of a world that read its grammar's captions only."""
    return [name for name in judges_of(world) if judge_classes()[name].needs_grammar]


def get_judge(name: str, device: str = "cpu", places: Mapping[str, str] | None = None) -> Judge:
    """A judge by its name; its weights are read when it first measures, from `places` or the hub's cache."""
    classes = judge_classes()
    if name not in classes:
        near = difflib.get_close_matches(name, classes, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise Fault(f"no judge {name!r}{hint} Possible: {', '.join(classes)}")
    return classes[name](device, places)


def need_judges(names: Iterable[str], places: Mapping[str, str]) -> None:
    """A Fault where a judge lacks its package or its weights; told before a run starts."""
    for name in names:
        judge = judge_classes()[name]
        if judge.package is not None and not judge.package.there:
            judge.package.need(name)
        for weights in judge.needs:
            weights.need(places, name)


def judge_identities(names: Iterable[str], places: Mapping[str, str]) -> dict[str, str]:
    """What tells the weights that judges read from others, by their keys: of those files that are at hand."""
    needed = {
        weights.key: weights for name in names if name in judge_classes() for weights in judge_classes()[name].needs
    }
    files = {key: weights.find(places) for key, weights in sorted(needed.items()) if not weights.folder}
    return {key: identity(path) for key, path in files.items() if path is not None}


def check_identities(places: Mapping[str, str], known: Mapping[str, str]) -> None:
    """A Fault where weights are no longer those that a run was planned with: its numbers would not compare."""
    needed = {weights.key: weights for judge in judge_classes().values() for weights in judge.needs}
    for key, mark in known.items():
        path = needed[key].find(places) if key in needed else None
        if path is None or identity(path) != mark:
            raise Fault(
                f"judge_weights.{key}: {path or 'the file'} is not the file that this run was planned with; put it "
                "back, or run again, and everything that it judges is judged anew"
            )
