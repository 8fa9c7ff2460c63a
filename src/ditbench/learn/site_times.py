"""What computing some tokens of a branch takes on this device: the weights of a budget of milliseconds.

Whole sampling runs are timed in which one kind of branch computes a share of its tokens, and all else is reused. What
such a run takes longer than one that reuses everything is that branch's, with all that choosing, gathering and
filling its tokens takes. Runs take turns, so that a machine that grows slower does so for all of them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from ditbench.engine.layout import Shape
    from ditbench.learn.lesson import Lesson
    from ditbench.methods.token_plans import TokenPlan

ROUNDS = 5
IMAGES = 16


def site_times(lesson: Lesson, method: TokenPlan, shape: Shape) -> dict[str, Any]:
    """Milliseconds of a batch [level] for a branch of each name, and what they were measured with."""
    some = lesson.texts.part(0, min(IMAGES, len(lesson.texts.ids)))
    levels = range(len(method.candidates))
    kinds: list[tuple[str, int]] = [("", 0)]  # everything reused
    kinds += [(name, level) for name in shape.layout.names for level in levels if level > 0]
    took: dict[tuple[str, int], list[float]] = {kind: [] for kind in kinds}
    for turn in range(ROUNDS + 1):
        for kind in kinds:
            seconds = _run_seconds(lesson, method, shape, kind, some)
            if turn > 0:  # the first warms up
                took[kind].append(seconds)
    reused = float(np.median(took["", 0]))
    found: dict[str, list[float]] = {}
    for name in shape.layout.names:
        sites = (shape.steps - 1) * sum(own == name for own in shape.layout.name_of)
        longer = [0.0, *((float(np.median(took[name, level])) - reused) / sites for level in levels if level > 0)]
        # More tokens never take less, however noisy the clock.
        found[name] = (1000 * np.maximum.accumulate(longer)).tolist()
    spread = max(float(np.ptp(times) / np.median(times)) for times in took.values())
    lesson.say(
        "a branch takes "
        + ", ".join(f"{name} {times[-1]:.2f} ms" for name, times in found.items())
        + f" of {len(some.ids)} images for all tokens (runs differ by up to {spread:.0%})"
    )
    return {"milliseconds": found, "images": len(some.ids), "rounds": ROUNDS, "spread": spread}


def _run_seconds(lesson: Lesson, method: TokenPlan, shape: Shape, kind: tuple[str, int], texts: Any) -> float:
    """A sampling run in which branches of one name compute a share of their tokens after the first step."""
    name, level = kind
    shares = np.zeros(shape.sites)
    shares[:, [own == name for own in shape.layout.name_of]] = method.candidates[level]
    shares[0] = 1
    fixed = method.knowing({"shares": shares.tolist()})
    sampler = lesson.sampler
    _wait(sampler.device)
    began = time.perf_counter()
    sampler.run(fixed, shape.steps, 0, texts)
    _wait(sampler.device)
    return time.perf_counter() - began


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
