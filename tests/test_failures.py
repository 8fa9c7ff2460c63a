import json
from contextlib import suppress
from pathlib import Path

import pytest

from ditbench.failures import NOTE, noted
from ditbench.faults import Fault
from ditbench.records import write_record


def job(cell: Path, stage: str, name: str, error: Exception | None = None) -> None:
    with suppress(Fault, ZeroDivisionError), noted(cell / name, stage, cell):
        if error:
            raise error


def noted_stage(cell: Path) -> str | None:
    note = cell / NOTE
    return json.loads(note.read_text())["stage"] if note.exists() else None


def test_a_failure_is_noted_with_its_reason_and_raised_on(tmp_path: Path) -> None:
    with pytest.raises(Fault, match="no room"), noted(tmp_path / "a.json", "images", tmp_path):
        raise Fault("no room")
    body = json.loads((tmp_path / NOTE).read_text())
    assert (body["stage"], body["job"], body["reason"], body["detail"]) == ("images", "a.json", "no room", "Fault")


def test_an_unforeseen_error_is_noted_with_its_kind(tmp_path: Path) -> None:
    job(tmp_path, "judges", "scores.json", ZeroDivisionError("by nought"))
    assert json.loads((tmp_path / NOTE).read_text())["reason"] == "ZeroDivisionError: by nought"


def test_another_shards_success_does_not_take_the_note_away(tmp_path: Path) -> None:
    job(tmp_path, "images", "00000-00003.json", Fault("x"))
    job(tmp_path, "images", "00004-00007.json")
    job(tmp_path, "stopwatch", "latency.json")
    assert noted_stage(tmp_path) == "images"
    job(tmp_path, "images", "00000-00003.json")
    assert noted_stage(tmp_path) is None


def test_a_later_stages_success_outdates_notes_of_what_it_needs(tmp_path: Path) -> None:
    # Shards of another size may have failed: their jobs no longer exist and cannot take their note away.
    job(tmp_path, "images", "00000-00003.json", Fault("x"))
    job(tmp_path, "judges", "scores.json")
    assert noted_stage(tmp_path) is None
    job(tmp_path, "judges", "scores.json", Fault("x"))
    job(tmp_path, "ledger", "cost.json")
    assert noted_stage(tmp_path) == "judges"


def test_a_damaged_note_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / NOTE).write_text("{")
    job(tmp_path, "ledger", "cost.json")
    job(tmp_path, "ledger", "cost.json", Fault("new"))
    assert noted_stage(tmp_path) == "ledger"


def test_a_job_whose_record_another_has_made_meanwhile_notes_no_failure(tmp_path: Path) -> None:
    out = tmp_path / "cost.json"
    with pytest.raises(Fault, match="gone"), noted(out, "ledger", tmp_path):
        write_record(out, "cost", {"total": 1.0})
        raise Fault("a half-written file is gone")
    assert noted_stage(tmp_path) is None
    out.write_text(out.read_text().replace("1.0", "2.0"))  # damaged: nothing is finished
    job(tmp_path, "ledger", "cost.json", Fault("x"))
    assert noted_stage(tmp_path) == "ledger"


def test_a_damaged_note_is_no_note(tmp_path: Path) -> None:
    for text in ("{", "[" * 200_000, "7", '{"stage": ["images"]}'):
        (tmp_path / NOTE).write_text(text)
        job(tmp_path, "stopwatch", "latency.json")
        assert (tmp_path / NOTE).read_text() == text
