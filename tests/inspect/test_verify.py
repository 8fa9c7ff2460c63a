"""A real run of a few images is verified, and what somebody has changed since is found."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ditbench.caption_sets import write_captions, write_references
from ditbench.cells import cell_table
from ditbench.cli import main
from ditbench.config import Config, check_config, load_config
from ditbench.generate import Sampler, Texts, embed, generate_shard, write_cost, write_plan
from ditbench.inspect.cells import load
from ditbench.inspect.verify import Check, verify
from ditbench.judges.psnr import Psnr
from ditbench.records import SEAL, read_record, seal, write_record
from ditbench.score import score_cell
from ditbench.stopwatch import Protocol, time_arm
from ditbench.storage import hash_file, read_shard, write_shard
from ditbench.worlds import RANDOM, get_world
from tests.workflow.test_real_worlds import write_study
from tests.worlds.real.miniature import write_world

SETTINGS = {
    "images": 4,
    "shard": 2,
    "references": 8,
    "judges": ["clip", "psnr", "fid"],
    "arms": {
        "full": {"method": "full", "steps": 2},
        "random": {"method": "toca", "knobs": {"score": "random"}, "steps": 3},
    },
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """A finished run, stage by stage as the workflow makes it; its stopwatch is made up."""
    root = tmp_path_factory.mktemp("verified") / "results"
    study = {
        "title": "two arms",
        "world": "scenes",
        "rows": [
            {"arm": "full", "method": "full", "steps": 2, "label": "full"},
            {"arm": "random", "method": "toca", "knobs": {"score": "random"}, "steps": 3, "label": "random"},
        ],
        "columns": [{"measure": "fid/scenes", "label": "FID"}, {"measure": "speedup", "label": "speedup"}],
        "figure": {"x": "speedup", "y": "fid/scenes"},
        "baseline": "full",
    }
    (root.parent / "studies").mkdir(parents=True)
    (root.parent / "studies" / "two.yaml").write_text(json.dumps(study))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root.parent)
        config = check_config({**SETTINGS, "arms": {}, "studies": ["two"], "results": str(root)})
        specs = cell_table(config)
        world, name = get_world("scenes"), specs[0].captions
        captions, embeddings = (root / kind / "scenes" / f"{name}.json" for kind in ("captions", "embeddings"))
        write_captions(world, name, 4, 0, captions)
        embed("scenes", captions, embeddings)
        references = root / "references" / "scenes" / "renders-8.json"
        write_references(world, 8, references)
        shards: dict[str, list[Path]] = {}
        for spec in specs:
            folder = Path(spec.folder(root))
            body = {**asdict(spec), "hash": spec.hash}
            write_plan(asdict(spec), folder / "plan.json")
            write_record(folder / "spec.json", "spec", body)
            shards[spec.arm] = [folder / "shards" / f"{a:05d}-{a + 1:05d}.json" for a in (0, 2)]
            for first, path in zip((0, 2), shards[spec.arm], strict=True):
                generate_shard(folder / "spec.json", captions, embeddings, first, first + 1, path, batch=2)
            write_cost(folder / "spec.json", shards[spec.arm], folder / "cost.json")
            full = shards["full"] if spec.arm != "full" else None
            score_cell(
                folder / "spec.json",
                shards[spec.arm],
                captions,
                references,
                full,
                folder / "scores.json",
                config.judges,
            )
            value = {"value": 1.0, "low": 1.0, "high": 1.0}
            latency = {"spec_hash": spec.hash, "batch": 2, "rounds": 1, "seconds_per_image": value, "speedup": value}
            latency |= {"contended": False, "load": 0.0, "note": "", "peak_bytes": None, "peak_bytes_baseline": None}
            write_record(folder / "latency.json", "latency", latency)
        (root.parent / "config.yaml").write_text(json.dumps(config.model_dump()))
    return config, root


@pytest.fixture
def inside(made: tuple[Config, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made[1].parent)
    return made[1]


def amend(path: Path, **changes: Any) -> None:
    """Changes a record as other code would have written it: sealed."""
    body = {name: value for name, value in json.loads(path.read_text()).items() if name != SEAL} | changes
    path.write_text(json.dumps({**body, SEAL: seal(body)}))


def checks(made: tuple[Config, Path], sets: bool = False) -> dict[str, dict[str, Check]]:
    config, _ = made
    found = load(config, None)
    report = verify(config, found, found.cells, images=3, seed=0, device="cpu", sets=sets)
    return {cell.cell.split("/")[1]: {check.what: check for check in cell.checks} for cell in report.cells}


def test_a_run_that_nobody_touched_holds(made: tuple[Config, Path], inside: Path) -> None:
    found = checks(made, sets=True)
    for arm in ("full", "random"):
        assert {found[arm][what].verdict for what in ("plan", "cost", "images")} == {"equal"}
        assert found[arm]["images"].of == 3
        assert found[arm]["clip/scenes"].verdict in ("equal", "close")
        assert found[arm]["fid/scenes"].verdict in ("equal", "close")
    assert found["random"]["psnr-to-full"].verdict == "equal"
    assert read_record(inside / "verify.json", "verify")["equal"] is True


def test_images_are_drawn_again_in_the_batches_of_the_run(
    made: tuple[Config, Path], inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[str]] = []
    draw = Sampler.draw

    def noted(sampler: Sampler, spec: dict[str, Any], texts: Texts) -> Any:
        drawn.append(texts.ids)
        return draw(sampler, spec, texts)

    monkeypatch.setattr(Sampler, "draw", noted)
    config, _ = made
    found = load(config, None)
    (cell,) = [cell for cell in found.cells if cell.arm == "full"]
    verify(config.model_copy(update={"batch": 2}), found, [cell], images=3, seed=0, device="cpu")
    ids = [entry["id"] for entry in read_record(next(inside.glob("captions/scenes/*.json")), "captions")["captions"]]
    assert drawn == [ids[:2], ids[2:]]


def test_what_was_changed_since_is_found(
    made: tuple[Config, Path], inside: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = inside / "cells" / "scenes" / "random" / "seed0"
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for path in (folder / "shards").glob("*.zip"):
        ids, images = read_shard(path)
        images[:, 0, 0, 0] ^= 1
        amend(path.with_suffix(".json"), sha256=write_shard(path, images, ids))
    table = pq.read_table(folder / "samples.parquet").to_pydict()
    table["clip/scenes"] = [value + 0.01 for value in table["clip/scenes"]]
    pq.write_table(pa.table(table), folder / "samples.parquet")
    amend(folder / "scores.json", samples_sha256=hash_file(folder / "samples.parquet"))
    amend(folder / "cost.json", linear=read_record(folder / "cost.json", "cost")["linear"] + 1)
    try:
        assert main(["verify", "random", "--images", "2"]) == 1
        text = capsys.readouterr().out
    finally:
        for path, data in kept.items():
            path.write_bytes(data)
    assert "images: differs (2): 2 images differ" in text and "by up to 1 of 255" in text
    assert "clip/scenes: differs (2): by up to 0.01" in text
    assert "cost: differs" in text and "linear: " in text
    assert "fid: it judges the whole set, with --sets again too" in text
    assert text.endswith("NOT EQUAL: see what differs above\n")


def test_of_random_weights_plan_and_cost_are_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    world = write_world(tmp_path, "dit")
    (tmp_path / "studies").mkdir()
    write_study(tmp_path, "timed", world, "realised-ratio")
    (tmp_path / "config.yaml").write_text(
        json.dumps(
            {
                "world": world,
                "weights": {world: RANDOM},
                "images": 2,
                "shard": 2,
                "studies": ["timed"],
                "stopwatch": {"rounds": 1, "batch": 1},
            }
        )
    )
    config = load_config(Path("config.yaml"))
    root, specs = Path(config.results), cell_table(config)
    captions = root / "captions" / world / f"{specs[0].captions}.json"
    write_captions(get_world(world), specs[0].captions, 2, 0, captions)
    folders = {spec.arm: spec.folder(root) for spec in specs}
    for spec in specs:
        folder = folders[spec.arm]
        write_plan(asdict(spec), folder / "plan.json")
        write_record(folder / "spec.json", "spec", {**asdict(spec), "hash": spec.hash})
    for folder in folders.values():
        whole = folders["full"] / "spec.json"
        time_arm(
            folder / "spec.json",
            whole,
            captions,
            None,
            folder / "latency.json",
            Protocol(1, (1,), report=True),
            weights=RANDOM,
        )
        write_cost(folder / "spec.json", [folder / "latency.json"], folder / "cost.json")
    assert main(["verify", "--json"]) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert len(cells) == 2
    for cell in cells:
        assert [(check["what"], check["verdict"]) for check in cell["checks"]] == [("plan", "equal"), ("cost", "equal")]
        assert cell["passed_over"] == ["images and scores: this cell has none"]
    cost = folders["fora-n2"] / "cost.json"
    amend(cost, attention=read_record(cost, "cost")["attention"] + 1)
    assert main(["verify"]) == 1
    assert "cost: differs" in capsys.readouterr().out
    cost.write_text(cost.read_text().replace('"attention": ', '"attention": 1'))
    assert main(["verify"]) == 0
    assert "fora-n2/seed0 is passed over: failed: " in capsys.readouterr().err


def test_a_damaged_table_of_scores_is_one_sentence(
    made: tuple[Config, Path], inside: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = inside / "cells" / "scenes" / "random" / "seed0" / "samples.parquet"
    kept = path.read_bytes()
    path.write_bytes(kept[:-1] + b"?")
    try:
        assert main(["verify", "random"]) == 2
    finally:
        path.write_bytes(kept)
    assert "samples.parquet" in capsys.readouterr().err.splitlines()[-1]


def test_cells_that_are_not_finished_are_refused(made: tuple[Config, Path], inside: Path) -> None:
    latency = inside / "cells" / "scenes" / "random" / "seed0" / "latency.json"
    kept = latency.read_bytes()
    latency.unlink()
    try:
        assert main(["verify", "random"]) == 2
    finally:
        latency.write_bytes(kept)
    assert Psnr.of_sets is False


def test_what_one_cell_lacks_is_told_and_no_other_is_held_up(
    made: tuple[Config, Path], inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, root = made
    found = load(config, root)
    alone = replace(found, cells=tuple(cell for cell in found.cells if cell.arm != "full"))
    report = verify(config, alone, alone.cells, 2, 0, "cpu")
    assert report.equal
    (cell,) = report.cells
    assert any(
        text.startswith("psnr: it compares with the arm full, of which there are no images")
        for text in cell.passed_over
    )
    broken = found.cells[1].shards[0]
    whole = broken.read_bytes()
    broken.write_bytes(whole[:-20])
    try:
        report = verify(config, found, found.cells, 2, 0, "cpu")
    finally:
        broken.write_bytes(whole)
    verdicts = {cell.cell: cell.checks for cell in report.cells}
    assert len(verdicts) == 2 and not report.equal
    (damaged,) = next(checks for name, checks in verdicts.items() if "random" in name)
    assert damaged.verdict == "differs" and str(broken) in damaged.detail
