"""Whether the clock was put forward or back, and what then becomes of the dates of files.

A workflow decides by the dates of files what to make anew. A clock that was ahead leaves files behind that are dated
after now: whatever is made of them is older than they are, again and again until that day has come.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

NOTICED = 60.0  # seconds; smaller corrections are what a network's time keeping does all day


class Clocks(NamedTuple):
    """The time of day, and the seconds since the machine was started, which nobody can put forward or back."""

    day: float
    machine: float | None


def read_clocks() -> Clocks:
    """Both, now; where a system has no count of seconds that goes on while it sleeps, only the time of day."""
    since = time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else None
    return Clocks(time.time(), since)


def jump(before: Clocks, now: Clocks) -> float:
    """By how many seconds the clock was put forward (or back, below 0); 0 where it was not, or that cannot be known."""
    if before.machine is None or now.machine is None:
        return 0.0
    seconds = (now.day - before.day) - (now.machine - before.machine)
    return seconds if abs(seconds) > NOTICED else 0.0


def since_process_start() -> float:
    """How long this process has been there, whatever became of the clock meanwhile."""
    import psutil

    started = psutil.Process().create_time()
    if (machine := read_clocks().machine) is None:
        return time.time() - started
    return machine - (started - psutil.boot_time())  # both of these by one reading of the clock


def told(seconds: float) -> str:
    """That the clock jumped, and what follows, in one sentence."""
    way = "forward" if seconds > 0 else "back"
    return (
        f"the clock was put {way} by {span(abs(seconds))} while this run was at work: files from before are dated "
        "wrong, and the next run may make some of them once more"
    )


def span(seconds: float) -> str:
    """A time in words."""
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if round(seconds / size, 2) >= 2:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"


def redate(folder: str | Path) -> int:
    """Dates what is dated after now as of now, in the order it had; how many files."""
    now, ahead = time.time_ns(), []
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            with suppress(OSError):
                written = os.lstat(path).st_mtime_ns
                if written > now + NOTICED * 1e9:
                    ahead.append((written, path))
    for number, (_, path) in enumerate(sorted(ahead)):
        with suppress(OSError):
            # Some file systems keep microseconds.
            os.utime(path, ns=(now, now - 1000 * (len(ahead) - number)), follow_symlinks=False)
    return len(ahead)
