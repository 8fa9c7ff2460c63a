"""Where weights are looked for, what is said where they are missing, and what a spec says of them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from ditbench.cells import Spec, cell_table
from ditbench.cli import main
from ditbench.config import ArmConfig, CaptionsConfig, Config, check_config
from ditbench.faults import Fault
from ditbench.worlds import get_world
from ditbench.worlds.real.weights import digest

SPEC = Spec("scenes", "full", "full", {}, None, 0, 512, "evaluation-512-seed0", None, "bfloat16")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(hub: Path, name: str, *files: str, revision: str = "0123abc") -> Path:
    """What the hub's own downloads leave of a repository."""
    repository = hub / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    snapshot = repository / "snapshots" / revision
    for file in files:
        (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / file).write_text("{}")
    return snapshot


def config(weights: dict[str, str], captions: Path, world: str = "pixart-alpha-512") -> Config:
    arms = {"full": ArmConfig(method="full")}
    body = {"studies": [], "arms": arms, "world": world, "weights": weights}
    return Config().model_copy(update={**body, "captions": CaptionsConfig(file=str(captions))})


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    path = tmp_path / "captions.txt"
    path.write_text("a cat\na dog\n")
    return path


def test_missing_weights_are_one_sentence_that_says_who_offers_them(hub: Path) -> None:
    with pytest.raises(Fault) as caught:
        get_world("sd3-medium-1024").load()
    told = str(caught.value)
    assert "\n" not in told
    for part in (
        "the weights of world sd3-medium-1024 are not on this machine",
        "https://huggingface.co/stabilityai/stable-diffusion-3-medium-diffusers",
        "licence must be accepted first",
        "`weights: {sd3-medium-1024: FOLDER}`",
    ):
        assert part in told
    with pytest.raises(Fault) as caught:
        get_world("dit-xl-2-256").load()
    assert "licence" not in str(caught.value)


def test_the_hubs_cache_is_looked_at_and_nothing_else(hub: Path) -> None:
    world = get_world("pixart-alpha-256")
    assert world.weights_place(None)[1] is False
    cached(hub, "PixArt-alpha/PixArt-XL-2-512x512", "model_index.json")
    with pytest.raises(
        Fault, match=r"PixArt-XL-2-256x256 and https://huggingface\.co/PixArt-alpha/PixArt-XL-2-512x512"
    ):
        world.need_weights(None)  # the network's own repository is still missing
    cached(hub, "PixArt-alpha/PixArt-XL-2-256x256", "transformer/config.json")
    world.need_weights(None)
    assert world.weights_place(None) == ("PixArt-alpha/PixArt-XL-2-256x256, PixArt-alpha/PixArt-XL-2-512x512", True)


def test_another_repository_may_be_named_and_a_revision_of_it(hub: Path) -> None:
    world = get_world("pixart-alpha-512")
    with pytest.raises(Fault, match="there is no folder someone/tuned, nor is someone/tuned in the hub's cache"):
        world.need_weights("someone/tuned")
    cached(hub, "someone/tuned", "model_index.json", revision="feed5")
    world.need_weights("someone/tuned")
    world.need_weights("someone/tuned@feed5")
    with pytest.raises(Fault, match="--revision other"):
        world.need_weights("someone/tuned@other")
    assert world.weights_identity("someone/tuned@feed5") == "someone/tuned@feed5"


@pytest.mark.parametrize("given", ["/nowhere/at/all", "nowhere", "../up", "a/b/c"])
def test_a_place_that_is_none_is_one_sentence(given: str) -> None:
    with pytest.raises(Fault, match=f"weights.flux-dev-1024: there is no folder {re.escape(given)}; possible: a pip"):
        get_world("flux-dev-1024").weights_identity(given)


def test_a_folder_that_is_no_pipeline_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(Fault, match=r"weights\.flux-dev-1024: .* holds no model_index\.json"):
        get_world("flux-dev-1024").weights_identity(str(tmp_path))


def test_a_folder_is_told_by_what_it_holds_not_by_where_it_is(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        (folder / "transformer").mkdir(parents=True)
        (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
        (folder / "transformer" / "weights.safetensors").write_bytes(bytes(range(256)) * 4096)
        (folder / ".cache").mkdir()
        (folder / ".cache" / folder.name).write_text(folder.name)
        (folder / "README.md").write_text(folder.name)
    assert digest(one) == digest(other)
    world = get_world("flux-dev-1024")
    assert world.weights_identity(str(one)) == world.weights_identity(str(other)) == f"folder:{digest(one)}"
    same_size = bytearray((other / "transformer" / "weights.safetensors").read_bytes())
    same_size[:] = bytes(255 - value for value in same_size)
    (other / "transformer" / "weights.safetensors").write_bytes(same_size)
    assert digest(one) != digest(other)
    (one / "model_index.json").write_text('{"_class_name": "FluxPipeline" }')
    assert digest(one) != world.weights_identity(str(other))


# Specs and configurations


def test_a_cell_of_the_worlds_own_weights_keeps_the_hash_it_had_before_there_was_a_choice() -> None:
    assert SPEC.hash == "010a3147d220"
    assert replace(SPEC, weights="random").hash != SPEC.hash
    assert replace(SPEC, weights="folder:1").hash != replace(SPEC, weights="folder:2").hash


def test_cells_say_which_weights_they_are_of(captions: Path) -> None:
    assert [spec.weights for spec in cell_table(config({}, captions))] == [None]
    assert [spec.weights for spec in cell_table(config({"pixart-alpha-512": "random"}, captions))] == ["random"]
    other = {"flux-dev-1024": "random"}  # not the world that is run
    assert [spec.weights for spec in cell_table(config(other, captions))] == [None]


def test_text_worlds_need_a_caption_file_before_anything_runs(captions: Path) -> None:
    asked = config({}, captions)
    with pytest.raises(Fault, match="world pixart-alpha-512 has no captions of its own"):
        cell_table(asked.model_copy(update={"captions": CaptionsConfig()}))
    classes = config({}, captions, "dit-xl-2-256").model_copy(update={"captions": CaptionsConfig()})
    assert cell_table(classes)[0].captions_sha256 is None


def test_wrong_weights_are_told_with_the_configuration() -> None:
    with pytest.raises(Fault, match=r"weights\.flux-dev: no world 'flux-dev'; did you mean 'flux-dev-1024'"):
        check_config({"weights": {"flux-dev": "random"}})
    with pytest.raises(Fault, match=r"weights\.flux-dev-1024: 3 must be a valid string"):
        check_config({"weights": {"flux-dev-1024": 3}})
    with pytest.raises(Fault, match=r"weights\.scenes: world scenes ships with its weights; remove the key"):
        cell_table(check_config({"weights": {"scenes": "random"}}))


def written(tmp_path: Path, captions: Path, weights: dict[str, str]) -> str:
    """A configuration with a study of its own, in the working folder."""
    (tmp_path / "studies").mkdir(exist_ok=True)
    study = {
        "title": "Speed",
        "world": "pixart-alpha-512",
        "rows": [{"arm": "full", "method": "full", "label": "full"}],
        "columns": [{"measure": "speedup", "label": "speed-up"}, {"measure": "macs-linear", "label": "MACs"}],
        "figure": {"x": "speedup", "y": "macs-linear"},
        "baseline": "full",
    }
    (tmp_path / "studies" / "speed.yaml").write_text(json.dumps(study))
    body = {"world": "pixart-alpha-512", "studies": ["speed"], "images": 2, "captions": {"file": str(captions)}}
    (tmp_path / "config.yaml").write_text(json.dumps({**body, "weights": weights}))
    return "config.yaml"


def test_a_plan_stops_where_weights_are_missing_and_counts_no_images_of_random_ones(
    hub: Path, tmp_path: Path, captions: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, captions, {})
    assert main(["plan"]) == 2
    told = capsys.readouterr()
    assert "to draw: 2 images" in told.out
    assert "the weights of world pixart-alpha-512 are not on this machine" in told.err
    written(tmp_path, captions, {"pixart-alpha-512": "random"})
    assert main(["plan"]) == 0
    assert "to draw: 0 images" in capsys.readouterr().out


def test_worlds_are_listed_with_where_their_weights_come_from(
    hub: Path, tmp_path: Path, captions: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, captions, {"flux-dev-1024": "random"})
    assert main(["worlds", "--json"]) == 0
    listed = {body["name"]: body for body in json.loads(capsys.readouterr().out)}
    assert listed["scenes"]["weights"] == "ships with the repository"
    assert (listed["flux-dev-1024"]["weights"], listed["flux-dev-1024"]["weights_found"]) == ("random", True)
    assert listed["wan2.1-1.3b-256"]["weights_found"] is False
    assert listed["wan2.1-1.3b-256"]["size_text"] == "17x256x256"
    (tmp_path / "config.yaml").write_text("world: flux")
    assert main(["worlds"]) == 0  # the list is what helps to mend it
    told = capsys.readouterr()
    assert "config.yaml is passed over: config.yaml: world: no world 'flux'" in told.err
    assert re.search(r"flux-schnell-256 +FluxTransformer2DModel +256x256 +4 .* not on this machine", told.out)
