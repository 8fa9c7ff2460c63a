"""Draws an image and notes what routers say of its tokens on the way (DiffCR)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ditbench.faults import Fault
from ditbench.report.drawn.router_maps import Maps

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from ditbench.backbones import Stream
    from ditbench.engine.layout import Shape, Unit
    from ditbench.engine.selectors import Selector
    from ditbench.methods.tuned import Routed


def router_maps(record: Path, caption: str, seed: int, device: str = "cpu", weights: str | None = None) -> Maps:
    """Draws a caption with what a record of learning holds, and notes what its routers say on the way."""
    from ditbench.generate import Sampler, Texts
    from ditbench.learn.job import learned_method
    from ditbench.learn.record import read_learned
    from ditbench.methods.tuned import Routed
    from ditbench.worlds import get_world

    body = read_learned(record)
    method = learned_method(record)
    if not isinstance(method, Routed):
        raise Fault(f"{record} is of {method.name}, which has no routers")
    world = get_world(body["world"])
    reading = world.load(device, weights, "text")
    texts = Texts(["routers"], world.embed(reading, [caption]), world.embed(reading, [""]))
    sampler = Sampler(body["world"], device, weights)
    seen: dict[tuple[int, int], NDArray[np.float64]] = {}
    images, _ = sampler.run(noting(method, seen), body["steps"], seed, texts)
    shape = world.shape(method.steps(body["steps"] or world.default_steps))
    steps, blocks = shape.steps, shape.layout.blocks
    scores = np.full((steps, blocks, shape.tokens), np.nan)
    for (step, block), values in seen.items():
        scores[step, block] = values
    rows, columns = (int(side) for side in world.size_text.split("x")[-2:])
    grid = (round((shape.tokens * rows / columns) ** 0.5), round((shape.tokens * columns / rows) ** 0.5))
    return Maps(caption, images[0], scores, 1 - method.plan(shape).shares, grid)


def noting(method: Routed, seen: dict[tuple[int, int], NDArray[np.float64]]) -> Routed:
    """The method, whose routers' scores of a batch's last sample are noted by step and block."""
    from ditbench.engine.routing import RoutedTokens

    class Noting(RoutedTokens):
        def score(self, unit: Unit, step: int, stream: Stream) -> Tensor:
            scores = super().score(unit, step, stream)
            seen[step, self._block_of[unit.start]] = scores[-1].double().cpu().numpy()
            return scores

    class Looked(type(method)):  # type: ignore[misc]
        def selector(self, shape: Shape, generator: Generator) -> Selector:
            gated = self.scaled_blocks(shape.layout.blocks)
            return Noting(self._routers(), shape.layout, self.score, self.guidance, gated)

    looked: Any = Looked(**{name: getattr(method, name) for name in method.knobs()})
    return looked.knowing(method.found)  # type: ignore[no-any-return]
