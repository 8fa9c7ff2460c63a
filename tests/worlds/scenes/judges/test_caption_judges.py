"""The shipped dual encoder and preference model do what they are for."""

from __future__ import annotations

import numpy as np
import pytest

from ditbench.worlds.scenes.grammar import draw_scenes
from ditbench.worlds.scenes.judges.dual import LENGTH, PAD, UNKNOWN, DualEncoder, load_dual, tokenize
from ditbench.worlds.scenes.judges.preference import load_preference
from ditbench.worlds.scenes.recipe.changes import CHANGES, change, mirrored
from ditbench.worlds.scenes.recipe.defects import DAMAGES, damaged
from ditbench.worlds.scenes.renderer import render_batch
from ditbench.worlds.scenes.world import assets_folder

COUNT = 100
SCENES = draw_scenes(COUNT, seed=11)
IMAGES = render_batch(SCENES, 11)
CAPTIONS = [scene.caption() for scene in SCENES]


@pytest.mark.parametrize("kind", CHANGES)
def test_clip_scores_a_changed_caption_lower(kind: str) -> None:
    dual = load_dual(assets_folder() / "dual.safetensors")
    rng = np.random.default_rng(0)
    changed = [change(scene, kind, rng).caption() for scene in SCENES]
    assert np.mean(dual.similarity(IMAGES, CAPTIONS) > dual.similarity(IMAGES, changed)) >= 0.9


@pytest.mark.parametrize("kind", DAMAGES)
def test_hps_scores_a_damaged_picture_lower(kind: str) -> None:
    preference = load_preference(assets_folder() / "preference.safetensors")
    rng = np.random.default_rng(0)
    worse = np.stack(
        [damaged(p.astype(np.float32), IMAGES[i - 1].astype(np.float32), kind, 0.6, rng) for i, p in enumerate(IMAGES)]
    )
    scores = preference.score(IMAGES, CAPTIONS), preference.score(np.rint(worse).astype(np.uint8), CAPTIONS)
    assert np.mean(scores[0] > scores[1]) >= 0.9


def test_clip_hears_which_object_is_where() -> None:
    dual = load_dual(assets_folder() / "dual.safetensors")
    pairs = [i for i, scene in enumerate(SCENES) if len(scene.things) == 2]
    right = dual.similarity(IMAGES[pairs], [CAPTIONS[i] for i in pairs])
    turned = dual.similarity(IMAGES[pairs], [mirrored(SCENES[i]).caption() for i in pairs])
    assert np.mean(right > turned) >= 0.9


def test_hps_scores_the_picture_of_another_caption_lower() -> None:
    preference = load_preference(assets_folder() / "preference.safetensors")
    right = preference.score(IMAGES, CAPTIONS)
    assert np.mean(right > preference.score(np.roll(IMAGES, 1, 0), CAPTIONS)) >= 0.95


def test_words_outside_the_grammar_and_long_captions_are_read_too() -> None:
    ids = tokenize(["a red übercircle", "", "a " * 40])
    assert ids.shape == (3, LENGTH)
    assert ids[0, 2] == UNKNOWN and (ids[0, 3:] == PAD).all()
    assert ids[1, 0] == UNKNOWN
    cosines = DualEncoder().eval().similarity(IMAGES[:3], ["a red übercircle", "", "a " * 40])
    assert np.isfinite(cosines).all() and (np.abs(cosines) <= 1).all()


def test_similarity_is_of_pairs_and_does_not_depend_on_the_batch() -> None:
    dual = DualEncoder().eval()
    whole = dual.similarity(IMAGES[:7], CAPTIONS[:7], batch=7)
    assert np.allclose(whole, dual.similarity(IMAGES[:7], CAPTIONS[:7], batch=2), atol=1e-5)
    with pytest.raises(ValueError, match="7 pictures and 6 captions"):
        dual.similarity(IMAGES[:7], CAPTIONS[:6])
