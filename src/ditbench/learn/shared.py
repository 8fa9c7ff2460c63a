"""Projections of a block's tokens, computed for more of them and used again for fewer.

A block that is run with two bins of tokens sees the same tokens at its entrance: those of the smaller bin are among
those of the larger. Queries, keys and values of its first branch depend on one token each: they need no second product.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

# The layers of an attention, and of a block that does both at once, that read one token at a time.
TOKENWISE = {"to_q", "to_k", "to_v", "proj_mlp"}


class Shared:
    """What some layers gave for the tokens at `index` [samples, k] (ascending)."""

    def __init__(self, modules: Iterable[nn.Module], index: Tensor) -> None:
        found = (item for module in modules for item in module.named_modules())
        self._layers = [layer for name, layer in found if name.rpartition(".")[2] in TOKENWISE]
        self._index = index
        self._given: dict[nn.Module, Tensor] = {}

    @contextmanager
    def kept(self) -> Iterator[None]:
        """What they give meanwhile is kept."""
        hooks = [layer.register_forward_hook(self._keep) for layer in self._layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @contextmanager
    def given(self, index: Tensor) -> Iterator[None]:
        """Meanwhile they give what was kept, for the tokens at `index` [samples, fewer], which are among the others."""
        places = torch.searchsorted(self._index.contiguous(), index.contiguous())
        layers = [layer for layer in self._layers if layer in self._given]
        for layer in layers:
            layer.forward = self._giver(self._given[layer], places)  # type: ignore[method-assign]
        try:
            yield
        finally:
            for layer in layers:
                del layer.forward

    def _keep(self, layer: nn.Module, _: object, output: Tensor) -> None:
        self._given[layer] = output

    def _giver(self, kept: Tensor, places: Tensor) -> _Giver:
        return _Giver(kept, places, self._index.shape[1])


class _Giver:
    """Stands in for a layer's forward: rows of what it gave before."""

    def __init__(self, kept: Tensor, places: Tensor, tokens: int) -> None:
        text = kept.shape[1] - tokens  # those of a layer that reads text and image as one come first
        samples = torch.arange(len(places), device=places.device)[:, None]
        ahead = torch.arange(text, device=places.device).expand(len(places), -1)
        flat = (torch.cat([ahead, places + text], dim=1) + kept.shape[1] * samples).reshape(-1)
        self._rows = kept.reshape(-1, kept.shape[-1]).index_select(0, flat).view(len(places), -1, kept.shape[-1])

    def __call__(self, read: Tensor) -> Tensor:
        assert read.shape[:2] == self._rows.shape[:2], "a layer is asked for other tokens than it was said to be"
        return self._rows
