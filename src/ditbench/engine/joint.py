"""Tokens of image and text, chosen each by themselves, for networks in which both flow through every block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from ditbench.backbones.stream import Output, Stream
from ditbench.engine.rows import Rows

if TYPE_CHECKING:
    from ditbench.engine.layout import Unit
    from ditbench.engine.recall import RecalledAttention
    from ditbench.engine.scored import ScoredTokens
    from ditbench.engine.watch import Glance

# Sets the chance of the text's tokens apart from the image's.
OF_TEXT = 1 << 40


class JointTokens:
    """State of one run: one selector for the image, and one for the text, made when the text's length is known.

    Both are of the same scores. `recalled` is what their tokens are computed from in branches that join attention and
    MLP.
    """

    def __init__(
        self, image: ScoredTokens, text: Callable[[int], ScoredTokens], recalled: RecalledAttention | None = None
    ) -> None:
        self.image, self.recalled = image, recalled
        self.generator, self.score = image.generator, image.score
        self._new_text = text
        self._text: ScoredTokens | None = None

    def _of_text(self, stream: Stream) -> ScoredTokens:
        if self._text is None:
            assert stream.text is not None
            self._text = self._new_text(stream.text.shape[1])
        return self._text

    def watches(self, branch: int, step: int) -> bool:
        return self.image.watches(branch, step)

    def see(self, branch: int, step: int, glance: Glance) -> int:
        macs = self.image.see(branch, step, glance)
        text = _text_of(glance)
        if text is not None:  # of the same map: it is made once
            self._of_text(glance.stream).see(branch, step, text)
        return macs

    def choose(self, unit: Unit, step: int, stream: Stream, count: int) -> Rows:
        return self.image.choose(unit, step, stream, count)

    def choose_text(self, unit: Unit, step: int, stream: Stream) -> Rows:
        """The text's tokens that a unit computes beside those of the image."""
        chooser = self._of_text(stream)
        return chooser.choose(unit, step, _as_image(stream), chooser.count(unit, step))

    def nbytes(self) -> int:
        held = (self.image, self._text, self.recalled)
        return sum(part.nbytes() for part in held if part is not None)


def _as_image(stream: Stream) -> Stream:
    """The text's tokens where scores look for the image's."""
    assert stream.text is not None
    seeds = None if stream.seeds is None else stream.seeds + OF_TEXT
    return Stream(stream.text, halves=stream.halves, seeds=seeds)


def _text_of(glance: Glance) -> Glance | None:
    """What was seen of a branch, with the text's tokens where scores look for the image's; None where it has none."""
    text = glance.output.text
    if text is None or glance.stream.text is None:
        return None
    whole = glance.attention.keys.shape[2] if glance.attention is not None else 0
    first = glance.image.stop if glance.image.start == 0 else 0
    image = slice(first, whole if first else glance.image.start)
    return replace(
        glance,
        stream=_as_image(glance.stream),
        rows=glance.stream.text_rows,
        output=Output(text),
        image=image,
        like=glance,
    )
