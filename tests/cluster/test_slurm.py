"""The workflow through Slurm: the same files as on one machine, whatever becomes of a job or of the node."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests.cluster.slurm import Slurm
from tests.cluster.small_study import holding, made, start, wait_for, words
from tests.workflow.conftest import Tree

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
SLURM += ("--default-resources", "slurm_partition=main", "mem_mb=500", "runtime=5", "--slurm-array-jobs", "images")


@pytest.mark.timeout(1000)
def test_a_job_that_is_cancelled_and_a_node_that_starts_again_lose_nothing(
    cluster: Slurm, tree: Tree, local: dict[str, str]
) -> None:
    with holding(tree) as (hold, begun):
        run = start(tree, SLURM, "again")
        wait_for(begun, 1)
        running = cluster.call("squeue", "--noheader", "--states=R", "--format=%i").split()
        assert all(re.fullmatch(r"\d+_[12]", job) for job in running) and running  # tasks of one array
        cluster.call("scancel", running[0])
        wait_for(begun, 3)  # both arms', and one tried again
        memory = cluster.call("squeue", "--noheader", "--states=R", "--format=%m").split()
        assert sorted(each[0] for each in memory) == ["4", "8"]  # thousands of MB; a task of an array gets one more
        cluster.stop("slurmd")
        cluster.start_node()
        hold.unlink()
        out, _ = run.communicate(timeout=400)
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
    assert "submitted with SLURM jobid" in out and "Submitted array job" in out
    assert len(local) > 10
    assert made(tree, "again") == local
