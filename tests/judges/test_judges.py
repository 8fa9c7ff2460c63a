from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ditbench.faults import Fault
from ditbench.judges import Pictures, get_judge
from ditbench.judges.base import drift_results, share_result
from ditbench.judges.fid import shard_features
from ditbench.judges.psnr import EQUAL, psnr
from ditbench.judges.registry import check_identities, judge_identities
from ditbench.storage import write_shard
from ditbench.worlds.scenes.grammar import draw_scenes
from ditbench.worlds.scenes.judges.reader import load_reader, to_pixels
from ditbench.worlds.scenes.recipe.defects import blurred
from ditbench.worlds.scenes.renderer import render_batch
from ditbench.worlds.scenes.world import assets_folder

SCENES = draw_scenes(60, seed=21)
IMAGES = render_batch(SCENES, 21)


def pictures(folder: Path, name: str, images: np.ndarray) -> Pictures:
    """Images of SCENES as a shard and in memory."""
    captions = {f"{i:012x}": scene.caption() for i, scene in enumerate(SCENES)}
    path = folder / f"{name}.zip"
    write_shard(path, images, list(captions)[: len(images)])
    return Pictures.read([path], captions)


def test_clean_fid_hands_the_reader_the_pixels_as_they_are(tmp_path: Path) -> None:
    shard = pictures(tmp_path, "a", IMAGES[:20]).shards[0]
    seen: list[torch.Tensor] = []

    def extract(pixels: torch.Tensor) -> torch.Tensor:
        seen.append(pixels)
        return pixels.mean((2, 3))

    features = shard_features(shard, extract)
    assert torch.allclose(torch.cat(seen), to_pixels(IMAGES[:20]), atol=1e-3)
    assert np.allclose(features, IMAGES[:20].mean((1, 2)), atol=1e-3)


def test_fid_is_small_for_other_renders_and_grows_with_blur(tmp_path: Path) -> None:
    judge = get_judge("fid")
    references = pictures(tmp_path, "real", render_batch(SCENES, 99))
    values = []
    for passes in (0, 1, 3):
        soft = np.stack([np.rint(blurred(p.astype(np.float32), passes)) for p in IMAGES]).astype(np.uint8)
        (result,) = judge.measure(pictures(tmp_path, f"soft{passes}", soft), references)
        assert result.name == "fid/scenes" and result.direction == "lower"
        assert result.estimate.low <= result.estimate.value <= result.estimate.high
        values.append(result.estimate.value)
    assert values[0] < values[1] < values[2]


def test_fid_needs_as_many_pictures_as_its_interval_can_leave_one_of_out(tmp_path: Path) -> None:
    judge = get_judge("fid")
    sets = [pictures(tmp_path, f"first{n}", IMAGES[:n]) for n in (1, 2, 3)]
    for few in sets[:2]:
        with pytest.raises(Fault, match="three pictures or more; raise `images`"):
            judge.measure(few, sets[2])
    (result,) = judge.measure(sets[2], sets[1])
    # Three groups of one picture each: leaving one out leaves two, the least that have a covariance.
    assert result.left_out is not None and len(result.left_out) == 3
    assert np.isfinite([result.estimate.low, result.estimate.value, result.estimate.high]).all()
    with pytest.raises(Fault, match="two references or more; raise `references`"):
        judge.measure(sets[2], sets[0])


def test_attributes_see_wrong_pictures(tmp_path: Path) -> None:
    judge = get_judge("attributes")
    right = {r.name: r for r in judge.measure(pictures(tmp_path, "right", IMAGES), pictures(tmp_path, "r", IMAGES))}
    wrong = {r.name: r for r in judge.measure(pictures(tmp_path, "wrong", np.roll(IMAGES, 1, 0)), right)}  # type: ignore[arg-type]
    assert set(right) == {"attributes/scenes", "objects/scenes", "relations/scenes"}
    assert right["attributes/scenes"].estimate.value >= 0.95
    assert wrong["attributes/scenes"].estimate.value <= 0.05
    assert right["relations/scenes"].estimate.n == sum(len(scene.things) == 2 for scene in SCENES)
    assert wrong["objects/scenes"].minus(right["objects/scenes"]).high < -0.5


def test_captions_of_another_kind_are_a_fault(tmp_path: Path) -> None:
    shot = pictures(tmp_path, "a", IMAGES[:1])
    strange = Pictures(shot.ids, shot.images, ["a photograph of a cat"], shot.shards)
    with pytest.raises(Fault, match="scenes grammar only"):
        get_judge("attributes").measure(strange, shot)


def test_psnr_is_the_textbook_one_and_equal_pictures_have_the_largest() -> None:
    black, gray = np.zeros((1, 4, 4, 3), np.uint8), np.full((1, 4, 4, 3), 51, np.uint8)
    assert psnr(gray, black) == pytest.approx([20 * np.log10(255 / 51)])
    assert psnr(gray, gray).tolist() == [EQUAL]


def test_drift_has_a_median_and_a_worst_tenth_on_its_worse_side() -> None:
    values = np.arange(101, dtype=np.float64)
    higher = {r.name: r.estimate.value for r in drift_results("similar", "", "higher", values)}
    lower = {r.name: r.estimate.value for r in drift_results("far/scenes", "", "lower", values)}
    assert higher == pytest.approx({"similar": 50, "similar-median": 50, "similar-worst-tenth": 10})
    assert lower == pytest.approx({"far/scenes": 50, "far-median/scenes": 50, "far-worst-tenth/scenes": 90})


def test_the_reader_tells_pictures_apart_and_sees_more_drift_in_more_noise() -> None:
    real = render_batch(draw_scenes(6, 0), 0)
    noise = np.random.default_rng(0).normal(size=real.shape)

    def shown(level: float) -> Pictures:
        images = (real + level * noise).clip(0, 255).astype(np.uint8)
        return Pictures([str(i) for i in range(len(images))], images)

    judge = get_judge("perceptual")
    equal, slight, strong = (judge.measure(shown(level), Pictures.none(), shown(0))[0] for level in (0, 8, 40))
    assert equal.per_sample is not None and slight.per_sample is not None and strong.per_sample is not None
    assert equal.per_sample.max() < 1e-8
    assert (strong.per_sample > slight.per_sample).all() and slight.per_sample.min() > 1e-4
    assert slight.name == "perceptual-to-full/scenes" and slight.direction == "lower"


def test_shares_count_only_the_pictures_concerned() -> None:
    result = share_result("x", np.array([1.0, np.nan, 0.0, 1.0, 1.0]))
    assert result is not None and (result.estimate.value, result.estimate.n) == (0.75, 4)
    assert share_result("x", np.array([np.nan])) is None


def test_another_file_than_the_account_tells_of_judges_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("judges.json", "dual.safetensors", "preference.safetensors"):
        (tmp_path / name).write_bytes((assets_folder() / name).read_bytes())
    monkeypatch.setenv("DITBENCH_SCENES_ASSETS", str(tmp_path))
    get_judge("hps").load()
    # The same networks' shapes: nothing but its bytes tells one from the other.
    (tmp_path / "preference.safetensors").write_bytes((tmp_path / "dual.safetensors").read_bytes())
    with pytest.raises(Fault, match=r"preference\.safetensors is not the file that judges\.json beside it tells of"):
        get_judge("hps").load()


def test_weights_that_changed_since_a_run_was_planned_are_refused(tmp_path: Path) -> None:
    places = {"alexnet": str(tmp_path / "alexnet.pth")}
    (tmp_path / "alexnet.pth").write_bytes(bytes(200))
    known = judge_identities(["lpips", "fid"], places)
    assert "alexnet" in known
    check_identities(places, {"alexnet": known["alexnet"]})
    (tmp_path / "alexnet.pth").write_bytes(bytes(199) + b"1")
    with pytest.raises(
        Fault, match=r"judge_weights\.alexnet: .*alexnet\.pth is not the file that this run was planned"
    ):
        check_identities(places, {"alexnet": known["alexnet"]})


def test_the_judge_reads_its_weights_from_the_shipped_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shot = pictures(tmp_path, "a", IMAGES[:4])
    whole = (assets_folder() / "reader.safetensors").read_bytes()
    monkeypatch.setenv("DITBENCH_SCENES_ASSETS", str(tmp_path))
    with pytest.raises(Fault, match=r"missing: .*reader\.safetensors"):
        get_judge("fid").measure(shot, shot)
    (tmp_path / "reader.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Fault, match=r"cannot be read: .*reader\.safetensors"):
        get_judge("attributes").measure(shot, shot)
    (tmp_path / "reader.safetensors").write_bytes(whole)
    assert load_reader(tmp_path / "reader.safetensors").features(to_pixels(IMAGES[:1])).isfinite().all()
