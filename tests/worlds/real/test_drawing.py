"""From a pipeline's folder on disk to images, scores, time and MACs, by the commands that the workflow runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ditbench.cells import Spec
from ditbench.cli import main
from ditbench.engine.trace import Trace
from ditbench.methods import get_method
from ditbench.noise import batch_noise
from ditbench.records import read_record
from ditbench.storage import read_shard
from ditbench.worlds import get_world
from tests.tiny_pipelines import FRAMES, PROMPTS, SIZE, loaded, saved
from tests.worlds.real.miniature import NAMES, need_family, packaged, reference, write_world

COUNT = 3
IMAGES = [name for name in NAMES if name != "wan"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a pipeline in miniature, written once."""
    root, done = tmp_path_factory.mktemp("pipelines"), dict[str, Path]()

    def of(name: str) -> Path:
        if name not in done:
            done[name] = saved(name, root / name)
        return done[name]

    return of


class Bench:
    """A working folder with a world of its own, and the commands of the workflow in it."""

    def __init__(self, root: Path, name: str, folder: Path | None) -> None:
        self.root, self.name = root, write_world(root, name)
        self.weights = "random" if folder is None else str(folder)
        (root / "captions.txt").write_text("\n".join(PROMPTS))

    def run(self, *words: Any) -> int:
        return main([str(word) for word in words])

    def captions(self) -> list[str]:
        file = [] if get_world(self.name).has_captions else ["--file", "captions.txt"]
        words = ("--world", self.name, "--name", "some", "--count", COUNT, *file, "--out", "captions.json")
        assert self.run("captions", *words) == 0
        return [entry["text"] for entry in read_record("captions.json", "captions")["captions"]]

    def spec(self, arm: str = "full", method: str = "full", knobs: dict[str, Any] | None = None) -> None:
        identity = get_world(self.name).weights_identity(self.weights)
        spec = Spec(self.name, arm, method, knobs or {}, None, 0, COUNT, "some", None, "float32", identity)
        assert self.run("spec", "--spec", json.dumps(asdict(spec)), "--out", f"{arm}/spec.json") == 0

    def embed(self) -> int:
        words = ("--world", self.name, "--captions", "captions.json", "--weights", self.weights)
        return self.run("embed", *words, "--out", "embeddings.json")

    def generate(self, arm: str = "full", batch: int = 2, **weights: str) -> int:
        words = ("--spec", f"{arm}/spec.json", "--captions", "captions.json", "--embeddings", "embeddings.json")
        words += ("--first", 0, "--last", COUNT - 1, "--batch", batch)
        return self.run("generate", *words, "--weights", self.weights, "--out", f"{arm}/shard.json")

    def time(self, arm: str, *words: Any) -> int:
        words = ("--spec", f"{arm}/spec.json", "--baseline", "full/spec.json", "--captions", "captions.json", *words)
        return self.run("time", *words, "--rounds", 1, "--batch", 1, "--out", f"{arm}/latency.json")


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folders: Callable[[str], Path]) -> Callable[..., Bench]:
    """Makes the working folder of a family, with the weights of its miniature or with random ones."""
    monkeypatch.chdir(tmp_path)

    def make(name: str, random: bool = False) -> Bench:
        from tests.worlds.real.miniature import MODELS

        need_family(packaged(MODELS[name])["network"]["class"])
        return Bench(tmp_path, name, None if random else folders(name))

    return make


@pytest.mark.parametrize("name", IMAGES)
def test_images_are_those_of_the_pipeline_that_its_owner_shows(
    bench: Callable[..., Bench], folders: Callable[[str], Path], name: str
) -> None:
    made = bench(name)
    captions = made.captions()
    made.spec()
    assert made.embed() == 0
    assert made.generate() == 0
    ids, images = read_shard(Path("full/shard.zip"))
    world = get_world(made.name)
    noise = torch.from_numpy(batch_noise(0, ids, world.noise_shape()))
    pipeline = loaded(name, folders(name))
    call: dict[str, Any] = {"num_inference_steps": world.default_steps}
    if name == "dit":
        numbers = [int(caption.split()[1].rstrip(":")) for caption in captions]
        own = pipeline.scheduler.scale_model_input
        starts = [torch.cat([noise, noise])]
        # The pipeline draws its own noise: what it first gives to the network is exchanged.
        pipeline.scheduler.scale_model_input = lambda latents, *rest: own(starts.pop() if starts else latents, *rest)
        expected = reference(pipeline, name, class_labels=numbers, **call).images
    else:
        height, width = world.file.size  # type: ignore[attr-defined]
        call |= {"height": height, "width": width, "latents": noise}
        expected = reference(pipeline, name, prompt=captions, **call).images
    difference = np.abs(images.astype(int) - (expected * 255).round().astype(int))
    assert difference.max() <= 1, f"{(difference > 1).mean():.2%} of the values differ, by up to {difference.max()}"
    assert images.std() > 10, "the images must show something"


@pytest.mark.parametrize("name", ["pixart-alpha", "dit", "sd3", "flux-dev"])
def test_an_arm_is_drawn_scored_timed_and_billed(bench: Callable[..., Bench], name: str) -> None:
    made = bench(name)
    made.captions()
    made.spec()
    made.spec("fora-n2", "fora", {"interval": 2, "direction": "up"})
    assert made.embed() == 0
    for arm in ("full", "fora-n2"):
        assert made.generate(arm) == 0
    words = ("--captions", "captions.json", "--full-shards", "full/shard.json")
    arm = ("--spec", "fora-n2/spec.json", "--shards", "fora-n2/shard.json")
    assert made.run("score", *arm, *words, "--out", "fora-n2/scores.json") == 0
    measures = {m["name"]: m["value"] for m in read_record("fora-n2/scores.json", "scores")["measures"]}
    psnr = {f"psnr-to-full{part}" for part in ("", "-median", "-worst-tenth")}
    assert measures.keys() == psnr | {"ssim-to-full"}
    assert measures["psnr-to-full"] < 60  # the arm leaves work out, and it shows
    assert made.run("cost", *arm, "--out", "fora-n2/cost.json") == 0
    cost = read_record("fora-n2/cost.json", "cost")
    assert cost["realised_ratio"] == cost["nominal_ratio"] == 0.5
    assert cost["cfg_branches"] == (1 if name == "flux-dev" else 2)
    assert made.time("fora-n2", "--embeddings", "embeddings.json", "--weights", made.weights) == 0
    latency = read_record("fora-n2/latency.json", "latency")
    assert latency["decoded"]
    assert latency["weights"] == read_record("fora-n2/shard.json", "shard")["weights"]


@pytest.mark.parametrize("name", NAMES)
def test_random_weights_are_timed_and_billed_and_nothing_else(
    bench: Callable[..., Bench], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = bench(name, random=True)
    made.captions()
    made.spec()
    made.spec("fora-n2", "fora", {"interval": 2, "direction": "up"})
    assert made.time("fora-n2") == 0  # the spec says it: no embeddings, no --weights
    latency = read_record("fora-n2/latency.json", "latency")
    assert (latency["weights"], latency["decoded"]) == ("random", False)
    ran = ("--spec", "fora-n2/spec.json", "--shards", "fora-n2/latency.json")
    assert made.run("cost", *ran, "--out", "fora-n2/cost.json") == 0
    assert read_record("fora-n2/cost.json", "cost")["realised_ratio"] == 0.5
    capsys.readouterr()
    assert made.embed() == 2
    assert "random weights embed no captions" in capsys.readouterr().err
    assert made.generate() == 2
    assert "they are for speed, memory and MACs" in capsys.readouterr().err
    assert not Path("full/shard.json").exists()
    words = ("--captions", "captions.json", "--shards", "full/shard.json", "--out", "full/scores.json")
    assert made.run("score", "--spec", "full/spec.json", *words) == 2
    assert "neither drawn nor scored" in capsys.readouterr().err


def test_videos_are_drawn_timed_and_billed(bench: Callable[..., Bench], folders: Callable[[str], Path]) -> None:
    made = bench("wan")
    captions = made.captions()
    made.spec()
    assert made.embed() == 0
    made.spec("fora-n2", "fora", {"interval": 2, "direction": "up"})
    for arm in ("full", "fora-n2"):
        assert made.generate(arm) == 0
    ids, videos = read_shard(Path("full/shard.zip"))
    world = get_world(made.name)
    assert videos.shape == (COUNT, FRAMES, *SIZE, 3) and world.frames == FRAMES
    noise = torch.from_numpy(batch_noise(0, ids, world.noise_shape()))
    call: dict[str, Any] = {"num_inference_steps": world.default_steps, "height": SIZE[0], "width": SIZE[1]}
    call |= {"prompt": captions, "latents": noise}
    expected = reference(loaded("wan", folders("wan")), "wan", **call).frames
    difference = np.abs(videos.astype(int) - (expected * 255).round().astype(int))
    assert difference.max() <= 1, f"{(difference > 1).mean():.2%} of the values differ, by up to {difference.max()}"
    assert np.abs(videos[:, 1:].astype(int) - videos[:, :-1]).mean() > 1, "the videos must move"
    assert made.time("fora-n2", "--embeddings", "embeddings.json", "--weights", made.weights) == 0
    latency = read_record("fora-n2/latency.json", "latency")
    assert latency["decoded"]
    assert latency["peak_bytes"] is None and latency["peak_bytes_baseline"] is None  # a CPU has one peak for both
    assert latency["trace"]["samples"] == 2  # both branches of guidance, one after the other
    arm = ("--spec", "fora-n2/spec.json", "--shards", "fora-n2/shard.json")
    assert made.run("cost", *arm, "--out", "c.json") == 0
    assert read_record("c.json", "cost")["cfg_branches"] == 2
    # Without a package that judges videos there is nothing to say, which is no fault.
    words = ("--captions", "captions.json", "--full-shards", "full/shard.json", "--out", "fora-n2/scores.json")
    assert made.run("score", *arm, *words) == 0
    assert read_record("fora-n2/scores.json", "scores")["n"] == COUNT


def test_videos_reach_the_judge_of_their_world(bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    from ditbench.judges import Pictures
    from ditbench.judges.registry import judge_classes

    made = bench("wan")
    made.captions()
    made.spec()
    assert made.embed() == 0
    assert made.generate() == 0
    given: list[Pictures] = []

    def values(self: Any, pictures: Pictures) -> Any:
        given.append(pictures)
        return pictures.images.mean((1, 2, 3, 4))

    judge = judge_classes()["vbench-temporal-flickering"]
    monkeypatch.setattr(judge, "values", values)
    monkeypatch.setattr(judge, "load", lambda self: None)
    words = ("--captions", "captions.json", "--judges", judge.name, "--out", "full/scores.json")
    assert made.run("score", "--spec", "full/spec.json", "--shards", "full/shard.json", *words) == 0
    (pictures,) = given
    assert pictures.images.shape == (COUNT, FRAMES, *SIZE, 3)
    assert pictures.frames_per_second == 8 and len(pictures.captions) == COUNT
    (measure,) = read_record("full/scores.json", "scores")["measures"]
    assert (measure["name"], measure["n"]) == (judge.name, COUNT)


def test_other_weights_than_the_specs_are_refused(
    bench: Callable[..., Bench], folders: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    made = bench("pixart-alpha")
    made.captions()
    made.spec()
    made.weights = str(folders("pixart-sigma"))
    assert made.generate() == 2
    assert "is of weights folder:" in capsys.readouterr().err
    made.spec()  # of sigma's weights now: the right folder for the spec, the wrong one for the world
    assert made.generate() == 2
    assert "holds a PixArtSigmaPipeline, world tiny-pixart-alpha needs a PixArtAlphaPipeline" in capsys.readouterr().err


def test_a_network_of_another_size_is_refused(
    bench: Callable[..., Bench], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    made = bench("pixart-alpha")
    write_world(tmp_path, "pixart-alpha", units=[{"blocks": 3, "branches": ["self", "cross", "mlp"]}])
    made.captions()
    made.spec()
    assert made.generate() == 2
    assert "its network has 2 blocks of self/cross/mlp, the world's 3" in capsys.readouterr().err


def test_a_damaged_folder_is_one_sentence(
    bench: Callable[..., Bench], folders: Callable[[str], Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import shutil

    made = bench("pixart-alpha")
    made.captions()
    made.weights = str(shutil.copytree(folders("pixart-alpha"), tmp_path / "damaged"))
    (tmp_path / "damaged" / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    made.spec()
    assert made.generate() == 2
    told = capsys.readouterr().err
    assert "cannot be loaded" in told
    assert "https://huggingface.co/PixArt-alpha/PixArt-XL-2-512x512 offers them whole" in told
    assert "Traceback" not in told


def write_pairs(folder: Path, captions: list[str]) -> Path:
    folder.mkdir()
    for number, caption in enumerate(captions):
        Image.new("RGB", (70, 50), (80 * number, 40, 200 - 60 * number)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption)
    return folder


@pytest.mark.parametrize("name", ["pixart-alpha", "pixart-sigma", "dit", "sd3"])
def test_a_network_is_fine_tuned_on_pairs_of_ones_own_and_draws_with_what_it_learned(
    bench: Callable[..., Bench], name: str
) -> None:
    made = bench(name)
    captions = made.captions()
    assert made.embed() == 0
    made.spec()
    pairs = write_pairs(Path("pairs"), captions)
    short = {"iterations": 2, "batch": 2, "rank": 2, "rate": 0.01}
    knobs = {**short, "ratio": 0.3, "ratio_rate": 0.2, "coefficient": 100.0, "checkpointing": "on"}
    method = get_method("diffcr", knobs)
    identity = get_world(made.name).weights_identity(made.weights)
    everything = {knob: getattr(method, knob) for knob in method.knobs()}
    spec = Spec(made.name, "routed", "diffcr", everything, None, 0, COUNT, "some", None, "float32", identity, "some")
    words = ("--spec", json.dumps(asdict(spec)), "--captions", "captions.json", "--embeddings", "embeddings.json")
    words += ("--weights", made.weights, "--out", "routed/learned.json")
    Path("routed").mkdir()
    assert made.run("learn", *words) == 2  # without pairs there is nothing to learn from
    assert made.run("learn", *words, "--pairs", pairs) == 0
    found = read_record("routed/learned.json", "learned")["found"]
    assert 0 < found["deployed"] < 0.7
    assert found["pairs_seen"] == 4
    assert all(np.isfinite(found["history"]["loss"]))
    words = ("--spec", json.dumps(asdict(spec)), "--learned", "routed/learned.json", "--out", "routed/spec.json")
    assert made.run("spec", *words) == 0
    assert made.generate() == 0
    assert made.generate("routed") == 0
    _, plain = read_shard(Path("full/shard.zip"))
    _, routed = read_shard(Path("routed/shard.zip"))
    assert not np.array_equal(plain, routed)
    trace = read_record("routed/shard.json", "shard")["trace"]
    assert 0 < Trace.from_summary(trace).realised_ratio < 0.7


def test_families_that_cannot_be_fine_tuned_say_so(
    bench: Callable[..., Bench], capsys: pytest.CaptureFixture[str]
) -> None:
    made = bench("flux-dev")
    captions = made.captions()
    assert made.embed() == 0
    pairs = write_pairs(Path("pairs"), captions)
    method = get_method("full-finetuned", {"iterations": 1, "batch": 2})
    identity = get_world(made.name).weights_identity(made.weights)
    everything = {knob: getattr(method, knob) for knob in method.knobs()}
    spec = Spec(made.name, "t", "full-finetuned", everything, None, 0, 3, "some", None, "float32", identity, "some")
    words = ("--spec", json.dumps(asdict(spec)), "--captions", "captions.json", "--embeddings", "embeddings.json")
    words += ("--weights", made.weights, "--pairs", pairs, "--out", "learned.json")
    capsys.readouterr()
    assert made.run("learn", *words) == 2
    assert "networks of class FluxTransformer2DModel cannot be fine-tuned yet" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["mod", "diffcr", "dydit", "full-finetuned"])
def test_routed_arms_of_random_weights_are_timed(bench: Callable[..., Bench], method: str) -> None:
    made = bench("pixart-sigma", random=True)
    made.captions()
    made.spec()
    knobs = {} if method == "full-finetuned" else {"ratio": 0.5}
    chosen = get_method(method, knobs)
    everything = {knob: getattr(chosen, knob) for knob in chosen.knobs()}
    spec = Spec(made.name, "arm", method, everything, None, 0, 3, "some", None, "float32", "random", "pairs-own")
    Path("arm").mkdir()
    words = ("--spec", json.dumps(asdict(spec)))
    assert made.run("learn", *words, "--weights", "random", "--out", "arm/learned.json") == 0
    assert read_record("arm/learned.json", "learned")["found"]["untrained"] == "weights are random"
    assert made.run("spec", *words, "--learned", "arm/learned.json", "--out", "arm/spec.json") == 0
    assert made.time("arm") == 0
    ran = Trace.from_summary(read_record("arm/latency.json", "latency")["trace"])
    if method == "dydit":  # whose ratio is of MACs, and whose tokens are as many as each image wants
        assert ran.narrowed
        assert 0.1 < ran.realised_ratio < 0.6
        return
    assert ran.realised_ratio == pytest.approx(0.0 if method == "full-finetuned" else 0.5)


def test_a_predictor_that_nobody_trained_is_timed_with_random_weights(bench: Callable[..., Bench]) -> None:
    made = bench("pixart-sigma", random=True)
    made.captions()
    made.spec()
    chosen = get_method("tokencache", {"ratio": 0.5, "last": 0})
    everything = {knob: getattr(chosen, knob) for knob in chosen.knobs()}
    spec = Spec(made.name, "arm", "tokencache", everything, None, 0, 3, "some", None, "float32", "random", "nothing")
    Path("arm").mkdir()
    words = ("--spec", json.dumps(asdict(spec)))
    assert made.run("learn", *words, "--weights", "random", "--out", "arm/learned.json") == 0
    assert read_record("arm/learned.json", "learned")["found"]["untrained"] == "weights are random"
    assert made.run("spec", *words, "--learned", "arm/learned.json", "--out", "arm/spec.json") == 0
    assert made.time("arm") == 0
    ran = Trace.from_summary(read_record("arm/latency.json", "latency")["trace"])
    assert 0 < ran.realised_ratio < 0.5
    assert ran.selecting.sum() > 0
