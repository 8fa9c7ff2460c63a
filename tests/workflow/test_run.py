"""The real DAG on the embedded world, small: faults, resumption, and what an edit reruns."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(1200)
CELLS = Path("results/cells/scenes")


def test_a_failed_arm_is_shown_with_its_reason_and_stops_no_other(finished) -> None:
    assert finished.first_status != 0
    assert "could not be written" in finished.first_words
    assert "failed" in finished.first_page
    assert "00004-00007.zip could not be written" in finished.first_page
    # The arms that could be finished were finished before the mend: their images are older than the failed arm's.
    made = lambda arm: (finished.root / CELLS / arm / "seed0/scores.json").stat().st_mtime  # noqa: E731
    assert max(made("full"), made("broken"), made("fewer-steps-50")) < made("fora-n2")
    assert not (finished.root / CELLS / "fora-n2/seed0/failure.json").exists()


def test_a_run_leaves_every_record_table_and_page(finished) -> None:
    for arm in ("full", "fewer-steps-50", "fora-n2", "broken"):
        folder = finished.root / CELLS / arm / "seed0"
        for name in ("spec", "plan", "scores", "cost", "latency"):
            assert (folder / f"{name}.json").exists(), f"{arm} {name}"
    cost = {a: json.loads((finished.root / CELLS / a / "seed0/cost.json").read_text()) for a in ("full", "fora-n2")}
    assert cost["full"]["realised_ratio"] == 0
    assert cost["fora-n2"]["realised_ratio"] == 0.5
    assert 0.5 < cost["fora-n2"]["linear"] / cost["full"]["linear"] < 0.51
    for name in ("table.md", "table.tex", "table.csv", "table.html"):
        assert "fora" in (finished.root / "results/studies/embedded" / name).read_text().lower()
    assert (finished.root / "results/report/index.html").stat().st_size > 10_000
    assert (finished.root / "results/mlflow.db").exists()


def test_a_second_run_has_nothing_to_do(finished) -> None:
    assert finished.jobs() == {}


@pytest.mark.parametrize(
    ("edited", "rules"),
    [
        (
            "methods/fora.py",
            {"spec": 0, "images": 2, "scores": 1, "cost": 1, "latency": 1, "report": 1, "publish": 1, "all": 1},
        ),
        ("engine/ledger.py", {"cost": 4, "report": 1, "publish": 1, "all": 1}),
        ("report/tables.py", {"report": 1, "publish": 1, "all": 1}),
        ("faults.py", {}),
    ],
)
def test_an_edit_reruns_what_uses_the_file_and_nothing_else(finished, edited: str, rules: dict[str, int]) -> None:
    path = finished.root / "src/ditbench" / edited
    text = path.read_text()
    try:
        path.write_text(text + "\n# edited\n")
        jobs = finished.jobs()
    finally:
        path.write_text(text)
    assert jobs.pop("total", sum(rules.values())) == sum(rules.values())
    assert jobs == {name: count for name, count in rules.items() if count}


def test_a_changed_knob_reruns_its_cell_and_nothing_else(finished) -> None:
    path = finished.root / "studies/embedded.yaml"
    text = path.read_text()
    try:
        path.write_text(text.replace("{interval: 2}", "{interval: 3}"))
        jobs = finished.jobs()
    finally:
        path.write_text(text)
    jobs.pop("total")
    assert jobs == {"spec": 1, "images": 2, "scores": 1, "cost": 1, "latency": 1, "report": 1, "publish": 1, "all": 1}


def test_a_killed_run_continues_to_the_same_files(finished, make_tree: Callable) -> None:
    tree = make_tree()
    targets = [str(CELLS / f"full/seed0/shards/{name}.json") for name in ("00000-00003", "00004-00007")]
    process = tree.start(*targets, "--nolock")
    shards = tree.root / CELLS / "full/seed0/shards"
    deadline = time.monotonic() + 300
    while not list(shards.glob("*.json")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    status, said = tree.snakemake(*targets, "--nolock")
    assert status == 0, said
    for target in targets:
        zip_name = target.replace(".json", ".zip")
        assert (tree.root / zip_name).read_bytes() == (finished.root / zip_name).read_bytes()


def test_a_wrong_configuration_stops_before_any_job(make_tree: Callable) -> None:
    tree = make_tree()
    (tree.root / "config.yaml").write_text("imgaes: 5\nworld: scene\n")
    status, said = tree.snakemake("-n")
    assert status != 0
    assert "imgaes: unknown key; did you mean 'images'?" in said
    assert "no world 'scene'; did you mean 'scenes'?" in said
