"""Records are read as they were written, or refused: damaged ones, and those of a newer version."""

from __future__ import annotations

import json
import random
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from ditbench import shapes
from ditbench.engine.costs import UnitCost, Work
from ditbench.faults import Fault
from ditbench.records import VERSION, read_record, write_record
from ditbench.runs import NAME, begin_run, check_version

BODY: dict[str, Any] = {
    "measures": [{"name": "fid", "value": 12.5, "low": None, "direction": "lower"}],
    "of": {"1": [0.1, -0.0, 1e-17]},
    "é": "ü",
}


@pytest.fixture
def record(tmp_path: Path) -> Path:
    path = tmp_path / "scores.json"
    write_record(path, "scores", BODY)
    return path


def test_a_record_is_read_as_it_was_written(record: Path) -> None:
    found = read_record(record, "scores")
    assert {name: found[name] for name in BODY} == BODY
    assert "seal" not in found
    write_record(record, "scores", {**found, "n": 3, "seal": "of before"})
    assert read_record(record, "scores")["n"] == 3


def test_no_flipped_bit_becomes_another_number(record: Path) -> None:
    whole = record.read_bytes()
    before, refused = read_record(record, "scores"), 0
    chance = random.Random(0)
    for _ in range(600):
        place, bit = chance.randrange(len(whole)), chance.randrange(8)
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        record.write_bytes(damaged)
        try:
            assert read_record(record, "scores") == before  # a space that has become another space
        except Fault as fault:
            refused += 1
            assert "delete it and run again" in str(fault) or "newer ditbench" in str(fault)
    assert refused > 500


def test_a_record_of_the_first_version_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"schema": "ditbench/scores@1", **BODY}))
    assert read_record(path, "scores")["measures"] == BODY["measures"]


def test_a_record_without_its_seal_is_refused(record: Path) -> None:
    body = json.loads(record.read_text())
    del body["seal"]
    record.write_text(json.dumps(body))
    with pytest.raises(Fault, match="is damaged: it does not hold what was written; delete it and run again"):
        read_record(record, "scores")


@pytest.mark.parametrize(
    "schema", ["ditbench/scores@x", "ditbench/scores", "ditbench/scores@0", "ditbench/cost@1", 3, None]
)
def test_what_is_no_record_of_a_kind_is_refused(tmp_path: Path, schema: object) -> None:
    path = tmp_path / "scores.json"
    path.write_text(json.dumps({"schema": schema, **BODY}))
    with pytest.raises(Fault, match="is not a scores record of this version"):
        read_record(path, "scores")


def test_results_of_a_newer_version_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    check_version(tmp_path)  # an empty folder is anybody's
    begin_run(tmp_path, "configs/a.yaml", cores=2)
    check_version(tmp_path)
    body = json.loads((tmp_path / NAME).read_text())
    for version, told in (
        (1, ""),
        (VERSION + 1, "newer ditbench .* update ditbench, or give this run a folder of its own"),
    ):
        (tmp_path / NAME).write_text(json.dumps({**body, "schema": f"ditbench/run@{version}"}))
        if told:
            with pytest.raises(Fault, match=told):
                check_version(tmp_path)
        else:
            check_version(tmp_path)
    record = tmp_path / "scores.json"
    record.write_text(json.dumps({"schema": f"ditbench/scores@{VERSION + 1}", **BODY}))
    with pytest.raises(Fault, match=r"written by a newer ditbench .*; update ditbench"):
        read_record(record, "scores")


def test_shapes_know_all_that_costs_and_work_have() -> None:
    """They refuse what they do not know: a field that only the ledger knew would make its own records unreadable."""
    for shape, kept in ((shapes._UnitCost, UnitCost), (shapes._Work, Work)):
        assert set(shape.model_fields) == {field.name for field in fields(kept)}
