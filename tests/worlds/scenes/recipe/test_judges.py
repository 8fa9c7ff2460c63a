from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ditbench.faults import Fault
from ditbench.worlds.scenes.grammar import SHAPES, draw_scenes, parse
from ditbench.worlds.scenes.recipe import judges as recipe
from ditbench.worlds.scenes.recipe.changes import CHANGES, change
from ditbench.worlds.scenes.recipe.defects import DAMAGES, blurred, damaged, imperfect, shifted
from ditbench.worlds.scenes.recipe.preference_task import draw_choice
from ditbench.worlds.scenes.recipe.reader_task import Marks, ReaderTask
from ditbench.worlds.scenes.recipe.training import Schedule, Training
from ditbench.worlds.scenes.renderer import render_batch
from ditbench.worlds.scenes.world import assets_folder


class Small(ReaderTask):
    schedule = replace(ReaderTask.schedule, steps=6, batch=8, warmup=1)


def test_the_rate_rises_and_falls_to_zero() -> None:
    schedule = Schedule(steps=10, batch=1, rate=1.0, warmup=2)
    assert [round(schedule.rate_at(step), 3) for step in (0, 5, 10)] == [0.5, 0.5, 0.0]


def test_a_run_that_was_stopped_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    whole = Training(Small(), tmp_path / "whole")
    whole.run()
    Training(Small(), tmp_path / "parts").run(until=3)
    resumed = Training(Small(), tmp_path / "parts")
    assert resumed.step == 3
    resumed.run()
    assert whole.losses == resumed.losses
    assert whole.losses[-1] < whole.losses[0]
    for name, tensor in whole.task.network.state_dict().items():
        assert torch.equal(tensor, resumed.task.network.state_dict()[name]), name


def test_marks_lie_where_objects_are_and_blends_share_their_shape() -> None:
    scene = parse("a large red circle left of a small blue square on a plain gray background")
    marks = Marks.empty(1)
    marks.put(0, scene, [(0.26, 0.5), (0.74, 0.5)], (1, "ring", 0.25))
    assert np.argwhere(marks.centre[0] == 1).tolist() == [[8, 4], [8, 11]]
    assert marks.shape[0, 8, 4, SHAPES.index("circle")] == 1
    assert marks.shape[0, 8, 11, SHAPES.index("square")] == 0.75
    assert marks.shape[0, 8, 11, SHAPES.index("ring")] == 0.25


def test_changes_alter_one_kind_of_word_and_stay_in_the_grammar() -> None:
    rng = np.random.default_rng(0)
    for scene in draw_scenes(60, seed=3):
        for kind in CHANGES:
            changed = change(scene, kind, rng)
            assert parse(changed.caption()) == changed != scene
            assert (changed.where != scene.where) == (kind == "where")
            assert (changed.background != scene.background) == (kind == "background")
            assert (changed.things != scene.things) == (kind in ("shape", "colour", "size"))


@pytest.mark.parametrize("kind", DAMAGES)
def test_more_strength_is_more_damage(kind: str) -> None:
    images = render_batch(draw_scenes(12, seed=4), 4).astype(np.float32)

    def error(strength: float) -> float:
        rng = np.random.default_rng(0)
        return float(
            np.mean([np.abs(damaged(p, images[i - 1], kind, strength, rng) - p).mean() for i, p in enumerate(images)])
        )

    assert 0 < error(0.1) < error(0.9)


def test_imperfections_are_slight_and_shifts_are_exact() -> None:
    rng = np.random.default_rng(0)
    images = render_batch(draw_scenes(30, seed=4), 4).astype(np.float32)
    assert 0 < np.mean([np.abs(imperfect(p, rng) - p).mean() for p in images]) < 10
    moved = shifted(images[0], 2, -1)
    assert np.array_equal(moved[:-1, 2:], images[0][1:, :-2])
    assert blurred(images[0]).mean() == pytest.approx(images[0].mean(), rel=0.02)


def test_a_pair_differs_and_its_better_picture_is_of_its_caption() -> None:
    scene = draw_scenes(1, seed=9)[0]
    for reason in (*DAMAGES, *CHANGES):
        choice = draw_choice(scene, 0, 0, np.random.default_rng(1), reason)
        assert choice.reason == reason and choice.caption == scene.caption()
        assert not np.array_equal(choice.better, choice.worse)


def test_checkpoints_of_another_recipe_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe.claim(tmp_path)
    recipe.claim(tmp_path)
    monkeypatch.setattr(recipe, "recipe_hash", lambda: "another")
    with pytest.raises(Fault, match="another recipe"):
        recipe.claim(tmp_path)


def test_the_shipped_account_is_of_this_recipe_and_of_the_shipped_files() -> None:
    import hashlib

    folder = assets_folder()
    account = json.loads((folder / "judges.json").read_text())
    assert account["recipe_hash"] == recipe.recipe_hash()
    names = ("reader", "dual", "preference")
    for name in names:
        assert account[name]["sha256"] == hashlib.sha256((folder / f"{name}.safetensors").read_bytes()).hexdigest()
    assert sum((folder / f"{name}.safetensors").stat().st_size for name in names) <= 5_000_000
    assert account["reader"]["held_out"]["everything"] >= 0.95
