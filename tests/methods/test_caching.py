"""Methods that reuse, forecast or decide while sampling: schedules by hand, costs, and what every one keeps to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ditbench.engine.changes import ModulatedInput, pooled
from ditbench.engine.fills import Key
from ditbench.engine.forecasts import StreamTaylor, Taylor
from ditbench.engine.layout import Layout, Shape
from ditbench.engine.rows import Rows
from ditbench.engine.run import Run, attached
from ditbench.faults import Fault
from ditbench.macs import count_macs
from ditbench.methods import get_method
from ditbench.sampling import run_of
from tests.backbones.networks import NETWORKS, inputs, make

STEPS = 6
SHAPE = Shape(20, Layout.regular(28, ("self", "cross", "mlp")), 256)
# Settings that leave something out on networks with random weights, and settings that leave out nothing.
SKIPPING: dict[str, dict[str, Any]] = {
    "taylorseer": {"interval": 3, "order": 2},
    "deepcache": {"interval": 2},
    "delta-dit": {"interval": 2},
    "first-block-cache": {"threshold": 1.45},
    "teacache": {"threshold": 1.2},
    "dicache": {"threshold": 2.5, "warmup": 0.0, "last": 0},
    "toca": {"fresh": 0.5},
    "duca": {"fresh": 0.5},
    "speca": {"threshold": 1.0, "decay": 1.0, "order": 2},
}
NOTHING: dict[str, dict[str, Any]] = {
    "fora": {"interval": 1},
    "taylorseer": {"interval": 1},
    "deepcache": {"interval": 1},
    "delta-dit": {"interval": 1},
    "first-block-cache": {"threshold": 0.0},
    "teacache": {"threshold": 0.0},
    "dicache": {"threshold": 0.0},
    "toca": {"fresh": 1.0, "interval": 1, "intervals": "uniform"},
    "speca": {"threshold": 0.0, "floor": 0.0, "variant": "paper"},
}


CASES = [(method, name) for method in SKIPPING for name in NETWORKS]


def sample(
    name: str,
    method: str,
    knobs: dict[str, Any],
    batch: int,
    steps: int = STEPS,
    stop: int | None = None,
    one: int = -1,
    dtype: torch.dtype = torch.float32,
) -> tuple[Run, list[torch.Tensor]]:
    """A sampling run; `one` picks a single image of the batch."""
    backbone = make(name, dtype)
    first = inputs(backbone, name, 0, batch)
    run = run_of(get_method(method, knobs), backbone, backbone.shape(steps, **first))
    found = []
    for step in range(steps if stop is None else stop):
        given = inputs(backbone, name, step, batch)
        if one >= 0:
            each = ("img_ids", "txt_ids")
            given = {k: v[one : one + 1] if torch.is_tensor(v) and k not in each else v for k, v in given.items()}
        with attached(run):
            found.append(backbone.network(**given)[0])
    return run, found


@pytest.mark.parametrize(("method", "name"), CASES)
def test_something_is_left_out_and_nothing_stays_behind(method: str, name: str) -> None:
    run, found = sample(name, method, SKIPPING[method], 2)
    assert 0 < run.trace.realised_ratio < 1
    assert all(torch.isfinite(answer).all() for answer in found)
    backbone = make(name)
    assert torch.equal(found[0], backbone.network(**inputs(backbone, name, 0, 2))[0])
    # Another batch, other steps, a run that is given up: the next one is as the first.
    sample(name, method, SKIPPING[method], 4, steps=4, stop=3)
    _, again = sample(name, method, SKIPPING[method], 2)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


@pytest.mark.parametrize(("method", "name"), [(method, name) for method in NOTHING for name in NETWORKS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_leaves_out_nothing_is_the_network_to_the_last_bit(method: str, name: str, dtype: torch.dtype) -> None:
    backbone = make(name, dtype)
    run = run_of(get_method(method, NOTHING[method]), backbone, backbone.shape(3, **inputs(backbone, name, 0, 2)))
    for step in range(3):
        given = inputs(backbone, name, step, 2)
        expected = backbone.network(**given)[0]
        with attached(run):
            assert torch.equal(backbone.network(**given)[0], expected)


@pytest.mark.parametrize(
    ("method", "name"), [case for case in CASES if case[1] in ("pixart", "dit", "sd3", "flux-dev", "wan")]
)
def test_a_sample_is_the_same_alone_and_in_a_batch(method: str, name: str) -> None:
    # Random tokens are the batch's here: nobody has given the samples seeds.
    knobs = {**SKIPPING[method], **({"score": "value-norm"} if method == "duca" else {})}
    # In float64 rounding decides nothing: kernels may round otherwise in another batch.
    _, together = sample(name, method, knobs, 3, dtype=torch.float64)
    for one in range(3):
        _, alone = sample(name, method, knobs, 3, one=one, dtype=torch.float64)
        assert all(torch.allclose(t[one : one + 1], a, atol=1e-4) for t, a in zip(together, alone, strict=True))


# --- schedules ---


def whole_steps(method: str, steps: int = 20, **knobs: Any) -> list[int]:
    plan = get_method(method, knobs).plan(Shape(steps, SHAPE.layout, 256))
    return np.flatnonzero((plan.shares == 1).all(axis=1)).tolist()


def test_taylorseer_begins_with_full_steps_and_counts_from_the_last_of_them() -> None:
    assert whole_steps("taylorseer", interval=2) == [0, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19]
    # DiT, 50 steps: 18, 14 and 11 full steps at N = 3, 4, 5; FLUX, first 3 and N = 6: 0, 1, 2, 8, 14, …
    assert [len(whole_steps("taylorseer", 50, interval=n)) for n in (3, 4, 5)] == [18, 14, 11]
    assert whole_steps("taylorseer", 50, interval=6, first=3) == [0, 1, 2, 8, 14, 20, 26, 32, 38, 44]
    assert whole_steps("taylorseer", 8, interval=3, first=1) == [0, 3, 6]


@pytest.mark.parametrize("name", NETWORKS)
def test_taylorseer_may_forecast_what_leaves_the_last_block_alone(name: str) -> None:
    knobs = {"interval": 3, "order": 1, "forecast": "last-block"}
    run, found = sample(name, "taylorseer", knobs, 2)
    assert all(torch.isfinite(answer).all() for answer in found)
    assert run.trace.entered.tolist() == [2] * STEPS
    branches, others = sample(name, "taylorseer", {"interval": 3, "order": 1}, 2)
    assert (run.trace.computed == branches.trace.computed).all()
    assert run.trace.cache_bytes < branches.trace.cache_bytes / 2
    whole = [0, 1, 4]
    assert all(torch.equal(found[step], others[step]) for step in whole)
    assert not torch.equal(found[2], others[2])
    _, again = sample(name, "taylorseer", knobs, 2)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


def test_a_stream_goes_on_as_its_line_does_and_its_text_as_it_was() -> None:
    fill, text = StreamTaylor(Taylor(1)), torch.ones(1, 2, 4)
    for step, value in ((0, 1.0), (2, 2.0)):
        fill.keep_stream(0, step, SimpleNamespace(hidden=torch.full((1, 3, 4), value), text=text))  # type: ignore[arg-type]
    stream = SimpleNamespace(hidden=torch.zeros(1, 3, 4), text=None)
    fill.replace(0, 5, stream)  # type: ignore[arg-type]
    assert torch.equal(stream.hidden, torch.full((1, 3, 4), 3.5)) and stream.text is text
    stream.hidden.zero_()  # whoever follows may write to it
    fill.replace(0, 5, stream)  # type: ignore[arg-type]
    assert torch.equal(stream.hidden, torch.full((1, 3, 4), 3.5))


def test_deepcache_may_have_its_full_steps_around_one() -> None:
    def steps(**knobs: Any) -> list[int]:
        return whole_steps("deepcache", knobs.pop("of"), spacing="centred", **knobs)

    # What the published function gives for these, a pow of 1.2 and 1.4.
    assert steps(of=50, interval=5) == [0, 5, 10, 14, 18, 22, 27, 32, 38, 44]
    assert steps(of=50, interval=10, power=1.4) == [0, 9, 17, 26, 37]
    assert steps(of=20, interval=2, centre=6) == [0, 2, 4, 6, 7, 9, 11, 13, 15, 17]
    assert steps(of=20, interval=1, centre=6) == list(range(20))
    with pytest.raises(Fault, match="`centre` must be one of the steps"):
        steps(of=10, interval=2)


@pytest.mark.parametrize(("variant", "kept"), [("first-block", 0), ("last-block", 1)])
def test_deepcache_computes_one_block_between_full_steps(variant: str, kept: int) -> None:
    plan = get_method("deepcache", {"variant": variant, "interval": 3}).plan(SHAPE)
    assert [plan.layout.label(unit) for unit in plan.units] == (["0", "1-27"] if kept == 0 else ["0-26", "27"])
    assert (plan.shares[:, kept] == 1).all()
    assert np.flatnonzero(plan.shares[:, 1 - kept]).tolist() == [0, 3, 6, 9, 12, 15, 18]


def test_delta_dit_leaves_out_the_rear_before_the_boundary_and_the_front_after_it() -> None:
    plan = get_method("delta-dit").plan(SHAPE)
    assert [plan.layout.label(unit) for unit in plan.units] == ["0-6", "7-20", "21-27"]
    assert plan.shares[1].tolist() == [1, 0, 0]
    assert plan.shares[11].tolist() == [1, 0, 0]
    assert plan.shares[13].tolist() == [0, 0, 1]
    assert (plan.shares[::2] == 1).all()
    few = get_method("delta-dit", {"blocks": 0.25}).plan(SHAPE)
    assert few.shares[1].tolist() == [1, 1, 0] and few.shares[13].tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("method", "knobs", "linear"),
    [
        # 11 of 20 full steps are 1.5713 T; the others still embed and leave, 0.0237 G each.
        ("taylorseer", {"interval": 2}, 11 * 142.8449 + 9 * 0.02374),
        # 10 full steps, and 10 of one block (5.07485 G), which embed, leave and project the text (0.72548 G) as well.
        ("deepcache", {}, 10 * 142.8449 + 10 * (5.07485 + 0.72548 + 0.02374)),
    ],
)
def test_costs_are_the_published_arithmetic(method: str, knobs: dict[str, Any], linear: float) -> None:
    counted = count_macs("pixart-alpha-256", get_method(method, knobs))
    assert counted["linear"] / 1e9 == pytest.approx(linear, abs=0.02)


# --- forecasts ---


def forecast(values: dict[int, float], at: int, order: int, divided: bool, build_from: int = 1) -> float:
    fill, key = Taylor(order, divided, build_from), Key(0, "image")
    for step, value in values.items():
        fill.keep(key, step, torch.full((1, 1, 1), value, dtype=torch.float64))
    supplied = fill.supply(key, at)
    assert supplied is not None
    return float(supplied)


def test_divided_differences_continue_any_polynomial_of_their_order() -> None:
    def cubic(step: int) -> float:
        return 2 + 3 * step - 0.5 * step**2 + 0.1 * step**3

    uneven = {step: cubic(step) for step in (0, 1, 4, 9, 11)}
    assert forecast(uneven, 15, 3, divided=True) == pytest.approx(cubic(15))
    # The published differences mix spacings: right where the steps are evenly spaced and the order is 1, not else.
    line = {step: 5 - 2.0 * step for step in (0, 1, 4)}
    assert forecast(line, 7, 1, divided=False) == pytest.approx(-9)
    assert abs(forecast(uneven, 15, 3, divided=False) - cubic(15)) > 1


def test_published_differences_are_a_taylor_series_of_the_last_spacing() -> None:
    # Values 1, 2, 5 at steps 0, 2, 4: D1 = 1.5, D2 = (1.5 - 0.5) / 2 = 0.5.
    values = {0: 1.0, 2: 2.0, 4: 5.0}
    assert forecast(values, 5, 2, divided=False) == pytest.approx(5 + 1.5 + 0.5 / 2)
    assert forecast(values, 5, 0, divided=False) == 5
    # Differences from the third step on only, as FLUX's code has it: D2 is not there yet.
    assert forecast(values, 5, 2, divided=False, build_from=3) == pytest.approx(6.5)


def test_a_forecast_may_be_completed_by_some_tokens() -> None:
    fill, key = Taylor(1), Key(0, "image")
    for step in (0, 1):
        fill.keep(key, step, torch.full((1, 3, 1), float(step)))
    rows = Rows(torch.tensor([[1]]), 3)
    whole = fill.complete(key, 3, rows, torch.full((1, 1, 1), -7.0))
    assert whole is not None and whole.flatten().tolist() == [3, -7, 3]
    supplied = fill.supply(key, 4)
    assert supplied is not None and supplied.flatten().tolist() == [4, 4, 4]


# --- deciders ---


def test_thresholds_have_no_default() -> None:
    for method in ("first-block-cache", "teacache", "dicache"):
        with pytest.raises(Fault, match=f"{method} needs a threshold"):
            get_method(method).plan(SHAPE)


@pytest.mark.parametrize("method", ["first-block-cache", "teacache", "dicache"])
def test_a_higher_threshold_leaves_out_more(method: str) -> None:
    ratios = [sample("pixart", method, {"threshold": t}, 2)[0].trace.realised_ratio for t in (0.0, 1.4, 1e6)]
    assert ratios == sorted(ratios) and ratios[0] == 0 and ratios[-1] > 0.2


@pytest.mark.parametrize("method", ["first-block-cache", "teacache", "dicache"])
def test_those_who_are_pooled_are_decided_together(method: str) -> None:
    for threshold in (0.9, 1.2, 1.4, 1.8, 2.5):
        run, _ = sample("pixart", method, {"threshold": threshold, "pool": "batch"}, 4)
        assert set(np.unique(run.trace.ran)) <= {0, 4}
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])
    assert pooled(values, "sample", 2).tolist() == [1, 2, 3, 6]
    assert pooled(values, "pair", 2).tolist() == [2, 4, 2, 4]
    assert pooled(values, "pair", 1).tolist() == [1, 2, 3, 6]
    assert pooled(values, "batch", 2).tolist() == [3, 3, 3, 3]


def test_a_polynomial_is_clamped_where_it_is_negative_or_was_not_fitted() -> None:
    decider = ModulatedInput(1.0, "sample", [False], [1.0, -0.5, 0.0], most=2.0)
    changes = torch.tensor([0.25, 1.0, 2.0, 50.0])
    assert decider.estimated(changes).tolist() == [0.0, 0.5, 3.0, 3.0]
    assert get_method("teacache", {"threshold": 0.1, "polynomial": "2,-1"}).coefficients() == [2.0, -1.0]
    for wrong in ("x", "1,,2", "nan,1", "inf"):
        with pytest.raises(Fault, match=f"polynomial: '{wrong}' must be one of identity, flux"):
            get_method("teacache", {"threshold": 0.1, "polynomial": wrong}).plan(SHAPE)


def test_teacache_forces_its_first_and_last_steps() -> None:
    run, _ = sample("pixart", "teacache", {"threshold": 1e6, "first": 2, "last": 1}, 2)
    assert (run.trace.ran[:, 0] > 0).tolist() == [True, True, False, False, False, True]


@pytest.mark.parametrize(("end", "whole"), [("included", [0, 1, 2, 9]), ("excluded", [0, 1, 9])])
def test_dicache_warms_up_as_either_code_does(end: str, whole: list[int]) -> None:
    knobs = {"threshold": 1e6, "warmup": 0.2, "warmup_end": end}
    run, _ = sample("pixart", "dicache", knobs, 1, steps=10)
    assert np.flatnonzero((run.trace.ran > 0).all(axis=1)).tolist() == whole


def test_dicache_follows_the_way_of_its_probe() -> None:
    """The third step is left out: what it adds lies on the line through the first two, as far as the probe has come."""
    run, found = sample("pixart", "dicache", {"threshold": 1e6, "warmup": 0.2, "last": 0}, 1, steps=5)
    assert (run.trace.ran[:, -1] > 0).tolist() == [True, True, False, False, False]
    assert (run.trace.ran[:, 0] > 0).all()
    plain = make("pixart")
    streams = []
    for step in range(3):
        stream = plain.enter(**inputs(plain, "pixart", step, 1))
        entered = stream.hidden.clone()
        probe = None
        for branch in range(len(plain.layout)):
            if plain.layout.branches[branch].block == 1 and probe is None:
                probe = stream.hidden - entered
            plain.add(stream, branch, plain.compute(stream, branch))
        streams.append((entered, probe, stream.hidden - entered))
    (_, p0, r0), (_, p1, r1), (entered, p2, _) = streams
    share = ((p2 - p0).abs().mean() / (p1 - p0).abs().mean()).clamp(1, 1.5)
    stream = plain.enter(**inputs(plain, "pixart", 2, 1))
    stream.hidden = entered + r0 + share * (r1 - r0)
    assert torch.allclose(plain.leave(stream)[0], found[2], atol=1e-4)


def test_what_deciders_keep_is_counted() -> None:
    stream = 2 * 12 * 16 * 4  # two samples of 12 tokens of 16 numbers
    kept = {
        name: sample("pixart", name, {"threshold": 1e6}, 2)[0].kept_bytes for name in ("first-block-cache", "teacache")
    }
    # What is added again, what changes are seen against, and TeaCache's sums.
    assert kept == {"first-block-cache": 2 * stream, "teacache": 2 * stream + 2 * 4}


@pytest.mark.parametrize("name", ["wan", "pixart", "dit"])
def test_teacache_watches_the_time_s_projection_where_there_is_one_for_all_blocks(name: str) -> None:
    knobs = {"threshold": 1e-9, "watch": "projection"}
    if name == "dit":
        with pytest.raises(Fault, match="projects the time in every block"):
            sample(name, "teacache", knobs, 2, steps=3)
        return
    assert sample(name, "teacache", knobs, 2, steps=3)[0].trace.realised_ratio == 0
    # As published for Wan: five steps at the start, none at the end.
    published = {"threshold": 1e6, "watch": "projection", "polynomial": "wan-1.3b-ret-steps", "first": 5, "last": 0}
    run, _ = sample(name, "teacache", published, 2, steps=8)
    assert (run.trace.ran[:, 0] > 0).tolist() == [True] * 5 + [False] * 3


def test_dicache_may_take_the_input_s_change_off_the_probe_s() -> None:
    plain = make("pixart")
    seen = []
    for step in range(2):
        stream = plain.enter(**inputs(plain, "pixart", step, 2))
        entered = stream.hidden.clone()
        for branch in range(3):
            plain.add(stream, branch, plain.compute(stream, branch))
        seen.append((entered, stream.hidden.clone()))

    def change(now: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        return (now - before).abs().flatten(1).mean(1) / before.abs().flatten(1).mean(1)

    (entered0, probe0), (entered1, probe1) = seen
    expected = (change(probe1, probe0) - change(entered1, entered0)).abs()
    for factor, whole in ((0.99, True), (1.01, False)):
        for one in range(2):
            knobs = {"threshold": float(expected[one]) * factor, "warmup": 0.0, "last": 0, "change": "delta-minus"}
            run, _ = sample("pixart", "dicache", knobs, 2, steps=2, one=one)
            assert (run.trace.ran[1, -1] > 0) == whole
