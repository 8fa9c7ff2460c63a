"""Fills: what the tokens that are not computed receive.

A fill belongs to one run and holds that run's state. It sees what units give out: of a branch its output before the
gate, of a block or a span what it adds to the stream. Tensors are [batch, tokens, width].
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from ditbench.backbones import Stream
    from ditbench.engine.layout import Unit
    from ditbench.engine.merging import Merge
    from ditbench.engine.rows import Rows


class Key(NamedTuple):
    """Whose output: the unit by its place in the plan, and its `image` or its `text` tokens, or `both` together."""

    unit: int
    stream: str


class Fill(Protocol):
    """State of one run."""

    # Whether it needs nothing from earlier steps, so that even the first may leave tokens out.
    stateless: ClassVar[bool]
    # Whether it wants every output, not just those that the plan's next step does not compute anew.
    wants_all: ClassVar[bool]

    def keep(self, key: Key, step: int, output: Tensor) -> None:
        """Called after a unit was computed for all tokens, if a later step will need it."""

    def supply(self, key: Key, step: int) -> Tensor | None:
        """The output that stands in for a unit of which no token is computed; None leaves the unit out."""

    def complete(self, key: Key, step: int, rows: Rows, part: Tensor) -> Tensor | None:
        """The whole output where only `rows` were computed, as `part`; None: the others receive nothing."""

    def nbytes(self) -> int:
        """The memory that is kept from one step to the next."""


@runtime_checkable
class Finishing(Protocol):
    """A fill that has the last word on what a step hands to the network's head."""

    def finish(self, step: int, stream: Stream) -> None:
        """Called after all units of a step."""

    def passes(self, step: int) -> list[bool]:
        """For each unit whether it is passed over in a step, which then costs less than one that is filled."""


@runtime_checkable
class Replacing(Protocol):
    """A fill that does not add to the stream where a unit is left out, but puts another stream in its place."""

    def keep_stream(self, unit: int, step: int, stream: Stream) -> None:
        """Called after a unit was computed for all tokens, if a later step will need it."""

    def replace(self, unit: int, step: int, stream: Stream) -> None:
        """Called where no token of a unit is computed."""


@runtime_checkable
class Blending(Protocol):
    """A fill that mixes what groups of merged tokens give out with what was cached of each token by itself."""

    def keep_gated(self, unit: int, gated: Tensor) -> None:
        """Called with what a unit added to each token after it was computed for all, if a later step will need it."""

    def blend(self, unit: int, merge: Merge, gated: Tensor) -> Tensor:
        """What is added to all tokens, where groups of them gave out `gated` [samples, tokens, width]."""


@runtime_checkable
class Refilling(Protocol):
    """A fill that makes the tokens that were left out of a unit from those that were computed."""

    def refill(self, unit: Unit, part: Tensor) -> Tensor:
        """The stream's tokens after the unit, from those computed, `part` [samples, k, width]."""


class Reuse:
    """Missing tokens receive what their unit last computed for them."""

    stateless: ClassVar[bool] = False
    wants_all: ClassVar[bool] = False

    def __init__(self) -> None:
        self._last: dict[Key, Tensor] = {}

    def keep(self, key: Key, step: int, output: Tensor) -> None:
        self._last[key] = output.contiguous()

    def supply(self, key: Key, step: int) -> Tensor | None:
        return self._last[key]

    def complete(self, key: Key, step: int, rows: Rows, part: Tensor) -> Tensor | None:
        # In place: what was cached has been added to the stream already, nobody else reads it.
        self._last[key] = whole = rows.put(self._last[key], part)
        return whole

    def end_guidance(self, conditional: slice, twin: Fill | None) -> None:
        self._last = {key: tensor[conditional] for key, tensor in self._last.items()}

    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._last.values())


class ReuseMean(Reuse):
    """Reuse, but where guidance ends, what was kept of its two branches becomes their mean (T-GATE)."""

    def end_guidance(self, conditional: slice, twin: Fill | None) -> None:
        if twin is None:
            self._last = {key: sum(tensor.chunk(2)) / 2 for key, tensor in self._last.items()}  # type: ignore[misc]
        else:
            assert isinstance(twin, ReuseMean)
            self._last = {key: (tensor + twin._last[key]) / 2 for key, tensor in self._last.items()}


class HandOn(Reuse):
    """Reuse, but where a network is passed over to its end, its head is given what the last step gave it.

    `passed` marks such sites [step, unit]; they receive nothing.
    """

    def __init__(self, passed: NDArray[np.bool_]) -> None:
        super().__init__()
        self._passed: list[list[bool]] = passed.tolist()
        self._hidden: Tensor | None = None

    def supply(self, key: Key, step: int) -> Tensor | None:
        return None if self._passed[step][key.unit] else super().supply(key, step)

    def finish(self, step: int, stream: Stream) -> None:
        if self._passed[step][-1]:
            assert self._hidden is not None, "the first step is computed"
            stream.hidden = self._hidden
        elif step + 1 < len(self._passed) and self._passed[step + 1][-1]:
            # Not a copy: the stream ends here, and the head writes to none of its tensors.
            self._hidden = stream.hidden

    def passes(self, step: int) -> list[bool]:
        return self._passed[step]

    def end_guidance(self, conditional: slice, twin: Fill | None) -> None:
        super().end_guidance(conditional, twin)
        self._hidden = None if self._hidden is None else self._hidden[conditional]

    def nbytes(self) -> int:
        return super().nbytes() + (0 if self._hidden is None else self._hidden.nbytes)


class Replace(Reuse):
    """Where a unit is left out, the stream goes on as it last left that unit, whatever has entered it now."""

    def __init__(self) -> None:
        super().__init__()
        self._streams: dict[int, tuple[Tensor, Tensor | None]] = {}

    def keep(self, key: Key, step: int, output: Tensor) -> None:
        """What a unit added is not asked for."""

    def keep_stream(self, unit: int, step: int, stream: Stream) -> None:
        # A copy: later units add to the stream in place.
        self._streams[unit] = (stream.hidden.clone(), stream.text)

    def replace(self, unit: int, step: int, stream: Stream) -> None:
        hidden, text = self._streams[unit]
        stream.hidden = hidden.clone()
        stream.text = text

    def end_guidance(self, conditional: slice, twin: Fill | None) -> None:
        rows = conditional
        self._streams = {u: (h[rows], None if t is None else t[rows]) for u, (h, t) in self._streams.items()}

    def nbytes(self) -> int:
        return sum(t.nbytes for pair in self._streams.values() for t in pair if t is not None)


class Misplaced(Reuse):
    """Missing units receive the cached output of other tokens: a control that must do harm."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.shift = shift

    def supply(self, key: Key, step: int) -> Tensor | None:
        cached = super().supply(key, step)
        assert cached is not None
        return cached.roll(self.shift, dims=1)


class Pass:
    """Missing tokens receive nothing: they leave the unit as they entered it."""

    stateless: ClassVar[bool] = True
    wants_all: ClassVar[bool] = False

    def keep(self, key: Key, step: int, output: Tensor) -> None:
        return None

    def supply(self, key: Key, step: int) -> Tensor | None:
        return None

    def complete(self, key: Key, step: int, rows: Rows, part: Tensor) -> Tensor | None:
        return None

    def nbytes(self) -> int:
        return 0


class PassBy:
    """Tokens that are left out of a unit receive nothing; where the whole unit is left out, `inner` fills for all.

    What it is shown of tokens that were left out is that they received nothing.
    """

    stateless: ClassVar[bool] = True  # of a first step: `inner` is asked for whole units alone
    wants_all: ClassVar[bool] = True  # forecasts do

    def __init__(self, inner: Fill) -> None:
        self.inner = inner

    def keep(self, key: Key, step: int, output: Tensor) -> None:
        self.inner.keep(key, step, output)

    def supply(self, key: Key, step: int) -> Tensor | None:
        return self.inner.supply(key, step)

    def complete(self, key: Key, step: int, rows: Rows, part: Tensor) -> Tensor | None:
        whole = rows.put(part.new_zeros(part.shape[0], rows.tokens, part.shape[2]), part)
        self.inner.keep(key, step, whole)
        return whole

    def nbytes(self) -> int:
        return self.inner.nbytes()


class BlendGroups(Pass):
    """Merged tokens receive `weight` x what their group gives out, and of the rest what each was last given itself."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self._last: dict[int, Tensor] = {}

    def keep_gated(self, unit: int, gated: Tensor) -> None:
        self._last[unit] = gated

    def blend(self, unit: int, merge: Merge, gated: Tensor) -> Tensor:
        cached = self._last.get(unit)
        if cached is None:
            return gated
        import torch

        return torch.where(merge.shared[..., None], torch.lerp(cached, gated, self.weight), gated)

    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._last.values())
