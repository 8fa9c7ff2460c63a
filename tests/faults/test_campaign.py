"""A campaign of faults in short: one of each way that a run is disturbed, survived and told."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.campaign import asked_to_delete, disturb, drawn
from tests.faults.disturbances import DISTURBANCES, flip
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
