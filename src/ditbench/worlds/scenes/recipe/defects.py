"""What can be wrong with a picture: slight imperfections to read through, and damage to dislike.

Everything works on float pixels from 0 to 255 and takes its randomness from a numpy generator, so that a batch is
a function of its number alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.float32]  # [height, width, 3]
KERNEL = np.array([1, 4, 6, 4, 1], dtype=np.float32) / 16


def blurred(pixels: Pixels, passes: int = 1) -> Pixels:
    """A binomial blur; every pass adds one pixel of variance."""
    for _ in range(passes):
        for axis in (0, 1):
            padding = [(0, 0)] * pixels.ndim
            padding[axis] = (2, 2)
            padded = np.pad(pixels, padding, mode="edge")
            length = pixels.shape[axis]
            pixels = sum(
                weight * padded.take(range(i, i + length), axis=axis) for i, weight in enumerate(KERNEL)
            ).astype(np.float32)
    return pixels


def shifted(pixels: Pixels, right: int, down: int) -> Pixels:
    """Moves a picture by whole pixels, repeating its edge."""
    reach = max(abs(right), abs(down))
    if reach == 0:
        return pixels
    height, width, _ = pixels.shape
    padded = np.pad(pixels, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    return padded[reach - down : reach - down + height, reach - right : reach - right + width]


def imperfect(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """A picture as a good generator might have drawn it: slightly soft, noisy, off in colour."""
    if rng.random() < 0.5:
        pixels = pixels + np.float32(rng.uniform(0, 0.9)) * (blurred(pixels) - pixels)
    if rng.random() < 0.5:
        gain = rng.uniform(0.94, 1.06) * rng.uniform(0.97, 1.03, 3)
        pixels = (pixels - 128) * gain.astype(np.float32) + 128 + rng.uniform(-7, 7, 3).astype(np.float32)
    if rng.random() < 0.5:
        noise = rng.standard_normal(pixels.shape, dtype=np.float32)
        if rng.random() < 0.5:
            noise = 2 * blurred(noise)  # blotches, as a network leaves them
        pixels = pixels + np.float32(rng.uniform(0, 10)) * noise
    return np.clip(pixels, 0, 255)


def _blur(pixels: Pixels, _: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    passes = 1 + int(4 * strength)
    return pixels + np.float32(0.3 + 0.7 * strength) * (blurred(pixels, passes) - pixels)


def _noise(pixels: Pixels, _: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    return pixels + np.float32(6 + 44 * strength) * rng.standard_normal(pixels.shape, dtype=np.float32)


def _blotches(pixels: Pixels, _: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    noise = blurred(rng.standard_normal(pixels.shape, dtype=np.float32), 1 + int(rng.integers(3)))
    return pixels + np.float32(8 + 40 * strength) * noise / noise.std()


def _swaps(pixels: Pixels, _: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Patches of 4 to 16 pixels change places."""
    side = int(rng.choice([4, 8, 16]))
    grid = pixels.shape[0] // side
    patches = pixels.reshape(grid, side, grid, side, 3).swapaxes(1, 2).reshape(grid * grid, side, side, 3).copy()
    count = max(2, round((0.05 + 0.45 * strength) * len(patches)))
    chosen = rng.permutation(len(patches))[:count]
    patches[chosen] = patches[np.roll(chosen, 1)]
    return patches.reshape(grid, grid, side, side, 3).swapaxes(1, 2).reshape(pixels.shape)


def _ghost(pixels: Pixels, other: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Another picture shines through, over the whole canvas or over patches of it."""
    share = np.float32(0.12 + 0.38 * strength)
    if rng.random() < 0.5:
        mask = (rng.random((16, 16, 1)) < 0.5).astype(np.float32)
        return pixels + share * mask.repeat(4, 0).repeat(4, 1) * (other - pixels)
    return pixels + share * (other - pixels)


def _double(pixels: Pixels, _: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """The picture and its own shifted copy."""
    reach = 2 + round(6 * strength)
    moved = shifted(pixels, *(int(v) for v in rng.integers(-reach, reach + 1, 2)))
    moved = moved if not np.array_equal(moved, pixels) else shifted(pixels, reach, reach)
    return pixels + np.float32(0.4) * (moved - pixels)


def _fade(pixels: Pixels, _: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Contrast and colour get lost, or too strong."""
    mean = pixels.mean((0, 1), keepdims=True)
    gain = 1 - (0.15 + 0.6 * strength) if rng.random() < 0.6 else 1 + (0.15 + 0.6 * strength)
    return mean + np.float32(gain) * (pixels - mean)


DAMAGES: dict[str, Callable[[Pixels, Pixels, float, np.random.Generator], Pixels]] = {
    "blur": _blur,
    "noise": _noise,
    "blotches": _blotches,
    "swaps": _swaps,
    "ghost": _ghost,
    "double": _double,
    "fade": _fade,
}


def damaged(pixels: Pixels, other: Pixels, kind: str, strength: float, rng: np.random.Generator) -> Pixels:
    """A picture with one kind of damage, `strength` from 0 (slight) to 1; `other` is what a ghost is made of."""
    return np.clip(DAMAGES[kind](pixels, other, strength, rng), 0, 255).astype(np.float32)
