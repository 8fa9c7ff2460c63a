"""How long a job may go on without progress before it counts as hung.

The workflow says it, as `patience` of the configuration, in an environment variable; a command that a person runs by
hand waits for ever. Whoever gets something done says `progress()`: a batch of images, a step of training, a batch of
pictures in a judge's network. Where nobody does for too long, the job ends with a sentence and its cell has a reason.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ditbench.faults import Fault

VARIABLE = "DITBENCH_PATIENCE"
# What hangs inside a library never comes back to Python, where the sentence would be said: it is ended by force.
GRACE = 60.0

_seconds = 0.0


def progress() -> None:
    """Says that something was done: waiting begins anew."""
    if _seconds:
        signal.setitimer(signal.ITIMER_REAL, _seconds)
        faulthandler.dump_traceback_later(_seconds + GRACE, exit=True)


@contextmanager
def limited(what: str) -> Iterator[None]:
    """Within the context a job that makes no progress for as long as the environment says ends with a Fault."""
    global _seconds
    seconds = _given()
    if not seconds or _seconds or threading.current_thread() is not threading.main_thread():
        yield
        return

    def give_up(number: int, frame: FrameType | None) -> None:
        raise Fault(
            f"{what} made no progress for {seconds:g} s and counts as hung; `patience` of the configuration says how "
            "long to wait, and null waits for ever"
        )

    before, timer = signal.signal(signal.SIGALRM, give_up), signal.getitimer(signal.ITIMER_REAL)
    _seconds = seconds
    try:
        progress()
        yield
    finally:
        _seconds = 0.0
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def _given() -> float:
    try:
        return max(0.0, float(os.environ.get(VARIABLE, "") or 0))
    except ValueError:
        return 0.0
