"""Searches of plans: budgets met, the best plan kept, going on after a stop, and FID to real images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ditbench.faults import Fault
from ditbench.generate import Sampler, Texts
from ditbench.judges import Pictures
from ditbench.judges.inception_fid import InceptionFid
from ditbench.judges.references import read_references
from ditbench.learn.budget import SLACK
from ditbench.learn.lesson import SEED, Lesson, Notebook
from ditbench.learn.real import RealImages
from ditbench.learn.search import _fid, learn
from ditbench.learn.sparsity import School
from ditbench.macs import count_macs
from ditbench.methods import get_method
from ditbench.methods.plan_search import PlanSearch
from ditbench.reference_sets import ReferenceSet, write_reference_features, write_reference_set
from ditbench.worlds.scenes.world import Scenes
from tests.judges.test_set_judges import MAKERS

STEPS, CAPTIONS = 3, 2


def lesson_of(folder: Path, **knobs: Any) -> Lesson:
    method = get_method("plan-search", {"ratio": 0.4, "measurements": 4, "population": 2, **knobs})
    sampler = Sampler("scenes")
    captions = sampler.world.draw_captions(CAPTIONS, 0, "train")
    given, nothing = (sampler.world.embed(sampler.handle, some) for some in (captions, [""]))
    texts = Texts([f"c{place}" for place in range(CAPTIONS)], given, nothing)
    spec = {"world": "scenes", "weights": None, "dtype": "float32", "steps": STEPS, "arm": "ours"}
    return Lesson(method, spec, sampler, texts, CAPTIONS, Notebook(folder / "ours" / "learned.notes.json", "x"))


def counted(lesson: Lesson, monkeypatch: pytest.MonkeyPatch, most: int = 1000) -> list[int]:
    """The images that are drawn from now on; more than `most` times it is stopped."""
    drawn: list[int] = []
    run = lesson.sampler.run

    def noted(*args: Any, **kwargs: Any) -> Any:
        if len(drawn) == most:
            raise KeyboardInterrupt
        images, trace = run(*args, **kwargs)
        drawn.append(len(images))
        return images, trace

    monkeypatch.setattr(lesson.sampler, "run", noted)
    return drawn


@pytest.mark.parametrize(("search", "fitness"), [("random", "lpips"), ("genetic", "fid")])
def test_the_best_plan_of_the_budget_is_found_and_a_stopped_search_goes_on(
    search: str, fitness: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    knobs = {"search": search, "fitness": fitness, "mutation": 0.5}
    lesson = lesson_of(tmp_path / "whole", **knobs)
    with monkeypatch.context() as patch:
        drawn = counted(lesson, patch)
        found = learn(lesson)
    shares = np.array(found["shares"])
    assert (shares[0] == 1).all(), "the first step is whole"
    assert found["left_out"] == pytest.approx(0.4, abs=0.01)
    assert 1 - shares.mean() == pytest.approx(found["left_out"])
    best = found["history"]["best"]
    assert best == sorted(best, reverse=True) and best[-1] == found["fitness"]
    tried = len(drawn)
    assert 2 <= tried <= 4
    # Stopped after the first measurements, it does the others alone, and comes to the same.
    stopped = lesson_of(tmp_path / "stopped", **knobs)
    with monkeypatch.context() as patch:
        counted(stopped, patch, most=tried - 1)
        with pytest.raises(KeyboardInterrupt):
            learn(stopped)
    again = lesson_of(tmp_path / "stopped", **knobs)
    with monkeypatch.context() as patch:
        drawn = counted(again, patch)
        assert learn(again) == found
    assert len(drawn) == 1


def test_a_search_may_have_a_budget_of_macs(tmp_path: Path) -> None:
    found = learn(lesson_of(tmp_path, search="random", fitness="l2", measurements=1, budget="macs"))
    assert 0.4 - 1e-9 <= found["left_out"] <= 0.4 + 0.6 * SLACK
    planned = get_method("plan-search").knowing({"shares": found["shares"]})
    full, own = (count_macs("scenes", method, steps=STEPS) for method in (get_method("full"), planned))
    left_out = 1 - (own["total"] - own["outside"]) / (full["total"] - full["outside"])
    assert left_out == pytest.approx(found["left_out"], abs=2e-3)


def test_fid_is_to_as_many_renders_however_few_captions_are_searched_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    references = Scenes.references

    def few(self: Scenes, count: int, seed: int) -> Any:
        asked.append(count)
        return references(self, 4, seed)

    monkeypatch.setattr(Scenes, "references", few)
    marks = set()
    for captions in (1, 2):
        lesson = lesson_of(tmp_path, captions=captions)
        assert isinstance(lesson.method, PlanSearch)
        marks.add(_fid(School(lesson, lesson.method, "l2", 0)).mark)
    assert asked == [2000, 2000] and marks == {f"renders-2000, seed {SEED}"}


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[RealImages, list[str]]:
    """A folder of images as a run's references, their features, and two files of weights like Inception's."""
    folder = tmp_path_factory.mktemp("real")
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for place in range(4):
        small = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(small).resize((64, 64)).save(folder / "images" / f"{place}.png")
    weights = []
    for seed in range(2):
        torch.manual_seed(seed)
        weights.append(str(folder / f"{seed}.pt"))
        MAKERS["inception"][1](Path(weights[-1]))
    references = ReferenceSet(folder=folder / "images")
    write_reference_set("scenes", references, folder / "references.json")
    features = folder / "features.json"
    write_reference_features(
        folder / "references.json", "inception", features, references, places={"inception": weights[0]}
    )
    return RealImages(folder / "references.json", [features]), weights


def test_outside_the_embedded_world_fid_is_the_judge_s_own(
    real: tuple[RealImages, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, weights = real
    lesson = lesson_of(tmp_path, search="random", measurements=2)
    # Nor has it a perceptual distance of its own: LPIPS, whose weights are not here, must not be asked for.
    for own in ("frechet_features", "perceptual"):
        monkeypatch.setattr(type(lesson.sampler.world), own, lambda self, device: None)
    with pytest.raises(Fault, match=r"fitness: fid needs real images of world scenes: name them as `references"):
        learn(lesson)
    given = replace(lesson, real_images=images, judge_places={"inception": weights[0]})
    made = []
    run = given.sampler.run
    monkeypatch.setattr(given.sampler, "run", lambda *args, **kw: made.append(run(*args, **kw)) or made[-1])
    found = learn(given)
    judge = InceptionFid("cpu", {"inception": weights[0]})
    to = judge.to(read_references(*images))
    values = [
        to(judge.features(Pictures(["a", "b", "c"], np.concatenate([own, own[:1]])), "pictures")[:2]) for own, _ in made
    ]
    assert found["fitness"] == pytest.approx(min(values))
    assert found["compared_with"] == f"{judge.network.identity} {read_references(*images).mark}"
    with pytest.raises(Fault, match="of other weights"):
        learn(replace(given, judge_places={"inception": weights[1]}))
