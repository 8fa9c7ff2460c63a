"""Looks on while a branch attends: queries, keys and values as they enter the fused kernel, for selectors to read.

The branch computes as always, with its own fused attention and to the last bit; only sums over rows or columns of the
attention map are made beside it, in chunks, so that no map is ever held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ditbench.faults import Fault

if TYPE_CHECKING:
    from ditbench.backbones import Backbone, Output, Stream
    from ditbench.engine.rows import Rows

# As many numbers of an attention map are held at once.
CHUNK = 1 << 25


class Attention(NamedTuple):
    """What one call of the fused kernel was given, [samples, heads, tokens, head width]; `bias` is added to scores."""

    queries: Tensor
    keys: Tensor
    values: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class Glance:
    """One computed branch, as a selector sees it.

    `stream` holds the tokens that were computed: all of them, or `rows` of the whole. `attention` is None for a branch
    that does not attend, or whose attention is kept from another step. Where image and text attend jointly, the image's
    tokens are `image` of the kernel's. `like`: the same branch as another selector sees it.
    """

    stream: Stream
    rows: Rows | None
    output: Output
    attention: Attention | None
    image: slice
    like: Glance | None = None

    @property
    def shown(self) -> Attention:
        """The attention of a branch that attends."""
        if self.attention is None:
            raise Fault(
                "tokens are to be chosen by attention, of which this network's processor shows nothing: set one that "
                "calls scaled_dot_product_attention, or choose by similarity, norm or random"
            )
        return self.attention

    @cached_property
    def received(self) -> Tensor:
        """The attention that every key receives; the map is made once, whoever asks."""
        if self.like is not None:
            return self.like.received
        return received(self.shown)


@runtime_checkable
class Watching(Protocol):
    """A selector that wants to see branches as they are computed."""

    def watches(self, branch: int, step: int) -> bool:
        """Whether it wants to see a branch at a step."""

    def see(self, branch: int, step: int, glance: Glance) -> int:
        """Called after the branch was computed and before it is added; answers with the MACs that looking took."""


def watcher_of(selector: object) -> Watching | None:
    """A selector as one that looks on, if it does."""
    return selector if isinstance(selector, Watching) else None


class _Kernel(TorchFunctionMode):
    """Notes what the fused kernel is given, whoever calls it, or the two products that stand for it.

    diffusers' plain processor, which is faster on some CPUs, makes scores with `baddbmm` and mixes values with `bmm`,
    each head of each sample by itself.
    """

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.samples = samples
        self.seen: list[Attention] = []
        self._scored: tuple[Tensor, Tensor, Tensor | None] | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            names = ("query", "key", "value", "attn_mask")
            by_name = {**dict(zip(names, args, strict=False)), **given}
            self.seen.append(Attention(*(by_name.get(name) for name in names)))  # type: ignore[arg-type]
        elif func is torch.baddbmm:
            bias, queries, keys = args
            used = bias if given.get("beta", 1) else None
            self._scored = (queries, keys.transpose(-1, -2), used)
        elif func is torch.bmm and self._scored is not None:
            (queries, keys, used), self._scored = self._scored, None
            apart = [self._heads(part) for part in (queries, keys, args[1])]
            self.seen.append(Attention(apart[0], apart[1], apart[2], None if used is None else self._heads(used)))
        return func(*args, **given)

    def _heads(self, flat: Tensor) -> Tensor:
        return flat.unflatten(0, (self.samples, -1))


@contextmanager
def attending(samples: int) -> Iterator[list[Attention]]:
    """Within the context, what every call of the fused kernel is given for `samples` samples is noted in the list."""
    kernel = _Kernel(samples)
    with kernel:
        yield kernel.seen


def map_rows(attention: Attention) -> Iterator[tuple[slice, Tensor]]:
    """The attention map, softmax over keys, some queries at a time: [samples, heads, queries, keys] in float32."""
    queries, keys = attention.queries, attention.keys
    samples, heads, count, width = queries.shape
    step = max(1, CHUNK // max(1, samples * heads * keys.shape[2]))
    bias = attention.bias
    for first in range(0, count, step):
        part = slice(first, min(first + step, count))
        scores = (queries[:, :, part] @ keys.transpose(-1, -2)).float() * width**-0.5
        if bias is not None:
            own = bias[..., part, :] if bias.shape[-2] > 1 else bias
            scores = scores.masked_fill(~own, -torch.inf) if own.dtype == torch.bool else scores + own.float()
        yield part, scores.softmax(-1)


def received(attention: Attention) -> Tensor:
    """How much attention every key receives: the map's mean over heads, summed over queries, [samples, keys]."""
    total = None
    for _, rows in map_rows(attention):
        columns = rows.sum(2).mean(1)
        total = columns if total is None else total + columns
    assert total is not None
    return total


def entropies(attention: Attention) -> Tensor:
    """The entropy of every query's attention, averaged over heads before it is taken, [samples, queries]."""
    found = []
    for _, rows in map_rows(attention):
        shares = rows.mean(1)
        found.append(-(shares * (shares + 1e-7).log()).sum(-1))
    return torch.cat(found, dim=1)


def map_macs(attention: Attention) -> int:
    """The MACs of making the map once more."""
    samples, heads, count, width = attention.queries.shape
    return samples * heads * count * attention.keys.shape[2] * width


def compute_watched(
    backbone: Backbone, watcher: Watching | None, step: int, stream: Stream, branch: int, rows: Rows | None = None
) -> tuple[Output, int]:
    """A branch's output, and the MACs it took a watcher to look on, if one wants to.

    `stream` holds the tokens at `rows` of a whole, or is the whole.
    """
    if watcher is None or not watcher.watches(branch, step):
        return backbone.compute(stream, branch), 0
    with attending(stream.samples) as seen:
        stream.seen = seen
        output = backbone.compute(stream, branch)
        stream.seen = []
    attention = seen[0] if seen else None
    keys = attention.keys.shape[2] if attention is not None else stream.tokens
    first = keys - stream.tokens if backbone.text_leads else 0
    glance = Glance(stream, rows, output, attention, slice(first, first + stream.tokens))
    with torch.no_grad():  # where a plan is learned, what it is chosen by has no gradient
        return output, watcher.see(branch, step, glance)
