"""The recipe of the MMDiT: only it learns, small pictures stand where large ones do, and runs are resumable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ditbench.worlds.scenes.mmdit import build_transformer, load_pipeline
from ditbench.worlds.scenes.recipe.backbone import Recipe, Stage
from ditbench.worlds.scenes.recipe.export import MMDIT_FILES, export_mmdit, recipe_hash
from ditbench.worlds.scenes.recipe.mmdit import TABLE, MMDiTTraining, coarser
from ditbench.worlds.scenes.world import assets_folder

SMALL = Recipe(stages=(Stage(32, 2, 2, 2.0), Stage(64, 1, 1, 3.0)), warmup_images=2, lesson_at=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> MMDiTTraining:
    training = MMDiTTraining(SMALL, tmp_path_factory.mktemp("whole"), assets_folder())
    training.run()
    return training


def test_small_pictures_take_the_mean_positions_of_what_they_cover() -> None:
    table = build_transformer().pos_embed.pos_embed
    cut = coarser(table, 2).reshape(16, 16, -1)[4:12, 4:12]
    square = table.reshape(16, 16, -1)
    assert torch.allclose(cut[0, 0], square[:2, :2].mean(dim=(0, 1)))
    assert torch.allclose(cut[7, 3], square[14:, 6:8].mean(dim=(0, 1)))
    training_size = build_transformer().pos_embed
    training_size.pos_embed = coarser(table, 2)
    # What the network cuts out for a picture of half the side.
    assert torch.equal(training_size.cropped_pos_embed(32, 32)[0], cut.reshape(64, -1))


def test_the_text_encoder_and_the_positions_stay_as_they_are(whole: MMDiTTraining) -> None:
    fresh = MMDiTTraining(SMALL, whole.folder / "none", assets_folder())
    before, after = fresh.pair.state_dict(), whole.pair.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if name.startswith("text_encoder.")} <= same
    assert TABLE in same
    assert "transformer.transformer_blocks.3.ff.net.0.proj.weight" not in same


def test_a_stopped_run_continues_to_the_same_weights(whole: MMDiTTraining, tmp_path: Path) -> None:
    stopped = MMDiTTraining(SMALL, tmp_path, assets_folder())
    stopped.step()
    stopped.save()
    resumed = MMDiTTraining(SMALL, tmp_path, assets_folder())
    assert resumed.progress.seen == 2
    resumed.run()
    for (name, expected), actual in zip(whole.pair.named_parameters(), resumed.pair.parameters(), strict=True):
        assert torch.equal(expected, actual), name


def test_what_is_exported_loads_and_says_how_it_was_made(whole: MMDiTTraining, tmp_path: Path) -> None:
    (tmp_path / "text_encoder.safetensors").symlink_to(assets_folder() / "text_encoder.safetensors")
    account = export_mmdit(whole.checkpoint, tmp_path, SMALL)
    assert account["images_seen"] == 3
    assert account["recipe_hash"] == recipe_hash(MMDIT_FILES)
    assert json.loads((tmp_path / "mmdit.json").read_text())["sha256"] == account["sha256"]
    name = "transformer_blocks.3.ff.net.0.proj.weight"
    loaded = load_pipeline(tmp_path).transformer.state_dict()[name]
    assert torch.allclose(loaded, whole.average[f"transformer.{name}"], atol=1e-2)
