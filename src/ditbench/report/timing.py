"""Where the time went: that of the jobs by stage and part, and that of the last run's cores from start to end."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from ditbench.report.results import STAGES, Job

if TYPE_CHECKING:
    from ditbench.runs import Run

PARTS = ("import", "load", "compute", "write", "other")
# The stages whose computing is the experiment itself: the model draws or is timed, the judges judge.
MODEL_AND_JUDGES = ("text embeddings", "images", "judges", "stopwatch")
# The stages whose rules hold the GPU, where a run has one.
ON_GPU = ("text embeddings", "images", "judges", "stopwatch")
# What a run's workers did, in a reader's words; the rest is nobody's: waiting, scheduling, starting and ending jobs.
COMPUTE, ELSE, REST = "model and judges computing", "other computing", "no job's: waiting, scheduling, starting jobs"
WORK = (COMPUTE, ELSE, "starting Python", "loading libraries, weights and data", "writing", REST)


@dataclass(frozen=True)
class Spent:
    """Seconds of one stage's jobs, by part."""

    stage: str
    jobs: int
    seconds: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.seconds.values())


def time_spent(jobs: Iterable[Job]) -> list[Spent]:
    """The time of all jobs by stage, in the order of the workflow."""
    by_stage: dict[str, list[Job]] = {}
    for job in jobs:
        if job.timings:
            by_stage.setdefault(job.stage, []).append(job)
    found = []
    for stage in dict.fromkeys(STAGES.values()):
        done = by_stage.get(stage, [])
        if done:
            seconds = {part: sum(parts_of(job)[part] for job in done) for part in PARTS}
            found.append(Spent(stage, len(done), seconds))
    return found


def parts_of(job: Job) -> dict[str, float]:
    """The seconds of one job by part; `other` is what no part claims of the whole."""
    known = {name: float(job.timings.get(f"{name}_s") or 0) for name in PARTS[:-1]}
    return {**known, "other": max(0.0, float(job.timings.get("total_s") or 0) - sum(known.values()))}


def compute_share(spent: Iterable[Spent]) -> float | None:
    """The share of all job time that was computing of model and judges; None where nothing was timed."""
    spent = list(spent)
    whole = sum(stage.total for stage in spent)
    useful = sum(stage.seconds["compute"] for stage in spent if stage.stage in MODEL_AND_JUDGES)
    return useful / whole if whole > 0 else None


@dataclass(frozen=True)
class Wall:
    """A run from its start to its end: the seconds that its workers had, by what they did with them."""

    seconds: float
    run: Run
    jobs: int
    earlier: int
    work: dict[str, float]

    @property
    def share(self) -> float:
        """The share of all the workers' time that was computing of model and judges."""
        return self.work[COMPUTE] / sum(self.work.values())


def wall_time(run: Run | None, jobs: Iterable[Job]) -> Wall | None:
    """How a run's workers spent its wall time, by the records of the jobs that ran in it.

    None where no run is noted, or none of the jobs is of it.
    """
    if run is None:
        return None
    timed = [(job, datetime.fromisoformat(job.created).timestamp()) for job in jobs if job.timings and job.created]
    # Records tell full seconds: strictly after the start leaves out what the run before may have written in the same.
    later = [(job, end) for job, end in timed if end > run.began]
    ended = run.ended if run.ended is not None else max((end for _, end in later), default=run.began)
    ran = [job for job, end in later if end <= ended]
    whole = (ended - run.began) * run.workers
    if not ran or whole <= 0:
        return None
    work = dict.fromkeys(WORK, 0.0)
    for job in ran:
        held, parts = _held(job, run), parts_of(job)
        work[COMPUTE if job.stage in MODEL_AND_JUDGES else ELSE] += held * parts["compute"]
        for part, name in zip(("import", "load", "write"), WORK[2:5], strict=True):
            work[name] += held * parts[part]
    # Where clocks disagree by a second, a full run may seem overfull: there is no negative rest.
    work[REST] = max(0.0, whole - sum(work.values()))
    return Wall(ended - run.began, run, len(ran), len(timed) - len(later), work)


def duration(seconds: float) -> str:
    """Seconds in a person's words."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"


def told(wall: Wall) -> str:
    """A run's wall time in a sentence."""
    run = wall.run
    workers = f"{run.workers} {run.unit}{'' if run.workers == 1 else 's'}"
    end = "so far" if run.at_work else "from start to end"
    earlier = f"; {wall.earlier} were made by earlier runs" if wall.earlier else ""
    return (
        f"The last run took {duration(wall.seconds)} {end} on {workers}, with {wall.jobs} "
        f"job{'' if wall.jobs == 1 else 's'}{earlier}."
    )


def _held(job: Job, run: Run) -> int:
    """How many of the run's workers a job held."""
    if run.unit == "GPU":
        return int(job.stage in ON_GPU)
    return min(job.threads, run.workers)
