"""Compiled networks: attention and feed-forward modules one by one, for the engine calls them and not the blocks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ditbench.backbones import Backbone

PARTS = ("attn", "attn1", "attn2", "ff", "ff_context", "ffn")


def _parts(backbone: Backbone) -> Iterator[Any]:
    for name, part in backbone.network.named_modules():
        if name.rpartition(".")[2] in PARTS:
            yield part


def compile_parts(backbone: Backbone) -> None:
    """Compiles them; the first call of each then takes its time."""
    for part in _parts(backbone):
        part.compile()


@contextmanager
def compiled(backbone: Backbone) -> Iterator[None]:
    """Within the context the parts are compiled; afterwards they are as they were."""
    compile_parts(backbone)
    try:
        yield
    finally:
        for part in _parts(backbone):
            part._compiled_call_impl = None
