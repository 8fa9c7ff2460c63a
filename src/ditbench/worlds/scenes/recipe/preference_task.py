"""What the preference model learns: the faithful, clean picture is better than the damaged or unfaithful one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from ditbench.worlds.scenes.grammar import Scene, draw_scene
from ditbench.worlds.scenes.judges.dual import DualEncoder, tokenize
from ditbench.worlds.scenes.judges.preference import Preference
from ditbench.worlds.scenes.recipe.changes import CHANGES, change, draw_change
from ditbench.worlds.scenes.recipe.defects import DAMAGES, damaged, imperfect
from ditbench.worlds.scenes.recipe.training import Schedule, Task, stacked
from ditbench.worlds.scenes.renderer import render

UNFAITHFUL_SHARE = 0.4
IMPERFECT_SHARE = 0.3


@dataclass(frozen=True)
class Choice:
    """Two float pictures for one caption, and why the better one is better."""

    caption: str
    better: np.ndarray
    worse: np.ndarray
    reason: str


def draw_choice(scene: Scene, seed: int, index: int, rng: np.random.Generator, reason: str | None = None) -> Choice:
    """A pair for a scene; `reason` is a kind of damage or of change, drawn where it is None.

    Half of the damaged pictures are compared with a less damaged one and not with the clean one, so that the model
    learns degrees and not only whether a picture is perfect.
    """
    better = render(scene, seed, index).astype(np.float32)
    if rng.random() < IMPERFECT_SHARE:
        better = imperfect(better, rng)
    if reason in CHANGES or (reason is None and rng.random() < UNFAITHFUL_SHARE):
        reason, other = (reason, change(scene, reason, rng)) if reason is not None else draw_change(scene, rng)
        return Choice(scene.caption(), better, render(other, seed, index).astype(np.float32), reason)
    if reason is None:
        reason = list(DAMAGES)[int(rng.integers(len(DAMAGES)))]
    ghost = render(draw_scene(rng), seed, index).astype(np.float32)
    strength, less = float(rng.random()), float(rng.random()) - 0.5
    # The same draws for both, so that only the strength differs.
    draws = int(rng.integers(2**32))
    worse = damaged(better, ghost, reason, strength, np.random.default_rng(draws))
    if less > 0 and strength > 0.3:
        better = damaged(better, ghost, reason, less * strength, np.random.default_rng(draws))
    return Choice(scene.caption(), better, worse, reason)


class PreferenceTask(Task):
    """Pairwise logistic learning; starts from the whole dual encoder."""

    name = "preference"
    schedule = Schedule(steps=900, batch=64, rate=1e-3, seed=2)

    def __init__(self, dual: DualEncoder, device: str = "cpu") -> None:
        torch.manual_seed(self.schedule.seed)
        self.network: Preference = Preference()
        self.network.load_state_dict(dual.state_dict())
        self.device = device

    def batch(self, step: int) -> list[Choice]:
        rng, count, seed = self.rng(step), self.schedule.batch, self.schedule.seed
        return [draw_choice(draw_scene(rng), seed, step * count + row, rng) for row in range(count)]

    def loss(self, step: int) -> torch.Tensor:
        choices = self.batch(step)
        pictures = [choice.better for choice in choices] + [choice.worse for choice in choices]
        images = self.network.image(stacked(pictures, self.device)).float()
        texts = self.network.text(tokenize([choice.caption for choice in choices]).to(self.device)).float()
        better, worse = (self.network.scale * (half * texts).sum(1) for half in images.chunk(2))
        return -F.logsigmoid(better - worse).mean()
