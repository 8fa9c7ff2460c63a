"""DiffSparse's learner: budgets, losses, what a part of training hands to the next, and going on after a stop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ditbench.caption_sets import TRAINING_SPLIT, write_captions
from ditbench.cells import Spec
from ditbench.engine.layout import Branch, Layout, Shape
from ditbench.faults import Fault
from ditbench.generate import Sampler, Texts, embed, read_batch
from ditbench.judges.ssim import ssim
from ditbench.learn import site_times
from ditbench.learn.budget import Budget
from ditbench.learn.job import learned_method, write_learned
from ditbench.learn.lesson import Lesson, Notebook
from ditbench.learn.losses import dissimilarity, loss_of, squared
from ditbench.learn.sparsity import STATE, School, Training
from ditbench.learn.teacher import Teacher
from ditbench.macs import count_macs
from ditbench.methods import get_method
from ditbench.methods.diffsparse import DiffSparse
from ditbench.records import read_record
from ditbench.worlds import get_world

STEPS = 4


def small_shape(steps: int = 6) -> tuple[Shape, Any]:
    world = get_world("scenes")
    backbone, _ = world.backbone("meta")
    shape = Shape(steps, backbone.layout, world.tokens)
    return shape, backbone.costs(world.tokens, world.text_tokens)


# Budgets


@pytest.mark.parametrize("ratio", [0.2, 0.43, 0.54])
def test_a_budget_of_tokens_is_met_to_the_token(ratio: float) -> None:
    shape, costs = small_shape()
    budget = Budget(DiffSparse(ratio=ratio), shape, costs)
    prices = np.random.default_rng(0).normal(size=(*shape.sites, 5))
    whole = np.arange(shape.steps) == 0
    levels = budget.solve(prices, whole)
    assert (levels[0] == 4).all()
    kept = budget.candidates[levels].sum()
    wanted = (1 - ratio) * shape.steps * shape.sites[1]
    assert wanted - 0.25 < kept <= wanted + 1e-9
    assert budget.used(levels) == pytest.approx(1 - kept / (shape.steps * shape.sites[1]))


@pytest.mark.parametrize("ratio", [0.43, 0.54])
def test_a_budget_of_macs_is_what_the_ledger_bills(ratio: float) -> None:
    shape, costs = small_shape()
    method = DiffSparse(ratio=ratio, budget="macs")
    budget = Budget(method, shape, costs)
    levels = budget.solve(np.random.default_rng(0).normal(size=(*shape.sites, 5)), np.arange(shape.steps) == 0)
    planned = method.knowing({"shares": budget.candidates[levels].tolist()})
    full, own = (count_macs("scenes", m, steps=shape.steps) for m in (get_method("full"), planned))
    # Embeddings, head and the text's projection belong to no site and no ratio reaches them.
    of_sites = full["total"] - full["outside"]
    left_out = 1 - (own["total"] - own["outside"]) / of_sites
    assert left_out == pytest.approx(budget.used(levels), abs=2e-3)
    assert ratio - 1e-9 <= budget.used(levels) < ratio + 0.006


# PixArt-alpha, DiT, Wan and FLUX: branches of other weights each, and as many steps as are published.
REAL = {"pixart-alpha-256": 20, "dit-xl-2-256": 50, "wan2.1-1.3b-256": 25, "flux-schnell-256": 4}


@pytest.mark.parametrize("world_name", REAL)
def test_a_budget_of_macs_is_met_whatever_costs_prefer(world_name: str) -> None:
    world = get_world(world_name)
    backbone, _ = world.backbone("meta")
    shape = Shape(REAL[world_name], backbone.layout, world.tokens)
    costs = backbone.costs(world.tokens, world.text_tokens)
    first = np.arange(shape.steps) == 0
    for ratio in (0.43, 0.54):
        for levels in (5, 11):
            method = DiffSparse(ratio=ratio, budget="macs", levels=levels)
            budget = Budget(method, shape, costs)
            start = (budget.candidates - method.allocation(shape)[..., None]) ** 2
            asked = [start]
            # Rounding is of the same sign at all sites of a kind where all of them take one level.
            for level in (1, levels // 2, levels - 1):
                prices = np.random.default_rng(level).uniform(1, 1.2, (*shape.sites, levels))
                prices[..., level] -= 1
                asked.append(prices)
            for prices in asked:
                used = (1 - budget.used(budget.solve(prices, first))) / (1 - ratio)
                assert 0.995 - 1e-9 <= used <= 1 + 1e-9


def test_a_budget_of_linear_macs_is_of_the_whole_run_as_published_figures_are(tmp_path: Path) -> None:
    training = training_of(lesson_of(tmp_path, budget="macs-linear", ratio=0.4))
    school = training.school
    planned = (
        get_method("full"),
        school.method.knowing({"shares": school.budget.candidates[training.levels()].tolist()}),
    )
    full, own = (count_macs("scenes", method, steps=STEPS)["linear"] for method in planned)
    assert 0.6 * (1 - 0.005) <= own / full <= 0.6 + 1e-9
    assert school.budget.used(training.levels()) == pytest.approx(1 - own / full, abs=1e-3)


def test_a_budget_of_time_counts_what_branches_were_measured_to_take() -> None:
    shape, costs = small_shape()
    # Attention takes its time however few tokens ask; an MLP takes it by the token.
    times = {"self": [0.0, 2.0, 2.0, 2.0, 2.0], "cross": [0.0, 0.1, 0.2, 0.3, 0.4], "mlp": [0.0, 1.0, 2.0, 3.0, 4.0]}
    budget = Budget(DiffSparse(ratio=0.4, budget="milliseconds"), shape, costs, times)
    levels = budget.solve(np.random.default_rng(0).normal(size=(*shape.sites, 5)), np.arange(shape.steps) == 0)
    taken = sum(times[name][levels[step, n]] for step in range(6) for n, name in enumerate(shape.layout.name_of))
    share = taken / (shape.steps * 8 * (2.0 + 0.4 + 4.0))
    assert 0.595 < share <= 0.6 + 1e-9
    assert budget.used(levels) == pytest.approx(1 - share)


def test_times_of_branches_are_what_runs_take_longer_than_reuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lesson = lesson_of(tmp_path)
    method = DiffSparse(budget="milliseconds", levels=3)
    shape = lesson.sampler.world.shape(STEPS)
    warm: set[tuple[str, int]] = set()

    def seconds(lesson: Any, method: Any, shape: Shape, kind: tuple[str, int], texts: Any) -> float:
        if kind not in warm:  # a first run is slow, and is not counted
            warm.add(kind)
            return 100.0
        name, level = kind
        sites = (STEPS - 1) * 8
        return 1.0 + sites * {"": 0.0, "self": 0.003, "cross": 0.001, "mlp": 0.004 if level == 1 else 0.002}[name]

    monkeypatch.setattr(site_times, "_run_seconds", seconds)
    measured = site_times.site_times(lesson, method, shape)["milliseconds"]
    assert measured["self"] == pytest.approx([0, 3, 3])
    assert measured["mlp"] == pytest.approx([0, 4, 4])  # more tokens never take less
    monkeypatch.undo()
    # A real run computes what it is asked to compute.
    ran: list[Any] = []
    monkeypatch.setattr(Sampler, "run", lambda self, fixed, steps, seed, texts: ran.append(fixed.plan(shape).shares))
    site_times._run_seconds(lesson, method, shape, ("mlp", 1), lesson.texts)
    assert (ran[0][0] == 1).all() and ran[0][1:].sum() == pytest.approx(0.5 * 8 * (STEPS - 1))
    assert ran[0][1, shape.layout.name_of == "mlp"].tolist() == [0.5] * 8


def test_what_a_step_has_while_it_is_not_whole_is_its_share() -> None:
    shape, costs = small_shape()
    budget = Budget(DiffSparse(ratio=0.5), shape, costs)
    whole = np.array([True, False, False, True, False, False])
    levels = budget.between(np.zeros((*shape.sites, 5)), whole)
    # Half of 6 steps less 2 whole ones: 1 for four steps, a quarter each.
    assert budget.candidates[levels[1:]].mean() == pytest.approx(0.25)
    assert (levels[0] == 4).all()


@pytest.mark.parametrize("kind", ["tokens", "macs"])
def test_while_steps_are_learned_the_plan_of_the_layers_is_given(kind: str) -> None:
    shape, costs = small_shape()
    budget = Budget(DiffSparse(ratio=0.4, budget=kind), shape, costs)
    preset = np.array([True, False, False, True, False, False])
    prices = np.random.default_rng(0).normal(size=(*shape.sites, 5))
    prices[3] -= 10 * np.arange(5)  # nobody has learned anything of a step that was whole all along
    levels = budget.between(prices, preset)
    assert (levels[3] < 4).any() and budget.candidates[levels[3]].mean() < 0.7
    levels[preset] = 4
    assert (levels == budget.solve(prices, preset)).all()
    assert budget.used(levels) == pytest.approx(0.4, abs=0.005)


def test_more_whole_steps_than_the_budget_has_are_a_fault() -> None:
    shape, costs = small_shape()
    budget = Budget(DiffSparse(ratio=0.8), shape, costs)
    with pytest.raises(Fault, match=r"ratio: 0.8 leaves less than 2 whole steps of 6 compute; take fewer full_steps"):
        budget.solve(np.zeros((*shape.sites, 5)), np.array([True, False, False, True, False, False]))


def test_levels_that_are_no_different_are_a_fault() -> None:
    shape = Shape(4, Layout.regular(2, ("self", "cross", "mlp")), 3)
    _, costs = small_shape()
    with pytest.raises(Fault, match="levels: 5 shares of 3 tokens are not all different"):
        Budget(DiffSparse(), shape, costs)


# Losses


def test_losses_are_the_judges() -> None:
    rng = np.random.default_rng(0)
    images, others = (rng.integers(0, 256, (3, 64, 64, 3), dtype=np.uint8) for _ in range(2))
    a, b = (torch.from_numpy(x).movedim(-1, 1).double() / 127.5 - 1 for x in (images, others))
    assert dissimilarity(a, b).numpy() == pytest.approx(1 - ssim(images, others), abs=2e-4)
    assert squared(a, b).numpy() == pytest.approx(((a - b) ** 2).mean((1, 2, 3)).numpy())


def test_the_perceptual_distance_of_scenes_sees_what_changed() -> None:
    world = get_world("scenes")
    loss = loss_of("lpips", world, "cpu", {})
    images = torch.from_numpy(world.references(3, 0)).movedim(-1, 1).float() / 127.5 - 1
    same, others = loss(images, images), loss(images, images.roll(1, 0))
    slightly = loss(images, (images + 0.02 * torch.randn(images.shape)).clamp(-1, 1))
    assert (same == 0).all()
    assert (slightly > 0).all() and (slightly < others).all()
    with pytest.raises(Fault, match="lpips-vgg is not for world scenes"):
        loss_of("lpips-vgg", world, "cpu", {})


# Training


def lesson_of(folder: Path, count: int = 4, **knobs: Any) -> Lesson:
    method = get_method("diffsparse", {"batch": 2, **knobs})
    sampler = Sampler("scenes")
    captions = sampler.world.draw_captions(count, 0, "train")
    given, nothing = (sampler.world.embed(sampler.handle, some) for some in (captions, [""]))
    texts = Texts([f"c{place}" for place in range(count)], given, nothing)
    spec = {"world": "scenes", "weights": None, "dtype": "float32", "steps": STEPS, "arm": "ours"}
    return Lesson(method, spec, sampler, texts, 1, Notebook(folder / "ours" / "learned.notes.json", "x"))


def training_of(lesson: Lesson) -> Training:
    method = lesson.method
    assert isinstance(method, DiffSparse)
    return Training(School(lesson, method, method.loss, method.training_seed), method)


def test_training_starts_near_the_allocation_of_toca(tmp_path: Path) -> None:
    training = training_of(lesson_of(tmp_path))
    toca = get_method("toca", {"intervals": "uniform"}).plan(training.school.shape).shares
    levels = training.levels()
    whole = training.preset
    assert whole.tolist() == (toca == 1).all(1).tolist()
    ours = training.school.budget.candidates[levels]
    assert np.corrcoef(ours[~whole].ravel(), toca[~whole].ravel())[0, 1] > 0.6


@pytest.mark.parametrize(
    ("layout", "steps", "tokens", "knobs"),
    [
        (Layout.regular(28, ("self", "cross", "mlp")), 20, 256, {"fresh": 0.3}),
        (Layout.regular(28, ("self", "mlp")), 50, 256, {"fresh": 0.07}),
        (Layout.regular(28, ("self", "mlp")), 250, 256, {"fresh": 0.07}),
        (
            Layout((*Layout.regular(19, ("attn", "mlp")).branches, *(Branch(b, "single") for b in range(19, 57)))),
            4,
            256,
            {"fresh": 0.1, "interval": 2, "lead": 1},
        ),
        (Layout.regular(24, ("attn", "mlp")), 28, 1024, {"fresh": 0.3}),
    ],
    ids=["pixart", "dit", "dit-250", "flux", "sd3"],
)
def test_the_allocation_is_what_toca_computes_of_that_network(
    layout: Layout, steps: int, tokens: int, knobs: dict[str, Any]
) -> None:
    shape = Shape(steps, layout, tokens)
    toca = get_method("toca", {"intervals": "uniform", **knobs}).plan(shape).shares
    partial = ~(toca == 1).all(1)
    assert partial.any()
    method = DiffSparse()
    assert method.allocation(shape)[partial] == pytest.approx(toca[partial])
    assert method.whole_steps(shape).sum() < steps / 2 + 1


def test_training_that_was_stopped_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    whole = training_of(lesson_of(tmp_path / "a"))
    whole.finish(whole.school.lesson)
    lesson = lesson_of(tmp_path / "b")
    first = training_of(lesson)
    for batch in first._batches(4)[:1]:
        first._learn_from(lesson.texts, batch)
        first.done += 1
    lesson.notebook.note(STATE, first.state())
    # What is noted is plain data, as a file gives it back.
    again = Notebook(lesson.notebook.path, "x")
    second = training_of(lesson)
    second.recall(again.recall(STATE))
    second.finish(lesson)
    assert torch.equal(whole.layers, second.layers) and torch.equal(whole.steps, second.steps)
    assert whole.history["loss"] == second.history["loss"]
    assert whole.history["part"] == ["layers"] * 2 + ["steps"] * 2 + ["unified"] * 2
    assert (whole.levels() == second.levels()).all()


def test_whole_steps_are_made_cheap_between_the_stages(tmp_path: Path) -> None:
    training = training_of(lesson_of(tmp_path))
    training.part = 1
    before = training.layers.detach().clone()
    with torch.no_grad():
        training.steps[3, 1] -= 1  # the last step, and not the one that was preset
    training._end_part()
    whole = training.whole.tolist()
    assert whole[0] and whole[3] and sum(whole) == int(training.preset.sum())
    lowered = before - training.layers.detach()
    assert (lowered[whole, :, -1] == training.method.delta).all()
    assert lowered.sum() == pytest.approx(training.method.delta * sum(whole) * lowered.shape[1])
    # They stay whole without being forced.
    levels = training.levels()
    assert (levels[3] == 4).all() and training.parts[training.part] == "unified"


def test_the_record_of_learning_is_a_plan_for_sampling(tmp_path: Path) -> None:
    write_captions(get_world("scenes"), "training", 2, 0, tmp_path / "captions.json", split=TRAINING_SPLIT)
    embed("scenes", tmp_path / "captions.json", tmp_path / "embeddings.json")
    knobs = {"ratio": 0.4, "stages": "one", "batch": 2, "budget": "macs"}
    spec = Spec("scenes", "ours", "diffsparse", knobs, STEPS, 0, 2, "c", None, "float32", learning="training")
    out = tmp_path / "ours" / "learned.json"
    write_learned(spec, tmp_path / "captions.json", tmp_path / "embeddings.json", out, batch=2)
    found = read_record(out, "learned")["found"]
    assert found["left_out"] == pytest.approx(0.4, abs=0.006)
    assert len(found["history"]["loss"]) == 1 and found["history"]["solved"][0] == pytest.approx(0.4, abs=0.006)
    plan = learned_method(out).plan(get_world("scenes").shape(STEPS))
    assert (plan.shares[0] == 1).all()
    assert plan.shares.tolist() == found["shares"]
    # As a file for another arm, of another resolution if need be.
    taken = get_method("diffsparse", {"plan_file": str(out), "ratio": 0.4})
    texts = read_batch(tmp_path / "captions.json", tmp_path / "embeddings.json", [0], None)
    lesson = Lesson(taken, {}, Sampler("scenes"), texts, 1, Notebook(tmp_path / "n", "x"))
    from ditbench.learn.sparsity import learn, transferred

    given = learn(lesson)
    assert given["shares"] == found["shares"] and given["from"]["arm"] == "ours"
    with pytest.raises(Fault, match=r"leaves out 0\.4, this arm says ratio 0\.8; give it the same"):
        transferred(out, get_method("diffsparse", {"plan_file": str(out), "ratio": 0.8}))  # type: ignore[arg-type]
    with pytest.raises(Fault, match="the plan is of 4 steps and 24 branches, this run has 5 and 24"):
        taken.knowing(given).plan(get_world("scenes").shape(5))


def test_of_several_trainings_the_plan_that_is_least_off_is_kept(tmp_path: Path) -> None:
    from ditbench.learn.sparsity import learn

    knobs = {"ratio": 0.4, "stages": "one"}
    single = {seed: learn(lesson_of(tmp_path / str(seed), **knobs, training_seed=seed)) for seed in (3, 4)}
    both = learn(lesson_of(tmp_path / "both", **knobs, training_seed=3, trainings=2))
    told = both["trainings"]
    assert [(each["seed"], each["after"]) for each in told["tried"]] == [(3, "single"), (4, "single")]
    assert told["kept"] == min(told["tried"], key=lambda each: each["loss"])
    kept = told["kept"]["seed"]
    assert both["shares"] == single[kept]["shares"] and both["history"]["loss"] == single[kept]["history"]["loss"]
    assert "trainings" not in single[3]
    # The losses are of one and the same noise, which neither training has seen.
    lesson = lesson_of(tmp_path / "again", **knobs, training_seed=5)
    school = training_of(lesson).school
    for each in told["tried"]:
        shares = np.array(single[each["seed"]]["shares"])
        levels = np.abs(school.budget.candidates - shares[..., None]).argmin(-1)
        assert school.off_of_all(levels) == pytest.approx(each["loss"], rel=1e-6)


def test_the_best_plan_of_all_parts_is_kept_where_that_is_asked(tmp_path: Path) -> None:
    from ditbench.learn.sparsity import learn

    # A second stage at such a rate undoes whatever the first has learned.
    knobs = {"ratio": 0.4, "scaling": "all", "layer_rate": 0.1, "unified_rate": 100.0}
    last = learn(lesson_of(tmp_path / "last", **knobs))
    best = learn(lesson_of(tmp_path / "best", **knobs, kept="best"))
    tried = best["trainings"]["tried"]
    assert [each["after"] for each in tried] == ["layers", "unified"]
    assert tried[0]["loss"] < tried[1]["loss"] and best["trainings"]["kept"] == tried[0]
    assert best["shares"] != last["shares"] and best["history"]["loss"] == last["history"]["loss"]
    # The plan of the first stage has its whole steps, and leaves out as much.
    assert best["left_out"] == pytest.approx(last["left_out"], rel=0.02)
    # What is kept is told again by whoever goes on from the notes.
    assert learn(lesson_of(tmp_path / "best", **knobs, kept="best"))["shares"] == best["shares"]


def test_a_teacher_draws_what_is_not_there_and_nothing_twice(tmp_path: Path) -> None:
    asked: list[list[int]] = []

    def draw(places: list[int]) -> torch.Tensor:
        asked.append(places)
        return torch.arange(len(places)).float()[:, None, None, None].expand(-1, 3, 2, 2)

    first = Teacher(tmp_path, ["a"]).images(["x", "y"], draw)
    again = Teacher(tmp_path, ["a"]).images(["y", "z", "x"], draw)
    assert asked == [[0, 1], [1]]
    assert again[:, 0, 0, 0].tolist() == [1, 0, 0] and first[:, 0, 0, 0].tolist() == [0, 1]
    Teacher(tmp_path, ["b"]).images(["x"], draw)
    assert asked[-1] == [0]
