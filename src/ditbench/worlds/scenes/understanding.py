"""Whether a caption is one of the grammar's; not in its file, which is part of the shipped weights' recipe."""

from __future__ import annotations

from ditbench.worlds.scenes.grammar import CaptionError, parse


def understood(caption: str) -> bool:
    """Whether the grammar has this sentence."""
    try:
        parse(caption)
    except CaptionError:
        return False
    return True
