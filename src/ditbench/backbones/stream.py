"""What flows through one forward of a network: its tokens, and all that its units need beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ditbench.engine.rows import Rows

if TYPE_CHECKING:
    from ditbench.engine.merging import Site
    from ditbench.engine.recall import RecalledAttention
    from ditbench.engine.selectors import Gathered
    from ditbench.engine.watch import Attention

T = TypeVar("T")


class Output(NamedTuple):
    """What a branch gives out before its gates: for the image's tokens, and where it has a stream, for the text's."""

    image: Tensor
    text: Tensor | None = None


@dataclass
class Stream:
    """One forward. Image tokens are `hidden`, [samples, tokens, width].

    `text` is the text's own residual stream, where the family has one. `conditions` have one row per sample.
    `positions` have one row per image token. `setting` is what the family needs to leave. `memo` holds what is
    computed at most once a forward, or once a block; nothing in it may depend on which image tokens there are, for
    a part of the tokens shares it. What does depend on them, and is read after the tokens have changed, is in `fed`:
    by the branch that was fed it, with one row per image token; `fed_to` finds it.
    """

    given: Tensor
    text: Tensor | None = None
    conditions: dict[str, Tensor | None] = field(default_factory=dict)
    positions: tuple[Tensor, ...] = ()
    setting: Any = None
    memo: dict[Any, Any] = field(default_factory=dict)
    fed: dict[int, Tensor] = field(default_factory=dict)
    # Of a part: what it was taken from, and which rows of that it is.
    origin: tuple[Stream, Rows] | None = None
    # How often something was computed that belongs to no branch, in samples: the ledger bills it.
    notes: Counter[str] = field(default_factory=Counter)
    # How many branches of guidance the batch holds, one after the other; 1 where it is not known to hold two.
    halves: int = 1
    # A number for each sample that its own chance hangs on; None where nobody gave any.
    seeds: Tensor | None = None
    # Additions that are still to be made: a gate (None: 1) and what it multiplies.
    pending: list[tuple[Tensor | None, Tensor]] = field(default_factory=list)
    # Of the branch that is computed now: where its tokens are merged, gathered, or looked at.
    site: Site | Gathered | None = None
    # Of a part: which of the text's tokens are here, None: all.
    text_rows: Rows | None = None
    # What keeps attention from step to step, where the run wants that.
    recalled: RecalledAttention | None = None
    # What the fused kernel was given in the branch that is computed now, where a selector looks on.
    seen: list[Attention] = field(default_factory=list)

    @property
    def hidden(self) -> Tensor:
        """The image's tokens, all additions made. Later additions may write to this very tensor."""
        if self.pending:
            self.given, self.pending = _added(self.given, self.pending), []
        return self.given

    @hidden.setter
    def hidden(self, value: Tensor) -> None:
        self.pending = []
        self.given = value

    @property
    def samples(self) -> int:
        return self.given.shape[0]

    @property
    def tokens(self) -> int:
        return self.given.shape[1]

    @property
    def device(self) -> torch.device:
        return self.given.device

    def defer(self, gate: Tensor | None, output: Tensor) -> None:
        """Adds gate x output to the image's tokens, at the latest when somebody looks at them."""
        self.pending.append((gate, output))

    def condition(self, name: str) -> Tensor:
        """A condition that must be there."""
        value = self.conditions[name]
        assert value is not None, name
        return value

    def once(self, key: Any, make: Callable[[], T], note: str | None = None) -> T:
        """What `make` gives, computed at most once; `note` tells the ledger that it was."""
        if key not in self.memo:
            whole, rows = self.origin or (None, None)
            if whole is not None and rows is not None and rows.samples is not None and key in whole.memo:
                self.memo[key] = _rows_of(whole.memo[key], rows.samples, whole.samples)
            else:
                self.memo[key] = make()
                if note:
                    self.notes[note] += self.samples
        found: T = self.memo[key]
        return found

    def fed_to(self, branch: int) -> Tensor:
        """What `branch` was fed, for the tokens that are here."""
        if branch not in self.fed:
            assert self.origin is not None, f"nothing was kept of what branch {branch} was fed"
            whole, rows = self.origin
            self.fed[branch] = rows.take(whole.fed_to(branch))
        return self.fed[branch]

    def attended(self, branch: int, attend: Callable[[], Tensor]) -> Tensor:
        """What attention gives text and image, the text's tokens first: made, or for a part of the tokens recalled."""
        if self.recalled is None or not self.recalled.covers(branch):
            return attend()
        if self.origin is None:
            found = attend()
            self.recalled.keep(branch, found)
            return found
        _, rows = self.origin
        return self.recalled.of(branch, rows)

    def together(self, rows: Rows) -> Stream:
        """The same forward for some tokens of text and image, the text's first, all where the image's are."""
        assert self.text is not None
        both = torch.cat([self.text, self.hidden], dim=1)
        part = replace(self, given=rows.take(both), text=both[:, :0], pending=[], fed={}, origin=(self, rows))
        part.positions = ()
        return part

    def merged(self, read: Tensor) -> Tensor:
        """What the module of a branch reads, where its tokens are merged: fewer tokens."""
        return read if self.site is None else self.site.before(self, read)

    def spread(self, output: Tensor) -> Tensor:
        """What the module gives out, for all tokens again."""
        return output if self.site is None else self.site.after(self, output)

    def at(self, rows: Rows) -> Stream:
        """The same forward for some tokens, or for some samples."""
        part = replace(self, given=rows.take(self.hidden), pending=[], fed={}, origin=(self, rows))
        if rows.samples is None:
            part.positions = tuple(table[rows.index] for table in self.positions)
            return part
        assert rows.whole_samples, "some tokens of some samples are not supported"
        part.text = None if self.text is None else self.text[rows.samples]
        part.seeds = None if self.seeds is None else self.seeds[rows.samples]
        part.conditions = {n: None if c is None else c[rows.samples] for n, c in self.conditions.items()}
        part.memo = {}
        return part


def _rows_of(value: Any, samples: Tensor, count: int) -> Any:
    """What was computed for a batch of `count`, for some of its samples."""
    if torch.is_tensor(value):
        return value[samples] if value.shape[0] == count else value
    if isinstance(value, tuple):
        parts = [_rows_of(part, samples, count) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, dict):
        return {key: _rows_of(part, samples, count) for key, part in value.items()}
    if value is None:
        return None
    raise TypeError(f"no samples can be taken of a {type(value).__name__}")


def _added(hidden: Tensor, pending: list[tuple[Tensor | None, Tensor]]) -> Tensor:
    """Makes deferred additions, in place where nobody needs the old values."""
    # Even where nothing here has a gradient, what read these tokens may have kept them for its own (a router, say).
    if torch.is_grad_enabled():
        for gate, output in pending:
            # A family's gates may be in float32 where its stream is not.
            hidden = (hidden + (output if gate is None else gate * output)).to(hidden.dtype)
        return hidden
    # An embedding may come transposed; everything that is added to it lies in the other order.
    hidden = hidden.contiguous()
    for gate, output in pending:
        if gate is None:
            hidden.add_(output)
        else:
            hidden.addcmul_(gate, output)
    return hidden
