"""The note beside a cell's records that one of its stages failed and why, so that tables can say it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ditbench.faults import Fault, tell
from ditbench.patience import limited

NOTE = "failure.json"
# What must have succeeded before a stage can: its success outdates their notes.
_EARLIER = {"images": ("spec",), "ledger": ("spec", "images"), "judges": ("spec", "images"), "stopwatch": ("spec",)}


@contextmanager
def noted(out: Path, stage: str, cell: Path) -> Iterator[None]:
    """Runs the job of `stage` that writes `out` for the cell in folder `cell`, and keeps the cell's note true.

    A failure writes the note, unless another job has made the record meanwhile: the workflow removes a record before
    its job begins, so one that is there then is finished. Success takes away the note of this very job: the note of
    another shard stays.
    """
    from ditbench.records import is_whole

    note = cell / NOTE
    try:
        with limited(f"{stage} of {out}", lambda reason: _for_watchdog(note, stage, out, reason)):
            yield
    except Exception as error:
        if not is_whole(out):
            _write(note, stage, out.name, error)
        raise
    found = _read(note)
    if (found.get("stage"), found.get("job")) == (stage, out.name) or found.get("stage") in _EARLIER.get(stage, ()):
        note.unlink(missing_ok=True)


def outdated(note: Mapping[str, object], cell: Path, shards: Collection[str] = ()) -> bool:
    """Whether the note in folder `cell` says nothing any more: what its job failed to make is there.

    A job of a run that was killed may fail after the run that took its place has made its record. Dates do not tell:
    machines disagree about them. A note of a shard that is none of `shards` counts no more where those are all there.
    """
    from ditbench.records import is_whole

    job = note.get("job")
    if not isinstance(job, str) or Path(job).name != job:
        return False
    if any(is_whole(place / job) for place in (cell, cell / "shards")):
        return True
    other = note.get("stage") == "images" and bool(shards) and Path(job).stem not in shards
    return other and all((cell / "shards" / f"{name}.json").is_file() for name in shards)


def _write(note: Path, stage: str, job: str, error: Exception) -> None:
    from ditbench.storage import replacing

    reason = str(error) if isinstance(error, Fault) else f"{type(error).__name__}: {error}"
    body = {
        **_body(stage, job, reason, type(error).__name__),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    try:
        with replacing(note) as partial:
            text = json.dumps(body, indent=1, ensure_ascii=False)
            partial.write_text(text, encoding="utf-8", errors="replace")  # names of files may be no text
    except Fault as second:  # a full disk: the first reason matters more
        tell(str(second))


def _body(stage: str, job: str, reason: str, detail: str) -> dict[str, str]:
    return {"schema": "ditbench/failure@1", "stage": stage, "job": job, "reason": reason, "detail": detail}


def _for_watchdog(note: Path, stage: str, out: Path, reason: str) -> dict[str, Any]:
    """What is written where the job is killed; its folder may change meanwhile, the watchdog's does not."""
    return {"path": str(note.absolute()), "record": str(out.absolute()), "body": _body(stage, out.name, reason, "hung")}


def _read(note: Path) -> dict[str, str]:
    try:
        body = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}
