"""Where the time of the jobs went: importing, loading, computing, writing, by stage."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ditbench.report.results import STAGES, Job

PARTS = ("import", "load", "compute", "write", "other")
# The stages whose computing is the experiment itself: the model draws or is timed, the judges judge.
MODEL_AND_JUDGES = ("text embeddings", "images", "judges", "stopwatch")


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
