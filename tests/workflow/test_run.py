"""The real stages on the embedded world, small: a fault on the way, what a run leaves, and a kill in the middle."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ditbench.worlds.scenes.world import assets_folder

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.workflow.conftest import Tree

pytestmark = pytest.mark.timeout(1500)
SMALL = ("images=8", "shard=4", "batch=4", "references=96", "stopwatch={rounds: 1, batch: 2, contended: report}")
CELLS = Path("results/cells/scenes")


def start(tree: Tree, *words: str) -> subprocess.Popen[str]:
    """Starts a small run in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "snakemake", "--cores", "2", *words, "--config", *SMALL],
        cwd=tree.root,
        env={**tree.environment, "DITBENCH_SCENES_ASSETS": str(assets_folder())},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(tree: Tree, *words: str) -> tuple[int, str]:
    """A small run's exit status and what it said."""
    process = start(tree, *words)
    said, _ = process.communicate(timeout=900)
    return process.returncode, said


@dataclass(frozen=True)
class Finished:
    """A run that an arm's fault had stopped once, and that then went through."""

    tree: Tree
    first_status: int
    first_words: str
    first_page: str


@pytest.fixture(scope="module")
def finished(fresh_copy: Callable[[], Tree]) -> Finished:
    tree = fresh_copy()
    blocked = tree.root / CELLS / "fora-n2/seed0/shards/00004-00007.zip"
    blocked.mkdir(parents=True)
    (blocked / "in the way").touch()
    status, words = run(tree)
    assert status > 0, f"killed, or not failed at all ({status}):\n{words}"
    page = (tree.root / "results/report/index.html").read_text(encoding="utf-8")
    shutil.rmtree(blocked)
    again, said = run(tree)
    assert again == 0, said
    return Finished(tree, status, words, page)


def test_a_failed_arm_is_shown_with_its_reason_and_stops_no_other(finished: Finished) -> None:
    assert finished.first_status != 0
    assert "could not be written" in finished.first_words
    assert "00004-00007.zip could not be written" in finished.first_page
    folder = finished.tree.root / CELLS
    made = {arm: (folder / arm / "seed0/scores.json").stat().st_mtime for arm in ("full", "broken", "fora-n2")}
    # The others were finished in the first run, the failed one in the second.
    assert max(made["full"], made["broken"]) < made["fora-n2"]
    assert not (folder / "fora-n2/seed0/failure.json").exists()


def test_a_run_leaves_every_record_table_and_page(finished: Finished) -> None:
    root = finished.tree.root
    for arm in ("full", "fewer-steps-50", "fora-n2", "broken"):
        for name in ("spec", "plan", "scores", "cost", "latency"):
            assert (root / CELLS / arm / f"seed0/{name}.json").exists(), f"{arm} {name}"
    cost = {arm: json.loads((root / CELLS / arm / "seed0/cost.json").read_text()) for arm in ("full", "fora-n2")}
    assert cost["full"]["realised_ratio"] == 0
    assert cost["fora-n2"]["realised_ratio"] == 0.5
    assert 0.5 < cost["fora-n2"]["linear"] / cost["full"]["linear"] < 0.51
    for name in ("table.md", "table.tex", "table.csv", "table.html"):
        assert "FORA" in (root / "results/studies/embedded" / name).read_text(encoding="utf-8")
    assert (root / "results/mlflow.db").exists()
    page = (root / "results/report/index.html").read_text(encoding="utf-8")
    # The second run, which made one cell and what follows it.
    assert re.search(
        r"The last run took [\d.]+ (s|min) so far on 2 cores, with [3-9] jobs; \d+ were made by earlier", page
    )
    status, said = run(finished.tree, "-n")
    assert status == 0
    assert "Nothing to be done" in said


def test_a_killed_run_continues_to_the_same_files(finished: Finished, fresh_copy: Callable[[], Tree]) -> None:
    tree = fresh_copy()
    shards = tree.root / CELLS / "full/seed0/shards"
    targets = [str(CELLS / f"full/seed0/shards/{name}.json") for name in ("00000-00003", "00004-00007")]
    process = start(tree, *targets, "--cores", "1")
    deadline = time.monotonic() + 300
    while not list(shards.glob("*.json")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    status, said = run(tree, *targets)
    assert status == 0, said
    for target in targets:
        archive = target.replace(".json", ".zip")
        assert (tree.root / archive).read_bytes() == (finished.tree.root / archive).read_bytes()
