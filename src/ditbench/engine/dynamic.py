"""Dynamic widths and tokens: routers that read the timestep say which heads and channels a block has, and routers
that read tokens say which of them go through its MLP (DyDiT).

A width router is one linear map of what the network makes of the timestep alone; so its answers can be written down
for every timestep before sampling. A token router is a small MLP that reads a token as it enters the block's MLP; how
many tokens it sends through differs from sample to sample, and they are gathered from all samples of a batch together.
Whatever a router gives above 0, the sigmoid's middle, is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ditbench.engine.widths import Widths

if TYPE_CHECKING:
    from ditbench.backbones import Stream
    from ditbench.engine.layout import Layout

# A token router's hidden layer has this share of the network's width.
SHARE = 16
# Names in a file of what was trained: routers of tokens, tables of widths by timestep, and orders of channels.
TOKENS, TABLES, ORDERS = "tokens.", "table.", "order."


class TokenRouters(NamedTuple):
    """One for every block: [blocks, hidden, width], [blocks, hidden], [blocks, hidden], [blocks]."""

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> TokenRouters:
        """The routers among the tensors of a file."""
        return cls(*(tensors[TOKENS + name] for name in cls._fields))

    def named(self) -> dict[str, Tensor]:
        """As a file has them."""
        return {TOKENS + name: tensor for name, tensor in self._asdict().items()}

    def logits(self, hidden: Tensor, block: int) -> Tensor:
        """What a block's router gives for tokens that enter its MLP, [samples, tokens] in float32 at least."""
        inner = functional.relu(
            functional.linear(hidden, self.down[block].to(hidden.dtype), self.down_bias[block].to(hidden.dtype))
        )
        # Summed without a matrix product, which would round to the network's own precision.
        up, bias = (
            part[block] if part.dtype == torch.float64 else part[block].float() for part in (self.up, self.up_bias)
        )
        return (inner.to(up.dtype) * up).sum(-1) + bias

    def macs(self) -> int:
        """Of one token in one block."""
        return self.down.shape[1] * self.down.shape[2] + self.up.shape[1]

    def to(self, device: torch.device) -> TokenRouters:
        """The same on a device."""
        return self if self.up.device == device else TokenRouters(*(tensor.to(device) for tensor in self))


def kinds_of(layout: Layout, cross: str) -> list[str | None]:
    """What of every branch a block's width routers narrow: `heads`, `channels`, or nothing of it."""
    heads = {"self", "attn", "attn2", *(("cross",) if cross == "heads" else ())}
    named = ("heads" if name in heads else "channels" if name == "mlp" else None for name in layout.name_of)
    return list(named)


class SomeTokens:
    """The tokens of a batch that a router sends through a branch, gathered into one row."""

    def __init__(self, kept: Tensor) -> None:
        self._samples, self._tokens = kept.shape
        self.counts: list[int] = kept.sum(1).tolist()
        self._flat = kept.flatten().nonzero().flatten() if sum(self.counts) < kept.numel() else None

    def before(self, stream: Stream, read: Tensor) -> Tensor:
        """[samples, tokens, width] -> [1, all that go through, width]; all as they are where all do."""
        if self._flat is None:
            return read
        return read.reshape(-1, read.shape[-1]).index_select(0, self._flat)[None]

    def after(self, stream: Stream, output: Tensor) -> Tensor:
        """[samples, tokens, width], nothing for tokens that were skipped."""
        if self._flat is None:
            return output
        whole = output.new_zeros(self._samples * self._tokens, output.shape[-1])
        return whole.index_copy_(0, self._flat, output[0]).view(self._samples, self._tokens, -1)


class Dynamic:
    """The selector of one run. `widths` is None where every branch has its whole width, `routers` where all tokens go.

    `sharing` says which tokens both branches of guidance compute: each its own (`separate`), or those that either
    wants (`either`).
    """

    def __init__(self, widths: Widths | None, routers: TokenRouters | None, layout: Layout, sharing: str) -> None:
        self._widths, self._routers, self._sharing = widths, routers, sharing
        self._block_of: list[int] = layout.block_of.tolist()
        self._macs = 0

    def choose(self, *_: Any) -> Any:
        raise AssertionError("a plan of dynamic tokens names no counts")

    def width(self, branch: int, step: int) -> float:
        return 1.0 if self._widths is None else self._widths.width(branch, step)

    @contextmanager
    def narrowed(self, backbone: Any, branch: int, step: int) -> Iterator[None]:
        if self._widths is None:
            yield
            return
        with self._widths.narrowed(backbone, branch, step):
            yield

    def widths_at(self, step: int) -> Any:
        return None if self._widths is None else self._widths.widths_at(step)

    def gather(self, branch: int, step: int, stream: Stream) -> SomeTokens:
        """The tokens that go through an MLP: those for which its router gives more than 0."""
        logits = self.logits(self._block_of[branch], stream)
        if self._sharing == "either" and stream.halves == 2:
            first, second = logits.chunk(2)
            logits = torch.maximum(first, second).repeat(2, 1)
        return SomeTokens(logits > 0)

    def logits(self, block: int, stream: Stream) -> Tensor:
        """What a block's router gives for all tokens."""
        assert self._routers is not None, "a plan asks for tokens only where there are routers"
        hidden = stream.hidden
        self._routers = self._routers.to(hidden.device)
        self._macs += hidden.shape[0] * hidden.shape[1] * self._routers.macs()
        return self._routers.logits(hidden, block)

    def macs(self) -> int:
        """What the token routers took since this was last asked."""
        taken, self._macs = self._macs, 0
        return taken

    def nbytes(self) -> int:
        """What the slices of weights hold from one step to the next."""
        return 0 if self._widths is None else self._widths.nbytes()
