"""Draws scenes: anti-aliased, batched over images, deterministic by (seed, index).

Coordinates run from 0 to 1 over the picture, so a scene looks the same at every resolution. Shapes are signed
distances (negative inside); coverage is the distance in pixels, clipped to one pixel's width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ditbench.worlds.scenes.grammar import Scene

Floats = NDArray[np.float32]

PALETTE = {
    "red": (222, 40, 40),
    "green": (40, 165, 60),
    "blue": (45, 75, 225),
    "yellow": (248, 215, 45),
    "purple": (150, 45, 175),
    "cyan": (60, 205, 225),
    "black": (22, 22, 22),
    "gray": (130, 130, 130),
    "beige": (226, 216, 190),
    "brown": (104, 74, 50),
    "pink": (240, 180, 196),
}
DIAMETER = {"large": 0.46, "small": 0.32}
# Jitter: half-widths of uniform distributions.
DIAMETER_JITTER = 0.02
PLACE_JITTER = 0.03
SHADE_JITTER = 0.05
PLACE_CENTRES = {
    "in the centre": (0.5, 0.5),
    "at the top left": (0.29, 0.29),
    "at the top right": (0.71, 0.29),
    "at the bottom left": (0.29, 0.71),
    "at the bottom right": (0.71, 0.71),
}
# Centres of the first and the second object.
RELATION_CENTRES = {
    "left of": ((0.265, 0.5), (0.735, 0.5)),
    "right of": ((0.735, 0.5), (0.265, 0.5)),
    "above": ((0.5, 0.265), (0.5, 0.735)),
    "below": ((0.5, 0.735), (0.5, 0.265)),
}
STRIPES = 4
CHECKS = 4
DOTS = 4
DOT_RADIUS = 0.3  # of a dot's cell


def _circle(x: Floats, y: Floats) -> Floats:
    return np.hypot(x, y) - 1


def _ring(x: Floats, y: Floats) -> Floats:
    return np.abs(np.hypot(x, y) - 0.74) - np.float32(0.26)


def _square(x: Floats, y: Floats) -> Floats:
    return np.maximum(np.abs(x), np.abs(y)) - np.float32(0.89)


def _triangle(x: Floats, y: Floats) -> Floats:
    # Upright, its apex on the unit circle, a little wider than equilateral so that its area matches the others.
    slope = np.float32(0.894)
    return np.maximum(y - np.float32(0.8), slope * np.abs(x) - np.float32(0.447) * (y + 1))


def _cross(x: Floats, y: Floats) -> Floats:
    ax, ay = np.abs(x), np.abs(y)
    bar = np.float32(0.32)
    return np.minimum(np.maximum(ax - 1, ay - bar), np.maximum(ay - 1, ax - bar))


SHAPE_DISTANCE = {"circle": _circle, "square": _square, "triangle": _triangle, "cross": _cross, "ring": _ring}


def _soft_step(distance_in_pixels: NDArray[np.floating]) -> NDArray[np.floating]:
    return np.clip(distance_in_pixels + np.float32(0.5), 0, 1)


def _background_weight(kind: str, size: int) -> NDArray[np.floating]:
    """The share of the second colour at every pixel, [size, size]."""
    centres = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / size
    y, x = np.meshgrid(centres, centres, indexing="ij")
    if kind == "plain":
        return np.zeros_like(x)
    if kind == "gradient":
        return y
    if kind == "striped":
        return _soft_step(_wave(x, STRIPES, size))
    if kind == "checkered":
        # The product of two signs, softened over one pixel in each direction.
        u, v = (2 * _soft_step(_wave(axis, CHECKS // 2, size)) - 1 for axis in (x, y))
        return (1 - u * v) / 2
    cell_x, cell_y = (np.mod(axis * DOTS, 1) - 0.5 for axis in (x, y))
    return _soft_step((np.float32(DOT_RADIUS) - np.hypot(cell_x, cell_y)) / DOTS * size)


def _wave(axis: NDArray[np.floating], periods: int, size: int) -> NDArray[np.floating]:
    """A triangle wave in pixels: the signed distance to the nearest of the 2 x `periods` edges."""
    phase = np.mod(axis * periods, 1)
    return (np.abs(phase - np.float32(0.5)) - np.float32(0.25)) * (size / periods)


_WEIGHTS: dict[tuple[str, int], Floats] = {}


def _weight(kind: str, size: int) -> Floats:
    if (kind, size) not in _WEIGHTS:
        _WEIGHTS[kind, size] = _background_weight(kind, size).astype(np.float32)
    return _WEIGHTS[kind, size]


def _centres_of(scene: Scene) -> tuple[tuple[float, float], ...]:
    if len(scene.things) == 1:
        return (PLACE_CENTRES[scene.where],)
    return RELATION_CENTRES[scene.where]


def layout(scene: Scene, seed: int, index: int) -> tuple[list[tuple[float, float, float]], NDArray[np.float64]]:
    """Where the objects are, [(x, y, radius)], and the shade of each colour used, [things + 2, 3]."""
    rng = np.random.Generator(np.random.PCG64([seed, index]))
    wobble = rng.uniform(-1, 1, size=(2, 3))
    shade = 1 + SHADE_JITTER * rng.uniform(-1, 1, size=(4, 3))
    boxes = []
    for (x, y), thing, (dx, dy, dr) in zip(_centres_of(scene), scene.things, wobble, strict=False):
        radius = (DIAMETER[thing.size] + DIAMETER_JITTER * dr) / 2
        boxes.append((x + PLACE_JITTER * dx, y + PLACE_JITTER * dy, radius))
    return boxes, shade


def _paint(canvas: Floats, box: tuple[float, float, float], shape: str, colour: Floats) -> None:
    """Paints one object over `canvas` [size, size, 3], touching only the pixels around it."""
    size = canvas.shape[0]
    x0, y0, radius = box
    reach = radius + 1.5 / size
    left, right = (int(np.clip(np.floor(v * size), 0, size)) for v in (x0 - reach, x0 + reach + 1 / size))
    top, bottom = (int(np.clip(np.floor(v * size), 0, size)) for v in (y0 - reach, y0 + reach + 1 / size))
    x = ((np.arange(left, right, dtype=np.float32) + np.float32(0.5)) / size - np.float32(x0)) / np.float32(radius)
    y = ((np.arange(top, bottom, dtype=np.float32) + np.float32(0.5)) / size - np.float32(y0)) / np.float32(radius)
    distance = SHAPE_DISTANCE[shape](x[None, :], y[:, None])
    cover = _soft_step(-distance * np.float32(radius * size))[..., None]
    window = canvas[top:bottom, left:right]
    window += cover * (colour - window)


def render(scene: Scene, seed: int, index: int, size: int = 64) -> NDArray[np.uint8]:
    """One picture, [size, size, 3] bytes; a function of its arguments alone."""
    boxes, shade = layout(scene, seed, index)
    colours = [PALETTE[thing.colour] for thing in scene.things]
    first, second = (
        np.clip(np.asarray(PALETTE[name]) * shade[2 + i], 0, 255).astype(np.float32)
        for i, name in enumerate(scene.background.colours)
    )
    weight = _weight(scene.background.kind, size)[..., None]
    canvas = first + weight * (second - first)
    for i, (thing, box) in enumerate(zip(scene.things, boxes, strict=True)):
        colour = np.clip(np.asarray(colours[i]) * shade[i], 0, 255).astype(np.float32)
        _paint(canvas, box, thing.shape, colour)
    return np.rint(canvas).astype(np.uint8)


def render_batch(scenes: Sequence[Scene], seed: int, first_index: int = 0, size: int = 64) -> NDArray[np.uint8]:
    """Pictures of consecutive indices, [len(scenes), size, size, 3] bytes."""
    return np.stack([render(scene, seed, first_index + i, size) for i, scene in enumerate(scenes)])
