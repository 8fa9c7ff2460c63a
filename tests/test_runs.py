"""What a run notes of itself, and what is made of the note of a run that was killed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from ditbench.clocks import Clocks, jump, redate, since_process_start, span
from ditbench.faults import Fault
from ditbench.records import read_record, write_record
from ditbench.runs import NAME, begin_run, check_version, end_run, read_run, settings_of, taken_up
from ditbench.storage import claim


def test_a_run_at_work_has_no_end_yet_and_a_finished_one_has(tmp_path: Path) -> None:
    assert read_run(tmp_path) is None
    claimed = claim(tmp_path)
    clocks = begin_run(tmp_path, "configs/a.yaml", cores=2)
    run = read_run(tmp_path)
    assert run is not None and run.at_work
    assert (run.workers, run.unit) == (2, "core")
    # The start is that of the process, whose imports are part of what a person waits for.
    assert run.ended is not None and run.began < run.ended <= time.time()
    assert end_run(tmp_path, clocks) == ""
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
    whole = {"schema": "ditbench/run@1", "settings": "a.yaml", "began": 1.0, "ended": 2.0, "cores": 2, "gpus": 0}
    (tmp_path / NAME).write_text(json.dumps(whole))
    assert read_run(tmp_path) is not None
    changed = [{"began": "a"}, {"began": None}, {"began": 10**400}, {"ended": [1]}, {"ended": "1"}, {"cores": {}}]
    changed += [{"gpus": "1"}, {"settings": 7}, {"clock_jump": "far"}, {"ended": float("nan")}]
    for text in ("{", "[" * 200_000, *(json.dumps(whole | damage) for damage in changed)):
        (tmp_path / NAME).write_text(text)
        check_version(tmp_path)
        assert list(taken_up(tmp_path)) == [], text[:200]
        assert read_run(tmp_path) is None, text[:200]
        assert settings_of(tmp_path) is None
        with pytest.raises(Fault):
            end_run(tmp_path, Clocks(1.0, None))


def test_records_say_how_many_threads_a_job_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for given, told in (("3", 3), ("4,2", 4), ("", None)):
        monkeypatch.setenv("OMP_NUM_THREADS", given)
        write_record(tmp_path / "r.json", "x", {})
        assert read_record(tmp_path / "r.json", "x")["provenance"]["threads"] == told


DAY = 86_400.0


def test_what_a_killed_run_left_is_said_by_the_next(tmp_path: Path) -> None:
    assert list(taken_up(tmp_path)) == []
    clocks = begin_run(tmp_path, "configs/a.yaml", cores=2)
    (said,) = taken_up(tmp_path, cleared=1)
    assert said == (
        f"the last run in {tmp_path} ended without a word (killed, or the machine stopped): what it finished is kept, "
        "1 half-written file removed, and this one goes on from there"
    )
    end_run(tmp_path, clocks)
    assert list(taken_up(tmp_path)) == []


def test_a_clock_that_jumps_is_told_by_the_seconds_since_the_machine_was_started(tmp_path: Path) -> None:
    before = Clocks(1000.0, 50.0)
    assert jump(before, Clocks(1100.5, 150.0)) == 0, "half a second is put right every day"
    assert jump(before, Clocks(1100.0 + DAY, 150.0)) == DAY
    assert jump(before, Clocks(1100.0 - DAY, 150.0)) == -DAY
    assert jump(before, Clocks(1100.0 + DAY, None)) == 0, "not known"
    assert [span(seconds) for seconds in (2 * DAY, DAY, 7200, 119)] == ["2 days", "24 hours", "2 hours", "119 seconds"]
    clocks = begin_run(tmp_path, "configs/a.yaml", cores=2)
    assert clocks.machine is not None
    said = end_run(tmp_path, Clocks(clocks.day + 2 * DAY, clocks.machine))
    assert said.startswith("the clock was put back by 2 days while this run was at work: files from before are dated")


def test_a_process_is_as_old_as_it_is_whatever_the_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    before = since_process_start()
    assert before > 0
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert before <= since_process_start() < before + 3600


def test_files_dated_after_now_are_dated_as_of_now_in_their_order(tmp_path: Path) -> None:
    now = time.time()
    for name, days in (("old", -1), ("later", 2), ("sooner", 1)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (now + days * DAY, now + days * DAY))
    clocks = begin_run(tmp_path, "configs/a.yaml", cores=2)
    end_run(tmp_path, clocks)
    assert list(taken_up(tmp_path)) == [], "nobody looks at every file where no clock was seen to jump"
    end_run(tmp_path, Clocks(clocks.day + 2 * DAY, clocks.machine))
    (said,) = taken_up(tmp_path)
    assert said.startswith(f"2 files of {tmp_path} were dated after now, by a clock that was ahead")
    dates = {name: (tmp_path / name).stat().st_mtime for name in ("old", "sooner", "later")}
    assert dates["old"] == pytest.approx(now - DAY) and now <= dates["sooner"] < dates["later"] <= time.time()
    assert redate(tmp_path) == 0
    # A run that was killed while the clock was ahead has no end, but began after now.
    later = {"settings": "a.yaml", "began": now + DAY, "ended": None, "cores": 2, "gpus": 0}
    write_record(tmp_path / NAME, "run", later)
    os.utime(tmp_path / "old", (now + DAY, now + DAY))
    assert [" ".join(said.split()[:2]) for said in taken_up(tmp_path)] == ["the last", "1 file"]
