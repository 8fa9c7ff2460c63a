"""The recipe of the backbone: resumable, deterministic, and its schedule as stated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ditbench.worlds.scenes.recipe.backbone import Recipe, Stage, Training
from ditbench.worlds.scenes.recipe.export import export_backbone, recipe_hash

SMALL = Recipe(stages=(Stage(16, 4, 2, 2.0), Stage(32, 2, 1, 3.0)), warmup_images=2)


def test_stages_and_rates_follow_the_recipe() -> None:
    recipe = Recipe(stages=(Stage(32, 100, 10, 2.0), Stage(64, 25, 5, 4.0)), warmup_images=10, cooldown_share=0.5)
    assert recipe.images == 125
    assert [recipe.stage_at(seen).size for seen in (0, 99, 100, 124)] == [32, 32, 64, 64]
    assert recipe.rate_at(0) == pytest.approx(0.1)
    # Both stages compute the same number of pixels, so the cool-down is the second stage.
    assert recipe.rate_at(100) == 1
    assert recipe.rate_at(112) == pytest.approx(13 / 25)
    assert recipe.rate_at(125) == 0


def test_a_stopped_run_continues_to_the_same_weights(tmp_path: Path) -> None:
    whole = Training(SMALL, tmp_path / "whole")
    whole.run()
    stopped = Training(SMALL, tmp_path / "stopped")
    stopped.step()
    stopped.save()
    resumed = Training(SMALL, tmp_path / "stopped")
    assert resumed.progress.seen == 2
    resumed.run()
    assert resumed.progress.seen == whole.progress.seen == 6
    for (name, expected), actual in zip(whole.pair.named_parameters(), resumed.pair.parameters(), strict=True):
        assert torch.equal(expected, actual), name
    assert all(torch.equal(whole.average[name], resumed.average[name]) for name in whole.average)


def test_what_is_exported_loads_and_says_how_it_was_made(tmp_path: Path) -> None:
    from ditbench.worlds.scenes.pipeline import load_pipeline

    training = Training(SMALL, tmp_path / "work")
    training.run()
    account = export_backbone(training.checkpoint, tmp_path / "assets", SMALL)
    assert account["images_seen"] == 6
    assert account["complete"]
    assert account["recipe_hash"] == recipe_hash()
    assert json.loads((tmp_path / "assets" / "backbone.json").read_text())["recipe"]["stages"][1]["size"] == 32
    pipeline = load_pipeline(tmp_path / "assets")
    name = "transformer_blocks.3.ff.net.0.proj.weight"
    averaged = training.average[f"transformer.{name}"]
    assert torch.allclose(pipeline.transformer.state_dict()[name].float(), averaged, atol=1e-2)
