"""A plan: the share of the tokens that is computed at every unit and step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditbench.engine.layout import Layout, Shape, Unit
from ditbench.faults import Fault

# In place of a share: whether the unit is computed, whole, is decided while sampling, for each sample.
ASK = -1.0


@dataclass(frozen=True)
class Plan:
    """`shares[step, unit]` in [0, 1]: 1 computes all tokens, 0 none, k = ceil(share x tokens); ASK asks the decider.

    `units` split the layout from its first branch to its last.
    """

    layout: Layout
    units: tuple[Unit, ...]
    shares: NDArray[np.float64]

    def __post_init__(self) -> None:
        shares = np.asarray(self.shares, dtype=np.float64)
        object.__setattr__(self, "shares", shares)
        edges = [self.units[0].start, *(unit.stop for unit in self.units)] if self.units else []
        starts = [unit.start for unit in self.units]
        if not edges or edges[0] != 0 or edges[-1] != len(self.layout) or starts != edges[:-1]:
            raise Fault("a plan's units must follow each other from the network's first branch to its last")
        if shares.ndim != 2 or shares.shape[1] != len(self.units) or not len(shares):
            raise Fault(f"a plan needs shares of shape [steps, {len(self.units)} units], not {shares.shape}")
        if not np.all(((shares >= 0) & (shares <= 1)) | (shares == ASK)):
            raise Fault("a plan's shares must lie between 0 (no token) and 1 (all tokens)")

    @property
    def steps(self) -> int:
        return int(self.shares.shape[0])

    @property
    def online(self) -> bool:
        """Whether some of the plan is decided while sampling."""
        return bool((self.shares == ASK).any())

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """How many branches each unit has."""
        return np.array([unit.stop - unit.start for unit in self.units], dtype=np.int64)

    @property
    def nominal_ratio(self) -> float | None:
        """The share of token computations that the plan leaves out; None where sampling decides."""
        return None if self.online else float(1 - np.average(self.shares, axis=1, weights=self.sizes).mean())

    def counts(self, tokens: int) -> NDArray[np.int64]:
        """Tokens computed at every unit and step; -1 where sampling decides."""
        # The margin keeps ceil(0.1 x 30) at 3: shares are decimal fractions that binary cannot hold.
        counts = np.ceil(self.shares * tokens - 1e-9).astype(np.int64)
        counts[self.shares == ASK] = -1
        return counts

    def to_json(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "layout": self.layout.to_json(),
            "units": [list(unit) for unit in self.units],
            "shares": self.shares.tolist(),
        }

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Plan:
        units = tuple(Unit(*unit) for unit in body["units"])
        return cls(Layout.from_json(body["layout"]), units, np.asarray(body["shares"], dtype=np.float64))


def full_plan(shape: Shape) -> Plan:
    """Every token at every site."""
    return Plan(shape.layout, shape.layout.by_branch, np.ones(shape.sites))


def by_step(shape: Shape, full_steps: NDArray[np.bool_]) -> Plan:
    """All tokens of all branches at the marked steps, none at the others."""
    shares = np.zeros(shape.sites)
    shares[full_steps] = 1
    return Plan(shape.layout, shape.layout.by_branch, shares)
