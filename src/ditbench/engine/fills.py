"""Fills: what the tokens that are not computed receive.

A fill belongs to one run and holds that run's state; it sees the outputs of units before their gate and says
what stands in for the missing ones. Tensors are [batch, tokens, width].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

Unit = tuple[int, str]  # block, branch


class Fill(Protocol):
    """State of one run."""

    def keep(self, unit: Unit, step: int, output: Tensor) -> None:
        """Called after a unit was computed for all tokens, if a later step will need it."""

    def supply(self, unit: Unit, step: int) -> Tensor | None:
        """The output that stands in for a unit of which no token is computed; None leaves the unit out."""

    def complete(self, unit: Unit, step: int, index: Tensor, part: Tensor) -> Tensor:
        """The whole output where only the tokens at `index` [batch, k] were computed, as `part` [batch, k, width]."""


class Reuse:
    """Missing tokens receive what their unit last computed for them."""

    def __init__(self) -> None:
        self._last: dict[Unit, Tensor] = {}

    def keep(self, unit: Unit, step: int, output: Tensor) -> None:
        self._last[unit] = output

    def supply(self, unit: Unit, step: int) -> Tensor:
        return self._last[unit]

    def complete(self, unit: Unit, step: int, index: Tensor, part: Tensor) -> Tensor:
        whole = self._last[unit]
        # In place: the cached output has been added to the stream already, nobody else reads it.
        return whole.scatter_(1, index[..., None].expand_as(part), part)


class Misplaced(Reuse):
    """Missing units receive the cached output of other tokens: a control that must do harm."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.shift = shift

    def supply(self, unit: Unit, step: int) -> Tensor:
        return super().supply(unit, step).roll(self.shift, dims=1)
