"""The pipelines in miniature are whole, load like the real ones, and show in the picture every part they have."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from torch import nn

from tests.tiny_pipelines import (
    FRAMES,
    LABELS,
    PIPELINES,
    PROMPTS,
    SIZE,
    TEXT_LENGTH,
    build,
    draw,
    has_text,
    loaded,
    saved,
)

NAMES = tuple(PIPELINES)
CLASSES = {
    "pixart-alpha": ("PixArtAlphaPipeline", "PixArtTransformer2DModel"),
    "pixart-alpha-1024": ("PixArtAlphaPipeline", "PixArtTransformer2DModel"),
    "pixart-sigma": ("PixArtSigmaPipeline", "PixArtTransformer2DModel"),
    "dit": ("DiTPipeline", "DiTTransformer2DModel"),
    "sd3": ("StableDiffusion3Pipeline", "SD3Transformer2DModel"),
    "sd3.5-medium": ("StableDiffusion3Pipeline", "SD3Transformer2DModel"),
    "sd3.5-large": ("StableDiffusion3Pipeline", "SD3Transformer2DModel"),
    "flux-schnell": ("FluxPipeline", "FluxTransformer2DModel"),
    "flux-dev": ("FluxPipeline", "FluxTransformer2DModel"),
    "wan": ("WanPipeline", "WanTransformer3DModel"),
}

Reads = Callable[..., DiffusionPipeline]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a pipeline, written once."""
    root, done = tmp_path_factory.mktemp("tiny"), dict[str, Path]()

    def of(name: str) -> Path:
        if name not in done:
            done[name] = saved(name, root / name)
        return done[name]

    return of


@pytest.fixture(scope="module")
def read(folder: Callable[[str], Path]) -> Reads:
    """A pipeline from its folder, read once per dtype."""
    done = dict[tuple[str, torch.dtype], DiffusionPipeline]()

    def of(name: str, dtype: torch.dtype = torch.float32) -> DiffusionPipeline:
        if (name, dtype) not in done:
            done[name, dtype] = loaded(name, folder(name), dtype)
        return done[name, dtype]

    return of


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """How far `one` is from `other`, as a part of `other`."""
    return float((one.double() - other.double()).norm() / other.double().norm())


def latent_shape(name: str, batch: int) -> tuple[int, ...]:
    rows, columns = (side // 4 for side in SIZE)
    if name == "dit":
        return (batch, 4, 16, 16)
    if name.startswith("flux"):
        return (batch, rows * columns // 4, 64)
    if name == "wan":
        return (batch, 16, (FRAMES - 1) // 4 + 1, rows, columns)
    return (batch, 16 if name.startswith("sd3") else 4, rows, columns)


def pixel_shape(name: str, batch: int) -> tuple[int, ...]:
    if name == "dit":
        return (batch, 64, 64, 3)
    return (batch, *((FRAMES,) if name == "wan" else ()), *SIZE, 3)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_loads_and_draws(name: str, folder: Callable[[str], Path], read: Reads) -> None:
    began = time.perf_counter()
    path = folder(name)
    written = time.perf_counter()
    pipeline = read(name)
    ready = time.perf_counter()
    latents = draw(pipeline, name)
    drawn = time.perf_counter()
    pixels = draw(pipeline, name, output="np", batch=2)
    print(f"{name}: written {written - began:.2f} s, loaded {ready - written:.2f} s, drawn {drawn - ready:.2f} s")

    assert (type(pipeline).__name__, type(pipeline.transformer).__name__) == CLASSES[name]
    assert (path / "model_index.json").is_file()
    assert not any(part.training for part in pipeline.components.values() if isinstance(part, nn.Module))
    assert latents.shape == latent_shape(name, 1)
    assert latents.isfinite().all()
    assert pixels.shape == pixel_shape(name, 2)
    assert np.isfinite(pixels).all()
    assert pixels.std() > 0.05, "an even picture"
    assert np.mean((pixels == 0) | (pixels == 1)) < 0.5, "most pixels are cut off"


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_and_a_prompt_decide_the_picture(name: str, read: Reads) -> None:
    pipeline = read(name)
    once = draw(pipeline, name)
    assert torch.equal(draw(pipeline, name), once)
    assert distance(draw(pipeline, name, seed=1), once) > 0.1
    others = PROMPTS[1:] if has_text(name) else LABELS[1:]
    assert distance(draw(pipeline, name, prompts=others), once) > 0.05
    assert distance(draw(pipeline, name, steps=8), once) > 0.01


@pytest.mark.parametrize("name", [name for name in NAMES if name != "flux-schnell"])
def test_guidance_matters(name: str, read: Reads) -> None:
    assert distance(draw(read(name), name, guidance=2.0), draw(read(name), name, guidance=3.0)) > 0.01


def test_flux_schnell_knows_no_guidance(read: Reads) -> None:
    pipeline = read("flux-schnell")
    assert torch.equal(draw(pipeline, "flux-schnell", guidance=2.0), draw(pipeline, "flux-schnell", guidance=3.0))


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_the_same_in_a_batch(name: str, read: Reads) -> None:
    pipeline = read(name)
    two = draw(pipeline, name, batch=2)
    assert two.shape == latent_shape(name, 2)
    torch.testing.assert_close(two[:1], draw(pipeline, name), rtol=1e-3, atol=1e-3)
    assert distance(two[1:], two[:1]) > 0.1


@pytest.mark.parametrize("name", [name for name in NAMES if name != "dit"])
def test_a_picture_has_the_size_asked_for(name: str, read: Reads) -> None:
    pixels = draw(read(name), name, steps=2, output="np", size=(32, 48))
    assert pixels.shape[-3:] == (32, 48, 3)


def test_dit_draws_squares_of_one_size_only(read: Reads) -> None:
    with pytest.raises(ValueError, match="squares"):
        draw(read("dit"), "dit", size=(32, 48))


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_draws_too(name: str, read: Reads) -> None:
    pipeline = read(name, torch.bfloat16)
    assert pipeline.transformer.dtype == torch.bfloat16
    latents = draw(pipeline, name)
    assert latents.isfinite().all()
    assert np.isfinite(draw(pipeline, name, output="np")).all()
    # Flux takes the time and the guidance times a thousand in bfloat16, where 3500 is 3504: a random network, for which
    # neighbouring times have nothing in common, draws another picture.
    assert distance(latents.float(), draw(read(name), name)) < (0.5 if name.startswith("flux") else 0.1)


def test_wan_keeps_in_float32_what_it_asks_for(read: Reads) -> None:
    network = read("wan", torch.bfloat16).transformer
    kept = {key for key, value in network.named_parameters() if value.dtype == torch.float32}
    tables = {"scale_shift_table", *(f"blocks.{i}.scale_shift_table" for i in range(2))}
    norms = {f"blocks.{i}.norm2.{part}" for i in range(2) for part in ("weight", "bias")}
    embedder = {f"condition_embedder.time_embedder.linear_{i}.{part}" for i in (1, 2) for part in ("weight", "bias")}
    assert kept == tables | norms | embedder


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_lost_on_disk(name: str, read: Reads) -> None:
    before, after = build(name), read(name)
    assert before.components.keys() == after.components.keys()
    for part, network in before.components.items():
        if isinstance(network, nn.Module):
            there = getattr(after, part).state_dict()
            here = network.state_dict()
            assert here.keys() == there.keys()
            assert all(torch.equal(value, there[key]) for key, value in here.items())
    # Not to the bit: weights that were mapped from a file lie elsewhere in memory, and sums are taken in another order.
    torch.testing.assert_close(draw(after, name), draw(before, name), rtol=1e-3, atol=1e-3)


def test_building_leaves_the_random_numbers_of_others_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    build("dit")
    assert torch.equal(torch.rand(3), expected)


def test_tokenizers_are_what_the_encoders_expect(read: Reads) -> None:
    pipeline = read("sd3")
    padding = {"padding": "max_length", "truncation": True}
    ids = pipeline.tokenizer_3("a red zebra", max_length=TEXT_LENGTH, **padding).input_ids
    assert (pipeline.tokenizer_3.pad_token_id, pipeline.tokenizer_3.eos_token_id) == (0, 1)
    assert pipeline.tokenizer_3.unk_token_id not in ids, "a word that is not in the vocabulary is spelt"
    assert ids[-1] == 0
    assert ids[ids.index(0) - 1] == 1
    # In CLIP's vocabulary the end has the highest id: that is where its encoders pool.
    for tokenizer, pad in ((pipeline.tokenizer, "<|endoftext|>"), (pipeline.tokenizer_2, "!")):
        ids = tokenizer("a red zebra", **padding).input_ids
        assert len(ids) == tokenizer.model_max_length == 77
        assert ids[0] == tokenizer.bos_token_id == len(tokenizer) - 2
        assert tokenizer.eos_token_id == len(tokenizer) - 1
        assert ids[ids.index(tokenizer.eos_token_id) + 1] == tokenizer.convert_tokens_to_ids(pad)


def test_dit_knows_its_labels(read: Reads) -> None:
    assert read("dit").get_label_ids(["thing 7", "thing 980"]) == [7, 980]


# What cannot show, and why. A vector that is added to all keys moves all scores of a query alike: the bias of keys,
# where no norm follows and these are all the keys there are. SD3's last block gives no text: text asks nothing there.
SILENT = {
    "pixart": r"transformer\..*\.attn[12]\.to_k\.bias",
    "dit": r"transformer\..*\.attn1\.to_k\.bias",
    "sd3": r"transformer\.transformer_blocks\.1\.attn\.(add_q_proj|norm_added_q)\.\w+|text_encoder.*\.k_proj\.bias",
    "flux": r"text_encoder\..*\.k_proj\.bias",
    "wan": r"(?!)",
}


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_shows(name: str) -> None:
    """A parameter that is taken out (a norm's scale: set to one) changes the picture."""
    pipeline = build(name)
    whole = draw(pipeline, name)
    silent = re.compile(next(pattern for family, pattern in SILENT.items() if name.startswith(family)))
    wrong = []
    for part, network in pipeline.components.items():
        if part == "vae" or not isinstance(network, nn.Module):
            continue
        for key, parameter in network.named_parameters():
            kept = parameter.data
            of_a_norm = parameter.ndim == 1 and key.endswith("weight")
            parameter.data = torch.ones_like(kept) if of_a_norm else torch.zeros_like(kept)
            change = distance(draw(pipeline, name), whole)
            parameter.data = kept
            expected = change < 1e-5 if silent.fullmatch(f"{part}.{key}") else change > 5e-4
            if not expected:
                wrong.append((f"{part}.{key}", change))
    assert wrong == []
