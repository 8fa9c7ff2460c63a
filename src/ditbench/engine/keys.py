"""Keys and values of tokens that are left out: kept as they last were, so that others may go on attending to them.

Where a branch computes some of its tokens, those attend among themselves: the others have no keys. With what is kept
here they attend to all tokens. A branch still computes as always; its keys and values are completed on their way into
the fused kernel, whoever calls it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ditbench.backbones import Stream
    from ditbench.engine.costs import UnitCost
    from ditbench.engine.plan import Plan
    from ditbench.engine.rows import Rows

# What is done to keys or to values [samples, heads, tokens, head width].
Change = Callable[[str, Tensor], Tensor]


class _Kernel(TorchFunctionMode):
    """Lets `change` have a say in the keys and values of the fused kernel, or of the two products that stand for it."""

    def __init__(self, samples: int, change: Change) -> None:
        super().__init__()
        self._samples, self._change = samples, change
        self._scored = False

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is functional.scaled_dot_product_attention:
            given = {**dict(zip(("query", "key", "value", "attn_mask"), args, strict=False)), **given}
            given["key"], given["value"] = (self._change(name, given[name]) for name in ("key", "value"))
            args = args[4:]
            if args:  # dropout and the rest, by their places
                return func(*(given.pop(name, None) for name in ("query", "key", "value", "attn_mask")), *args, **given)
            return func(**given)
        if func is torch.baddbmm:
            bias, queries, keys = args
            keys = self._of_each_head("key", keys.transpose(-1, -2)).transpose(-1, -2)
            if not given.get("beta", 1):  # a stand-in without values, as large as the scores
                bias = queries.new_empty(queries.shape[0], queries.shape[1], keys.shape[2])
            args, self._scored = (bias, queries, keys), True
        elif func is torch.bmm and self._scored:
            args, self._scored = (args[0], self._of_each_head("value", args[1])), False
        return func(*args, **given)

    def _of_each_head(self, name: str, flat: Tensor) -> Tensor:
        return self._change(name, flat.unflatten(0, (self._samples, -1))).flatten(0, 1)


class KeptKeys:
    """State of one run of a static plan: the keys and values of every token, as they were when last computed."""

    def __init__(self, plan: Plan, tokens: int) -> None:
        unit_of = np.repeat(np.arange(len(plan.units)), plan.sizes)
        needed = _needed(plan.counts(tokens), tokens)
        self._needed: list[list[bool]] = needed[:, unit_of].tolist()
        self._kept: dict[tuple[int, str], Tensor] = {}

    @contextmanager
    def around(self, branch: int, step: int, stream: Stream, rows: Rows | None, text_leads: bool) -> Iterator[None]:
        """Within the context a branch that attends to computed tokens is computed for all, or for those at `rows`."""
        if rows is None and not self._needed[step][branch]:
            yield
            return

        def change(name: str, tensor: Tensor) -> Tensor:
            text = tensor.shape[2] - stream.tokens
            first = text if text_leads else 0
            image = tensor[:, :, first : first + stream.tokens]
            if rows is None:
                self._kept[branch, name] = image.clone()
                return tensor
            kept = self._kept[branch, name]
            # In place: nobody else reads it, and a token's keys stay as they last were from now on.
            kept.scatter_(2, rows.index[:, None, :, None].expand_as(image), image)
            if not text:
                return kept
            of_text = tensor[:, :, :first] if text_leads else tensor[:, :, stream.tokens :]
            return torch.cat([of_text, kept] if text_leads else [kept, of_text], dim=2)

        with _Kernel(stream.samples, change):
            yield

    @staticmethod
    def squares(cost: UnitCost, computed: int, tokens: int) -> int:
        """What a trace has as the square of a count of tokens, where they attend to all tokens instead.

        A text's own tokens, which attend to the same keys, do so too.
        """
        return computed * tokens + cost.joined * (tokens - computed)

    def nbytes(self) -> int:
        """The memory that is kept from one step to the next."""
        return sum(tensor.nbytes for tensor in self._kept.values())


def _needed(counts: NDArray[np.int64], tokens: int) -> NDArray[np.bool_]:
    """The sites [step, unit] computed whole whose keys are asked for before they are computed whole again."""
    needed = np.zeros(counts.shape, dtype=bool)
    asked = np.zeros(counts.shape[1], dtype=bool)
    for step in reversed(range(len(counts))):
        whole = counts[step] == tokens
        needed[step] = whole & asked
        asked = (asked & ~whole) | ((counts[step] > 0) & ~whole)
    return needed
