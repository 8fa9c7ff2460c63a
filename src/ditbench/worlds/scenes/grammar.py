"""What a scene is and how it is said: a compositional caption grammar.

A `Scene` is the meaning (objects, relation or place, background); its caption is a function of it, and
`parse` is the inverse. Which split a scene belongs to is a function of its caption alone, so training and
evaluation captions are disjoint by construction, whoever draws them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan")
SIZES = ("large", "small")
PLACES = ("in the centre", "at the top left", "at the top right", "at the bottom left", "at the bottom right")
RELATIONS = ("left of", "right of", "above", "below")
BACKGROUNDS = ("plain", "gradient", "striped", "checkered", "dotted")
BACKGROUND_COLOURS = ("black", "gray", "beige", "brown", "pink")

# One caption in EVALUATION_SHARE is reserved for evaluation.
EVALUATION_SHARE = 10
# How often a drawn scene has one object only.
SINGLE_SHARE = 0.4


class CaptionError(ValueError):
    """A caption that the grammar of scenes cannot read."""


@dataclass(frozen=True)
class Thing:
    """One object of a scene."""

    shape: str
    colour: str
    size: str

    def phrase(self) -> str:
        return f"a {self.size} {self.colour} {self.shape}"


@dataclass(frozen=True)
class Background:
    """What lies behind the objects; a plain one has its one colour twice."""

    kind: str
    colours: tuple[str, str]

    def phrase(self) -> str:
        first, second = self.colours
        palette = first if self.kind == "plain" else f"{first} and {second}"
        return f"a {self.kind} {palette} background"


@dataclass(frozen=True)
class Scene:
    """One object at a `where` of PLACES, or two objects of which the first is `where` (RELATIONS) of the second."""

    things: tuple[Thing, ...]
    where: str
    background: Background

    def caption(self) -> str:
        if len(self.things) == 1:
            subject = f"{self.things[0].phrase()} {self.where}"
        else:
            subject = f"{self.things[0].phrase()} {self.where} {self.things[1].phrase()}"
        return f"{subject} on {self.background.phrase()}"


def vocabulary() -> list[str]:
    """Every word a caption can contain, in a fixed order (the tokenizer's ids follow it)."""
    phrases = ("a", "on", "and", "background", *PLACES, *RELATIONS)
    words = [word for phrase in phrases for word in phrase.split()]
    words += [*SIZES, *COLOURS, *SHAPES, *BACKGROUNDS, *BACKGROUND_COLOURS]
    return list(dict.fromkeys(words))


def split_of(caption: str) -> str:
    """The split a caption belongs to: "train" or "evaluation"."""
    digest = hashlib.sha256(caption.encode()).digest()
    return "evaluation" if int.from_bytes(digest[:8], "big") % EVALUATION_SHARE == 0 else "train"


def count_captions() -> int:
    """The number of distinct captions the grammar can say."""
    things = len(SHAPES) * len(COLOURS) * len(SIZES)
    # The two objects of a scene differ in shape or colour, else "the first" would have no meaning.
    pairs = things * (things - len(SIZES))
    colours = len(BACKGROUND_COLOURS)
    backgrounds = colours + (len(BACKGROUNDS) - 1) * colours * (colours - 1)
    return (things * len(PLACES) + pairs * len(RELATIONS)) * backgrounds


def _pick(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[int(rng.integers(len(words)))]


def _draw_thing(rng: np.random.Generator) -> Thing:
    return Thing(_pick(rng, SHAPES), _pick(rng, COLOURS), _pick(rng, SIZES))


def _draw_background(rng: np.random.Generator) -> Background:
    kind = _pick(rng, BACKGROUNDS)
    first = _pick(rng, BACKGROUND_COLOURS)
    if kind == "plain":
        return Background(kind, (first, first))
    others = tuple(colour for colour in BACKGROUND_COLOURS if colour != first)
    return Background(kind, (first, _pick(rng, others)))


def _draw(rng: np.random.Generator) -> Scene:
    background = _draw_background(rng)
    first = _draw_thing(rng)
    if rng.random() < SINGLE_SHARE:
        return Scene((first,), _pick(rng, PLACES), background)
    second = _draw_thing(rng)
    while (second.shape, second.colour) == (first.shape, first.colour):
        second = _draw_thing(rng)
    return Scene((first, second), _pick(rng, RELATIONS), background)


def draw_scene(rng: np.random.Generator, split: str = "train") -> Scene:
    """A random scene whose caption belongs to `split`."""
    while True:
        scene = _draw(rng)
        if split_of(scene.caption()) == split:
            return scene


def draw_scenes(count: int, seed: int, split: str = "evaluation") -> list[Scene]:
    """`count` scenes with distinct captions; a longer list of the same seed begins with the shorter one."""
    rng = np.random.default_rng([seed, 0 if split == "train" else 1])
    found: dict[str, Scene] = {}
    while len(found) < count:
        scene = draw_scene(rng, split)
        found.setdefault(scene.caption(), scene)
    return list(found.values())


def _read_thing(words: list[str]) -> Thing:
    article, size, colour, shape = words
    if article != "a" or size not in SIZES or colour not in COLOURS or shape not in SHAPES:
        raise CaptionError(f"not an object: {' '.join(words)!r}")
    return Thing(shape, colour, size)


def _read_background(words: list[str]) -> Background:
    if len(words) < 4 or words[0] != "a" or words[-1] != "background" or words[1] not in BACKGROUNDS:
        raise CaptionError(f"not a background: {' '.join(words)!r}")
    kind = words[1]
    colours = [word for word in words[2:-1] if word != "and"]
    if len(colours) != (1 if kind == "plain" else 2) or any(c not in BACKGROUND_COLOURS for c in colours):
        raise CaptionError(f"not a background: {' '.join(words)!r}")
    return Background(kind, (colours[0], colours[-1]))


def parse(caption: str) -> Scene:
    """The scene that a caption says; raises CaptionError where the grammar has no such sentence."""
    subject, divider, background = caption.partition(" on ")
    if not divider:
        raise CaptionError(f"no background in {caption!r}")
    words = subject.split()
    first = _read_thing(words[:4]) if len(words) > 4 else None
    where = next((w for w in (*PLACES, *RELATIONS) if " ".join(words[4:]).startswith(w)), None)
    if first is None or where is None:
        raise CaptionError(f"no object with a place or a relation in {caption!r}")
    rest = words[4 + len(where.split()) :]
    if where in PLACES:
        if rest:
            raise CaptionError(f"words left over in {caption!r}: {' '.join(rest)!r}")
        things: tuple[Thing, ...] = (first,)
    else:
        if len(rest) != 4:
            raise CaptionError(f"no second object in {caption!r}")
        things = (first, _read_thing(rest))
    scene = Scene(things, where, _read_background(background.split()))
    if scene.caption() != caption:
        raise CaptionError(f"not a sentence of the grammar: {caption!r}")
    return scene
