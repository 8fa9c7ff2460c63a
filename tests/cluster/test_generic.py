"""The workflow through any scheduler that takes scripts: here a `qsub` and a `qdel` that run them in the background."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.cluster.small_study import holding, made, start, wait_for, words
from tests.workflow.conftest import Tree

# Takes a script and resources as Grid Engine does, notes them, and prints the job's number.
QSUB = """#!/bin/sh
for script; do :; done
echo "$*" >> qsub.log
setsid sh "$script" > /dev/null 2>&1 &
echo $!
"""
QDEL = """#!/bin/sh
for job; do echo "$job" >> qdel.log; kill -KILL "-$job"; done
"""
GENERIC = ("--workflow-profile", "profiles/cluster-generic", "--cores", "2", "--latency-wait", "10")
GENERIC += ("--seconds-between-status-checks", "1")  # jobs take a moment


@pytest.fixture(scope="module")
def queue(tree: Tree) -> Tree:
    """The tree, on whose path a scheduler is."""
    for name, text in (("qsub", QSUB), ("qdel", QDEL)):
        path = tree.root / "bin" / name
        path.write_text(text)
        path.chmod(0o755)
    return tree


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.timeout(600)
def test_a_run_that_is_stopped_takes_its_jobs_back_and_the_next_makes_what_a_local_one_does(
    queue: Tree, local: dict[str, str]
) -> None:
    with holding(queue) as (_, begun):
        run = start(queue, GENERIC, "stopped")
        wait_for(begun, 1)
        run.send_signal(signal.SIGINT)
        said, _ = run.communicate(timeout=200)
        assert run.returncode != 0, said
        taken_back = lines(queue.root / "qdel.log")
        assert taken_back, "what was still in the queue is taken out of it"
        deadline = time.monotonic() + 20
        while (left := [job for job in taken_back if at_work(int(job))]) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not left
    done = queue.snakemake(*GENERIC, *words("stopped"))
    assert done.returncode == 0, done.stderr
    after = made(queue, "stopped")
    after.pop("published-so-far.json", None)  # what the stopped run still published
    assert after == local
    asked = lines(queue.root / "qsub.log")
    assert len(asked) > 10, "every job goes through the scheduler"
    assert any("mem_free=4000M" in line for line in asked) and all("h_rt=0:240:0" in line for line in asked)


def at_work(group: int) -> bool:
    """Whether a process of a group is alive; one that has ended and that nobody asked about is not."""
    for process in psutil.process_iter(["status"]):
        with suppress(OSError):
            if os.getpgid(process.pid) == group and process.info["status"] != psutil.STATUS_ZOMBIE:
                return True
    return False
