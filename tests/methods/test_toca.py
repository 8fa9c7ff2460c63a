"""ToCa and DuCa: their full steps and token counts as published, what they cost, and what they leave behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ditbench.engine.layout import Layout, Shape
from ditbench.engine.run import attached
from ditbench.faults import Fault
from ditbench.macs import count_macs
from ditbench.methods import get_method
from ditbench.methods.toca import SCHEDULES, cycle_of
from ditbench.sampling import run_of
from tests.backbones.networks import NETWORKS, inputs, make

DIT = Shape(50, Layout.regular(28, ("self", "mlp")), 256)
PIXART = Shape(20, Layout.regular(28, ("self", "cross", "mlp")), 256)
STEPS = 6


def whole_steps(shape: Shape, interval: int = 3, flips: bool = True, weighted: bool = True) -> tuple[list, list]:
    """The counts of steps that are whole in all blocks, and of those that are so in the first block alone."""
    schedule = SCHEDULES["ddim50" if len(shape.layout.names) == 2 else "pixart"]
    whole = cycle_of(shape.steps, shape.layout.blocks, interval, schedule, weighted, flips).whole
    count = np.arange(shape.steps)[::-1] if schedule.down else np.arange(shape.steps)
    every = whole.all(axis=1)
    assert (whole[:, 1:].all(axis=1) == every).all()
    return count[every].tolist(), count[whole[:, 0] & ~every].tolist()


def test_full_steps_are_those_of_the_published_code() -> None:
    # As users of the published code printed them, 50 DDIM steps counted down.
    full = [49, 44, 40, 36, 30, 27, 24, 21, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0]
    assert whole_steps(DIT) == (full, [45, 32])
    assert whole_steps(PIXART) == ([0, 6, 9, 12, 15, 18], [4])
    # Without the turn within a step those steps are whole.
    assert whole_steps(DIT, flips=False) == (sorted([*full, 45, 32], reverse=True), [])
    assert whole_steps(PIXART, flips=False) == ([0, 4, 6, 9, 12, 15, 18], [])
    assert whole_steps(PIXART, weighted=False)[0] == [0, 3, 6, 9, 12, 15, 18]
    # With N = 1 the sensitive stretch still skips: it is not the network itself.
    assert len(whole_steps(Shape(250, DIT.layout, 256), interval=1)[0]) < 250


def test_tokens_fall_with_time_and_depth_as_published_for_pixart() -> None:
    counts = get_method("toca", {"intervals": "uniform"}).plan(PIXART).counts(256)
    sites = {name: [PIXART.layout.branches.index((block, name)) for block in (0, 13, 27)] for name in ("cross", "mlp")}
    assert counts[1, sites["cross"]].tolist() == [133, 85, 33]
    assert counts[1, sites["mlp"]].tolist() == [256, 227, 88]
    assert counts[19, sites["cross"]].tolist() == [14, 8, 3]
    assert counts[19, sites["mlp"]].tolist() == [37, 23, 9]
    assert (counts[1, PIXART.layout.name_of == "self"] == 0).all()


def test_dit_computes_no_token_in_its_first_quarter() -> None:
    method = get_method("toca", {"fresh": 0.07, "variant": "repo"})
    counts = method.plan(DIT).counts(256)
    partial = counts[:12][:, 1::2]
    assert set(np.unique(partial)) == {0, 256}
    assert 100 < counts[-2, 1::2].max() < 256


@pytest.mark.parametrize(
    ("method", "world", "knobs", "printed", "digits"),
    [
        # Linear layers; DiT with both branches of guidance and one embedder for all blocks, as the original has it.
        ("toca", "dit-xl-2-256", {"fresh": 0.07, "variant": "repo"}, 4.9683, 4),
        ("duca", "dit-xl-2-256", {"fresh": 0.08, "variant": "repo"}, 4.9361, 4),
        ("toca", "pixart-alpha-256", {"intervals": "uniform"}, 1.64089, 5),
    ],
)
def test_they_cost_what_was_published(method: str, world: str, knobs: dict, printed: float, digits: int) -> None:
    dit = world.startswith("dit")
    counted = count_macs(world, get_method(method, knobs), as_published=dit)
    assert round((2 if dit else 1) * counted["linear"] / 1e12, digits) == printed
    assert (counted["selecting"] > 0) == (method == "toca" or knobs.get("variant") == "repo")


@pytest.mark.parametrize(
    ("method", "knobs", "steps", "printed"),
    [
        ("toca", {"fresh": 0.07, "variant": "repo"}, 50, 10_232_809_588_736),
        ("toca", {"fresh": 0.07, "variant": "repo", "interval": 1}, 250, 103_549_585_270_784),
    ],
)
def test_its_own_calculator_is_met_to_the_last_digit(method: str, knobs: dict, steps: int, printed: int) -> None:
    """DiT-XL/2 with both branches of guidance: figures that users of the published code have printed."""
    counted = count_macs("dit-xl-2-256", get_method(method, knobs), steps=steps, as_toca_counts=True)
    assert counted["toca_flops"] == printed


def test_its_calculator_gives_the_tables_figures_of_other_methods_too() -> None:
    for name, knobs, printed in (("full", {}, 23.735), ("taylorseer", {"interval": 3}, 8.559)):
        counted = count_macs("dit-xl-2-256", get_method(name, knobs), as_toca_counts=True)
        assert round(counted["toca_flops"] / 1e12, 3) == printed
    with pytest.raises(Fault, match="DiT alone"):
        count_macs("pixart-alpha-256", get_method("full"), as_toca_counts=True)


def test_duca_hands_on_in_every_second_step_of_an_interval() -> None:
    passed = get_method("duca", {"variant": "repo"}).passed(PIXART)
    assert np.flatnonzero(passed.all(axis=1)).tolist() == [2, 5, 8, 11, 14, 17]
    # DiT counts down: the step after a full one comes first to be skipped, and the next one mends it.
    passed = get_method("duca", {"variant": "repo", "fresh": 0.08}).passed(DIT)
    skipped = passed.mean(axis=1)
    assert skipped.sum() == pytest.approx(8 + 27 / 28)
    assert skipped[49 - 29] == 1 and skipped[49 - 28] == 0


def test_duca_s_neighbourhoods_gain_what_it_published() -> None:
    generator = torch.Generator()
    gains = {
        (method, shape.steps): get_method(method).selector(shape, generator).terms.bonus
        for method in ("toca", "duca")
        for shape in (DIT, PIXART)
    }
    assert gains == {("toca", 50): 0.6, ("toca", 20): 0.4, ("duca", 50): 0.8, ("duca", 20): 0.4}
    assert get_method("duca", {"bonus": 0.1}).selector(DIT, generator).terms.bonus == 0.1


def answers(name: str, method: str, batch: int, steps: int = STEPS, abort: bool = False, **knobs: object) -> list:
    backbone = make(name)
    given = inputs(backbone, name, 0, batch)
    run = run_of(get_method(method, knobs), backbone, backbone.shape(steps, **given))
    found = []
    for step in range(steps - 2 if abort else steps):
        with attached(run):
            found.append(backbone.network(**inputs(backbone, name, step, batch))[0])
    return found


@pytest.mark.parametrize("method", ["toca", "duca"])
@pytest.mark.parametrize("name", [name for name in NETWORKS if not name.startswith("flux")])
def test_they_run_on_every_family_that_has_attention_and_mlp_apart(method: str, name: str) -> None:
    backbone = make(name)
    found = answers(name, method, 2, fresh=0.5)
    plain = [backbone.network(**inputs(backbone, name, step, 2))[0] for step in range(STEPS)]
    assert torch.equal(found[0], plain[0])
    assert all(torch.isfinite(answer).all() for answer in found)
    assert not all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    # Nothing is left of one run for the next, however it ended.
    answers(name, method, 4, abort=True, fresh=0.5)
    again = answers(name, method, 2, fresh=0.5)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


@pytest.mark.parametrize("method", ["toca", "duca"])
def test_flux_is_refused(method: str) -> None:
    with pytest.raises(Fault, match="FLUX's single-stream blocks"):
        answers("flux-schnell", method, 1)


def test_a_skipped_step_hands_on_what_the_last_block_gave() -> None:
    """At a step that is passed over, the head sees the stream that the step before left it."""
    backbone = make("pixart")
    given = inputs(backbone, "pixart", 0, 2)
    run = run_of(get_method("duca", {"interval": 3}), backbone, backbone.shape(3, **given))
    heads = []
    leave = backbone.leave

    def watched(stream):  # type: ignore[no-untyped-def]
        heads.append(stream.hidden.clone())
        return leave(stream)

    backbone.leave = watched  # type: ignore[method-assign]
    for step in range(3):
        with attached(run):
            backbone.network(**inputs(backbone, "pixart", step, 2))
    assert not torch.equal(heads[0], heads[1])
    assert torch.equal(heads[1], heads[2])
    assert run.trace.noted["text"].tolist() == [2, 2, 0]


def test_without_tokens_toca_is_fora_at_equal_intervals() -> None:
    toca, fora = get_method("toca", {"fresh": 0.0, "interval": 2}), get_method("fora", {"interval": 2})
    assert np.array_equal(toca.plan(PIXART).shares, fora.plan(PIXART).shares)


def test_a_schedule_that_does_not_fit_is_refused() -> None:
    with pytest.raises(Fault, match="'ddim50' says nothing of branch 'cross'"):
        get_method("toca", {"schedule": "ddim50"}).plan(PIXART)
