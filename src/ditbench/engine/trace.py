"""What a run executed: the tokens computed at every site. Every MACs figure is computed from a trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditbench.engine.plan import Shape
from ditbench.faults import Fault


@dataclass
class Trace:
    """`computed[step, block, branch]`: tokens computed there, summed over `samples` (rows of the batch)."""

    shape: Shape
    computed: NDArray[np.int64]
    samples: int = 0

    @classmethod
    def empty(cls, shape: Shape) -> Trace:
        return cls(shape, np.zeros(shape.sites, dtype=np.int64))

    def record(self, step: int, block: int, branch: int, tokens: int) -> None:
        """Notes that `tokens` tokens, over all rows of the batch, were computed at a site."""
        self.computed[step, block, branch] += tokens

    def add(self, other: Trace) -> None:
        """Counts the runs of `other` as well."""
        if other.shape != self.shape:
            raise Fault(f"traces of different shapes cannot be added: {self.shape} and {other.shape}")
        self.computed += other.computed
        self.samples += other.samples

    @property
    def shares(self) -> NDArray[np.float64]:
        """The mean share of tokens computed at every site."""
        return self.computed / max(self.samples * self.shape.tokens, 1)

    @property
    def realised_ratio(self) -> float:
        """The share of token computations that was left out."""
        return float(1 - self.shares.mean())

    def summary(self) -> dict[str, Any]:
        return {
            "steps": self.shape.steps,
            "blocks": self.shape.blocks,
            "branches": list(self.shape.branches),
            "tokens": self.shape.tokens,
            "samples": self.samples,
            "computed": self.computed.tolist(),
        }

    @classmethod
    def from_summary(cls, body: dict[str, Any]) -> Trace:
        shape = Shape(body["steps"], body["blocks"], tuple(body["branches"]), body["tokens"])
        return cls(shape, np.asarray(body["computed"], dtype=np.int64), body["samples"])
