"""Some tokens of a batch: gathered from it, and written back to it, as whole rows of memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """The tokens at `index` [samples, k] (ascending) of the `samples` named, or of all.

    One object serves every tensor [batch, tokens, width] of a run; units that are given the very same object share
    one gather.
    """

    index: Tensor
    tokens: int
    samples: Tensor | None = None  # None: all of the batch, in order

    @classmethod
    def of_samples(cls, samples: Tensor, tokens: int) -> Rows:
        """All tokens of some samples."""
        index = torch.arange(tokens, device=samples.device).expand(len(samples), -1)
        return cls(index, tokens, samples)

    @property
    def whole_samples(self) -> bool:
        return self.index.shape[1] == self.tokens

    @cached_property
    def flat(self) -> Tensor:
        """Positions among all tokens of the batch, [samples x k]."""
        samples = self.samples
        if samples is None:
            samples = torch.arange(self.index.shape[0], device=self.index.device)
        return (self.index + self.tokens * samples[:, None]).reshape(-1)

    def take(self, whole: Tensor) -> Tensor:
        """The tokens of `whole` [batch, tokens, width] as [samples, k, width]."""
        if self.whole_samples and self.samples is not None:
            return whole.index_select(0, self.samples)
        width = whole.shape[-1]
        # Rows of memory are copied whole; a gather would read an index for every number.
        return whole.reshape(-1, width).index_select(0, self.flat).view(*self.index.shape, width)

    def put(self, whole: Tensor, part: Tensor) -> Tensor:
        """`whole` with these tokens replaced by `part`: in place, unless autograd may need the old values."""
        flat = part.reshape(-1, part.shape[-1])
        if torch.is_grad_enabled():
            return whole.reshape(-1, whole.shape[-1]).index_copy(0, self.flat, flat).view_as(whole)
        assert whole.is_contiguous(), "only a contiguous tensor can be written to row by row"
        whole.view(-1, whole.shape[-1]).index_copy_(0, self.flat, flat)
        return whole
