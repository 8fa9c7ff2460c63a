"""Which CUDA device a job takes, where a machine has several and no scheduler hands them out.

A job that was told `cuda`, without a number, takes a lock on one of the machine's devices for as long as it lives, and
sees that device alone. Locks are the system's own: they end with the process that holds them, however it ends, so that
no lease goes stale. A job that was told a device by its number takes that one, whoever else works on it.
"""

from __future__ import annotations

import os
import stat
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from ditbench.faults import Fault, tell

# What names the devices a process may see, for CUDA and for us.
VISIBLE = "CUDA_VISIBLE_DEVICES"
# Seconds between two looks at whether a device has become free, and after which the wait is told.
POLL, TELL = 0.5, 30.0
WAIT = 6 * 3600.0


class Lease(NamedTuple):
    """A device that is this process's alone until the file is closed."""

    device: str
    file: IO[str]

    def end(self) -> None:
        """Gives the device back."""
        self.file.close()


def lease_folder() -> Path:
    """Where the locks of this machine's devices lie, for all runs of this user: not among results, which may move."""
    owner = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(tempfile.gettempdir()) / f"ditbench-gpus-{owner}"


def devices() -> list[str]:
    """The CUDA devices that this process may use, by the names CUDA has for them; none where there are none."""
    given = os.environ.get(VISIBLE)
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    return _uuids()


def _uuids() -> list[str]:
    """The devices that the driver shows to this process, by the names that no other device has, in its order."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]


def marks_of(names: Sequence[str]) -> dict[str, str]:
    """What the locks of some devices are called: alike for one device, whatever it is called here.

    `0` is another device in each job of a scheduler that shows a job its own devices alone, and for somebody else it
    has a name by itself. Numbers count as the driver does; where it says nothing, they are the scheduler's.
    """
    known = _uuids()
    job = os.environ.get("SLURM_JOB_ID", "")
    found = {name: f"{job}-{name}" if job and not known else name for name in names}
    for name in names:
        if name.isdecimal() and int(name) < len(known):
            found[name] = known[int(name)]
        elif len(alike := [uuid for uuid in known if uuid.startswith(name)]) == 1:
            found[name] = alike[0]
    return found


def take(names: Sequence[str], folder: Path, wait: float = WAIT, marks: Mapping[str, str] | None = None) -> Lease:
    """The first of the devices that nobody else has leased; waits until one is free.

    `marks` says what their locks are called, where that is not what they are.
    """
    marks = marks or {}
    began = told = time.monotonic()
    while True:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check_owner(folder)
        for name in names:
            stream = _locked(folder / f"{_plain(marks.get(name, name))}.lock")
            if stream is not None:
                return Lease(name, stream)
        now = time.monotonic()
        if now - began >= wait:
            raise Fault(
                f"device: all {len(names)} CUDA device(s) have been at work for {wait:g} s; "
                "name one (cuda:0) to share it"
            )
        if now - told > TELL:
            told = now
            tell(f"waiting for one of {len(names)} CUDA device(s)")
        time.sleep(POLL)


def _locked(path: Path) -> IO[str] | None:
    """The file at a path, locked for this process; None where another has it, or it was removed meanwhile.

    A lock on a file that is no longer at its path keeps nobody out: the next one makes another file. So that it is not
    cleaned up as old it gets today's date.
    """
    import fcntl

    # A link would be another's file.
    stream = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "w")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(stream.fileno()), path.stat()):
            os.utime(path)
            return stream
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        stream.close()
        raise
    stream.close()
    return None


def _check_owner(folder: Path) -> None:
    """Anybody may make a folder of this name among temporary files, and put links into it."""
    there = folder.lstat()
    if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.geteuid():
        raise Fault(f"{folder}, where locks of GPUs lie, is not a folder of yours; set TMPDIR to one that is")


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)


def lease_for(device: str | None) -> Lease | None:
    """The lease of a job that was told `device`; None where it needs none.

    It must be asked for before any library has looked at the devices. Processes that torch's launcher started lease
    none, each takes the device of its own rank among those that the user let them see: all of them are needed before
    any can begin, and two trainings that had leased some each would wait for each other.
    """
    if device != "cuda" or "WORLD_SIZE" in os.environ:
        return None
    there = devices()
    if not there:
        return None  # what says that there is no such device says it better
    held = take(there, lease_folder(), marks=marks_of(there))
    os.environ[VISIBLE] = held.device
    return held
