"""The faults of a campaign: from which state each begins, what is done, and what the user must be told.

A fault returns what was said while it lasted. Whatever it needs to be over (a full disk, a lock, a method's mistake) is
over when it returns; what is broken on the disk stays broken, for the user to follow the sentences.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.faults.server import CLOCK, FULL
from tests.faults.station import CELLS, LEARNED, Said, Station

DAY = 86_400.0
LOCKED = 60.0  # seconds that another program has MLflow's database


class Untried(Exception):
    """Why a fault cannot be had here."""


@dataclass(frozen=True)
class Disturbance:
    """One kind of fault. `told` is what the user must read of it, from the run or, where nobody is left, the next."""

    name: str
    what: str
    begins: str
    do: Callable[[Station, random.Random], Said]
    told: str
    mended: str = ""  # what was not so before the fault was thought of or tried


def _killed(alone: bool) -> Callable[[Station, random.Random], Said]:
    def do(station: Station, chance: random.Random) -> Said:
        process = station.start()
        station.await_(lambda: station.workers("snakemake"), process=process)
        # At work, not still planning; how long is drawn.
        station.await_(lambda: len(station.workers()) > 1, process=process)
        time.sleep(chance.uniform(0, 6))
        station.kill_workflow(alone)
        said = station.wait(process)
        if alone:
            return said  # what it had started goes on, and the next run begins beside it
        station.kill_all()
        return said

    return do


def _job_killed(*commands: str) -> Callable[[Station, random.Random], Said]:
    def do(station: Station, chance: random.Random) -> Said:
        command = chance.choice(commands)
        process = station.start()
        station.await_(lambda: station.workers(command), process=process)
        time.sleep(chance.uniform(0, 1))
        for pid in list(station.workers(command))[:1]:
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
        return station.wait(process)

    return do


def _training_killed(station: Station, chance: random.Random) -> Said:
    """After its first checkpoint; the workflow tries it once more, which goes on from there."""
    _untrained(station)
    process = station.start()
    state = station.root / LEARNED / "training.pt"
    station.await_(state.exists, process=process)
    for pid in station.workers("learn"):
        with suppress(ProcessLookupError):
            os.kill(pid, 9)
    return station.wait(process)


def _untrained(station: Station) -> None:
    shutil.rmtree(station.root / LEARNED, ignore_errors=True)


def _checkpoint_flipped(station: Station, chance: random.Random) -> Said:
    _untrained(station)
    process = station.start()
    state = station.root / LEARNED / "training.pt"
    station.await_(state.exists, process=process)
    for pid in station.workers("learn"):
        with suppress(ProcessLookupError):
            os.kill(pid, 9)
    station.kill_workflow(alone=False)
    station.kill_all()
    station.wait(process)
    if not state.exists():
        raise Untried("the training was over before it could be stopped")
    flip(state, chance)
    return station.run()


def _flipped(*patterns: str, again: tuple[str, ...] = ()) -> Callable[[Station, random.Random], Said]:
    """A bit of a random file; its date stays, as it does where a disk rots. `again`: rules that read it once more."""

    def do(station: Station, chance: random.Random) -> Said:
        files = sorted(path for pattern in patterns for path in station.results.glob(pattern))
        flip(chance.choice(files), chance)
        return station.run(*again)

    return do


def flip(path: Path, chance: random.Random) -> None:
    """Changes one bit of a file, and not its date."""
    content, stat = bytearray(path.read_bytes()), path.stat()
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def _disk_full(station: Station, chance: random.Random) -> Said:
    """The results lie on a small file system of their own, which fills up; then there is room again."""
    size = chance.randrange(400, 3000)
    with small_disk(station.results, size):
        return station.run()


@contextmanager
def small_disk(folder: Path, kilobytes: int) -> Iterator[None]:
    """Within the context a folder lies on a disk with so much room left; what was written stays afterwards."""
    aside = folder.with_name("aside")
    used = int(subprocess.run(["du", "-sk", str(folder)], capture_output=True, text=True, check=True).stdout.split()[0])
    folder.rename(aside)
    folder.mkdir()
    size = f"size={used + kilobytes}k"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], capture_output=True, text=True)
    try:
        if mounted.returncode:
            raise Untried(f"no disk can be mounted here: {mounted.stderr.strip()}")
        subprocess.run(["cp", "-a", f"{aside}/.", str(folder)], check=True)
        yield
        shutil.rmtree(aside)
        subprocess.run(["cp", "-a", str(folder), str(aside)], check=True)
    finally:
        if not mounted.returncode:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()
        aside.rename(folder)


def _no_room(station: Station, chance: random.Random) -> Said:
    """A command's writes find no room, the first or a later one."""
    # A shard and its record, samples and their scores; one file each of the others.
    command, files = chance.choice([("generate", 2), ("score", 2), ("cost", 1), ("learn", 1), ("time", 1)])
    return station.run(**{FULL: f"{command}:{chance.randrange(files)}"})


def _two_workflows(station: Station, chance: random.Random) -> Said:
    first = station.start()
    station.await_(lambda: len(station.workers()) > 1, process=first)
    second = station.run()
    said = station.wait(first)
    if said.status:
        return Said(0, said.text)  # the second must fail, the first must not: told as no failure at all
    return second


def _clock(station: Station, chance: random.Random) -> Said:
    """The clock is wrong when a run begins, and is put right while it is at work.

    Processes of the run, those at work and those to come, tell the time by it. Files are dated by the machine's own
    clock; those of the time before are given the dates of the wrong one at the moment when it is put right.
    """
    off, clock, began = chance.choice([-400 * DAY, -DAY, DAY, 2 * DAY]), station.root / "clock.txt", time.time()
    write_clock(clock, off)
    process = station.start(**{CLOCK: str(clock)})
    station.await_(lambda: any(station.workers(name) for name in ("generate", "score", "cost")), process=process)
    time.sleep(chance.uniform(0, 6))
    write_clock(clock, 0)
    for path in station.results.rglob("*"):
        with suppress(FileNotFoundError):  # a file that is being written is there for a moment
            stat = path.stat()
            if path.is_file() and stat.st_mtime >= began:
                os.utime(path, (stat.st_atime + off, stat.st_mtime + off))
    return station.wait(process)


def write_clock(file: Path, off: float) -> None:
    """Sets the clock that processes of a run tell the time by; there is no moment without one."""
    fresh = file.with_suffix(".new")
    fresh.write_text(str(off))
    fresh.replace(file)


def _store_locked(station: Station, chance: random.Random) -> Said:
    """Another program has the database for a while, and gives it back."""
    store = station.results / "mlflow.db"
    other = sqlite3.connect(store, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    process = station.start("-R", "publish")
    station.await_(lambda: station.workers("publish"), seconds=600, process=process)
    time.sleep(LOCKED)
    other.rollback()
    other.close()
    return station.wait(process)


def _store_read_only(station: Station, chance: random.Random) -> Said:
    """The database may be read only: by its format, since rights bind no root."""
    store = station.results / "mlflow.db"
    before = store.read_bytes()[18:19]
    _write(store, 18, bytes([9]))
    # A new number, so that something must be written.
    said = station.run("-R", "publish")
    _write(store, 18, before)
    return said


def _write(path: Path, place: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        file.write(content)


def _store_deleted(station: Station, chance: random.Random) -> Said:
    (station.results / "mlflow.db").unlink()
    return Said(0, "")


def _trouble(kind: str, *words: str, config: tuple[str, ...] = ()) -> Callable[[Station, random.Random], Said]:
    def do(station: Station, chance: random.Random) -> Said:
        trouble = station.root / "trouble.txt"
        trouble.write_text(kind)
        try:
            return station.run(*words, config=config)
        finally:
            trouble.unlink()

    return do


def _judge_swapped(station: Station, chance: random.Random) -> Said:
    """A judge's file becomes another judge's of the same form while a run is at work, and is put back after it."""
    preference, dual = (station.root / "assets" / f"{name}.safetensors" for name in ("preference", "dual"))
    stat, content = preference.stat(), preference.read_bytes()
    process = station.start()
    station.await_(lambda: station.workers("spec") or station.workers("score"), process=process)
    preference.write_bytes(dual.read_bytes())
    said = station.wait(process)
    preference.write_bytes(content)
    os.utime(preference, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return said


TROUBLED = f"{CELLS}/troubled/seed0/shards/00000-00003.json"
SHARDS = "cells/scenes/*/seed0/shards/*.zip"
RECORDS = "cells/scenes/*/seed0/*.json"
DAMAGED = r"is damaged|cannot be read|is not a \w+ record|newer ditbench"

DISTURBANCES = (
    Disturbance(
        "workflow killed",
        "SIGKILL of the workflow and its jobs",
        "prepared",
        _killed(alone=False),
        r"the last run in \S+ ended without a word",
        mended="half-written files are cleared when the next run begins",
    ),
    Disturbance(
        "workflow alone killed",
        "SIGKILL of the workflow; its jobs go on beside the next run",
        "prepared",
        _killed(True),
        r"the last run in \S+ ended without a word",
        mended="the next run says that it takes up one that was stopped",
    ),
    Disturbance(
        "job killed",
        "SIGKILL of a job that draws, judges, bills or times",
        "prepared",
        _job_killed("generate", "score", "cost", "time"),
        r"the worker of this job was killed",
    ),
    Disturbance(
        "training killed",
        "SIGKILL of a training after a checkpoint",
        "drawn",
        _training_killed,
        r"worker of this job was killed",
    ),
    Disturbance(
        "disk full", "the results' file system fills up", "prepared", _disk_full, r"the disk is full|cannot be written"
    ),
    Disturbance("no room", "a write that finds no room (ENOSPC)", "prepared", _no_room, r"the disk is full"),
    Disturbance(
        "bit in a shard",
        "a bit of drawn images",
        "drawn",
        _flipped(SHARDS),
        r"\.zip is damaged",
        mended="every reader compares a shard with its record's hash",
    ),
    Disturbance(
        "bit in a record",
        "a bit of a finished record",
        "finished",
        _flipped(RECORDS, again=("-R", "report", "publish")),
        DAMAGED,
        mended="records are sealed; the report says which cell is damaged",
    ),
    Disturbance(
        "bit in an input",
        "a bit of embeddings, references, captions or learned weights",
        "drawn",
        _flipped(
            "embeddings/scenes/*.*",
            "references/scenes/*.*",
            "captions/scenes/*.json",
            "learned/scenes/tuned/*.*",
            again=("-R", "images", "scores"),
        ),
        rf"{DAMAGED}|is not the file that was learned",
        mended="embeddings, references and features are compared with their record's hash",
    ),
    Disturbance(
        "bit in a checkpoint",
        "a bit of a training's checkpoint",
        "drawn",
        _checkpoint_flipped,
        r"training\.pt cannot be read",
        mended="checksums are looked at, which torch leaves out; notes of learners are sealed",
    ),
    Disturbance(
        "two workflows",
        "a second run on the same results",
        "prepared",
        _two_workflows,
        r"another run is at work in",
    ),
    Disturbance(
        "clock jump",
        "the clock is put forward or back while a run is at work",
        "prepared",
        _clock,
        r"the clock was put (forward|back) by",
        mended="it is told; files dated after now are dated as of now by the next run",
    ),
    Disturbance(
        "MLflow locked",
        f"another program has MLflow's database for {LOCKED:g} s",
        "finished",
        _store_locked,
        r"locked",
        mended="it is waited for, and nobody is told to move it away",
    ),
    Disturbance(
        "MLflow read-only",
        "MLflow's database may only be read",
        "finished",
        _store_read_only,
        r"cannot be written",
        mended="a sentence of its own",
    ),
    Disturbance(
        "MLflow deleted",
        "MLflow's database is deleted between runs",
        "finished",
        _store_deleted,
        r"is gone, though runs were published to it",
        mended="the next run publishes again; nothing was done before",
    ),
    Disturbance(
        "method raises",
        "a method raises",
        "prepared",
        _trouble("raise"),
        r"method troubled failed|ZeroDivisionError: a token",
        mended="one sentence in place of a traceback; a plan that raises stopped every other arm before",
    ),
    Disturbance(
        "method hangs",
        "a method never ends",
        "prepared",
        _trouble("hang", TROUBLED, config=("patience=5",)),
        r"made no progress for 5 s and counts as hung",
        mended="`patience`, a limit on time without progress",
    ),
    Disturbance(
        "method gives NaN",
        "a method's images are no numbers",
        "prepared",
        _trouble("nan"),
        r"values that are no numbers",
        mended="an error; they were black pictures before",
    ),
    Disturbance(
        "method leaks",
        "a method changes the full model for whoever comes after it",
        "prepared",
        _trouble("leak"),
        r"left behind",
        mended="the stopwatch compares the full model's images of first and last round",
    ),
    Disturbance(
        "judge swapped",
        "a judge's weights are another file while a run is at work",
        "drawn",
        _judge_swapped,
        r"is not the file that",
        mended="weights are held against their account, those of others against what was planned",
    ),
)
