"""Renders with their captions, as many as training asks for: none is seen twice, none is one that evaluations draw."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ditbench.worlds.scenes.grammar import draw_scene
from ditbench.worlds.scenes.renderer import render_batch
from ditbench.worlds.scenes.settings import IMAGE_SIZE

# As when the network was trained (recipe/backbone.py): the share of captions that are the empty one.
DROPPED_CAPTIONS = 0.1


class Renders:
    """Batches of renders: a function of the seed and the step's number."""

    def __init__(self, embed: Callable[[Sequence[str]], dict[str, Tensor]], seed: int) -> None:
        self.embed, self.seed = embed, seed

    def batch(self, step: int, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Images from -1 to 1, [count, 3, 64, 64], and embeddings of their captions."""
        rng = np.random.default_rng([self.seed, step])
        scenes = [draw_scene(rng) for _ in range(count)]
        pixels = render_batch(scenes, self.seed, step * count, IMAGE_SIZE)
        captions = [scene.caption() if rng.random() >= DROPPED_CAPTIONS else "" for scene in scenes]
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        return images, self.embed(captions)
