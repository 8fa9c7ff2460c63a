"""VBench's dimensions, with a stand-in for the package that reads the files it is given and answers as the real one.

The stand-in's answers have the shape that vbench 0.1.5 writes: `NAME_eval_results.json`, {dimension: [mean, [{
"video_path": ..., "video_results": ...}]]}, the videos in the folder's order. Its videos are arrays: no encoder is
needed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ditbench.faults import Fault
from ditbench.judges import Pictures, default_judges, get_judge, judges_of
from ditbench.judges import vbench as vbench_judge
from ditbench.judges.registry import judge_classes
from ditbench.judges.videos import WRITERS
from ditbench.worlds import get_world, world_names

NAMES = sorted(name for name in judge_classes() if name.startswith("vbench-"))
WORLD = "wan2.1-1.3b-256"
CAPTIONS = ["a red circle", "a blue star", "two squares"]

INIT = """
import json, os
import numpy as np
from . import utils

REFUSED = {"object_class", "multiple_objects", "scene", "appearance_style", "color", "spatial_relationship"}
calls = []


class VBench:
    def __init__(self, device, full_info_dir, output_path):
        self.device, self.output_path = device, output_path
        os.makedirs(output_path, exist_ok=True)

    def evaluate(self, videos_path, name, prompt_list=[], dimension_list=None, local=False, read_frame=False,
                 mode="vbench_standard", **kwargs):
        assert mode == "custom_input" and local and not REFUSED & set(dimension_list)
        print("to standard output")
        answers = {}
        for dimension in dimension_list:
            found = []
            for file in sorted(os.listdir(videos_path), reverse=True):
                with open(os.path.join(videos_path, file), "rb") as stream:
                    video, fps = np.load(stream), float(np.load(stream))
                weights = {}
                for folder, _, files in os.walk(utils.CACHE_DIR):
                    places = [os.path.join(folder, f) for f in files]
                    weights |= {os.path.relpath(p, utils.CACHE_DIR): open(p).read() for p in places}
                told = {"prompt": prompt_list[file], "video": video, "fps": fps, "weights": weights}
                calls.append({"file": file, **told})
                value = float(video.mean()) if dimension != "dynamic_degree" else bool(video.std() > 0)
                if prompt_list[file] != "unreadable":
                    found.append({"video_path": os.path.join(videos_path, file), "video_results": value})
            answers[dimension] = [float(np.mean([v["video_results"] for v in found] or [0])), found]
        with open(os.path.join(self.output_path, name + "_eval_results.json"), "w") as f:
            json.dump(answers, f)
"""


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in, found where packages are, and a writer of files that it can read."""
    place = tmp_path / "site" / "vbench"
    place.mkdir(parents=True)
    (place / "__init__.py").write_text(INIT)
    (place / "utils.py").write_text("import os\nCACHE_DIR = os.environ['VBENCH_CACHE_DIR']\n")
    for name in ("imageio", "imageio_ffmpeg"):
        (tmp_path / "site" / f"{name}.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def write(frames: list[Any], path: str, fps: float, **quality: Any) -> None:
        assert quality == {"quality": 10, "macro_block_size": 2}
        with Path(path).open("wb") as stream:
            np.save(stream, np.stack([np.asarray(frame) for frame in frames]))
            np.save(stream, fps)

    monkeypatch.setattr("diffusers.utils.export_to_video", write)
    _forget()
    yield lambda: sys.modules["vbench"].calls  # what it was asked, once it was
    _forget()


def _forget() -> None:
    for name in [n for n in sys.modules if n.split(".")[0] in ("vbench", "imageio", "imageio_ffmpeg")]:
        del sys.modules[name]
    vbench_judge._package.cache_clear()
    vbench_judge._home.cache_clear()


def videos(seed: int = 0, captions: list[str] = CAPTIONS) -> Pictures:
    rng = np.random.default_rng(seed)
    ids = [f"c{i}" for i in range(len(captions))]
    drawn = rng.integers(0, 256, (len(captions), 5, 8, 12, 3), dtype=np.uint8)
    return Pictures(ids, drawn, captions, frames_per_second=8.0)


def places(name: str, folder: Path) -> dict[str, str]:
    """Every file and folder that a dimension needs, with its key as its content."""
    found = {}
    for weights in judge_classes()[name].needs:
        path = folder / "elsewhere" / weights.key
        path.parent.mkdir(exist_ok=True)
        if weights.folder:
            path.mkdir(exist_ok=True)
        else:
            path.write_text(weights.key)
        found[weights.key] = str(path)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_videos_are_handed_over_as_files_and_values_are_read_by_file(name: str, asked: Any, tmp_path: Path) -> None:
    shown = videos()
    judge = get_judge(name, places=places(name, tmp_path))
    judge.load()
    (result,) = judge.measure(shown, Pictures.none())
    assert (result.name, result.direction) == (name, "higher")
    moving = name == "vbench-dynamic-degree"
    scale = 100 if name == "vbench-imaging-quality" else 1
    expected = [1.0] * 3 if moving else [video.mean() / scale for video in shown.images]
    assert result.per_sample is not None and np.allclose(result.per_sample, expected)
    assert result.is_share == moving
    calls = {call["file"]: call for call in asked()}
    assert sorted(calls) == ["00000.mp4", "00001.mp4", "00002.mp4"]
    for number, call in enumerate(calls[file] for file in sorted(calls)):
        assert call["prompt"] == CAPTIONS[number] and call["fps"] == 8.0
        assert np.array_equal(call["video"], shown.images[number])


@pytest.mark.parametrize("name", NAMES)
def test_the_package_finds_its_weights_where_it_looks_for_them(name: str, asked: Any, tmp_path: Path) -> None:
    import torch

    needs = judge_classes()[name].needs
    before = torch.hub.get_dir()
    get_judge(name, places=places(name, tmp_path)).measure(videos(), Pictures.none())
    found = asked()[0]["weights"]
    expected = {w.within: w.key for w in needs if not w.folder}  # type: ignore[attr-defined]
    if name == "vbench-subject-consistency":
        expected["hub/checkpoints/dino_vitbase16_pretrain.pth"] = "vbench-dino"
    assert found == expected
    assert torch.hub.get_dir() == before


def test_another_file_of_weights_takes_the_place_of_the_first(asked: Any, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("other")
    name = "vbench-dynamic-degree"
    for given in (places(name, tmp_path), {"vbench-raft": str(tmp_path / "other")}):
        get_judge(name, places=given).measure(videos(), Pictures.none())
    assert [call["weights"]["raft_model/models/raft-things.pth"] for call in asked()[::3]] == ["vbench-raft", "other"]


def test_weights_in_the_package_s_own_folder_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (weights,) = judge_classes()["vbench-motion-smoothness"].needs
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path))
    assert weights.find({}) is None
    (tmp_path / "amt_model").mkdir()
    (tmp_path / "amt_model" / "amt-s.pth").write_bytes(b"")
    assert weights.find({}) == tmp_path / "amt_model" / "amt-s.pth"


@pytest.mark.usefixtures("asked")
def test_a_missing_file_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "nothing"))
    for name in NAMES:
        for weights in judge_classes()[name].needs:
            given = {key: place for key, place in places(name, tmp_path).items() if key != weights.key}
            with pytest.raises(Fault) as fault:
                get_judge(name, places=given).load()
            said = str(fault.value)
            assert weights.what in said and weights.offered in said and "\n" not in said
            assert f"judge_weights: {{{weights.key}: PATH}}" in said


@pytest.mark.usefixtures("asked")
def test_a_video_that_the_package_passes_over_is_a_fault() -> None:
    shown = videos(captions=[CAPTIONS[0], "unreadable", CAPTIONS[2]])
    with pytest.raises(Fault, match="vbench says nothing of 1 videos, the first of c1"):
        get_judge("vbench-temporal-flickering").measure(shown, Pictures.none())


@pytest.mark.usefixtures("asked")
def test_images_are_refused() -> None:
    with pytest.raises(Fault, match="judges videos, and these are images"):
        get_judge("vbench-temporal-flickering").measure(
            Pictures(["c"], np.zeros((1, 8, 8, 3), np.uint8), ["a"]), Pictures.none()
        )


@pytest.mark.skipif(vbench_judge.PACKAGE.there, reason="the package is installed")
def test_without_the_package_one_sentence_says_how_to_get_it() -> None:
    for name in NAMES:
        with pytest.raises(Fault, match=f"judge {name} calls the package vbench, .* `pip install --no-deps vbench`"):
            get_judge(name).load()
    assert not set(NAMES) & set(default_judges(WORLD))


@pytest.mark.usefixtures("asked")
def test_what_the_package_lacks_is_told_in_its_words(tmp_path: Path) -> None:
    (tmp_path / "site" / "vbench" / "utils.py").write_text("import a_package_that_nobody_has")
    with pytest.raises(Fault, match="the package vbench says: No module named 'a_package_that_nobody_has'"):
        get_judge("vbench-temporal-flickering").load()


@pytest.mark.skipif(all(writer.there for writer in WRITERS), reason="the writer is installed")
def test_a_missing_writer_is_one_sentence(asked: Any, tmp_path: Path) -> None:
    (tmp_path / "site" / "imageio_ffmpeg.py").unlink()
    with pytest.raises(Fault, match=r"calls the package imageio_ffmpeg, .*`pip install imageio imageio-ffmpeg`"):
        get_judge("vbench-temporal-flickering").load()
    assert not set(NAMES) & set(default_judges(WORLD, references="none"))


def test_worlds_of_videos_have_these_judges_and_no_others_do() -> None:
    assert len(NAMES) == 8
    for world in world_names():
        assert set(judges_of(world)) & set(NAMES) == (set(NAMES) if get_world(world).frames else set())
    assert judges_of(WORLD) == NAMES


@pytest.mark.usefixtures("asked")
def test_what_needs_nothing_more_runs_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "nothing"))
    assert default_judges(WORLD, references="none") == ["vbench-temporal-flickering"]
    given = places("vbench-dynamic-degree", tmp_path)
    assert default_judges(WORLD, given, "none") == ["vbench-dynamic-degree", "vbench-temporal-flickering"]
