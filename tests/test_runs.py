"""What a run notes of itself, and what is made of the note of a run that was killed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from ditbench.records import read_record, write_record
from ditbench.runs import NAME, begin_run, end_run, read_run
from ditbench.storage import claim


def test_a_run_at_work_has_no_end_yet_and_a_finished_one_has(tmp_path: Path) -> None:
    assert read_run(tmp_path) is None
    claimed = claim(tmp_path)
    begin_run(tmp_path, "configs/a.yaml", cores=2)
    run = read_run(tmp_path)
    assert run is not None and run.at_work
    assert (run.workers, run.unit) == (2, "core")
    # The start is that of the process, whose imports are part of what a person waits for.
    assert run.ended is not None and run.began < run.ended <= time.time()
    end_run(tmp_path)
    claimed.close()
    ended = read_run(tmp_path)
    assert ended is not None and not ended.at_work and ended == read_run(tmp_path)


def test_a_killed_run_has_no_end(tmp_path: Path) -> None:
    claimed = claim(tmp_path)
    begin_run(tmp_path, "configs/a.yaml", cores=16, gpus=1)
    claimed.close()  # as the system does when a process ends, however it ends
    run = read_run(tmp_path)
    assert run is not None and (run.ended, run.at_work, run.workers, run.unit) == (None, False, 1, "GPU")


def test_a_damaged_note_is_no_note(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text("{")
    assert read_run(tmp_path) is None


def test_records_say_how_many_threads_a_job_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for given, told in (("3", 3), ("4,2", 4), ("", None)):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        write_record(tmp_path / "r.json", "x", {})
        assert read_record(tmp_path / "r.json", "x")["provenance"]["threads"] == told
