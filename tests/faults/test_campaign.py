"""A campaign of faults in short: one of each way that a run is disturbed, survived and told."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from tests.faults.campaign import Outcome, asked_to_delete, disturb, drawn, is_whole, kept, write
from tests.faults.disturbances import DAY, DISTURBANCES, flip, write_clock
from tests.faults.station import Station, station

pytestmark = pytest.mark.timeout(1500)
# Whatever needs a stage's work to be done again is for the long form; these begin late or end early.
SHORT = ("bit in a shard", "MLflow deleted")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Station]:
    with station(tmp_path_factory.mktemp("faults")) as made:
        yield made


@pytest.mark.parametrize("name", SHORT)
def test_a_fault_is_survived_and_told(place: Station, name: str) -> None:
    fault = next(each for each in DISTURBANCES if each.name == name)
    outcome = disturb(place, fault, seed=0)
    assert not outcome.untried
    assert outcome.differences == []
    assert outcome.told, outcome.sentence


def test_a_campaign_of_a_seed_is_always_the_same_and_tries_every_kind() -> None:
    count = len(DISTURBANCES)
    assert [(fault.name, seed) for fault, seed in drawn(3, 2 * count)] == [(f.name, s) for f, s in drawn(3, 2 * count)]
    assert drawn(3, 5) != drawn(4, 5)
    assert {fault.name for fault, _ in drawn(3, count)} == {fault.name for fault in DISTURBANCES}
    assert {fault.name for fault, _ in drawn(0, 3, ["job killed"])} == {"job killed"}


def test_a_fault_that_is_tried_otherwise_than_before_is_tried_again() -> None:
    fault = next(each for each in DISTURBANCES if each.name == "disk full")
    sentence = "ditbench: the disk is full: results/a.json could not be written"
    before = Outcome(fault.name, fault.what, 7, survived=True, told=True, sentence=sentence)
    assert is_whole(before, fault, 7)
    assert not is_whole(before, fault, 8)
    for change in ({"what": "another"}, {"sentence": "no room"}, {"survived": False}, {"told": False}):
        assert not is_whole(replace(before, **change), fault, 7)  # type: ignore[arg-type]


def test_outcomes_keep_the_commit_that_they_were_tried_at(tmp_path: Path) -> None:
    fault, path = DISTURBANCES[0], tmp_path / "faults.json"
    old, new = (Outcome(fault.name, fault.what, seed, commit=commit) for seed, commit in ((7, "a" * 40), (8, "")))
    write(path, 0, [old, new])
    body = json.loads(path.read_text())
    del body["outcomes"][1]["commit"]  # as records from before have it
    del body["seal"]
    body["schema"] = "ditbench/faults@1"
    path.write_text(json.dumps(body))
    assert [each.commit for each in kept(path, 0)] == ["a" * 40, body["provenance"]["git"]]


def test_a_wrong_clock_is_wrong_for_the_time_and_for_dates_in_records(tmp_path: Path) -> None:
    clock = tmp_path / "clock.txt"
    write_clock(clock, 3 * DAY)
    program = (
        "import sys, time, pathlib; from tests.faults.server import set_clock; set_clock(pathlib.Path(sys.argv[1]));"
        "from ditbench.records import provenance; made = provenance();"
        "print(time.time(), time.time_ns() / 1e9, made['created'], made['timings']['total_s'])"
    )
    root = Path(__file__).parents[2]
    told = subprocess.run(
        [sys.executable, "-c", program, str(clock)], cwd=root, capture_output=True, text=True, check=True
    ).stdout.split()
    seen = [float(told[0]), float(told[1]), datetime.fromisoformat(told[2]).timestamp()]
    assert seen == pytest.approx([time.time() + 3 * DAY] * 3, abs=600)
    assert 0 < float(told[3]) < 600, "a process is as old as it is"


def test_sentences_say_which_files_to_delete() -> None:
    said = "ditbench: results/a/00-03.zip is damaged: other; delete results/a/00-03.json and run again"
    assert list(asked_to_delete(said)) == ["results/a/00-03.json"]
    assert list(asked_to_delete("results/a/x.json is damaged; delete it and run again")) == ["results/a/x.json"]
    said = "results/a/x.zip is damaged; delete it and its .json and run again"
    assert list(asked_to_delete(said)) == ["results/a/x.zip", "results/a/x.json"]
    said = "results/a/plan.json is damaged; delete the spec.json beside it and run again"
    assert list(asked_to_delete(said)) == ["results/a/spec.json"]
    assert list(asked_to_delete("the disk is full: results/a/x.json could not be written; make room")) == []


def test_a_flipped_bit_is_one_and_leaves_the_date(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    before = path.stat().st_mtime_ns
    flip(path, random.Random(0))
    assert sum(byte.bit_count() for byte in path.read_bytes()) == 1
    assert path.stat().st_mtime_ns == before
