"""A process that has everything loaded and forks a worker for each command of a campaign, Snakemake itself among them.

`ditbench warm` is that for the heavy commands of one run; a campaign of many small runs would still spend most of its
time starting Python. Workers note their process and their words, so that a fault can choose whom to kill.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Sequence
from datetime import datetime, tzinfo
from pathlib import Path

JOBS = "jobs"  # a file for each worker, named by its process
CLOCK = "FAULTS_CLOCK"  # a file that says by how many seconds the clock is wrong
FULL = "FAULTS_DISK_FULL"  # the command whose writes find no room, and how many succeed before


def work(words: Sequence[str]) -> int:
    note = Path(os.environ["FAULTS_STATION"]) / JOBS / str(os.getpid())
    note.write_text(" ".join(words))
    command, _, number = os.environ.get(FULL, "").partition(":")
    if command == words[0]:
        fill_disk(int(number))
    if clock := os.environ.get(CLOCK):
        set_clock(Path(clock))
    try:
        if words[0] == "snakemake":
            os.setsid()  # a group of its own, as a shell gives it
            from snakemake.cli import main

            main(list(words[1:]))
            return 0
        from ditbench.cli import run_here

        return run_here(words)
    finally:
        note.unlink(missing_ok=True)


def fill_disk(number: int) -> None:
    """From now on, only so many files reach the disk."""
    left, sync = [number], os.fsync

    def refuse(file: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    os.fsync = refuse


def set_clock(file: Path) -> None:
    """From now on this process tells the time by a clock that is wrong, by as much as a file says whenever it is read.

    The clock of Python's `time`, by which Snakemake and ditbench count, and of the dates in records. The machine's own
    stays as it is: files are dated by it, and whoever writes that file dates them by the wrong clock (`_clock`).
    """
    right, right_ns = time.time, time.time_ns

    def off() -> float:
        return float(file.read_text() or 0)

    class Shifted(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.fromtimestamp(time.time(), tz)

    time.time = lambda: right() + off()
    time.time_ns = lambda: right_ns() + int(off() * 1e9)
    import ditbench.records

    ditbench.records.datetime = Shifted  # type: ignore[misc]


def preload() -> None:
    import matplotlib.figure  # noqa: F401
    import mlflow
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    import peft  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import snakemake.cli  # noqa: F401

    import ditbench.learn.tuning
    from ditbench.config import Config  # noqa: F401
    from ditbench.warm import load_libraries

    load_libraries()
    # A training of seconds is to leave something to go on from.
    ditbench.learn.tuning.NOTE_SECONDS = 0.0


if __name__ == "__main__":
    from ditbench.report.tracking.connection import quiet_mlflow
    from ditbench.warm import serve

    quiet_mlflow()
    serve(Path(sys.argv[1]), int(sys.argv[2]), preload, work)
