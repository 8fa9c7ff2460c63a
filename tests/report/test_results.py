"""What is read from records: states with their reasons, values with their origin, jobs once each."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest

from ditbench.report.results import Cell, read_results
from ditbench.report.timing import compute_share, time_spent
from ditbench.study import COSTS


def cell(tree: Any, arm: str) -> Cell:
    return tree.read().of_arm("scenes", arm)[0]


def test_a_complete_cell_is_done_and_its_values_say_where_they_come_from(tree: Any) -> None:
    found = cell(tree, "fora-n2")
    assert (found.state, found.reason) == ("done", "")
    fid, macs, speed = (found.values[name] for name in ("fid/scenes", "macs-linear", "speedup"))
    assert (fid.value, fid.low, fid.high, fid.n, fid.direction, fid.kind) == (3.08, 2.89, 3.30, 8, "lower", "measured")
    assert fid.source == "cells/scenes/fora-n2/seed0/scores.json"
    assert (macs.kind, macs.unit, macs.direction) == ("derived", "G", "lower")
    assert speed.interval == "slowest and fastest of 5 rounds"
    assert not found.differences["relations/scenes"].distinguishable
    assert found.differences["fid/scenes"].distinguishable
    assert found.plan is not None and found.plan["steps"] == len(found.plan["shares"])


def test_memory_and_what_is_kept_have_units(tree: Any) -> None:
    found = cell(tree, "fora-n2").values
    kept, thop = found["cache-bytes"], found["macs-thop"]
    assert (kept.value, kept.unit, kept.direction, kept.kind) == (524288.0, "B", "lower", "derived")
    assert thop.value == 1.01 * found["macs-linear"].value and (thop.unit, thop.kind) == ("G", "derived")
    assert "peak-memory" not in found  # timed on a CPU
    path = tree.folder("fora-n2") / "latency.json"
    body = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**body, "peak_bytes": 3_500_000_000}), encoding="utf-8")
    peak = cell(tree, "fora-n2").values["peak-memory"]
    assert (peak.value, peak.unit, peak.direction, peak.kind) == (3.5, "GB", "lower", "measured")
    assert peak.source == "cells/scenes/fora-n2/seed0/latency.json"


def test_every_cost_that_a_study_may_name_is_read(tree: Any) -> None:
    assert set(COSTS) - {"peak-memory"} <= set(cell(tree, "fora-n2").values)


def test_states_carry_their_reasons(tree: Any) -> None:
    tree.remove("full")
    tree.fail("fora-n2", "judges", "the disk is full")
    tree.remove("broken", "latency.json", "shards/00004-00007.json")
    states = {c.arm: c.state_text for c in tree.read().cells}
    assert states == {
        "full": "not run",
        "fewer-steps-50": "done",
        "fora-n2": "failed: judges: the disk is full",
        "broken": "not run: images (1 of 2 shards), stopwatch missing",
    }


def test_a_cell_that_failed_before_anything_was_written_is_failed(tree: Any) -> None:
    tree.remove("fora-n2")
    tree.fail("fora-n2", "images", "no such device")
    assert cell(tree, "fora-n2").state_text == "failed: images: no such device"


def test_a_note_hides_no_finished_record(tree: Any) -> None:
    # A job of a run that was killed fails after the next run has made its record.
    def state(stage: str, job: str) -> str:
        note = tree.folder("fora-n2") / "failure.json"
        body = {"stage": stage, "job": job, "reason": "no space", "created": "2099-01-01T00:00:00"}
        note.write_text(json.dumps(body))
        return cell(tree, "fora-n2").state_text

    other = "00000-00001.json"  # of a run with shorter shards
    finished = [("images", "00004-00007.json"), ("images", other), ("judges", "scores.json"), ("spec", "spec.json")]
    assert [state(*each) for each in finished] == ["done"] * 4
    assert state("images", "../spec.json") == "failed: images: no space"
    tree.remove("fora-n2", "scores.json", "shards/00004-00007.json")
    assert state("judges", "scores.json") == "failed: judges: no space"
    assert state("images", "00004-00007.json") == state("images", other) == "failed: images: no space"


def test_records_of_another_spec_are_not_shown(tree: Any) -> None:
    changed = [dataclasses.replace(s, knobs={"interval": 3}) if s.arm == "fora-n2" else s for s in tree.specs]
    found = read_results(changed, tree.root, ["00000-00003", "00004-00007"]).of_arm("scenes", "fora-n2")[0]
    assert found.state_text == "not run: its records are of another knobs"
    assert found.values == {}


def test_an_unreadable_record_fails_its_cell_and_no_other(tree: Any) -> None:
    (tree.folder("fora-n2") / "scores.json").write_text("{", encoding="utf-8")
    states = {c.arm: c.state for c in tree.read().cells}
    assert states["fora-n2"] == "failed" and states["full"] == "done"
    assert "scores.json cannot be read" in cell(tree, "fora-n2").reason


@pytest.mark.parametrize(
    ("name", "key", "value", "says"),
    [
        ("scores.json", "measures", 7, "measures: 7 must be a valid list"),
        ("scores.json", "measures", [{"name": "fid/scenes", "value": "2", "direction": "lower"}], "measures.0.value: "),
        ("scores.json", "provenance", [], "provenance: [] "),
        ("scores.json", "provenance", {"created": "some day"}, "provenance.created: 'some day' is no date"),
        ("latency.json", "speedup", None, "has no speed, and was not refused"),
        ("cost.json", "linear", {}, "linear: {} must be a valid number"),
        ("spec.json", "found", 1, "found: 1 must be a valid dictionary"),
        ("shards/00000-00003.json", "trace", {"steps": 4}, "its trace cannot be read"),
        ("plan.json", "shares", [[1.0]], "must have a share for every unit at every step"),
    ],
)
def test_a_malformed_record_without_a_seal_fails_its_cell_and_no_other(
    tree: Any, name: str, key: str, value: Any, says: str
) -> None:
    path = tree.folder("fora-n2") / name
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), key: value}), encoding="utf-8")
    states = {c.arm: c.state for c in tree.read().cells}
    assert states.pop("fora-n2") == "failed" and set(states.values()) == {"done"}
    reason = cell(tree, "fora-n2").reason
    assert reason.startswith(f"{path} is no whole ") and says in reason and "\n" not in reason


def test_each_seed_is_a_cell(fabricate: Callable[..., Any]) -> None:
    found = fabricate(seeds=(0, 1)).read()
    assert [c.seed for c in found.of_arm("scenes", "full")] == [0, 1]
    assert len({c.anchor for c in found.cells}) == 8


def test_jobs_are_counted_by_stage_and_unclaimed_time_is_other(tree: Any) -> None:
    spent = {stage.stage: stage for stage in time_spent(tree.read().jobs)}
    assert {name: stage.jobs for name, stage in spent.items()} == {
        "captions": 1,
        "spec": 4,
        "images": 8,
        "ledger": 4,
        "judges": 4,
        "stopwatch": 4,
    }
    assert spent["stopwatch"].seconds["compute"] == 4 * 64.0
    assert abs(spent["judges"].seconds["other"] - 4 * 0.2) < 1e-6


def test_the_share_of_computing_leaves_imports_and_the_ledger_out(tree: Any) -> None:
    spent = time_spent(tree.read().jobs)
    useful = 4 * 64 + 4 * 21 + sum(2 * 82 / speed for speed in (1.0, 1.96, 1.88, 3.4))
    share = compute_share(spent)
    assert share is not None and abs(share - useful / sum(stage.total for stage in spent)) < 1e-9
    assert compute_share([]) is None


def test_a_stage_that_serves_all_cells_tells_its_failure_in_every_one(tree: Any) -> None:
    for arm in ("full", "fora-n2"):
        tree.remove(arm, "spec.json", "scores.json", "cost.json", "latency.json")
    note = tree.root / "embeddings" / "scenes" / "failure.json"
    note.parent.mkdir(parents=True)
    note.write_text(json.dumps({"stage": "text embeddings", "reason": "the weights are damaged"}))
    cells = {cell.arm: cell for cell in tree.read().cells}
    assert cells["full"].state_text == "failed: text embeddings: the weights are damaged"
    assert cells["fora-n2"].state == "failed"


def test_a_shard_that_was_damaged_afterwards_is_told_by_its_size(tree: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from ditbench.cells import damage
    from ditbench.cli import main

    cell = next(cell for cell in tree.read().cells if cell.arm == "fora-n2")
    assert damage(cell.shards) == ""
    first, second = (path.with_suffix(".zip") for path in cell.shards)
    whole = first.read_bytes()
    first.write_bytes(whole[:-1])
    told = damage(cell.shards)
    assert (
        told
        == f"{first} has {len(whole) - 1:,} bytes instead of {len(whole):,}; delete the .json beside it and run again"
    )
    second.unlink()
    assert "(and 1 more)" in damage(cell.shards)
    first.write_bytes(whole)
    assert damage(cell.shards).startswith(f"{second} is missing; ")
    config = tree.root / "c.yaml"
    config.write_text("{images: 8, shard: 4}")
    assert main(("cells", "--config", str(config), "--results", str(tree.root), "--json")) == 0
    states = {body["arm"]: body["state"] for body in json.loads(capsys.readouterr().out)}
    assert states["fora-n2"].startswith(f"damaged: {second} is missing") and states["full"] == "done"
