"""SDTM*: thresholds that merge over the training captions what SDTM's ratio does, each image by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ditbench.engine.each_image import EachImage
from ditbench.engine.layout import Layout, Shape
from ditbench.engine.run import attached
from ditbench.faults import Fault
from ditbench.learn.job import learned_method
from ditbench.learn.merging import NEAR, Tried
from ditbench.methods import get_method
from ditbench.sampling import run_of
from tests.learn.test_calibration import learned, training
from tests.methods.test_merging import STEPS, backbone, given, sampled

__all__ = ["backbone", "training"]  # fixtures of other tests


def test_thresholds_merge_as_much_as_the_ratio(training: Path) -> None:
    record = learned(training, "sdtm", adjusting="threshold", ratio=0.4)
    found = record["found"]
    assert abs(found["left_out"] - found["left_out_by_ratio"]) < 3 * NEAR * found["left_out_by_ratio"]
    for own, aim in zip(found["merged"], found["merged_by_ratio"], strict=True):
        assert aim > 0 and abs(own - aim) < 3 * NEAR * aim, "in each stage"
    # Cosines of a window, and inattention from 0 to 1, each with the age on top.
    assert -1 < found["thresholds"][0] < 1.2 and 0 < found["thresholds"][1] < 1.2
    method = learned_method(record["path"])
    assert not method.waits() and method.thresholds == tuple(found["thresholds"])
    assert method.plan(Shape(10, Layout.regular(2, ("self", "mlp")), 256)).online


def test_images_merge_by_themselves_whatever_batch_they_are_in(backbone: Any) -> None:
    method = get_method(
        "sdtm", {"adjusting": "threshold", "structure_threshold": 0.1, "detail_threshold": 0.9, "switch": 0.5}
    )
    three, trace = sampled(backbone, method, 3)
    alone, own = sampled(backbone, method, 1)
    for step in range(STEPS):
        torch.testing.assert_close(alone[step], three[step][:1], rtol=1e-9, atol=1e-9)
    assert 0.02 < trace.realised_ratio < 0.9
    # The sum of squares tells numbers that differ from image to image from equal ones.
    assert (trace.squares * 3 > trace.computed**2).any() and (own.squares == own.computed**2).all()


def test_both_branches_of_guidance_of_an_image_merge_as_many(backbone: Any) -> None:
    method = get_method("sdtm", {"adjusting": "threshold", "structure_threshold": 0.1, "detail_threshold": 0.9})
    run = run_of(method, backbone, backbone.shape(2, **given(0, 1)), halves=2)
    selector = run.branches[0].selector
    assert isinstance(selector, EachImage)
    with torch.no_grad(), attached(run):
        for step in range(2):
            backbone.network(**given(step, 4))
    assert len(selector._each) == 2
    # Two images of two equal rows each: sum and sum of squares of two whole numbers give a whole difference.
    sums, squares = run.trace.computed // 2, run.trace.squares // 2
    assert np.array_equal(2 * sums, run.trace.computed) and np.array_equal(2 * squares, run.trace.squares)
    apart = np.sqrt(2 * squares - sums**2)
    assert np.array_equal(apart, apart.round())
    assert (apart > 0).any(), "the images differ"


def test_nothing_passes_an_unreachable_threshold_and_everything_a_low_one(backbone: Any) -> None:
    def left_out(structure: float, detail: float) -> float:
        knobs = {"adjusting": "threshold", "structure_threshold": structure, "detail_threshold": detail}
        answers, trace = sampled(backbone, get_method("sdtm", knobs), 2)
        if structure > 1e6:
            with torch.no_grad():
                plain = [backbone.network(**given(step, 2))[0] for step in range(STEPS)]
            for mine, own in zip(answers, plain, strict=True):
                torch.testing.assert_close(mine, own, rtol=1e-9, atol=1e-9)
        return trace.realised_ratio

    assert left_out(1e9, 1e9) == 0
    # Three of four tokens: of both merged branches in three of five steps, of the MLP alone in the others.
    assert left_out(0.0 - 0.999, 0.0) == pytest.approx(0.75 * (3 * 2 + 2 * 1) / (5 * 3))


def test_a_threshold_is_the_papers_and_has_to_be_known() -> None:
    with pytest.raises(Fault, match="take variant: paper"):
        get_method("sdtm", {"adjusting": "threshold", "variant": "repo"})
    waiting = get_method("sdtm", {"adjusting": "threshold"})
    assert waiting.waits()
    with pytest.raises(Fault, match="must be fitted first"):
        waiting.plan(Shape(10, Layout.regular(2, ("self", "mlp")), 256))


def test_what_is_fitted_is_off_as_much_as_the_stage_that_is_off_most() -> None:
    """One that merges too much in one stage and too little in the other is no better for a total that fits."""
    tried = [Tried([0.1, 0.1], [0.6, 0.2], 0.4), Tried([0.2, 0.2], [0.41, 0.41], 0.41)]
    assert tried[0].off([0.4, 0.4]) == pytest.approx([0.5, 0.5])
    assert min(tried, key=lambda one: max(one.off([0.4, 0.4]))) is tried[1]
    # A stage whose threshold was given is as it is; one without any merges nothing.
    assert tried[0].off([None, 0.2]) == [0, 0] and tried[0].off([0.6, 0.0]) == pytest.approx([0, 0.2])


def test_thresholds_that_are_given_need_no_ratio(backbone: Any) -> None:
    knobs = {"adjusting": "threshold", "structure_threshold": -0.999, "detail_threshold": 0.0, "ratio": 0.0}
    _, trace = sampled(backbone, get_method("sdtm", {**knobs, "deviation": 0.0}), 2)
    assert trace.realised_ratio == pytest.approx(0.75 * (3 * 2 + 2 * 1) / (5 * 3))
    shape = backbone.shape(STEPS, **given(0, 1))
    counts = get_method("sdtm", {**knobs, "protected": 2}).plan(shape).counts(shape.tokens)
    assert (counts[::2] == shape.tokens).all() and (counts[1::2, shape.layout.name_of == "mlp"] == -1).all()


def test_a_batch_merges_the_smaller_number_of_its_images(backbone: Any) -> None:
    knobs = {"adjusting": "threshold", "structure_threshold": 0.1, "detail_threshold": 0.9, "structure_age": 0.0}
    shape = backbone.shape(2, **given(0, 1))
    first = {}
    for counting in ("image", "batch"):
        run = run_of(get_method("sdtm", {**knobs, "counting": counting}), backbone, shape, seeds=[0, 1])
        with torch.no_grad(), attached(run):
            backbone.network(**given(0, 2))
        # The first branch has met nothing yet that hangs on how images count.
        first[counting] = int(run.trace.computed[0, 0]), int(run.trace.squares[0, 0])
        alone = counting == "image"
        assert isinstance(run.branches[0].selector, EachImage) == alone
    total, squares = first["image"]
    apart = int(np.sqrt(2 * squares - total**2))
    assert apart > 0, "the images differ"
    most_left = (total + apart) // 2  # of the image that merges less
    assert first["batch"] == (2 * most_left, 2 * most_left**2)


def test_a_batch_of_one_merges_what_its_image_does(backbone: Any) -> None:
    knobs = {"adjusting": "threshold", "structure_threshold": 0.1, "detail_threshold": 0.9}
    answers = {
        counting: sampled(backbone, get_method("sdtm", {**knobs, "counting": counting}), 1)[0]
        for counting in ("image", "batch")
    }
    for mine, own in zip(answers["batch"], answers["image"], strict=True):
        torch.testing.assert_close(mine, own, rtol=1e-9, atol=1e-9)


def test_sdtm_star_blends_no_cache() -> None:
    with pytest.raises(Fault, match=r"cached: 0.9: SDTM\* gives merged tokens nothing"):
        get_method("sdtm", {"adjusting": "threshold", "cached": 0.9})
    with pytest.raises(Fault, match=r"counting: batch is of SDTM\*"):
        get_method("sdtm", {"counting": "batch"})
