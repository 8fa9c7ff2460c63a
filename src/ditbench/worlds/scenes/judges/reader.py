"""Reads what a picture shows: its objects (shape, colour, size, place) and its background, and checks a scene.

A small network marks the centres of objects on a 16 x 16 grid and names shape, colour and size at each cell; a peak
of the marks is an object. The reader is strict: a shape or colour that it is not sure of counts as none.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from ditbench.worlds.scenes.grammar import (
    BACKGROUND_COLOURS,
    BACKGROUNDS,
    COLOURS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    Background,
    Scene,
    Thing,
)
from ditbench.worlds.scenes.judges.trunk import FEATURES, FINE, Maps, Trunk
from ditbench.worlds.scenes.judges.weights import load_weights
from ditbench.worlds.scenes.renderer import PLACE_CENTRES

GRID = 16
# The channels of the grid's head and of the background's, by meaning.
GRID_PARTS = {"centre": 1, "shape": len(SHAPES), "colour": len(COLOURS), "size": len(SIZES)}
BACKGROUND_PARTS = {"kind": len(BACKGROUNDS), "first": len(BACKGROUND_COLOURS), "second": len(BACKGROUND_COLOURS)}
CENTRE_THRESHOLD = 0.4
# Below this probability a shape or a colour is not recognised.
SURE = 0.6
UNCLEAR = "unclear"
OPPOSITE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@dataclass(frozen=True)
class Found:
    """One object of a picture; `x` and `y` run from 0 to 1, a word may be UNCLEAR."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    confidence: float


@dataclass(frozen=True)
class Reading:
    """All that was read of one picture."""

    objects: list[Found]
    background: Background


@dataclass(frozen=True)
class ObjectVerdict:
    """Which attributes of one asked object are right."""

    colour: bool
    shape: bool
    size: bool


@dataclass(frozen=True)
class Verdict:
    """What of a scene was drawn."""

    count_right: bool
    objects_right: bool  # every asked object is there with its shape and its colour
    objects: tuple[ObjectVerdict, ...]
    relation_right: bool | None  # None where one object was asked for
    place_right: bool | None  # None where two objects were asked for
    background_right: bool

    @property
    def sizes_right(self) -> bool:
        return all(thing.size for thing in self.objects)

    @property
    def everything_right(self) -> bool:
        arranged = self.place_right if self.relation_right is None else self.relation_right
        return self.count_right and self.objects_right and self.sizes_right and bool(arranged) and self.background_right


class Reader(nn.Module):
    """Pixels [n, 3, 64, 64] from 0 to 255 in; logits of every cell and of the background out."""

    feature_mean: torch.Tensor
    feature_map: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.grid = nn.Conv2d(FINE, sum(GRID_PARTS.values()), 1)
        self.background = nn.Linear(FEATURES, sum(BACKGROUND_PARTS.values()))
        # What makes the features of renders white: centred, uncorrelated, of equal spread.
        self.register_buffer("feature_mean", torch.zeros(FEATURES))
        self.register_buffer("feature_map", torch.eye(FEATURES))

    def forward(self, pixels: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        maps: Maps = self.trunk(pixels)
        cells = self.grid(maps.fine).float().split(list(GRID_PARTS.values()), 1)
        words = self.background(maps.pooled()).float().split(list(BACKGROUND_PARTS.values()), 1)
        return dict(zip(GRID_PARTS, cells, strict=True)), dict(zip(BACKGROUND_PARTS, words, strict=True))

    @torch.inference_mode()
    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """The whitened pooled maps that FID/scenes compares, [n, FEATURES], from pixels [n, 3, 64, 64] in 0 to 255.

        Whitened, because which scenes were drawn moves the raw features far more than how well they were drawn.
        """
        if tuple(pixels.shape[1:]) != (3, 64, 64):
            raise ValueError(f"the reader looks at 3 x 64 x 64 pictures, got {tuple(pixels.shape)}")
        return (self.trunk(pixels.float()).pooled() - self.feature_mean) @ self.feature_map

    @torch.inference_mode()
    def readings(self, images: NDArray[np.uint8], batch: int = 128) -> list[Reading]:
        """What each picture [height, width, 3] shows."""
        device = next(self.parameters()).device
        found: list[Reading] = []
        for start in range(0, len(images), batch):
            cells, words = self(to_pixels(images[start : start + batch], device))
            found += [Reading(o, b) for o, b in zip(decode(cells), decode_background(words), strict=True)]
        return found

    def read(self, images: NDArray[np.uint8]) -> list[list[Found]]:
        """The objects of each picture, the surest first."""
        return [reading.objects for reading in self.readings(images)]


def load_reader(path: Path, device: str = "cpu") -> Reader:
    """The reader with its shipped weights."""
    return load_weights(Reader(), path, device)


def to_pixels(images: NDArray[np.uint8], device: torch.device | str = "cpu") -> torch.Tensor:
    """Bytes [n, height, width, 3] as floats [n, 3, height, width] from 0 to 255."""
    return torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float()


def decode(cells: dict[str, torch.Tensor]) -> list[list[Found]]:
    """Objects at the peaks of the centre map: cells above the threshold that no neighbour exceeds."""
    # Peaks are sought among logits: sure cells have equal chances of 1 once rounded.
    marks = cells["centre"][:, 0]
    heat = marks.sigmoid()
    peaks = (marks == F.max_pool2d(marks[:, None], 3, 1, 1)[:, 0]) & (heat > CENTRE_THRESHOLD)
    chances = {part: cells[part].softmax(1) for part in ("shape", "colour", "size")}
    found: list[list[Found]] = [[] for _ in heat]
    for picture, row, column in peaks.nonzero().tolist():
        here = {part: chance[picture, :, row, column] for part, chance in chances.items()}
        found[picture].append(
            Found(
                shape=_surely(here["shape"], SHAPES),
                colour=_surely(here["colour"], COLOURS),
                size=SIZES[int(here["size"].argmax())],
                x=(column + 0.5) / GRID,
                y=(row + 0.5) / GRID,
                confidence=float(heat[picture, row, column]),
            )
        )
    return [sorted(objects, key=lambda o: -o.confidence) for objects in found]


def decode_background(words: dict[str, torch.Tensor]) -> list[Background]:
    """The background's kind and colours; a plain one has its first colour twice."""
    backgrounds = []
    for kind, first, second in zip(*(words[part].argmax(1).tolist() for part in BACKGROUND_PARTS), strict=True):
        name = BACKGROUNDS[kind]
        colours = (BACKGROUND_COLOURS[first], BACKGROUND_COLOURS[first if name == "plain" else second])
        backgrounds.append(Background(name, colours))
    return backgrounds


def _surely(chances: torch.Tensor, words: Sequence[str]) -> str:
    best = int(chances.argmax())
    return words[best] if float(chances[best]) >= SURE else UNCLEAR


def place_of(found: Found) -> str:
    """The place of the grammar that is nearest."""
    return min(PLACES, key=lambda place: math.dist((found.x, found.y), PLACE_CENTRES[place]))


def relation_of(first: Found, second: Found) -> str:
    """Where the first object is, seen from the second, along the axis on which they lie further apart."""
    right, down = first.x - second.x, first.y - second.y
    if abs(right) >= abs(down):
        return "right of" if right > 0 else "left of"
    return "below" if down > 0 else "above"


def _matches(thing: Thing, found: Found) -> int:
    return (thing.shape == found.shape) + (thing.colour == found.colour)


def _fit(things: Sequence[Thing], assigned: Iterable[Found | None]) -> int:
    return sum(_matches(thing, found) for thing, found in zip(things, assigned, strict=True) if found is not None)


def _assign(scene: Scene, found: Sequence[Found]) -> tuple[Found | None, ...]:
    """Which object was meant by which asked one: most attributes first, then the arrangement, then the sizes."""
    things = scene.things
    candidates: list[Found | None] = [*found, *([None] * len(things))]

    def worth(assigned: tuple[Found | None, ...]) -> tuple[int, int, bool, int]:
        both = [(t, f) for t, f in zip(things, assigned, strict=True) if f is not None]
        whole = sum(_matches(t, f) == 2 for t, f in both)
        arranged = _arranged(scene, [f for _, f in both]) if len(both) == len(things) else False
        return whole, _fit(things, assigned), arranged, sum(t.size == f.size for t, f in both)

    return max(itertools.permutations(candidates, len(things)), key=worth)


def _arranged(scene: Scene, found: Sequence[Found]) -> bool:
    if len(scene.things) == 1:
        return place_of(found[0]) == scene.where
    return relation_of(found[0], found[1]) == scene.where


def _relation_right(scene: Scene, found: Sequence[Found]) -> bool:
    """Whether two objects fit the asked order better than the opposite one; undecidable counts as wrong."""
    asked, opposite = [0], [0]
    reverse = OPPOSITE[scene.where]
    for pair in itertools.permutations(found, 2):
        relation = relation_of(*pair)
        if relation == scene.where:
            asked.append(_fit(scene.things, pair))
        elif relation == reverse:
            opposite.append(_fit(scene.things, pair))
    return max(asked) > max(opposite)


def same_background(asked: Background, drawn: Background) -> bool:
    """Whether a background is the one asked for; stripes and checks have no first colour that a person could name."""
    if asked.kind in ("striped", "checkered"):
        return asked.kind == drawn.kind and set(asked.colours) == set(drawn.colours)
    return asked == drawn


def check(scene: Scene, found: Sequence[Found], background: Background | None = None) -> Verdict:
    """Compares what was found with what was asked; without a `background` read, that part counts as right."""
    # A picture of many spurious objects need not cost factorial time: the surest six are enough to find two.
    assigned = _assign(scene, found[:6])
    objects = tuple(
        ObjectVerdict(thing.colour == f.colour, thing.shape == f.shape, thing.size == f.size)
        if f is not None
        else ObjectVerdict(False, False, False)
        for thing, f in zip(scene.things, assigned, strict=True)
    )
    related = scene.where in RELATIONS
    return Verdict(
        count_right=len(found) == len(scene.things),
        objects_right=all(o.colour and o.shape for o in objects),
        objects=objects,
        relation_right=_relation_right(scene, found[:6]) if related else None,
        place_right=None if related else assigned[0] is not None and place_of(assigned[0]) == scene.where,
        background_right=background is None or same_background(scene.background, background),
    )
