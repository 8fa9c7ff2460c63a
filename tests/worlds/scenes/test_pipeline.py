"""The scenes world as a diffusers pipeline, with the shipped weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import ditbench
from ditbench.faults import Fault
from ditbench.worlds import get_world
from ditbench.worlds.scenes import settings
from ditbench.worlds.scenes.pipeline import load_pipeline, load_weights
from ditbench.worlds.scenes.world import assets_folder


def test_damaged_missing_and_foreign_weights_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(Fault, match="is missing: it ships with the repository"):
        load_pipeline(tmp_path)
    for name in ("transformer.safetensors", "text_encoder.safetensors"):
        shutil.copy(assets_folder() / name, tmp_path / name)
    whole = (tmp_path / "transformer.safetensors").read_bytes()
    (tmp_path / "transformer.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Fault, match="cannot be read as weights"):
        load_pipeline(tmp_path)
    shutil.copy(tmp_path / "text_encoder.safetensors", tmp_path / "transformer.safetensors")
    with pytest.raises(Fault, match="does not fit this version's network"):
        load_pipeline(tmp_path)


def test_the_whole_pipeline_draws_from_words() -> None:
    """Text in, picture out, through diffusers' own call; accelerated and not."""
    pipeline = load_pipeline(assets_folder())
    call = {
        "prompt": "a large red square in the centre on a plain gray background",
        "num_inference_steps": settings.STEPS,
        "guidance_scale": settings.GUIDANCE,
        "max_sequence_length": settings.TEXT_LENGTH,
        "height": settings.IMAGE_SIZE,
        "width": settings.IMAGE_SIZE,
        "use_resolution_binning": False,
        "clean_caption": False,
    }
    picture = np.asarray(pipeline(**call).images[0]).astype(int)
    assert picture.shape == (64, 64, 3)
    red, green, blue = picture[32, 32]
    assert red > 150 > 100 > max(green, blue)
    with ditbench.accelerate(pipeline, "fora", interval=2) as accelerated:
        fast = np.asarray(pipeline(**call).images[0]).astype(int)
    assert accelerated.trace.realised_ratio == 0.5
    assert fast[32, 32, 0] > 150
    assert not np.array_equal(fast, picture)


def test_the_worlds_costs_are_its_networks() -> None:
    """What the ledger charges follows from the shipped weights' shapes."""
    weights = load_weights(assets_folder() / "transformer.safetensors")
    block = {name: tensor for name, tensor in weights.items() if name.startswith("transformer_blocks.0.")}
    per_token = {
        "self": [n for n in block if "attn1" in n and n.endswith("weight")],
        "cross": [n for n in block if "attn2" in n and ("to_q" in n or "to_out" in n) and n.endswith("weight")],
        "mlp": [n for n in block if ".ff." in n and n.endswith("weight")],
    }
    backbone, inputs = get_world("scenes").backbone("meta")
    costs = backbone.costs(settings.TOKENS, settings.TEXT_LENGTH)
    for cost, names in zip(costs.branches, per_token.values(), strict=False):  # of the first block
        assert cost.per_token == sum(block[name].numel() for name in names)
    assert costs.branches[0].width == settings.WIDTH
    assert backbone.shape(7, **inputs) == get_world("scenes").shape(7)


def test_the_mmdit_draws_what_is_asked_and_takes_a_method() -> None:
    """Through Stable Diffusion 3's own call, from embeddings of the shared text encoder."""
    world = get_world("scenes-mmdit")
    handle = world.load()
    asked = world.embed(handle, ["a large red square in the centre on a plain gray background"])
    call = {
        "prompt_embeds": asked["text"],
        "pooled_prompt_embeds": asked["pooled"],
        "negative_prompt_embeds": world.embed(handle, [""])["text"],
        "negative_pooled_prompt_embeds": world.embed(handle, [""])["pooled"],
        "num_inference_steps": settings.STEPS,
        "guidance_scale": settings.GUIDANCE,
        "height": settings.IMAGE_SIZE,
        "width": settings.IMAGE_SIZE,
    }
    picture = np.asarray(handle.pipeline(**call).images[0]).astype(int)
    red, green, blue = picture[32, 32]
    assert red > 150 > 100 > max(green, blue)
    with ditbench.accelerate(handle.pipeline, "sdtm", ratio=0.4, multiple=1) as accelerated:
        fast = np.asarray(handle.pipeline(**call).images[0]).astype(int)
    assert 0.2 < accelerated.trace.realised_ratio < 0.5
    assert fast[32, 32, 0] > 150
    assert not np.array_equal(fast, picture)


def test_the_mmdit_is_judged_as_the_scenes_are() -> None:
    from ditbench.judges import judges_of

    world = get_world("scenes-mmdit")
    assert world.judged_as == "scenes"
    assert judges_of("scenes-mmdit") == judges_of("scenes")
    assert world.draw_captions(3, 0) == get_world("scenes").draw_captions(3, 0)
    backbone, inputs = world.backbone("meta")
    assert backbone.shape(7, **inputs) == world.shape(7)
