"""Block families as units: how each kind of diffusion transformer is walked branch by branch.

A family computes with the network's own submodules and owns no weights. Its output before the gate is what
methods cache; `add` applies the current step's gate and the residual sum.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ditbench.engine.plan import Shape


class Stream(Protocol):
    """What flows through one forward: `hidden` [batch, tokens, width] and what the family needs beside it."""

    hidden: Tensor


class Backbone(Protocol):
    """A network seen as units."""

    network: nn.Module
    blocks: int
    branches: tuple[str, ...]

    def shape(self, steps: int, *args: Any, **kwargs: Any) -> Shape:
        """The sites of a run of `steps` steps on such inputs of the network's forward."""

    def enter(self, *args: Any, **kwargs: Any) -> Any:
        """Embeds the inputs of the network's forward and returns its stream."""

    def compute(self, stream: Any, block: int, branch: str, index: Tensor | None = None) -> Tensor:
        """A unit's output before its gate, for all tokens or for those at `index` [batch, k]."""

    def add(self, stream: Any, block: int, branch: str, output: Tensor) -> None:
        """Gates an output and adds it to the stream."""

    def leave(self, stream: Any) -> Any:
        """The network's answer, in the form its forward gives it."""
