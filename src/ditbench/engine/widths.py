"""Narrow branches: attention by some of its heads, feed-forwards by some groups of their channels.

What is computed is the network's own module, whose weights are slices of its weights for as long as the branch runs:
fewer heads and channels are fewer rows and columns, so what is left out is not computed. A group is named by its place
in an order of channels that lies beside the network; the network's own weights stay where they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ditbench.faults import Fault


class Inner(NamedTuple):
    """A module that can be narrowed: layers that make its inner channels, layers that read them, and its heads.

    `heads` is None for a feed-forward: any channels of it may go together.
    """

    module: Any
    makes: tuple[nn.Module, ...]
    reads: tuple[nn.Module, ...]
    heads: int | None

    @property
    def channels(self) -> int:
        """How many inner channels there are."""
        return int(_weight(self.makes[0]).shape[0])


def inner_of(module: Any) -> Inner:
    """An attention or a feed-forward of diffusers as what can be narrowed."""
    if hasattr(module, "to_q"):
        makes = [module.to_q, module.to_k, module.to_v]
        makes += [getattr(module, name, None) for name in ("add_q_proj", "add_k_proj", "add_v_proj")]
        reads = [module.to_out[0], getattr(module, "to_add_out", None)]
        inner = Inner(module, _there(makes), _there(reads), module.heads)
    else:
        inner = Inner(module, (module.net[0].proj,), (module.net[-1],), None)
    wide = {int(_weight(layer).shape[0]) for layer in inner.makes} | {
        int(_weight(layer).shape[1]) for layer in inner.reads
    }
    if len(wide) != 1:
        raise Fault(f"{type(module).__name__} cannot be narrowed: its layers have inner widths {sorted(wide)}")
    return inner


def _there(layers: Sequence[nn.Module | None]) -> tuple[nn.Module, ...]:
    return tuple(layer for layer in layers if layer is not None)


def _weight(layer: nn.Module) -> Tensor:
    weight: Any = layer.weight
    found: Tensor = weight
    return found


def order_of(inner: Inner, groups: int, by_magnitude: bool) -> Tensor:
    """Inner channels in the order in which groups take them, [channels]: the first group has the first of them.

    By magnitude, the heads or the channels with the largest weights come first: those that make them and those that
    read them, squared and summed. The channels of a head stay together.
    """
    channels = inner.channels
    if channels % groups:
        raise Fault(f"{channels} inner channels cannot be split into {groups} groups of equal size")
    if inner.heads is not None and groups != inner.heads:
        raise Fault(f"an attention of {inner.heads} heads has as many groups, not {groups}")
    if not by_magnitude:
        return torch.arange(channels)
    size = torch.zeros(channels, device=_weight(inner.makes[0]).device)
    for layers, dimension in ((inner.makes, 1), (inner.reads, 0)):
        for layer in layers:
            size = size + _weight(layer).detach().float().square().sum(dimension)
    if inner.heads is None:
        return size.cpu().argsort(descending=True, stable=True)
    heads = size.view(inner.heads, -1).sum(1).cpu().argsort(descending=True, stable=True)
    return torch.arange(channels).view(inner.heads, -1)[heads].flatten()


class _Slice(NamedTuple):
    """A module's weights for some of its groups, and how many heads they are."""

    weights: list[tuple[nn.Parameter, Tensor]]
    heads: int | None


def _sliced(inner: Inner, order: Tensor, kept: Tensor, groups: int) -> _Slice:
    index = order.view(groups, -1).index_select(0, kept).flatten()
    weights: list[tuple[nn.Parameter, Tensor]] = []
    for layer in inner.makes:
        own = [parameter for parameter in (layer.weight, layer.bias) if isinstance(parameter, nn.Parameter)]
        weights += [(parameter, parameter.data.index_select(0, index)) for parameter in own]
    for layer in inner.reads:
        assert isinstance(layer.weight, nn.Parameter)
        weights.append((layer.weight, layer.weight.data.index_select(1, index)))
    return _Slice(weights, None if inner.heads is None else len(kept))


@contextmanager
def _wearing(inner: Inner, part: _Slice) -> Iterator[None]:
    """Within the context a module has the weights of a slice."""
    before = [(parameter, parameter.data) for parameter, _ in part.weights]
    try:
        for parameter, value in part.weights:
            parameter.data = value
        if part.heads is not None:
            inner.module.heads = part.heads
        yield
    finally:
        for parameter, value in before:
            parameter.data = value
        if part.heads is not None:
            inner.module.heads = inner.heads


class Widths:
    """Which groups of every branch are computed at every step of one run.

    `kept` [step][branch] has them ascending, or None where a branch is computed whole. `orders` has for every branch
    the order of each of its modules' channels. A slice is kept as long as the next step asks for the same groups.
    """

    def __init__(
        self,
        kept: Sequence[Sequence[Sequence[int] | None]],
        orders: Sequence[Sequence[Tensor]],
        groups: Sequence[int],
        device: torch.device | str,
    ) -> None:
        self._kept, self._groups = kept, groups
        self._orders = [[order.to(device) for order in own] for own in orders]
        # All indices in one copy to the device, made before sampling: nothing waits for it later.
        numbers = [number for step in kept for some in step for number in (some or ())]
        flat, first = torch.tensor(numbers, dtype=torch.int64).to(device), 0
        self._index: list[list[Tensor | None]] = []
        for step in kept:
            own: list[Tensor | None] = []
            for some in step:
                own.append(None if some is None else flat[first : first + len(some)])
                first += len(some or ())
            self._index.append(own)
        self._slices: dict[int, tuple[tuple[int, ...], list[tuple[Inner, _Slice]]]] = {}

    def width(self, branch: int, step: int) -> float:
        """The share of a branch's groups that is computed at a step."""
        some = self._kept[step][branch]
        return 1.0 if some is None else len(some) / self._groups[branch]

    @contextmanager
    def narrowed(self, backbone: Any, branch: int, step: int) -> Iterator[None]:
        """Within the context a branch's modules have no more than its groups of a step."""
        some, index = self._kept[step][branch], self._index[step][branch]
        if some is None or index is None:
            self._slices.pop(branch, None)
            yield
            return
        key = tuple(some)
        if branch not in self._slices or self._slices[branch][0] != key:
            self._slices.pop(branch, None)
            modules = [inner_of(module) for module in backbone.inner(branch)]
            parts = [
                (inner, _sliced(inner, order.to(_weight(inner.makes[0]).device), index, self._groups[branch]))
                for inner, order in zip(modules, self._orders[branch], strict=True)
            ]
            self._slices[branch] = (key, parts)
        with ExitStack() as stack:
            for inner, part in self._slices[branch][1]:
                stack.enter_context(_wearing(inner, part))
            yield

    def widths_at(self, step: int) -> Any:
        """The groups of all branches at a step."""
        return tuple(None if some is None else tuple(some) for some in self._kept[step])

    def nbytes(self) -> int:
        """What the slices hold."""
        return sum(v.nbytes for _, parts in self._slices.values() for _, part in parts for _, v in part.weights)
