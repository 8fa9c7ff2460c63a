"""The workflow through Slurm: the same files as on one machine, whatever becomes of a job or of the node."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.cluster.slurm import Slurm
from tests.cluster.small_study import holding, wait_for
from tests.faults.essence import differences, published
from tests.faults.station import Station

# No accounting here, which sacct would need; and jobs that take a moment are looked at often. A job that is held while
# another is tried again, which a busy machine makes long, must not meet its time limit: it would be tried again too.
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
SLURM += ("--default-resources", "slurm_partition=main", "mem_mb=500", "runtime=30", "--slurm-array-jobs", "images")
SLURM += ("--set-resources", "images:gpu=1")  # drawn on a processor, whatever device is given


# Real stages in the embedded world, of little work: the same run here and through Slurm.
STUDY = """title: small
world: scenes
rows:
  - {arm: full, method: full, steps: 2, label: full}
  - {arm: fora-n2, method: fora, steps: 2, knobs: {interval: 2}, label: fora}
columns: [{measure: fid/scenes, label: FID/scenes, digits: 4}, {measure: psnr-to-full, label: PSNR, digits: 3}]
baseline: full
"""
SMALL = ("studies=[small]", "images=4", "shard=4")
# What goes through Slurm, whose jobs' ends are learnt ever more seldom; the page and MLflow are made here from it. What
# is timed would wait for both cores, and what is tried again behind it, as long as another job is held.
CELLS = "there/cells/scenes"
TARGETS = [f"{CELLS}/{arm}/seed0/{made}.json" for arm in ("full", "fora-n2") for made in ("scores", "cost")]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Station]:
    """A copy of the workflow whose stages are the real ones, forked from a process that has loaded them."""
    made = Station(tmp_path_factory.mktemp("station"))
    (made.root / "studies/small.yaml").write_text(STUDY)
    try:
        yield made
    finally:
        made.close()


def through_slurm(place: Station) -> subprocess.Popen[str]:
    """Starts the small study as from a login node."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "snakemake", *SLURM),
            *("--configfile", "campaign.yaml", "--config", *SMALL, "results=there", "--", *TARGETS),
        ],
        cwd=place.root,
        env=place.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def memory_of_running(cluster: Slurm, jobs: int = 2) -> list[str]:
    """The first digits of what running jobs may take, when there are as many, or what there is after a minute."""
    began = time.monotonic()
    while True:
        memory = cluster.call("squeue", "--noheader", "--states=R", "--format=%m").split()
        if len(memory) == jobs or time.monotonic() - began > 60:
            return sorted(each[0] for each in memory)
        time.sleep(1)


@pytest.mark.timeout(1000)
def test_a_job_that_is_cancelled_and_a_node_that_starts_again_lose_nothing(cluster: Slurm, place: Station) -> None:
    here = place.run(config=(*SMALL, "results=here"))
    assert here.status == 0, here.text
    with holding(place.tree) as (hold, begun):
        run = through_slurm(place)
        wait_for(begun, 2)  # one that is cancelled before it has begun would not be counted
        running = cluster.call("squeue", "--noheader", "--states=R", "--format=%i").split()
        assert all(re.fullmatch(r"\d+_[12]", job) for job in running) and running  # tasks of one array
        cluster.call("scancel", running[0])
        wait_for(begun, 3)  # both arms', and one tried again
        devices = [line.removeprefix("begun on ") for line in begun.read_text().splitlines()]
        assert sorted(devices[:2]) == ["0", "1"] and devices[2] in devices[:2]  # each has its own of the node's two
        assert memory_of_running(cluster) == ["4", "8"]  # thousands of MB; a task of an array gets one more
        cluster.stop("slurmd")
        cluster.start_node()
        hold.unlink()
        out, _ = run.communicate(timeout=400)
    if run.returncode:  # what was cancelled more often than it is tried again is made by the next run
        again = through_slurm(place)
        said, _ = again.communicate(timeout=400)
        assert again.returncode == 0, out + said
    assert "submitted with SLURM jobid" in out and "Submitted array job" in out
    rest = place.run(config=(*SMALL, "results=there"))
    assert rest.status == 0, rest.text
    assert not re.search(r"^rule (images|scores|embeddings)", rest.text, re.MULTILINE)
    # Images and records to the byte but for times, and what MLflow shows.
    assert len(published(place.root / "here")) == 3  # two arms and the study
    assert differences(place.root / "here", place.root / "there") == []
