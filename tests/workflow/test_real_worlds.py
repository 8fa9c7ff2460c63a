"""Studies of real worlds: which jobs they plan, and a whole run of two in miniature, one drawn and one only timed."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.tiny_pipelines import PROMPTS, saved
from tests.worlds.real.miniature import write_world

if TYPE_CHECKING:
    from tests.workflow.conftest import Tree

pytestmark = pytest.mark.timeout(900)


def write_study(root: Path, name: str, world: str, quality: str) -> None:
    """A study of two arms, with a measure of quality and one of cost."""
    rows = [{"arm": "full", "method": "full", "label": "full"}, {"arm": "fora-n2", "method": "fora", "label": "FORA"}]
    columns = [{"measure": measure, "label": measure} for measure in (quality, "speedup", "macs-linear")]
    body = {"title": name, "world": world, "rows": rows, "columns": columns, "baseline": "full"}
    body["figure"] = {"x": "speedup", "y": quality}
    (root / "studies" / f"{name}.yaml").write_text(json.dumps(body))


def settings(root: Path, studies: list[str], weights: dict[str, str], **more: Any) -> tuple[str, ...]:
    (root / "captions.txt").write_text("\n".join(PROMPTS))
    body = {"images": 2, "shard": 2, "captions": {"file": "captions.txt"}, "studies": studies, "weights": weights}
    (root / "real.yaml").write_text(json.dumps({**body, **more}))
    return ("--configfile", "real.yaml")


def test_a_world_with_its_own_weights_plans_images_and_no_references(tree: Tree) -> None:
    write_study(tree.root, "own", "flux-schnell-256", "psnr-to-full")
    jobs = tree.planned(*settings(tree.root, ["own"], {}))
    cells = dict.fromkeys(("spec", "images", "cost", "scores", "latency"), 2)
    assert jobs == {"captions": 1, "embeddings": 1, **cells, "report": 1, "publish": 1, "all": 1}


def test_random_weights_plan_neither_images_nor_embeddings_nor_scores(tree: Tree) -> None:
    write_study(tree.root, "random", "flux-schnell-256", "realised-ratio")
    words = settings(tree.root, ["random"], {"flux-schnell-256": "random"}, results="random")
    jobs = tree.planned(*words)
    assert jobs == {"captions": 1, "spec": 2, "latency": 2, "cost": 2, "report": 1, "publish": 1, "all": 1}
    assert tree.snakemake(*words).returncode == 0
    timed = [call for call in tree.calls() if call.startswith("time ")]
    assert len(timed) == 2
    assert all("--weights random" in call and "--embeddings" not in call for call in timed)
    billed = [call for call in tree.calls() if call.startswith("cost ")]
    assert all(call.split("--shards ")[1].split()[0].endswith("latency.json") for call in billed)


def test_a_search_by_fid_compares_with_the_references_of_its_run(tree: Tree) -> None:
    write_study(tree.root, "own", "flux-schnell-256", "fid")
    (tree.root / "photos").mkdir()
    for name in ("photos/a.png", "photos/b.png", "inception.pt"):
        (tree.root / name).write_bytes(b"")
    body = {
        "world": "flux-schnell-256",
        "captions": {"file": "captions.txt", "train": {"file": "captions.txt"}},
        "references": {"folder": "photos"},
    }
    arms = {
        name: {"method": "plan-search", "knobs": {"fitness": fitness, "search": "random", "measurements": 2}}
        for name, fitness in (("by-fid", "fid"), ("by-lpips", "lpips"))
    }
    words = settings(tree.root, ["own"], {}, arms=arms, judge_weights={"inception": "inception.pt"}, **body)
    for arm, own in (("by-fid", {"references": 1, "features": 1}), ("by-lpips", {})):
        learned = f"results/learned/flux-schnell-256/{arm}/learned.json"
        jobs = tree.planned(*words, "--", learned)
        assert jobs == {"training_captions": 1, "embeddings": 1, "learn": 1, **own}
    done = tree.snakemake(*words, "--", "results/learned/flux-schnell-256/by-fid/learned.json")
    assert done.returncode == 0, done.stderr
    (call,) = [call for call in tree.calls() if call.startswith("learn ")]
    place = "results/references/flux-schnell-256/"
    assert f"--references {place}" in call and "/inception.json" in call.split("--features ")[1].split()[0]


def test_a_text_world_without_captions_is_refused_before_any_job(tree: Tree) -> None:
    write_study(tree.root, "own", "flux-schnell-256", "psnr-to-full")
    done = tree.snakemake("-n", *settings(tree.root, ["own"], {}, captions={}))
    assert done.returncode != 0
    assert "world flux-schnell-256 has no captions of its own" in done.stdout + done.stderr


def test_missing_weights_stop_a_run_before_any_job(fresh_copy: Callable[[], Tree]) -> None:
    tree = fresh_copy()
    write_study(tree.root, "own", "flux-schnell-256", "psnr-to-full")
    done = tree.snakemake(*settings(tree.root, ["own"], {}), HF_HUB_CACHE=str(tree.root / "hub"))
    assert done.returncode != 0
    assert "the weights of world flux-schnell-256 are not on this machine" in done.stdout + done.stderr
    assert not (tree.root / "results" / "captions").exists()


def test_a_folder_of_weights_is_handed_to_who_loads_them(tree: Tree) -> None:
    world = write_world(tree.root, "pixart-alpha")
    write_study(tree.root, "folder", world, "psnr-to-full")
    folder = saved("pixart-alpha", tree.root / "a folder")
    words = settings(tree.root, ["folder"], {world: str(folder)}, results="folder")
    assert tree.snakemake(*words).returncode == 0
    ran = [call for call in tree.calls() if world in call]
    stages = {call.split()[0] for call in ran if f"--weights {folder} " in call}
    assert stages == {"embed", "generate", "time"}
    assert not any("--references" in call for call in ran)
    assert tree.planned(*words) == {}
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    assert tree.planned(*words)["images"] == 2  # other weights: other cells


def test_a_world_with_random_weights_is_timed_and_billed_from_snakemake_to_the_page(
    fresh_copy: Callable[[], Tree],
) -> None:
    tree = fresh_copy()
    world = write_world(tree.root, "flux-schnell")
    write_study(tree.root, "timed", world, "realised-ratio")
    words = settings(tree.root, ["timed"], {world: "random"}, stopwatch={"rounds": 1, "batch": 1})
    command = [sys.executable, "-m", "snakemake", "--cores", "2", *words]
    done = subprocess.run(command, cwd=tree.root, env=tree.environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    results = tree.root / "results"
    assert "not run" not in (results / "report" / "index.html").read_text()
    with (results / "studies" / "timed" / "table.csv").open() as stream:
        rows = {(row["arm"], row["measure"]): row for row in csv.DictReader(stream)}
    assert float(rows["fora-n2", "realised-ratio"]["value"]) == 0.5
    assert float(rows["fora-n2", "macs-linear"]["value"]) < 0.6 * float(rows["full", "macs-linear"]["value"])
    assert tree.planned(*words) == {}
