"""Observer: looks on while all is computed, and notes how far input and output of the network move."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from ditbench.engine.changes import Pool, pooled, relative_change, watched_input
from ditbench.engine.fills import Key

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ditbench.backbones import Backbone, Stream
    from ditbench.engine.layout import Unit
    from ditbench.engine.rows import Rows


class Moves:
    """Relative changes from step to step of what runs saw, two numbers for each sample and step."""

    def __init__(self) -> None:
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def note(self, moved: Tensor, answered: Tensor) -> None:
        """Notes the changes of some samples."""
        self._pairs.append((moved.cpu(), answered.cpu()))

    def arrays(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """All changes of the input, and of the output."""
        moved, answered = (torch.cat(side).double().numpy() for side in zip(*self._pairs, strict=True))
        return moved, answered


class Observer:
    """Decider and fill of a plan with one unit, the whole network: computes it for all samples at every step."""

    stateless: ClassVar[bool] = False
    wants_all: ClassVar[bool] = True

    def __init__(self, moves: Moves, pool: Pool = "sample", projected: bool = False) -> None:
        self._moves, self._pool, self._projected = moves, pool, projected
        self._halves = 1
        self._input: Tensor | None = None
        self._output: Tensor | None = None
        self._moved: Tensor | None = None

    def decide(self, unit: Unit, step: int, stream: Stream, backbone: Backbone) -> Tensor:
        now, self._halves = watched_input(stream, backbone, self._projected), stream.halves
        self._moved = None if self._input is None else self._share(now, self._input)
        self._input = now
        return torch.ones(stream.samples, dtype=torch.bool, device=stream.device)

    def keep(self, key: Key, step: int, output: Tensor) -> None:
        if key.stream != "image":
            return
        if self._moved is not None and self._output is not None:
            self._moves.note(self._moved, self._share(output, self._output))
        self._output = output

    def supply(self, key: Key, step: int) -> Tensor | None:
        raise AssertionError("an observer leaves nothing out")

    def complete(self, key: Key, step: int, rows: Rows, part: Tensor) -> Tensor | None:
        raise AssertionError("an observer leaves nothing out")

    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self._input, self._output) if t is not None)

    def _share(self, now: Tensor, before: Tensor) -> Tensor:
        apart, size = (pooled(values, self._pool, self._halves) for values in relative_change(now, before))
        return apart / size.clamp_min(1e-12)
