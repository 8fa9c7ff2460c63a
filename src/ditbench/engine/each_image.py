"""Merging where each image of a batch finds for itself how many of its tokens are alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ditbench.engine.rows import Rows
from ditbench.engine.watch import Attention, Glance, Watching

if TYPE_CHECKING:
    from ditbench.backbones import Stream
    from ditbench.engine.merging import Merge, Merging


class EachImage:
    """A selector that holds one for every image: they merge other numbers of tokens, so each is computed by itself.

    Both branches of guidance of an image, where a batch holds both, go together. `make` gives a fresh selector.
    """

    def __init__(self, make: Callable[[], Merging]) -> None:
        self._make, self._each = make, [make()]

    def apart(self, stream: Stream) -> Iterator[tuple[Tensor, Merging]]:
        """The samples of each image of a batch, and the selector that merges it."""
        images = stream.samples // stream.halves
        while len(self._each) < images:
            self._each.append(self._make())
        for image in range(images):
            yield torch.arange(image, stream.samples, images, device=stream.device), self._each[image]

    @property
    def attends_whole(self) -> bool:
        return self._each[0].attends_whole

    def looks(self, branch: int, step: int) -> bool:
        return self._each[0].looks(branch, step)

    def look(self, branch: int, step: int, stream: Stream, read: Tensor) -> None:
        for samples, merging in self.apart(stream):
            merging.look(branch, step, stream.at(Rows.of_samples(samples, stream.tokens)), read[samples])

    def match(self, branch: int, step: int, stream: Stream, read: Tensor, count: int) -> Merge:
        raise AssertionError("images that merge by themselves are computed by themselves")

    def kind(self, step: int) -> Any:
        return self._each[0].kind(step)

    def macs(self) -> int:
        return sum(merging.macs() for merging in self._each)

    def watches(self, branch: int, step: int) -> bool:
        first = self._each[0]
        return isinstance(first, Watching) and first.watches(branch, step)

    def see(self, branch: int, step: int, glance: Glance) -> int:
        taken = 0
        for samples, merging in self.apart(glance.stream):
            assert isinstance(merging, Watching)
            part = glance.stream.at(Rows.of_samples(samples, glance.stream.tokens))
            taken += merging.see(branch, step, _of_samples(glance, samples, part))
        return taken

    def nbytes(self) -> int:
        """The memory that is kept from one step to the next."""
        return sum(merging.nbytes() for merging in self._each if hasattr(merging, "nbytes"))


def _of_samples(glance: Glance, samples: Tensor, part: Stream) -> Glance:
    """What a selector sees of a branch, of some samples."""

    def own(values: Tensor | None) -> Tensor | None:
        # A bias may be the same for all samples.
        return values if values is None or values.shape[0] == 1 else values[samples]

    seen, output = glance.attention, glance.output
    attention = None
    if seen is not None:
        attention = Attention(seen.queries[samples], seen.keys[samples], seen.values[samples], own(seen.bias))
    return Glance(part, glance.rows, type(output)(output.image[samples], own(output.text)), attention, glance.image)
