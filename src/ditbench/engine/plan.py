"""A static plan: the share of the tokens that is computed at every site, known before sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditbench.faults import Fault


@dataclass(frozen=True)
class Shape:
    """What a plan must cover: the sites of one sampling run, and the tokens at each."""

    steps: int
    blocks: int
    branches: tuple[str, ...]
    tokens: int

    @property
    def sites(self) -> tuple[int, int, int]:
        return (self.steps, self.blocks, len(self.branches))


@dataclass(frozen=True)
class Plan:
    """`shares[step, block, branch]` in [0, 1]: 1 computes all tokens, 0 none; k = ceil(share x tokens)."""

    branches: tuple[str, ...]
    shares: NDArray[np.float64]

    def __post_init__(self) -> None:
        shares = np.asarray(self.shares, dtype=np.float64)
        object.__setattr__(self, "shares", shares)
        if shares.ndim != 3 or shares.shape[2] != len(self.branches):
            raise Fault(
                f"a plan needs shares of shape [steps, blocks, {len(self.branches)} branches], not {shares.shape}"
            )
        if not np.all((shares >= 0) & (shares <= 1)):
            raise Fault("a plan's shares must lie between 0 (no token) and 1 (all tokens)")

    @property
    def steps(self) -> int:
        return int(self.shares.shape[0])

    @property
    def blocks(self) -> int:
        return int(self.shares.shape[1])

    @property
    def nominal_ratio(self) -> float:
        """The share of token computations that the plan leaves out."""
        return float(1 - self.shares.mean())

    def counts(self, tokens: int) -> NDArray[np.int64]:
        """Tokens computed at every site."""
        # The margin keeps ceil(0.1 x 30) at 3: shares are decimal fractions that binary cannot hold.
        return np.ceil(self.shares * tokens - 1e-9).astype(np.int64)

    def to_json(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "blocks": self.blocks,
            "branches": list(self.branches),
            "shares": self.shares.round(6).tolist(),
        }

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Plan:
        return cls(tuple(body["branches"]), np.asarray(body["shares"], dtype=np.float64))


def full_plan(shape: Shape) -> Plan:
    """Every token at every site."""
    return Plan(shape.branches, np.ones(shape.sites))


def by_step(shape: Shape, full_steps: NDArray[np.bool_]) -> Plan:
    """All tokens of all branches at the marked steps, none at the others."""
    shares = np.zeros(shape.sites)
    shares[full_steps] = 1
    return Plan(shape.branches, shares)
