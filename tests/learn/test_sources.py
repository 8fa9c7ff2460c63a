"""What ships of what methods have learned: it is there, small, whole, of this network, and taken without learning."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ditbench.cells import NOTHING, cell_table
from ditbench.config import check_config, load_config
from ditbench.faults import Fault
from ditbench.generate import Sampler, Texts
from ditbench.learn.job import learned_method, write_learned
from ditbench.learn.sources import place_of, ship
from ditbench.records import read_record
from ditbench.storage import hash_file
from ditbench.study import load_study

ROOT = Path(__file__).parents[2]
ROWS = {row.arm: row for row in load_study("embedded_learned").rows if row.arm != "full"}


def test_the_default_run_has_the_learned_methods_and_learns_nothing() -> None:
    specs = {spec.arm: spec for spec in cell_table(load_config(ROOT / "config.yaml"))}
    assert ROWS.keys() < specs.keys()
    assert {specs[arm].learning for arm in ROWS} == {NOTHING}


@pytest.mark.parametrize("arm", ROWS)
def test_what_ships_is_small_and_whole(arm: str) -> None:
    record = place_of(f"shipped:{arm}")
    body = read_record(record, "learned")
    files = list(record.parent.iterdir())
    assert sum(path.stat().st_size for path in files) < 1_000_000
    assert {path.name for path in files} == {
        "learned.json",
        *([body["found"]["file"]] if "file" in body["found"] else []),
    }
    assert body["arm"] == arm and body["world"] == "scenes" and body["provenance"]["dirty"] is False
    if "file" in body["found"]:
        assert hash_file(record.parent / body["found"]["file"]) == body["found"]["sha256"]


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return Sampler("scenes")


@pytest.mark.parametrize("arm", ROWS)
def test_the_arm_of_the_study_takes_it_and_draws(arm: str, sampler: Sampler, tmp_path: Path) -> None:
    (spec,) = (spec for spec in cell_table(load_config(ROOT / "config.yaml")) if spec.arm == arm)
    out = tmp_path / arm / "learned.json"
    write_learned(spec, None, None, out)
    method = learned_method(out)
    texts = ["a large red circle in the centre and a small blue square at the left on a plain gray background"]
    given, nothing = (sampler.world.embed(sampler.handle, some) for some in (texts, [""]))
    images, trace = sampler.run(method, None, 0, Texts(["c0"], given, nothing))
    full, _ = sampler.run(learned_full(), None, 0, Texts(["c0"], given, nothing))
    assert trace.realised_ratio == pytest.approx(float(ROWS[arm].knobs["ratio"]), abs=0.03)
    assert images.std() > 20 and not np.array_equal(images, full)
    # Nearer to the full network's image than another image of the same scene would be.
    assert np.abs(images.astype(float) - full).mean() < 40


def learned_full() -> Any:
    from ditbench.methods import get_method

    return get_method("full")


def test_a_name_that_does_not_ship_is_a_fault_before_anything_runs() -> None:
    arms = {"mine": {"method": "diffsparse", "knobs": {"plan_file": "shipped:diffsparse-99"}}}
    with pytest.raises(Fault, match=r"'shipped:diffsparse-99' is not among what ships .*shipped:diffsparse-43"):
        cell_table(check_config({"arms": arms}, "config.yaml"))


def test_shipping_leaves_out_how_training_went_and_refuses_damage(tmp_path: Path) -> None:
    source = tmp_path / "run" / "diffcr-lt-30"
    shutil.copytree(place_of("shipped:diffcr-lt-30").parent, source)
    record = source / "learned.json"
    body = json.loads(record.read_text())
    del body["seal"]
    body["schema"] = "ditbench/learned@1"  # a record without a seal
    whole = {"sha256": "0" * 64, "ratios": body["found"]["ratios"]}
    body["found"]["on_the_way"] = [{"mean": 0.1, "file": "on-the-way-0.safetensors", **whole}]
    record.write_text(json.dumps(body))
    made = read_record(ship(record, tmp_path), "learned")
    assert "on_the_way" not in made["found"] and made["provenance"] == body["provenance"]
    weights = source / body["found"]["file"]
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(Fault, match="is damaged"):
        ship(record, tmp_path)
