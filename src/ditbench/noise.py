"""Starting noise: a function of (seed, caption id) alone.

Shard size, batch size, the number of workers and resumption therefore never change an image, and arms that are
compared start from the same noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def starting_noise(seed: int, caption_id: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Standard normal noise for one image."""
    digest = hashlib.sha256(f"{seed}:{caption_id}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "big")))
    return generator.standard_normal(shape, dtype=np.float32)


def batch_noise(seed: int, caption_ids: Sequence[str], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Noise of several images, [captions, *shape]."""
    return np.stack([starting_noise(seed, caption_id, shape) for caption_id in caption_ids])


def chance_seed(seed: int, caption_id: str) -> int:
    """What else chance does to an image hangs on: a number of 63 bits that has nothing to do with its noise."""
    digest = hashlib.sha256(f"{seed}:{caption_id}:chance".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1
