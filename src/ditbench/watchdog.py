"""Ends a job that hangs where Python does not come back: in a library's own loop, or one that keeps Python's lock.

A process of its own, which the job starts by this file and tells of its progress through a pipe. It imports nothing
of the package, so that it is there at once and does not wait for what the job waits for. When the
job has been silent for too long it writes the note of the failure, says the sentence and kills the job; when the job
ends, and with it the pipe, it goes too.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from typing import Any

LOOK = 5.0  # seconds between two looks at whether the job is there: a fork of it may keep the pipe open


def watch(job: int, seconds: float, sentence: str, note: dict[str, Any] | None) -> None:
    """Waits at standard input; kills the process `job`, which started this one, if nothing comes for `seconds`.

    `note` has the `path` of the note that is written then, its `body`, and the `record` that makes it needless.
    """
    heard = time.monotonic()
    while os.getppid() == job:
        left = heard + seconds - time.monotonic()
        if select.select([0], [], [], max(0.0, min(left, LOOK)))[0]:
            if not os.read(0, 4096):
                return
            heard = time.monotonic()
        elif left <= 0:
            end(job, sentence, note)
            return


def end(job: int, sentence: str, note: dict[str, Any] | None) -> None:
    """Kills a job with a note and a sentence: stops it first, so that it cannot come back before it is killed."""
    os.kill(job, signal.SIGSTOP)
    try:
        if note is not None and not os.path.exists(note["record"]):
            _write(note["path"], note["body"])
    except OSError as error:
        sentence += f"; {note['path']} could not be written: {error.strerror}" if note else ""
    finally:
        try:
            os.write(2, f"ditbench: {sentence}\n".encode())
        finally:
            os.kill(job, signal.SIGKILL)


def _write(path: str, body: dict[str, Any]) -> None:
    from datetime import UTC, datetime

    body = {**body, "created": datetime.now(UTC).isoformat(timespec="seconds")}
    folder, name = os.path.split(path)
    os.makedirs(folder or ".", exist_ok=True)
    partial = os.path.join(folder, f".{name}.{os.getpid()}.{os.urandom(4).hex()}.partial")
    with open(partial, "w", encoding="utf-8") as stream:
        json.dump(body, stream, indent=1, ensure_ascii=False)
    os.replace(partial, path)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the job; this process ends with it
    watch(**json.loads(sys.argv[1]))
