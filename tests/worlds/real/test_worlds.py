"""Every world file of the package, against its network on the device `meta`; and what wrong files are answered."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from ditbench.backbones.families import backbone_of
from ditbench.codehash import code_hash, source_files
from ditbench.engine.fills import Pass
from ditbench.engine.ledger import bill
from ditbench.engine.plan import full_plan
from ditbench.engine.run import Parts, Run, attached
from ditbench.faults import Fault
from ditbench.worlds import get_world, world_names
from ditbench.worlds.real.classes import class_of
from ditbench.worlds.real.pipelines import build_scheduler
from ditbench.worlds.real.texts import TEXTS
from ditbench.worlds.real.world import DiffusersWorld
from ditbench.worlds.real.worldfile import read_world
from tests.worlds.real.miniature import packaged

WORLDS = [name for name in world_names() if isinstance(get_world(name), DiffusersWorld)]

# T MACs that papers print of a whole run: of which of our figures, and how many branches of guidance they count.
PRINTED = {
    "pixart-alpha-256": ("linear", 1, "2.86"),
    "pixart-alpha-512": ("thop", 1, "10.851"),
    "dit-xl-2-256": ("linear", 2, "11.44"),
    "flux-schnell-256": ("thop", 1, "13.247"),
    "flux-dev-1024": ("thop", 1, "595.2"),
    "sd3.5-large-turbo-1024": ("thop", 1, "47.7"),
}
# The same of one step.
PRINTED_STEP = {
    "sd3-medium-768": ("thop", 2, "3.58"),
    "sd3-medium-1024": ("thop", 2, "6.01"),
    "sd3-medium-1536": ("thop", 2, "12.97"),
}


def real(name: str) -> DiffusersWorld:
    world = get_world(name)
    assert isinstance(world, DiffusersWorld)
    return world


def test_the_worlds_of_the_papers_are_there() -> None:
    sizes = {f"sd3-medium-{size}" for size in (512, 768, 1024, 1536)}
    pixart = {"pixart-alpha-256", "pixart-alpha-512", "pixart-sigma-512", "pixart-sigma-1024"}
    large = {"sd3.5-large-1024", "sd3.5-large-turbo-1024"}
    assert set(WORLDS) >= sizes | pixart | large | {
        "dit-xl-2-256",
        "flux-schnell-256",
        "flux-dev-1024",
        "wan2.1-1.3b-256",
    }


@pytest.mark.parametrize("name", WORLDS)
def test_a_file_says_what_its_network_is(name: str) -> None:
    world = real(name)
    backbone, inputs = world.backbone("meta")
    assert backbone.layout == world.layout
    assert backbone.tokens(**inputs) == world.tokens
    assert backbone.text_tokens(**inputs) == world.text_tokens
    assert world.shape(3).sites == (3, len(backbone.layout))
    latent = inputs["hidden_states"]
    assert latent.shape[1:] == world.noise_shape()
    assert world.file.pipeline in TEXTS or world.text_tokens == 0
    # The sampler exists, and takes the settings.
    scheduler = build_scheduler(world.file, {})
    assert set(world.file.sampler.settings) <= set(scheduler.config)
    # What the network does not know it would pass over with a warning.
    assert set(world.file.network.config) <= set(backbone.network.config)


@pytest.mark.parametrize("name", [*PRINTED, *PRINTED_STEP])
def test_a_run_costs_what_papers_print(name: str) -> None:
    world = real(name)
    backbone, inputs = world.backbone("meta")
    run = Run(backbone_of(backbone.network), full_plan(world.shape(1)), world.tokens, lambda: Parts(Pass()))
    with attached(run):
        backbone.network(**inputs)
    figure, branches, printed = (PRINTED | PRINTED_STEP)[name]
    steps = world.default_steps if name in PRINTED else 1
    value = getattr(bill(run.trace, run.costs), figure) * steps * branches / 1e12
    assert f"{value:.{len(printed.partition('.')[2])}f}" == printed


def test_guidance_is_billed_as_often_as_the_network_is_asked() -> None:
    branches = {name: get_world(name).cfg_branches for name in WORLDS}
    once = {"flux-schnell-256", "flux-dev-1024", "sd3.5-large-turbo-1024"}
    assert {name for name, count in branches.items() if count == 1} == once


def test_random_weights_have_the_dtypes_of_loaded_ones() -> None:
    network = real("wan2.1-1.3b-256").backbone("meta")[0].network
    dtypes = {name: parameter.dtype for name, parameter in network.named_parameters()}
    assert dtypes["blocks.0.attn1.to_q.weight"] == torch.bfloat16
    assert dtypes["scale_shift_table"] == dtypes["blocks.3.scale_shift_table"] == torch.float32


def test_a_stages_code_is_that_of_the_worlds_own_family() -> None:
    files = {path.name for path in source_files("generate", "flux-schnell-256")}
    assert {"flux-schnell-256.yaml", "pipelines.py", "flux.py", "stream.py", "base.py"} <= files
    assert not {"pixart.py", "mmdit.py", "dit.py", "flux-dev-1024.yaml"} & files
    hashes = {code_hash("generate", name) for name in WORLDS}
    assert len(hashes) == len(WORLDS)


def test_listing_worlds_imports_nothing_heavy() -> None:
    # The package's own __init__ is not of this test: only what the worlds import is.
    code = """
import sys, types
package = types.ModuleType("ditbench"); package.__path__ = [sys.argv[1]]; sys.modules["ditbench"] = package
from ditbench.worlds import get_world, world_names
for name in world_names():
    get_world(name).shape(20)
print([name for name in ("torch", "diffusers", "transformers", "huggingface_hub") if name in sys.modules])
"""
    import ditbench

    done = subprocess.run([sys.executable, "-c", code, ditbench.__path__[0]], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


# Captions


def test_captions_of_text_worlds_come_from_a_file() -> None:
    with pytest.raises(Fault, match="world flux-dev-1024 has no captions of its own: name a UTF-8 text file"):
        get_world("flux-dev-1024").draw_captions(4, 0)
    with pytest.raises(Fault, match="no reference images yet"):
        get_world("flux-dev-1024").references(4, 0)


def test_captions_of_dit_are_classes_each_as_often_as_any() -> None:
    world = real("dit-xl-2-256")
    captions = world.draw_captions(2500, 0)
    assert len(set(captions)) == 2500
    assert world.draw_captions(30, 0) == captions[:30]
    assert world.draw_captions(30, 1) != captions[:30]
    assert world.draw_captions(30, 0, "training") != captions[:30]
    classes = [class_of(caption, 1000) for caption in captions]
    assert sorted(classes[:1000]) == sorted(classes[1000:2000]) == list(range(1000))
    assert world.embed(world.load(part="text", given="random"), ["", "class 7"])["class_labels"].tolist() == [1000, 7]


@pytest.mark.parametrize(
    ("caption", "number"),
    [
        ("class 207: golden retriever, image 3", 207),
        ("Class 9", 9),
        ("207", 207),
        ("Golden Retriever", 207),
        ("", 1000),
    ],
)
def test_a_class_is_named_by_its_number_or_by_imagenets_name(caption: str, number: int) -> None:
    assert class_of(caption, 1000) == number


@pytest.mark.parametrize("caption", ["class 1000", "a dog on a beach", "cardigan"])  # a breed of dogs, and a garment
def test_a_caption_that_names_no_class_is_refused(caption: str) -> None:
    with pytest.raises(Fault, match="names no class"):
        class_of(caption, 1000)


# Wrong files


def written(folder: Path, body: object) -> Path:
    path = folder / "worlds" / "mine.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(body if isinstance(body, str) else yaml.safe_dump(body))
    return path


def test_all_mistakes_of_a_file_are_told(tmp_path: Path) -> None:
    body = packaged("pixart-alpha-256")
    body |= {"step": 20, "tokens": 0, "pipeline": "StableDiffusionPipeline", "dtype": "float8"}
    body["guidance"] = {"scale": 4.5, "branch": "batched"}
    del body["steps"]
    with pytest.raises(Fault) as caught:
        read_world(written(tmp_path, body))
    told = str(caught.value)
    for part in (
        "step: unknown key; did you mean 'steps'?",
        "guidance.branch: unknown key; did you mean 'branches'? Possible: scale, branches",
        "guidance.branches: missing",
        "steps: missing",
        "tokens: 0: input should be greater than or equal to 1",
        "pipeline: 'StableDiffusionPipeline': input should be 'PixArtAlphaPipeline'",
        "dtype: 'float8'",
    ):
        assert part in told
    assert told.count("mine.yaml: ") == len(told.splitlines()) == 7


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("- a", "must hold keys and values"),
        ("a: [", "cannot be read as YAML"),
        ("[" * 5000, "nested too deeply"),
        ("steps: &a [*a]", "a value contains itself"),
        ("steps: 20\nsteps: 30", r"mine\.yaml: steps: given twice, in lines 1 and 2; keep one"),
        ('summary: "\\e[31m"', r"mine\.yaml: summary: holds the character U\+001B"),
        ({**packaged("pixart-alpha-256"), "frames": 3}, "`latent` is"),
        ({**packaged("pixart-alpha-256"), "frames_per_second": 8}, "are given together"),
    ],
)
def test_a_file_that_makes_no_sense_is_one_sentence(tmp_path: Path, body: object, says: str) -> None:
    with pytest.raises(Fault, match=says):
        read_world(written(tmp_path, body))


def test_a_world_of_ones_own_is_a_file_of_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, {**packaged("pixart-alpha-256"), "summary": "mine"})
    assert get_world("mine").summary == "mine"
    assert path in get_world("mine").sources("generate")
    path.rename(path.with_name("pixart-alpha-256.yaml"))
    with pytest.raises(Fault, match="ditbench has a world pixart-alpha-256 already"):
        world_names()
    (path.parent / "pixart-alpha-256.yaml").rename(path.with_name("My World.yaml"))
    with pytest.raises(Fault, match=r"worlds/My World\.yaml: a world's name has lower-case letters"):
        world_names()
