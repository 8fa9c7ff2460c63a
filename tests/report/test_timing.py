"""Where the time of a run went: sums of its jobs against what its workers had."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from ditbench.report.results import Job
from ditbench.report.timing import COMPUTE, ELSE, REST, WORK, duration, told, wall_time
from ditbench.runs import Run

BEGAN = 1_800_000_000.5


def job(stage: str, end: float, compute: float, imported: float = 0.0, threads: int = 1) -> Job:
    """A job that ended so many seconds after the run began."""
    created = datetime.fromtimestamp(BEGAN + end, UTC).isoformat(timespec="seconds")
    timings = {"import_s": imported, "load_s": 1.0, "compute_s": compute, "write_s": 0.5}
    return Job(stage, "full", "x.json", {**timings, "total_s": sum(timings.values())}, created, threads)


def test_what_no_job_claims_of_the_cores_is_the_rest() -> None:
    jobs = [job("images", 60, 50, imported=4), job("captions", 5, 1), job("stopwatch", 90, 20, imported=3, threads=2)]
    wall = wall_time(Run(BEGAN, BEGAN + 100, 2, "core"), jobs)
    assert wall is not None and (wall.seconds, wall.jobs, wall.earlier) == (100, 3, 0)
    # The stopwatch holds both cores.
    assert wall.work[COMPUTE] == 50 + 2 * 20 and wall.work[ELSE] == 1
    assert [wall.work[name] for name in WORK[2:5]] == [4 + 2 * 3, 1 + 1 + 2, 0.5 + 0.5 + 1]
    assert sum(wall.work.values()) == 2 * 100
    assert wall.share == pytest.approx(0.45)
    assert told(wall) == "The last run took 100 s from start to end on 2 cores, with 3 jobs."


def test_a_resumed_run_counts_only_its_own_jobs() -> None:
    # The earlier run's last record is of the very second in which this run began.
    before = [job("images", -300, 250), job("images", -0.2, 250)]
    run = Run(BEGAN, BEGAN + 50, 1, "core")
    wall = wall_time(run, [*before, job("judges", 30, 20)])
    assert wall is not None and wall.work[COMPUTE] == 20 and wall.share == 0.4
    assert told(wall).endswith("with 1 job; 2 were made by earlier runs.")
    assert wall_time(run, before) is None
    assert wall_time(None, before) is None


def test_a_killed_run_ended_with_its_last_record_and_later_ones_are_not_of_it() -> None:
    jobs = [job("images", 40.5, 30), job("images", 80.5, 30)]
    wall = wall_time(Run(BEGAN, None, 1, "core"), jobs)
    assert wall is not None and wall.seconds == 80.5
    # Somebody rendered the page again, long after the run.
    wall = wall_time(Run(BEGAN, BEGAN + 90, 1, "core"), [*jobs, job("report", 5000, 4)])
    assert wall is not None and (wall.jobs, wall.work[ELSE]) == (2, 0)


def test_on_a_gpu_the_workers_are_gpus() -> None:
    jobs = [job("images", 60, 50, threads=4), job("ledger", 65, 30), job("judges", 90, 20)]
    wall = wall_time(Run(BEGAN, BEGAN + 100, 1, "GPU", at_work=True), jobs)
    assert wall is not None and wall.share == 0.7  # judges hold the GPU as the model does, the ledger doesn't
    assert told(wall).startswith("The last run took 100 s so far on 1 GPU, ")


def test_clocks_that_disagree_make_no_negative_rest() -> None:
    wall = wall_time(Run(BEGAN, BEGAN + 49, 1, "core"), [job("images", 48, 50)])
    assert wall is not None and wall.work[REST] == 0 and 0 < wall.share < 1


def test_durations_in_words() -> None:
    assert [duration(s) for s in (3.21, 45, 150, 7_300)] == ["3.2 s", "45 s", "2 min", "2 h 02 min"]
