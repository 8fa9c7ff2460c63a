"""The end of classifier-free guidance: from some step on only the conditional branch is computed.

A pipeline goes on asking for both branches and goes on combining them. It is given the conditional answer for both:
u + s (c - u) is c then, whatever the scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils._pytree import tree_map

from ditbench.faults import Fault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ditbench.engine.fills import Fill


@runtime_checkable
class EndsGuidance(Protocol):
    """A fill that goes on for the conditional branch alone."""

    def end_guidance(self, conditional: slice, twin: Fill | None) -> None:
        """Called before the first step without guidance.

        `conditional` are the rows of what was kept that belong to that branch. Where a pipeline calls its network once
        for each branch, that is all of them, and `twin` is the fill of the other branch.
        """


class Half(NamedTuple):
    """The rows of a batch of `samples` that are of the conditional branch."""

    rows: slice
    samples: int

    @classmethod
    def of(cls, count: int, second: bool) -> Half:
        """The first or the second half of a batch."""
        return cls(slice(count // 2, count) if second else slice(0, count // 2), count)

    def take(self, given: Any) -> Any:
        """Its rows of whatever a network is given; what has no row for every sample stays."""

        def rows_of(leaf: Any) -> Any:
            whole = torch.is_tensor(leaf) and leaf.ndim > 0 and leaf.shape[0] == self.samples
            return leaf[self.rows] if whole else leaf

        return tree_map(rows_of, given)

    def for_both(self, answer: Any) -> Any:
        """A network's answer for this half, given for the other as well."""
        return tree_map(lambda leaf: torch.cat([leaf, leaf]) if torch.is_tensor(leaf) else leaf, answer)


def batch_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """How many samples a network is given: every family's first argument is its latent."""
    return len(args[0] if args else kwargs["hidden_states"])


def guided_steps(guided: Sequence[bool] | None, steps: int) -> list[bool]:
    """Which steps are guided, checked: from the first to some step, and no others."""
    if guided is None:
        return [True] * steps
    flags = np.asarray(guided, dtype=bool)
    if len(flags) != steps or not flags[0] or (np.diff(flags.astype(int)) > 0).any():
        raise Fault("guidance must last from the first step to some step: it cannot begin later, or again")
    return [bool(flag) for flag in flags]
