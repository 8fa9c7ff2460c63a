"""ToCa and DuCa: their full steps and token counts as published, what they cost, and what they leave behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from ditbench.engine.layout import Branch, Layout, Shape
from ditbench.engine.ledger import by_site
from ditbench.engine.recall import RecalledAttention
from ditbench.engine.rows import Rows
from ditbench.engine.run import Run, attached
from ditbench.engine.watch import received
from ditbench.faults import Fault
from ditbench.macs import count_macs
from ditbench.methods import get_method
from ditbench.methods.toca import SCHEDULES, cycle_of
from ditbench.sampling import run_of
from tests.backbones.networks import NETWORKS, TEXT, inputs, make

DIT = Shape(50, Layout.regular(28, ("self", "mlp")), 256)
FLUX = Layout(
    (
        *(Branch(b, name) for b in range(19) for name in ("attn", "mlp")),
        *(Branch(19 + b, "single") for b in range(38)),
    )
)
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


@pytest.mark.parametrize("method", ["toca", "duca"])
def test_an_interval_of_one_is_the_network_itself_but_in_the_published_code(method: str) -> None:
    for shape in (DIT, PIXART, Shape(250, DIT.layout, 256), Shape(20, FLUX, 256)):
        assert (get_method(method, {"interval": 1}).plan(shape).shares == 1).all()
    assert (get_method(method, {"interval": 1, "variant": "repo"}).plan(DIT).shares < 1).any()


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
@pytest.mark.parametrize("name", NETWORKS)
def test_they_run_on_every_family(method: str, name: str) -> None:
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


def test_flux_begins_with_full_steps_and_counts_each_kind_of_block_anew() -> None:
    method = get_method("toca", {"interval": 4, "fresh": 0.1})
    counts = method.plan(Shape(50, FLUX, 4096)).counts(4096)
    full = [0, 1, 2, *range(6, 50, 4)]
    assert np.flatnonzero((counts == 4096).all(axis=1)).tolist() == full and len(full) == 14
    of = {name: counts[3, FLUX.name_of == name].tolist() for name in FLUX.names}
    assert set(of["attn"]) == {0}
    assert of["mlp"] == [int(4096 * 0.04 * (1.5 - block / 27)) for block in range(19)]
    assert of["single"] == [int(4096 * 0.16 * (1.5 - block / 27)) for block in range(38)]
    led = get_method("toca", {"interval": 2, "lead": 1}).plan(Shape(4, FLUX, 256))
    assert led.shares[:, 1].round(2).tolist() == [1, led.shares[1, 1].round(2), 1, led.shares[1, 1].round(2)]


def test_flux_costs_what_diffsparse_prints_but_for_projections_that_the_code_repeats() -> None:
    """Table 9 has 7.313 T. Published code keeps attention before its output projection, and projects it anew."""
    counted = count_macs("flux-schnell-256", get_method("toca", {"interval": 2, "fresh": 0.1, "lead": 1}), steps=4)
    repeated = 2 * 19 * (256 + 256) * 3072**2
    assert round((counted["linear"] + repeated) / 1e12, 3) == 7.313
    assert round(counted["linear"] / 1e12, 3) == 7.129


@pytest.mark.parametrize("score", ["attention", "value-norm", "key-norm", "similarity", "norm", "random", "none"])
def test_flux_recomputes_what_it_would_have_computed_where_nothing_has_changed(score: str) -> None:
    """Whatever tokens of image and text are chosen, each meets the attention that was its own."""
    backbone = make("flux-dev")
    given = inputs(backbone, "flux-dev", 0, 2)
    shape = backbone.shape(4, **given)
    method = get_method("toca", {"interval": 4, "fresh": 0.3, "lead": 1, "score": score})
    run = run_of(method, backbone, shape)
    found = []
    for _ in range(4):
        with attached(run):
            found.append(backbone.network(**given)[0])
    plain = backbone.network(**given)[0]
    assert torch.equal(found[0], plain)
    for answer in found[1:]:
        torch.testing.assert_close(answer, plain, rtol=1e-4, atol=1e-4)
    partial = (run.trace.computed > 0) & (run.trace.whole == 0)
    assert partial[1:, shape.layout.name_of == "single"].all()


def test_flux_s_chosen_tokens_are_those_of_a_step_worked_out_by_hand() -> None:
    """One single-stream block with attention of an earlier step and tokens of a later one."""
    backbone = make("flux-schnell")
    branch = len(backbone.layout) - 1
    layer = backbone.network.single_transformer_blocks[-1]
    sites = np.zeros((2, branch + 1), dtype=bool)
    sites[0] = True
    recalled = RecalledAttention([branch], sites, ~sites)
    before, after = (backbone.enter(**inputs(backbone, "flux-schnell", step, 2)) for step in (0, 1))
    before.recalled = after.recalled = recalled
    kept: list[torch.Tensor] = []
    layer.attn.register_forward_hook(lambda module, args, output: kept.append(output))
    backbone.compute(before, branch)
    recalled.begin(1)
    # Of the first image two tokens are of the text, of the second one.
    index = torch.tensor([[1, 4, 5, 12], [2, 6, 7, 16]])
    output = backbone.compute(after.together(Rows(index, TEXT + after.tokens)), branch)
    assert len(kept) == 1, "attention is not made anew"
    assert after.text is not None
    for sample, chosen in enumerate(index):
        tokens = torch.cat([after.text[sample], after.hidden[sample]])[chosen]
        shift, scale, _ = layer.norm.linear(layer.norm.silu(after.condition("embedded")[sample])).chunk(3)
        widened = layer.act_mlp(layer.proj_mlp(layer.norm.norm(tokens) * (1 + scale) + shift))
        by_hand = layer.proj_out(torch.cat([kept[0][sample][chosen], widened], dim=1))
        torch.testing.assert_close(output.image[sample], by_hand)


def test_flux_s_single_stream_blocks_choose_among_text_and_image_together() -> None:
    """As published: one norm over all tokens, and the highest sums of attention received and age."""
    backbone = make("flux-dev")
    shape = backbone.shape(3, **inputs(backbone, "flux-dev", 0, 2))
    knobs = {"interval": 3, "fresh": 0.3, "lead": 1}
    run = run_of(get_method("toca", knobs), backbone, shape)
    selector = run.branches[0].selector
    branch = len(shape.layout) - 1
    maps: list[torch.Tensor] = []
    chosen: list[tuple[int, torch.Tensor]] = []
    see = selector.see

    def seen(number: int, step: int, glance: Any) -> int:
        if number == branch and step == 0:
            maps.append(received(glance.attention))
        return see(number, step, glance)

    choose = selector.choose_both

    def choosing(unit: Any, step: int, stream: Any) -> Rows:
        rows = choose(unit, step, stream)
        chosen.append((unit.start, rows.index))
        return rows

    selector.see, selector.choose_both = seen, choosing
    for step in range(3):
        with attached(run):
            backbone.network(**inputs(backbone, "flux-dev", step, 2))
    own = [index for number, index in chosen if number == branch]
    age = torch.zeros_like(maps[0])
    count = int(0.3 * 1.6 * (1.5 - 1 / 27) * (TEXT + shape.tokens))
    for index in own:
        age += 1
        total = maps[0] / maps[0].norm(dim=1, keepdim=True) + 0.25 / 3 * age
        expected = total.argsort(dim=1, descending=True, stable=True)[:, :count].sort(dim=1).values
        assert torch.equal(index, expected)
        age.scatter_(1, index, 0)
    of_text = [(index < TEXT).sum(1).tolist() for index in own]
    assert len({tuple(counts) for counts in of_text}) > 1 or len(set(of_text[0])) > 1, "the text's share is not fixed"


def test_flux_keeps_attention_where_the_ratio_reaches_one_and_only_where_it_is_asked_for() -> None:
    backbone = make("flux-schnell")
    given = inputs(backbone, "flux-schnell", 0, 1)

    def ran(steps: int, **knobs: object) -> Run:
        run = run_of(get_method("toca", knobs), backbone, backbone.shape(steps, **given))
        for step in range(steps):
            with attached(run):
                backbone.network(**inputs(backbone, "flux-schnell", step, 1))
        return run

    most = ran(2, interval=2, fresh=1.0, lead=1)
    singles = backbone.layout.name_of == "single"
    assert (most.trace.computed[1, singles] == most.tokens).all()
    assert not by_site(most.trace, most.costs, "attention")[1].any()
    assert (by_site(most.trace, most.costs, "linear")[1, singles] == 9 * 24**2 * (most.tokens + TEXT)).all()
    assert ran(2, interval=2, lead=1).trace.cache_bytes > 0
    assert ran(3, lead=3).trace.cache_bytes == 0


def test_flux_without_tokens_is_fora_to_the_first_step() -> None:
    backbone = make("flux-schnell")
    shape = backbone.shape(50, **inputs(backbone, "flux-schnell", 0, 1))
    toca, fora = get_method("toca", {"fresh": 0.0}).plan(shape), get_method("fora", {"interval": 3}).plan(shape)
    assert np.array_equal(toca.shares, fora.shares)
    with pytest.raises(Fault, match="take `auto`"):
        get_method("toca", {"schedule": "flat"}).plan(shape)


def test_flux_is_billed_for_the_tokens_of_image_and_text_and_for_no_attention() -> None:
    backbone = make("flux-schnell")
    given = inputs(backbone, "flux-schnell", 0, 2)
    shape = backbone.shape(2, **given)
    run = run_of(get_method("toca", {"interval": 2, "fresh": 0.2, "lead": 1}), backbone, shape)
    for step in range(2):
        with attached(run):
            backbone.network(**inputs(backbone, "flux-schnell", step, 2))
    costs, width = run.costs, 24
    found, pairs = by_site(run.trace, costs, "linear")[1], by_site(run.trace, costs, "attention")[1]
    assert not pairs.any()
    for number, (block, name) in enumerate(shape.layout.branches):
        depth = block - 2 if name == "single" else block
        ratio = 0.2 * (1.5 - depth / 27) * {"attn": 0, "mlp": 0.4, "single": 1.6}[name]
        # A single-stream block has 4 of its 7 input projections left, and its output projection of 5.
        tokens = int(ratio * shape.tokens) + int(ratio * TEXT) if name == "mlp" else int(ratio * (shape.tokens + TEXT))
        assert found[number] == tokens * {"attn": 0, "mlp": 8, "single": 9}[name] * width**2


@pytest.mark.parametrize(("interval", "printed"), [(4, 1263.22), (5, 1126.76), (6, 990.30)])
def test_flux_dev_costs_what_toca_s_own_page_says(interval: int, printed: float) -> None:
    """50 steps at 1024 x 1024 with 512 text tokens, in FLOPs, with the projections that its code repeats."""
    method = get_method("toca", {"interval": interval, "fresh": 0.1})
    whole = count_macs("flux-dev-1024", get_method("full"), steps=1)
    per_token = np.vectorize({"attn": 0, "mlp": 8, "single": 9}.get)(FLUX.name_of) * 3072**2
    total = 0.0
    image, text, both = (method.plan(Shape(50, FLUX, tokens)).counts(tokens) for tokens in (4096, 512, 4608))
    computed = np.where(FLUX.name_of == "single", both, image + text)
    for step in range(50):
        if (image[step] == 4096).all():
            total += whole["linear"] + whole["attention"]
        else:
            total += float((computed[step] * per_token).sum()) + 19 * 4608 * 3072**2 + whole["outside"]
    assert 2 * total / 1e12 == pytest.approx(printed, rel=2e-4)


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
