"""A small run of the real stages, made once for all that look at one: killed, stopped by a fault, then gone through."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from ditbench.worlds.scenes.world import assets_folder
from tests.workflow.conftest import Tree

# The tutorial's command, and how its run is made small.
COMMAND = ("snakemake", "--cores", "2", "--config", "images=64", "results=results/small")
SMALL = {
    "images": "images=8",
    "shard": "shard=4",
    "batch": "batch=4",
    "references": "references=96",
    "stopwatch": "stopwatch={rounds: 1, batch: 2, contended: report}",
    "learning": "learning={captions: 4}",
}
ARMS = ("full", "fewer-steps-50", "fora-n2", "broken")
RESULTS = Path("results/small")
CELLS = RESULTS / "cells/scenes"
SHARDS = ("00000-00003", "00004-00007")


@dataclass(frozen=True)
class SmallRun:
    """A finished run in its copy of the repository, and what the run before it said that an arm's fault had stopped."""

    tree: Tree
    killed_after: list[str]  # the full arm's shards that were there when the very first run was killed
    first_status: int
    first_words: str
    first_page: str


def smaller(command: tuple[str, ...]) -> list[str]:
    """A run's command, its settings replaced by the small ones; they must be its last words."""
    kept = [word for word in command if word.partition("=")[0] not in SMALL]
    return [sys.executable, "-m", *kept, *SMALL.values()]


def start(tree: Tree, *words: str) -> subprocess.Popen[str]:
    """Starts a small run in a process group of its own."""
    return subprocess.Popen(
        smaller((*COMMAND[:3], *words, *COMMAND[3:])),
        cwd=tree.root,
        env={**tree.environment, "DITBENCH_SCENES_ASSETS": str(assets_folder())},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(tree: Tree, *words: str) -> tuple[int, str]:
    """A small run's exit status and what it said."""
    process = start(tree, *words)
    said, _ = process.communicate(timeout=900)
    return process.returncode, said


def shared(folder: Path, fresh_copy: Callable[[], Tree]) -> SmallRun:
    """The run that all processes of a test session share; whoever asks first makes it, others wait for it."""
    told = folder / "small-run.json"
    with (folder / "small-run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not told.exists():
            told.write_text(json.dumps(asdict(make(fresh_copy())), default=str))
    body = json.loads(told.read_text())
    body["tree"] = Tree(Path(body["tree"]["root"]), body["tree"]["environment"])
    return SmallRun(**body)


def make(tree: Tree) -> SmallRun:
    """Kills a run as soon as it has drawn something, lets the next meet a fault, and the third go through."""
    killed_after = _killed(tree)
    blocked = tree.root / CELLS / f"fora-n2/seed0/shards/{SHARDS[1]}.zip"
    blocked.mkdir(parents=True)
    (blocked / "in the way").touch()
    status, words = run(tree)
    assert status > 0, f"killed, or not failed at all ({status}):\n{words}"
    page = (tree.root / RESULTS / "report/index.html").read_text(encoding="utf-8")
    shutil.rmtree(blocked)
    again, said = run(tree)
    assert again == 0, said
    return SmallRun(tree, killed_after, status, words, page)


def _killed(tree: Tree, tries: int = 3) -> list[str]:
    """Kills a run between two shards; where the machine was too busy to see it in time, once more."""
    for _ in range(tries):
        found = _killed_once(tree)
        if len(found) == 1:
            break
        shutil.rmtree(tree.root / CELLS / "full", ignore_errors=True)
    return found


def _killed_once(tree: Tree) -> list[str]:
    shards = tree.root / CELLS / "full/seed0/shards"
    process = start(tree, *(str(CELLS / f"full/seed0/shards/{name}.json") for name in SHARDS), "--cores", "1")
    deadline = time.monotonic() + 300
    while not list(shards.glob("*.json")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return sorted(path.stem for path in shards.glob("*.json"))
