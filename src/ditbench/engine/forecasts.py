"""A fill that forecasts: what a unit would give out now, from how its outputs have changed from step to step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch

from ditbench.engine.fills import Key, Replace

if TYPE_CHECKING:
    from torch import Tensor

    from ditbench.backbones import Stream
    from ditbench.engine.rows import Rows


class Taylor:
    """Missing outputs are a polynomial's, of up to `order`, through the last outputs that were computed.

    Published differences (`divided` off) divide every order by the last spacing of steps and continue as a Taylor
    series in (step - last); where spacings differ that is no polynomial through the outputs. Divided differences divide
    each order by the spacing of its own ends, and continue as Newton's polynomial, which is. Both keep one tensor for
    each order and one more. Differences are built from step `build_from` on. `wide` keeps them in float32.
    """

    stateless: ClassVar[bool] = False
    wants_all: ClassVar[bool] = True

    def __init__(self, order: int, divided: bool = False, build_from: int = 1, wide: bool = False) -> None:
        self.order, self.divided, self.build_from, self.wide = order, divided, build_from, wide
        # Of each key: differences of order 0, 1, …, and the steps that they are of, the last one first.
        self._factors: dict[Key, list[Tensor]] = {}
        self._steps: dict[Key, list[int]] = {}

    def keep(self, key: Key, step: int, output: Tensor) -> None:
        old, steps = self._factors.get(key, []), self._steps.get(key, [])
        # A copy of what others may write to, or the output itself where it is nobody else's.
        newest = output.float() if self.wide else output.contiguous()
        factors = [newest]
        if old and step >= self.build_from:
            for i, before in enumerate(old[: self.order]):
                span = step - (steps[i] if self.divided else steps[0])
                factors.append((factors[i] - before) / span)
        self._factors[key] = factors
        self._steps[key] = [step, *steps][: self.order + 1]

    def complete(self, key: Key, step: int, rows: Rows, part: Tensor) -> Tensor | None:
        return rows.put(self.supply(key, step).clone(memory_format=torch.contiguous_format), part)

    def supply(self, key: Key, step: int) -> Tensor:
        factors, steps = self._factors[key], self._steps[key]
        whole, weight = factors[0], 1.0
        for i, factor in enumerate(factors[1:], start=1):
            if self.divided:
                weight *= step - steps[i - 1]
                whole = whole + weight * factor
            else:
                whole = whole + ((step - steps[0]) ** i / math.factorial(i)) * factor
        return whole

    def nbytes(self) -> int:
        return sum(tensor.nbytes for factors in self._factors.values() for tensor in factors)


class StreamTaylor(Replace):
    """Where a unit is left out, the stream goes on as `Taylor` forecasts it from how it left that unit before.

    The text's part goes on as it was: a network's head reads none of it.
    """

    wants_all: ClassVar[bool] = True

    def __init__(self, taylor: Taylor) -> None:
        super().__init__()
        self._taylor = taylor
        self._texts: dict[int, Tensor | None] = {}

    def keep_stream(self, unit: int, step: int, stream: Stream) -> None:
        # A copy: whatever follows may write to the stream.
        self._taylor.keep(Key(unit, "image"), step, stream.hidden.clone())
        self._texts[unit] = stream.text

    def replace(self, unit: int, step: int, stream: Stream) -> None:
        stream.hidden = self._taylor.supply(Key(unit, "image"), step)
        stream.text = self._texts[unit]

    def nbytes(self) -> int:
        return self._taylor.nbytes() + sum(text.nbytes for text in self._texts.values() if text is not None)


class TokenTaylor:
    """Missing tokens receive a line through the last two outputs that were computed of them, each token its own.

    A token that was computed once receives that output. The line goes on for as many steps as it spans, and is flat
    beyond: a line through two steps that lie side by side says little of a step far from them.
    """

    stateless: ClassVar[bool] = False
    wants_all: ClassVar[bool] = True

    def __init__(self) -> None:
        # Of each key: the last outputs, their slopes over steps, and at which step each token was computed last and
        # how far from the time before; both [samples, tokens, 1].
        self._last: dict[Key, Tensor] = {}
        self._slope: dict[Key, Tensor] = {}
        self._when: dict[Key, Tensor] = {}
        self._span: dict[Key, Tensor] = {}

    def keep(self, key: Key, step: int, output: Tensor) -> None:
        if key not in self._last:
            column = output[..., :1]
            self._slope[key] = torch.zeros_like(output)
            self._span[key] = torch.zeros_like(column)
        else:
            self._span[key] = step - self._when[key]
            self._slope[key] = (output - self._last[key]) / self._span[key]
        self._last[key] = output.contiguous()
        self._when[key] = torch.full_like(output[..., :1], float(step))

    def supply(self, key: Key, step: int) -> Tensor | None:
        ahead = torch.minimum(step - self._when[key], self._span[key])
        return self._last[key] + ahead * self._slope[key]

    def complete(self, key: Key, step: int, rows: Rows, part: Tensor) -> Tensor | None:
        forecast = self.supply(key, step)
        assert forecast is not None
        span = step - rows.take(self._when[key])
        slope = (part - rows.take(self._last[key])) / span
        whole = rows.put(forecast, part)
        for kept, new in (
            (self._last, part),
            (self._slope, slope),
            (self._span, span),
            (self._when, torch.full_like(span, float(step))),
        ):
            kept[key] = rows.put(kept[key].contiguous(), new)
        return whole

    def nbytes(self) -> int:
        kept = (self._last, self._slope, self._when, self._span)
        return sum(tensor.nbytes for each in kept for tensor in each.values())
