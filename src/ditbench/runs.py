"""When a run of the workflow began and ended, and how many workers it had: what its jobs' time is held against.

The workflow writes this about itself, in `<results>/run.json`; a new run replaces it. What it does not say is taken
from what is there: a run at work ends now, one that was killed ended with its last record.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ditbench.clocks import NOTICED, Clocks, jump, read_clocks, redate, since_process_start, told
from ditbench.faults import Fault

NAME = "run.json"
MOST_WORKERS = 1_000_000
SETTINGS = "configs"  # where a results folder keeps what its runs were configured with


@dataclass(frozen=True)
class Run:
    """One run, in seconds since the epoch. `workers` are what its jobs shared: GPUs where it had any, else cores.

    `settings` is the file of its settings: with others, the run's jobs are not all among a report's cells.
    """

    began: float
    ended: float | None
    workers: int
    unit: str
    at_work: bool = False
    settings: str = ""


def check_version(results: str | Path) -> None:
    """A Fault where a results folder is of a newer ditbench, whose records this one would misread or overwrite.

    Older records that mean the same are read as they are; there is nothing to migrate. Of others, a Fault says what
    to do before anything is written.
    """
    from ditbench.records import READABLE, VERSION, version_of

    path = Path(results) / NAME
    try:
        version = version_of(json.loads(path.read_text(encoding="utf-8")), "run")
    except (OSError, ValueError, RecursionError):  # no run yet, or a damaged note: records say their version themselves
        return
    if version is None or version in READABLE:
        return
    whose, remedy = ("a newer", "update ditbench") if version > VERSION else ("an older", "use that one")
    raise Fault(
        f"{results} holds results of {whose} ditbench (records of version {version}, this one has {VERSION}); "
        f"{remedy}, or give this run a folder of its own, `--config results=…`"
    )


def taken_up(results: str | Path, cleared: int = 0) -> Iterator[str]:
    """What is to be said of the last run of a folder before another begins there; call it while it is claimed.

    `cleared` files that were half-written have been removed. Where the clock was ahead, files are dated as of now.
    """
    path, now = Path(results) / NAME, time.time()
    try:
        last = _noted(path)
    except Fault:  # there was none, or nothing is known of it
        return
    began, ended = last["began"], last["ended"]
    if ended is None:
        half = f", {cleared} half-written file{'s' * (cleared != 1)} removed" if cleared else ""
        yield (
            f"the last run in {results} ended without a word (killed, or the machine stopped): what it finished is "
            f"kept{half}, and this one goes on from there"
        )
    doubted = max(began, ended or began) > now + NOTICED or last.get("clock_jump")
    if doubted and (count := redate(results)):
        yield (
            f"{count} file{'s' * (count != 1)} of {results} were dated after now, by a clock that was ahead: they are "
            "dated as of now, and what is made of them may be made once more"
        )


def begin_run(results: str | Path, settings: str, cores: int, gpus: int = 0) -> Clocks:
    """Notes that this process begins a run now; its own start-up counts. Answers with the clocks, for its end."""
    from ditbench.records import write_record

    clocks = read_clocks()
    began = clocks.day - max(since_process_start(), 0.0)
    body = {"settings": Path(settings).name, "began": began, "ended": None, "cores": cores, "gpus": gpus}
    write_record(Path(results) / NAME, "run", body)
    return clocks


def end_run(results: str | Path, began: Clocks) -> str:
    """Notes that the run that this process began is over; a sentence where the clock jumped meanwhile."""
    from ditbench.records import write_record

    path, now = Path(results) / NAME, read_clocks()
    body, seconds = _noted(path), jump(began, now)
    kept: dict[str, Any] = {key: body[key] for key in ("settings", "began", "cores", "gpus")}
    if seconds:  # as the clock counts now, so that it lasted as long as it did
        kept |= {"began": kept["began"] + seconds, "clock_jump": seconds}
    write_record(path, "run", {**kept, "ended": now.day})
    return told(seconds) if seconds else ""


def settings_of(results: str | Path) -> Path | None:
    """The file of the last run's settings; None where none is noted, or it is gone."""
    run = read_run(results)
    kept = None if run is None else Path(results) / SETTINGS / run.settings
    return kept if kept is not None and kept.is_file() else None


def read_run(results: str | Path) -> Run | None:
    """The last run of a results folder; None where none is noted."""
    from ditbench.storage import is_claimed

    try:
        body = _noted(Path(results) / NAME)
    except Fault:  # what is worth a sentence beside the time of its jobs, but no failure of the report
        return None
    at_work = body["ended"] is None and is_claimed(results)
    ended = time.time() if at_work else body["ended"]
    workers, unit = (body["gpus"], "GPU") if body["gpus"] else (body["cores"], "core")
    return Run(body["began"], ended, workers, unit, at_work, body["settings"])


def _noted(path: Path) -> dict[str, Any]:
    """What a run noted of itself; a Fault where a value is of another type, as notes without a seal may have."""
    from ditbench.records import read_record

    body = read_record(path, "run")
    wrong = [
        *(key for key in ("began",) if not _is_moment(body[key])),
        *(key for key in ("ended",) if body[key] is not None and not _is_moment(body[key])),
        *(key for key in ("cores", "gpus") if type(body[key]) is not int or not 0 <= body[key] <= MOST_WORKERS),
        *(key for key in ("settings",) if not isinstance(body[key], str) or not _is_name(body[key])),
        *(key for key in ("clock_jump",) if not _is_seconds(body.get(key, 0))),
    ]
    if wrong:
        raise Fault(f"{path} is damaged: its {' and '.join(wrong)} cannot be what was written; delete it")
    return body


def _is_moment(value: Any) -> bool:
    """Whether it may be seconds since the epoch."""
    return _is_seconds(value) and value >= 0


def _is_seconds(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e12 < value < 1e12


def _is_name(text: str) -> bool:
    """Whether a file beside others may be called so."""
    return Path(text).name == text and "\0" not in text
