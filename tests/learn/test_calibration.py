"""Thresholds that are fitted to a target, and polynomials that are fitted to changes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ditbench.caption_sets import TRAINING_SPLIT, write_captions
from ditbench.cells import Spec
from ditbench.engine.changes import ModulatedInput
from ditbench.faults import Fault
from ditbench.generate import embed
from ditbench.learn.calibration import TOLERANCE, fit, nearest, search
from ditbench.learn.job import learned_method, read_found, write_learned
from ditbench.learn.lesson import Notebook
from ditbench.methods import get_method, method_of
from ditbench.records import read_record
from ditbench.worlds import get_world

COUNT, STEPS = 6, 6


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("learning")
    write_captions(get_world("scenes"), "training", COUNT, 0, root / "captions.json", split=TRAINING_SPLIT)
    embed("scenes", root / "captions.json", root / "embeddings.json")
    return root


def learned(root: Path, method: str, **knobs: Any) -> dict[str, Any]:
    """The record of what a method learned in the embedded world, at few steps."""
    full = get_method(method, knobs)
    said = {name: getattr(full, name) for name in full.knobs()}
    spec = Spec("scenes", "arm", method, said, STEPS, 0, 8, "some", None, "float32", learning="training")
    out = root / f"{method}-{spec.hash}.json"
    write_learned(spec, root / "captions.json", root / "embeddings.json", out, batch=COUNT)
    return read_record(out, "learned") | {"path": out, "spec": spec}


def test_training_captions_are_none_of_those_that_are_evaluated(training: Path) -> None:
    texts = {entry["text"] for entry in read_record(training / "captions.json", "captions")["captions"]}
    assert len(texts) == COUNT and not texts & set(get_world("scenes").draw_captions(500, 0))


@pytest.mark.parametrize("method", ["teacache", "first-block-cache", "dicache"])
def test_a_threshold_is_fitted_to_a_target(training: Path, method: str) -> None:
    record = learned(training, method, target=1.4)
    found = record["found"]
    # Six captions decide in jumps: near is what is asked for here.
    assert abs(math.log(found["reached"] / 1.4)) < 0.1
    ordered = sorted(found["tried"])
    assert [speed for _, speed in ordered] == sorted(speed for _, speed in ordered), "larger thresholds are faster"
    assert not list(record["path"].parent.glob("*.notes.json"))
    ready = learned_method(record["path"])
    assert not ready.waits()
    assert ready.knowing(None).waits()


def test_a_fitted_polynomial_goes_with_its_threshold(training: Path) -> None:
    found = learned(training, "teacache", target=1.4, polynomial="fit")["found"]
    assert len(found["coefficients"]) == 5 and 0 < found["least"] < found["most"]
    method = get_method("teacache", {"target": 1.4, "polynomial": "fit"}).knowing(found)
    decider = method.decider(get_world("scenes").shape(STEPS))
    assert isinstance(decider, ModulatedInput)
    low, high = (decider.estimated(torch.tensor([found[end]])) for end in ("least", "most"))
    beyond = decider.estimated(torch.tensor([0.0, found["most"] * 10]))
    assert beyond.tolist() == [low.item(), high.item()], "changes out of the fitted range count as its ends"


def test_a_target_out_of_reach_is_a_fault(training: Path) -> None:
    with pytest.raises(Fault, match="no threshold of dicache makes it 20 times as cheap as full: the nearest is"):
        learned(training, "dicache", target=20.0)


def test_what_has_nothing_to_learn_is_refused(training: Path) -> None:
    with pytest.raises(Fault, match="fora with these knobs has nothing to learn"):
        learned(training, "fora")


def test_a_record_of_other_settings_is_refused(training: Path) -> None:
    record = learned(training, "first-block-cache", target=1.3)
    spec = vars(record["spec"])
    assert read_found(record["path"], {**spec, "seed": 7, "images": 99}) == record["found"], (
        "seeds share what is learned"
    )
    with pytest.raises(Fault, match="was learned for other settings"):
        read_found(record["path"], {**spec, "steps": STEPS + 1})
    assert method_of({**spec, "found": record["found"]}).found == record["found"]


def test_sampling_before_learning_is_a_fault() -> None:
    shape = get_world("scenes").shape(STEPS)
    with pytest.raises(Fault, match=r"first-block-cache must be fitted first: .* `ditbench learn`"):
        get_method("first-block-cache", {"target": 1.5}).decider(shape)
    with pytest.raises(Fault, match="teacache must be fitted first"):
        get_method("teacache", {"threshold": 0.1, "polynomial": "fit"}).decider(shape)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"target": 1.5, "threshold": 0.1}, "a threshold or a target that one is fitted to, not both"),
        ({"target": 0.9}, "target: 0.9 must be above 1"),
        ({}, "needs a threshold .* or a target"),
    ],
)
def test_thresholds_and_targets_that_do_not_go_together(knobs: dict[str, Any], said: str) -> None:
    with pytest.raises(Fault, match=said):
        get_method("dicache", knobs).plan(get_world("scenes").shape(STEPS))


@pytest.mark.parametrize("best", [0.0003, 0.07, 0.1, 55.0])
def test_the_search_finds_a_threshold_wherever_it_lies(best: float) -> None:
    tried = search(lambda threshold: 1 + threshold / best, 2.0)
    assert abs(math.log(nearest(tried, 2.0)[1] / 2.0)) <= TOLERANCE


def test_the_search_ends_at_a_jump_and_at_what_no_threshold_reaches() -> None:
    tried = search(lambda threshold: 1.0 if threshold < 0.3 else 3.0, 2.0)
    assert {speed for _, speed in tried} == {1.0, 3.0}
    for nothing_else in (1.2, 2.1):
        tried = search(lambda threshold, only=nothing_else: only, 2.0)
        assert nearest(tried, 2.0)[1] == nothing_else and len(tried) <= 6


def test_the_search_goes_on_behind_a_plateau() -> None:
    up = search(lambda threshold: 1.0 if threshold < 300 else 2.0, 2.0)
    assert nearest(up, 2.0)[1] == 2.0
    down = search(lambda threshold: 1.0 if threshold < 1e-4 else 2.0 if threshold < 2e-3 else 3.0, 2.0)
    assert nearest(down, 2.0)[1] == 2.0


def test_a_polynomial_of_the_fourth_degree_is_found_again() -> None:
    moved = np.linspace(0.1, 0.4, 50)
    truth = [3.0, -2.0, 0.5, 1.0, 0.1]
    found = fit(moved, np.polyval(truth, moved))
    assert np.allclose(np.polyval(found["coefficients"], moved), np.polyval(truth, moved), atol=1e-9)
    assert found["explained"] > 0.999999 and (found["least"], found["most"]) == (0.1, 0.4)
    with pytest.raises(Fault, match="too few for a polynomial"):
        fit(np.ones(9), np.ones(9))


def test_a_stopped_learner_goes_on_from_its_notes(tmp_path: Path) -> None:
    path, calls = tmp_path / "notes.json", []

    def work() -> float:
        calls.append(1)
        return 2.5

    assert Notebook(path, "one").once("a", work) == Notebook(path, "one").once("a", work) == 2.5
    assert len(calls) == 1
    Notebook(path, "another").once("a", work)
    assert len(calls) == 2, "notes of other settings are none"
