"""What the dual encoder learns: which caption a picture has, among others' and its own with one word changed."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from ditbench.worlds.scenes.grammar import draw_scene
from ditbench.worlds.scenes.judges.dual import DualEncoder, tokenize
from ditbench.worlds.scenes.judges.trunk import Trunk
from ditbench.worlds.scenes.recipe.changes import draw_change, mirrored
from ditbench.worlds.scenes.recipe.defects import imperfect
from ditbench.worlds.scenes.recipe.training import Schedule, Task, stacked
from ditbench.worlds.scenes.renderer import render

# Captions with one word changed that each picture must tell from its own; the first is of the opposite relation.
HARD_NEGATIVES = 2


class DualTask(Task):
    """Contrastive learning; the image tower starts from the reader's trunk."""

    name = "dual"
    schedule = Schedule(steps=1100, batch=96, rate=2e-3, seed=1)

    def __init__(self, trunk: Trunk, device: str = "cpu") -> None:
        torch.manual_seed(self.schedule.seed)
        self.network: DualEncoder = DualEncoder()
        self.network.image.trunk.load_state_dict(trunk.state_dict())
        self.device = device

    def batch(self, step: int) -> tuple[list[np.ndarray], list[str]]:
        """Float pictures, and captions: all the right ones first, then the changed ones."""
        rng, count, seed = self.rng(step), self.schedule.batch, self.schedule.seed
        scenes = [draw_scene(rng) for _ in range(count)]
        pictures = [
            imperfect(render(scene, seed, step * count + row).astype(np.float32), rng)
            for row, scene in enumerate(scenes)
        ]
        changed = [
            mirrored(scene) if first and len(scene.things) == 2 else draw_change(scene, rng)[1]
            for first in [True] + [False] * (HARD_NEGATIVES - 1)
            for scene in scenes
        ]
        return pictures, [scene.caption() for scene in (*scenes, *changed)]

    def loss(self, step: int) -> torch.Tensor:
        pictures, captions = self.batch(step)
        images = self.network.image(stacked(pictures, self.device))
        texts = self.network.text(tokenize(captions).to(self.device))
        logits = self.network.scale * images.float() @ texts.float().T
        right = torch.arange(len(pictures), device=self.device)
        return F.cross_entropy(logits, right) + F.cross_entropy(logits[:, : len(pictures)].T, right)
