"""The workflow through Slurm: the same files as on one machine, whatever becomes of a job or of the node."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster.slurm import Slurm
from tests.workflow.conftest import Tree

STUDY = """title: small
world: scenes
rows:
  - {arm: full, method: full, label: full}
  - {arm: fora-n2, method: fora, knobs: {interval: 2}, label: fora}
columns: [{measure: speedup, label: speedup}]
baseline: full
"""
SMALL = ("studies=[small]", "images=2", "shard=2")
# No accounting here, which sacct would need; and jobs that take a moment are looked at often.
SLURM = (
    "--workflow-profile",
    "profiles/slurm",
    "--cores",
    "2",
    "--slurm-status-command",
    "squeue",
    "--slurm-no-account",
)
SLURM += ("--slurm-init-seconds-before-status-checks", "2", "--latency-wait", "10")
SLURM += ("--default-resources", "slurm_partition=main", "mem_mb=500", "runtime=5")
# Stands before the stand-in: while the file `hold` is there, what draws images waits.
HOLDING = """#!/bin/sh
if [ "$1" = generate ]; then
    echo begun >> begun.log
    while [ -e hold ]; do sleep 0.2; done
fi
exec "$0-stand-in" "$@"
"""


def words(results: str) -> list[str]:
    return ["--config", *SMALL, f"results={results}"]


def made(tree: Tree, results: str) -> dict[str, str]:
    """What a run has made, by name; results of another name would say so in their text."""
    root = tree.root / results
    kept = [path for path in sorted(root.rglob("*")) if path.suffix in (".json", ".html", ".md", ".tex", ".csv")]
    apart = {"run.json", "failed-run.txt"}
    return {
        str(path.relative_to(root)): re.sub(
            r"configs/[0-9a-f]+", "configs/HASH", path.read_text().replace(results, "R")
        )
        for path in kept
        if path.name not in apart and "configs" not in path.parts
    }


@pytest.fixture(scope="module")
def local(tree: Tree) -> dict[str, str]:
    """What a run on this machine makes."""
    (tree.root / "studies" / "small.yaml").write_text(STUDY)
    done = tree.snakemake(*words("here"))
    assert done.returncode == 0, done.stderr
    return made(tree, "here")


@pytest.mark.timeout(1000)
def test_a_job_that_is_cancelled_and_a_node_that_starts_again_lose_nothing(
    cluster: Slurm, tree: Tree, local: dict[str, str]
) -> None:
    stand_in = tree.root / "bin" / "ditbench"
    stand_in.rename(stand_in.with_name("ditbench-stand-in"))
    stand_in.write_text(HOLDING)
    stand_in.chmod(0o755)
    hold, begun = tree.root / "hold", tree.root / "begun.log"
    hold.touch()
    try:
        run = subprocess.Popen(
            [sys.executable, "-m", "snakemake", *SLURM, *words("again")],
            cwd=tree.root,
            env=tree.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        _wait_for(begun, 1)
        running = cluster.call("squeue", "--noheader", "--states=R", "--format=%i").split()
        assert running
        cluster.call("scancel", running[0])
        _wait_for(begun, 2)  # tried again, or the other arm's
        cluster.stop("slurmd")
        cluster.start_node()
        hold.unlink()
        out, _ = run.communicate(timeout=400)
    finally:
        hold.unlink(missing_ok=True)
        stand_in.with_name("ditbench-stand-in").rename(stand_in)
    if run.returncode:  # what was cancelled more often than it is tried again is made by the next run
        done = subprocess.run(
            [sys.executable, "-m", "snakemake", *SLURM, *words("again")],
            cwd=tree.root,
            env=tree.environment,
            capture_output=True,
            text=True,
            timeout=400,
        )
        assert done.returncode == 0, out + done.stdout + done.stderr
    assert "submitted with SLURM jobid" in out
    assert len(local) > 10
    assert made(tree, "again") == local


def _wait_for(path: Path, lines: int) -> None:
    began = time.monotonic()
    while not path.exists() or len(path.read_text().splitlines()) < lines:
        assert time.monotonic() - began < 400, "no job began"
        time.sleep(0.2)
