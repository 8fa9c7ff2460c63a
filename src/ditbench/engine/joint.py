"""Tokens of image and text, where both flow through every block: chosen apart, or together where they lie together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ditbench.backbones.stream import Output, Stream
from ditbench.engine.rows import Rows

if TYPE_CHECKING:
    from ditbench.engine.layout import Unit
    from ditbench.engine.recall import RecalledAttention
    from ditbench.engine.scored import ScoredTokens
    from ditbench.engine.watch import Glance

# Set the chance of the text's tokens, and of both together, apart from the image's.
OF_TEXT, OF_BOTH = 1 << 40, 1 << 41


class JointTokens:
    """State of one run: a selector for the image, one for the text, and one for both together.

    `among` makes one for so many tokens. The last is for branches whose attention `recalled` keeps, in which tokens of
    text and image lie side by side; it and the text's are made when the text's length is known.
    """

    def __init__(self, image: ScoredTokens, among: Callable[[int], ScoredTokens], recalled: RecalledAttention) -> None:
        self.image, self.recalled = image, recalled
        self.generator, self.score = image.generator, image.score
        self._among = among
        self._text: ScoredTokens | None = None
        self._both: ScoredTokens | None = None

    def _of_text(self, stream: Stream) -> ScoredTokens:
        if self._text is None:
            assert stream.text is not None
            self._text = self._among(stream.text.shape[1])
        return self._text

    def _of_both(self, tokens: int) -> ScoredTokens:
        if self._both is None:
            self._both = self._among(tokens)
        return self._both

    def watches(self, branch: int, step: int) -> bool:
        return self.image.watches(branch, step)

    def see(self, branch: int, step: int, glance: Glance) -> int:
        if self.recalled.covers(branch):
            both = glance if glance.rows is not None else _both_of(glance)
            tokens = both.rows.tokens if both.rows is not None else both.stream.tokens
            return self._of_both(tokens).see(branch, step, both)
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
        return chooser.choose(unit, step, _text_as_image(stream), chooser.count(unit, step))

    def choose_both(self, unit: Unit, step: int, stream: Stream) -> Rows:
        """The tokens of text and image, the text's first, that a branch computes in which they lie side by side."""
        both = _both_as_image(stream)
        chooser = self._of_both(both.tokens)
        count = chooser.count(unit, step)
        if count == both.tokens:  # nothing to choose: nobody has looked on for it
            return Rows(torch.arange(count, device=both.device).expand(both.samples, -1), both.tokens)
        return chooser.choose(unit, step, both, count)

    def nbytes(self) -> int:
        held = (self.image, self._text, self._both, self.recalled)
        return sum(part.nbytes() for part in held if part is not None)


def _text_as_image(stream: Stream) -> Stream:
    """The text's tokens where scores look for the image's."""
    assert stream.text is not None
    seeds = None if stream.seeds is None else stream.seeds + OF_TEXT
    return Stream(stream.text, halves=stream.halves, seeds=seeds)


def _both_as_image(stream: Stream) -> Stream:
    assert stream.text is not None
    seeds = None if stream.seeds is None else stream.seeds + OF_BOTH
    return Stream(torch.cat([stream.text, stream.hidden], dim=1), halves=stream.halves, seeds=seeds)


def _text_of(glance: Glance) -> Glance | None:
    """What was seen of a branch, with the text's tokens where scores look for the image's; None where it has none."""
    text = glance.output.text
    if text is None or glance.stream.text is None:
        return None
    keys = glance.attention.keys.shape[2] if glance.attention is not None else 0
    leads = glance.image.start > 0
    return replace(
        glance,
        stream=_text_as_image(glance.stream),
        rows=glance.stream.text_rows,
        output=Output(text),
        image=slice(0, glance.image.start) if leads else slice(glance.image.stop, keys),
        like=glance,
    )


def _both_of(glance: Glance) -> Glance:
    """What was seen of a branch computed whole, with the tokens of text and image where scores look for the image's."""
    image, text = glance.output
    assert text is not None
    output = Output(torch.cat([text, image], dim=1))
    return replace(glance, stream=_both_as_image(glance.stream), output=output, image=slice(None), like=glance)
