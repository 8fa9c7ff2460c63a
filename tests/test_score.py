from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from ditbench.faults import Fault
from ditbench.records import read_record, write_record
from ditbench.score import score_cell
from ditbench.storage import write_shard
from ditbench.worlds.scenes.grammar import draw_scenes
from ditbench.worlds.scenes.judges.dual import DualEncoder
from ditbench.worlds.scenes.judges.preference import Preference
from ditbench.worlds.scenes.judges.reader import Reader
from ditbench.worlds.scenes.judges.weights import save_weights
from ditbench.worlds.scenes.recipe.defects import blurred
from ditbench.worlds.scenes.renderer import render_batch

COUNT = 24
SCENES = draw_scenes(COUNT, seed=31)
IMAGES = render_batch(SCENES, 31)
IDS = [f"{i:012x}" for i in range(COUNT)]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with captions, references and a full arm; judges with random weights: what they say is not the point."""
    torch.manual_seed(0)
    assets = tmp_path / "assets"
    for name, network in (("reader", Reader()), ("dual", DualEncoder()), ("preference", Preference())):
        save_weights(network, assets / f"{name}.safetensors")
    monkeypatch.setenv("DITBENCH_SCENES_ASSETS", str(assets))
    entries = [{"id": name, "text": scene.caption()} for name, scene in zip(IDS, SCENES, strict=True)]
    write_record(tmp_path / "captions.json", "captions", {"captions": entries})
    digest = write_shard(tmp_path / "real.zip", render_batch(SCENES, 32), [f"reference{i}" for i in range(COUNT)])
    write_record(tmp_path / "real.json", "references", {"world": "scenes", "count": COUNT, "sha256": digest})
    cell(tmp_path, "full", IMAGES)
    return tmp_path


def cell(run: Path, arm: str, images: np.ndarray, size: int = 16) -> None:
    folder = run / arm
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    write_record(folder / "spec.json", "spec", {"world": "scenes", "arm": arm, "hash": f"hash-{arm}"})
    for first in range(0, len(images), size):
        path = folder / "shards" / f"{first:05d}.json"
        names = IDS[first : min(first + size, len(images))]
        write_shard(path.with_suffix(".zip"), images[first : first + size], names, first)
        write_record(path, "shard", {"first": first, "file": f"{first:05d}.zip", "ids": names})


def score(run: Path, arm: str, against: str | None = None) -> dict:
    shards = {name: sorted((run / name / "shards").glob("*.json"), reverse=True) for name in (arm, against) if name}
    out = run / arm / "scores.json"
    score_cell(
        run / arm / "spec.json",
        shards[arm],
        run / "captions.json",
        run / "real.json",
        shards[against] if against else None,
        out,
    )
    return read_record(out, "scores")


def soft() -> np.ndarray:
    return np.stack([np.rint(blurred(p.astype(np.float32), 2)) for p in IMAGES]).astype(np.uint8)


PARTS = ("", "-median", "-worst-tenth")


def test_an_arm_is_scored_with_intervals_and_compared_in_pairs(run: Path) -> None:
    cell(run, "soft", soft())
    record = score(run, "soft", "full")
    assert (record["spec_hash"], record["n"]) == ("hash-soft", COUNT)
    measures = {m["name"]: m for m in record["measures"]}
    common = {"fid/scenes", "attributes/scenes", "objects/scenes", "relations/scenes", "clip/scenes", "hps/scenes"}
    drift = {
        f"{name}{part}{of}" for name, of in (("psnr-to-full", ""), ("perceptual-to-full", "/scenes")) for part in PARTS
    }
    assert set(measures) == common | drift | {"ssim-to-full"}
    for measure in record["measures"]:
        assert measure["low"] <= measure["value"] <= measure["high"], measure
        assert measure["method_of_interval"] and measure["direction"] in ("lower", "higher")
    assert {p["name"] for p in record["paired"]} == common
    alone = {m["name"]: m["value"] for m in score(run, "full")["measures"]}
    for pair in record["paired"]:
        assert pair["against"] == "full"
        assert pair["difference"] == pytest.approx(measures[pair["name"]]["value"] - alone[pair["name"]], abs=1e-6)
    assert record["provenance"]["timings"]["compute_s"] > 0


def test_samples_hold_one_row_per_caption_in_order(run: Path) -> None:
    cell(run, "soft", soft())
    record = score(run, "soft", "full")
    table = pq.read_table(run / "soft" / "samples.parquet").to_pydict()
    assert next(iter(table)) == "caption_id"
    assert table["caption_id"] == IDS  # the shards were given in another order
    means = {m["name"]: m["value"] for m in record["measures"]}
    assert np.mean(table["psnr-to-full"]) == pytest.approx(means["psnr-to-full"])
    related = [value for value in table["relations/scenes"] if value is not None]
    assert len(related) == sum(len(scene.things) == 2 for scene in SCENES)
    assert "fid/scenes" not in table


def test_the_full_arm_has_no_measure_to_itself(run: Path) -> None:
    record = score(run, "full")
    assert record["paired"] == []
    assert "psnr-to-full" not in {m["name"] for m in record["measures"]}


def test_an_arm_equal_to_full_differs_by_nothing(run: Path) -> None:
    cell(run, "same", IMAGES, size=5)
    record = score(run, "same", "full")
    assert all(p["difference"] == pytest.approx(0, abs=1e-9) for p in record["paired"])
    assert all(p["low"] <= 1e-9 and p["high"] >= -1e-9 for p in record["paired"])


def test_other_captions_than_the_full_arm_s_are_a_fault(run: Path) -> None:
    cell(run, "fewer", IMAGES[:20])
    with pytest.raises(Fault, match="20 images cannot be paired with the full arm's 24"):
        score(run, "fewer", "full")
    assert not (run / "fewer" / "scores.json").exists()


def test_shards_of_several_weights_are_not_one_cell(run: Path) -> None:
    cell(run, "mixed", IMAGES)
    path = run / "mixed" / "shards" / "00000.json"
    body = {key: value for key, value in read_record(path, "shard").items() if key not in ("schema", "provenance")}
    write_record(path, "shard", {**body, "weights": "folder:9"})
    with pytest.raises(Fault, match=r"are of several weights \(None, folder:9\)"):
        score(run, "mixed")


def test_a_damaged_shard_is_a_fault_and_leaves_no_scores(run: Path) -> None:
    cell(run, "torn", IMAGES)
    shard = run / "torn" / "shards" / "00000.zip"
    shard.write_bytes(shard.read_bytes()[:2000])
    with pytest.raises(Fault, match=r"00000\.zip"):
        score(run, "torn")
    assert not (run / "torn" / "scores.json").exists()


def test_images_of_unknown_captions_are_a_fault(run: Path) -> None:
    write_record(run / "captions.json", "captions", {"captions": [{"id": IDS[0], "text": SCENES[0].caption()}]})
    with pytest.raises(Fault, match="has no caption in this caption set"):
        score(run, "full")


def test_a_missing_or_broken_spec_is_a_fault(run: Path) -> None:
    spec = run / "full" / "spec.json"
    spec.write_text("{")
    with pytest.raises(Fault, match=r"spec\.json cannot be read .*delete it and run again"):
        score(run, "full")
    spec.unlink()
    with pytest.raises(Fault, match=r"spec\.json is missing"):
        score(run, "full")
