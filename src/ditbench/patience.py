"""How long a job may go on without progress before it counts as hung.

The workflow says it, as `patience` of the configuration, in an environment variable; a command that a person runs by
hand waits for ever. Whoever gets something done says `progress()`: a batch of images, a step of training, a batch of
pictures in a judge's network. Where nobody does for too long, the job ends with a sentence and its cell has a reason.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from ditbench.faults import Fault, tell

VARIABLE = "DITBENCH_PATIENCE"
# What hangs inside a library never comes back to Python, where the sentence would be said: it is killed so much later.
GRACE = 60.0
# Seconds between two signs of life: a step of training may take a thousandth of one.
SIGN = 1.0

_seconds = 0.0
_watchdog: _Watchdog | None = None


def progress() -> None:
    """Says that something was done: waiting begins anew."""
    if _seconds:
        signal.setitimer(signal.ITIMER_REAL, _seconds)
        if _watchdog is not None:
            _watchdog.hear()


@contextmanager
def limited(what: str, note: Callable[[str], dict[str, Any]] | None = None) -> Iterator[None]:
    """Within the context a job that makes no progress for as long as the environment says ends with a Fault.

    Where the Fault cannot be raised because Python does not come back, the process is killed; `note` makes of the
    reason what is written before that, in the form that `ditbench.watchdog` takes.
    """
    global _seconds, _watchdog
    seconds = _given()
    if not seconds or _seconds or threading.current_thread() is not threading.main_thread():
        yield
        return
    silent = f"{what} made no progress for {seconds:g} s and counts as hung"
    remedy = "`patience` of the configuration says how long to wait, and null waits for ever"

    def give_up(number: int, frame: FrameType | None) -> None:
        raise Fault(f"{silent}; {remedy}")

    before, timer = signal.signal(signal.SIGALRM, give_up), signal.getitimer(signal.ITIMER_REAL)
    _seconds = seconds
    try:
        _watchdog = _started(
            f"{silent}, inside a library that does not come back, so that it was killed; {remedy}", note
        )
        progress()
        yield
    finally:
        _seconds = 0.0
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        if _watchdog is not None:
            _watchdog.end()
            _watchdog = None
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)


class _Watchdog:
    """The process that kills this one when it has been silent for too long."""

    def __init__(self, seconds: float, sentence: str, note: dict[str, Any] | None) -> None:
        self._seconds, self._told = seconds, 0.0
        asked = {"job": os.getpid(), "seconds": seconds, "sentence": sentence, "note": note}
        program = str(Path(__file__).with_name("watchdog.py"))
        # Of what the job has open it gets the terminal alone: a lock that it held would outlive the job.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", program, json.dumps(asked)], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
        )
        assert self._process.stdin is not None
        self._pipe = self._process.stdin.fileno()
        os.set_blocking(self._pipe, False)

    def hear(self) -> None:
        """Takes a sign of life."""
        now = time.monotonic()
        if now - self._told < min(SIGN, self._seconds / 10):
            return
        self._told = now
        with suppress(OSError):  # it is gone, or has not yet read the last ones
            os.write(self._pipe, b"+")
        if os.environ.get("DITBENCH_DEBUG"):  # where the job hangs, before it is killed
            faulthandler.dump_traceback_later(self._seconds * 0.99)

    def end(self) -> None:
        """Nobody need be watched any more."""
        faulthandler.cancel_dump_traceback_later()
        self._process.kill()
        self._process.communicate()


def _started(sentence: str, note: Callable[[str], dict[str, Any]] | None) -> _Watchdog | None:
    try:
        return _Watchdog(_seconds + GRACE, sentence, note(sentence) if note else None)
    except OSError as error:
        tell(f"no process could be started that ends this one if a library hangs ({error.strerror or error})")
        return None


def _given() -> float:
    try:
        return max(0.0, float(os.environ.get(VARIABLE, "") or 0))
    except ValueError:
        return 0.0
