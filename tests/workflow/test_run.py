"""The real stages on the embedded world, small: a kill in the middle, a fault on the way, and what a run leaves."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ditbench.cli import main
from tests.tiny_pipelines import one_thread
from tests.workflow.small_run import ARMS, CELLS, RESULTS, SHARDS, run

if TYPE_CHECKING:
    from tests.workflow.small_run import SmallRun

pytestmark = pytest.mark.timeout(1500)


def test_a_failed_arm_is_shown_with_its_reason_and_stops_no_other(small_run: SmallRun) -> None:
    assert small_run.first_status != 0
    assert "could not be written" in small_run.first_words
    assert "00004-00007.zip could not be written" in small_run.first_page
    folder = small_run.tree.root / CELLS
    made = {arm: (folder / arm / "seed0/scores.json").stat().st_mtime for arm in ("full", "broken", "fora-n2")}
    # The others were finished in the first run, the failed one in the second.
    assert max(made["full"], made["broken"]) < made["fora-n2"]
    assert not (folder / "fora-n2/seed0/failure.json").exists()


def test_a_run_leaves_every_record_table_and_page(small_run: SmallRun) -> None:
    results = small_run.tree.root / RESULTS
    cells = small_run.tree.root / CELLS
    for arm in ARMS:
        for name in ("spec", "plan", "scores", "cost", "latency"):
            assert (cells / arm / f"seed0/{name}.json").exists(), f"{arm} {name}"
    cost = {arm: json.loads((cells / arm / "seed0/cost.json").read_text()) for arm in ("full", "fora-n2")}
    assert cost["full"]["realised_ratio"] == 0
    assert cost["fora-n2"]["realised_ratio"] == 0.5
    assert 0.5 < cost["fora-n2"]["linear"] / cost["full"]["linear"] < 0.51
    for name in ("table.md", "table.tex", "table.csv", "table.html"):
        assert "FORA" in (results / "studies/embedded" / name).read_text(encoding="utf-8")
    assert (results / "mlflow.db").exists()
    page = (results / "report/index.html").read_text(encoding="utf-8")
    # The last run, which made one cell and what follows it.
    assert re.search(
        r"The last run took [\d.]+ (s|min) so far on 2 cores, with [3-9] jobs; \d+ were made by earlier", page
    )
    status, said = run(small_run.tree, "-n")
    assert status == 0
    assert "Nothing to be done" in said


def test_a_killed_run_continues_to_the_files_of_one_that_was_not(small_run: SmallRun, tmp_path: Path) -> None:
    assert len(small_run.killed_after) == 1, "it was to be killed in the middle"
    root = small_run.tree.root
    words = ["--spec", str(root / CELLS / "full/seed0/spec.json"), "--batch", "4", "--device", "cpu"]
    for kind in ("captions", "embeddings"):
        (record,) = (root / RESULTS / kind / "scenes").glob("evaluation-8-*.json")
        words += [f"--{kind}", str(record)]
    for shard in SHARDS:
        first, _, last = shard.partition("-")
        drawn = tmp_path / f"{shard}.json"
        with one_thread():
            assert main(["generate", *words, "--first", first, "--last", last, "--out", str(drawn)]) == 0
        kept = root / CELLS / f"full/seed0/shards/{shard}.zip"
        assert drawn.with_suffix(".zip").read_bytes() == kept.read_bytes()
