"""The one exception for what a user can mend, and the sentence of any other."""

from __future__ import annotations

import io
import sys
import traceback
from pathlib import Path


class Fault(Exception):
    """Something the user can put right; its message is one sentence that says what was found and what to do."""


def sentence_of(error: BaseException) -> str:
    """What is known of an exception that nobody foresaw: its kind, what it says and where it was raised."""
    said = " ".join(str(error).split())[:300] or "no reason given"
    places = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(places[-1].filename).name}, line {places[-1].lineno})" if places else ""
    return f"{type(error).__name__}: {said}{place}; DITBENCH_DEBUG=1 shows the way there"


def write_whole_lines() -> None:
    """From now on what is printed to the terminal goes there by whole lines, whoever else writes there.

    Where Python is told not to buffer (PYTHONUNBUFFERED), `print` writes a line and its end one after the other, and
    what another process says comes between them: jobs share a terminal, and so does the `tee` that keeps their logs.
    """
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(line_buffering=True, write_through=False)


def tell(sentence: str) -> None:
    """Writes a sentence to the terminal in one piece: what another process writes there comes before or after."""
    sys.stderr.write(f"ditbench: {sentence}\n")
    sys.stderr.flush()
