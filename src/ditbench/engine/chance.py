"""Random numbers of a sample's own: whatever batch it is in, it meets the same chance at the same site."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch import Generator

    from ditbench.backbones import Stream

# SplitMix64's constants, as signed integers of 64 bits; products wrap around.
_STEP = -7046029254386353131  # 0x9E3779B97F4A7C15
_FIRST = -4658895280553007687  # 0xBF58476D1CE4E5B9
_SECOND = -7723592293110705685  # 0x94D049BB133111EB


def uniform(stream: Stream, step: int, unit: int, generator: Generator) -> Tensor:
    """Numbers in [0, 1) for every image token of every sample, [samples, tokens].

    Where the stream knows its samples' seeds they are a function of seed, step, unit and token alone; else they are the
    generator's.
    """
    if stream.seeds is None or stream.given.is_meta:
        draw = torch.empty(stream.samples, stream.tokens, device=stream.device)
        return draw.uniform_(generator=None if draw.is_meta else generator)
    site = _mixed(torch.full_like(stream.seeds, step * 65_536 + unit) * _STEP + stream.seeds)
    tokens = torch.arange(1, stream.tokens + 1, device=stream.device)
    # The upper 24 bits, as many as a float32 holds.
    return ((_mixed(site[:, None] + tokens * _STEP) >> 40) & 0xFFFFFF).float() / (1 << 24)


def normal(stream: Stream, step: int, unit: int, generator: Generator) -> Tensor:
    """Normally distributed numbers for every image token of every sample, [samples, tokens], as `uniform` is."""
    # Away from 0 and 1, where the quantile has no value.
    draw = uniform(stream, step, unit, generator).clamp(2**-25, 1 - 2**-24)
    return torch.special.ndtri(draw)


def _mixed(values: Tensor) -> Tensor:
    """SplitMix64's finalizer. A shift of a signed integer drags its sign along, which the mask takes off."""
    values = (values ^ ((values >> 30) & ((1 << 34) - 1))) * _FIRST
    values = (values ^ ((values >> 27) & ((1 << 37) - 1))) * _SECOND
    return values ^ ((values >> 31) & ((1 << 33) - 1))
