"""Scenes that differ from a given one in one word: what a caption judge must tell apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ditbench.worlds.scenes.grammar import (
    BACKGROUND_COLOURS,
    BACKGROUNDS,
    COLOURS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
)
from ditbench.worlds.scenes.judges.reader import OPPOSITE

# The kinds of change and how often each is drawn; the background's words matter less than the objects'.
CHANGES = {"shape": 5, "colour": 4, "size": 3, "where": 5, "background": 3}


def _another(rng: np.random.Generator, words: Sequence[str], word: str) -> str:
    others = [w for w in words if w != word]
    return others[int(rng.integers(len(others)))]


def _change_thing(scene: Scene, kind: str, rng: np.random.Generator) -> Scene:
    chosen = int(rng.integers(len(scene.things)))
    thing = scene.things[chosen]
    words = {"shape": SHAPES, "colour": COLOURS, "size": SIZES}[kind]
    changed: Thing = replace(thing, **{kind: _another(rng, words, getattr(thing, kind))})
    return replace(scene, things=(*scene.things[:chosen], changed, *scene.things[chosen + 1 :]))


def _change_background(scene: Scene, rng: np.random.Generator) -> Scene:
    background = scene.background
    first, second = background.colours
    if background.kind == "plain":
        colour = _another(rng, BACKGROUND_COLOURS, first)
        return replace(scene, background=replace(background, colours=(colour, colour)))
    if rng.random() < 0.5:
        kinds = [kind for kind in BACKGROUNDS if kind != "plain"]
        return replace(scene, background=replace(background, kind=_another(rng, kinds, background.kind)))
    left = [colour for colour in BACKGROUND_COLOURS if colour not in (first, second)]
    colour = left[int(rng.integers(len(left)))]
    colours = (colour, second) if rng.random() < 0.5 else (first, colour)
    return replace(scene, background=replace(background, colours=colours))


def change(scene: Scene, kind: str, rng: np.random.Generator) -> Scene:
    """The scene with one word of `kind` (of CHANGES) changed; still a scene that the grammar can say."""
    if kind == "where":
        words = PLACES if len(scene.things) == 1 else RELATIONS
        return replace(scene, where=_another(rng, words, scene.where))
    if kind == "background":
        return _change_background(scene, rng)
    while True:
        changed = _change_thing(scene, kind, rng)
        # Two objects of one shape and colour are no scene: "the first" would have no meaning.
        if len({(thing.shape, thing.colour) for thing in changed.things}) == len(changed.things):
            return changed


def mirrored(scene: Scene) -> Scene:
    """A scene of two objects with the opposite relation: the same words, another meaning."""
    return replace(scene, where=OPPOSITE[scene.where])


def draw_change(scene: Scene, rng: np.random.Generator) -> tuple[str, Scene]:
    """A random kind of change, and the changed scene."""
    weights = np.array(list(CHANGES.values()), dtype=float)
    kind = list(CHANGES)[int(rng.choice(len(weights), p=weights / weights.sum()))]
    return kind, change(scene, kind, rng)
