"""The ledger: what a traced run cost, in multiply-accumulate operations (MACs).

Linear layers and attention products are kept apart, because published figures mostly count only the former.
Figures are for one image, one branch of classifier-free guidance, and the whole sampling run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ditbench.engine.trace import Trace
from ditbench.faults import Fault


@dataclass(frozen=True)
class UnitCost:
    """One branch of one block.

    `per_token`: linear MACs for each computed token. `once`: linear MACs as soon as any token is computed (keys and
    values of the text). `keys`: how many keys a computed token attends to; "computed" = the computed tokens.
    """

    per_token: int
    once: int = 0
    keys: int | Literal["computed"] = 0
    width: int = 0


@dataclass(frozen=True)
class Costs:
    """A network's costs: `units` by branch, what every step pays, and what a step pays that reads the text."""

    units: Mapping[str, UnitCost]
    per_step: int
    text: int = 0
    text_branches: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bill:
    """MACs of one image, one CFG branch, the whole run."""

    linear: float
    attention: float

    @property
    def total(self) -> float:
        return self.linear + self.attention


def bill(trace: Trace, costs: Costs) -> Bill:
    """What a traced run cost per image."""
    if trace.samples == 0:
        raise Fault("an empty trace has no cost: nothing was run")
    missing = [branch for branch in trace.shape.branches if branch not in costs.units]
    if missing:
        raise Fault(f"no cost is known for branch {', '.join(missing)}")
    tokens = trace.computed / trace.samples
    linear = float(trace.shape.steps * costs.per_step)
    attention = 0.0
    for position, branch in enumerate(trace.shape.branches):
        unit, counts = costs.units[branch], tokens[:, :, position]
        linear += float((counts * unit.per_token).sum() + (counts > 0).sum() * unit.once)
        keys = counts if unit.keys == "computed" else unit.keys
        # Scores and their product with the values.
        attention += float((2 * counts * keys * unit.width).sum())
    readers = [i for i, branch in enumerate(trace.shape.branches) if branch in costs.text_branches]
    linear += costs.text * int(np.any(tokens[:, :, readers] > 0, axis=(1, 2)).sum())
    return Bill(linear, attention)
