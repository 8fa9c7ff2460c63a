"""The loop over a plan's sites, on a small random PixArt; what holds for every family is in tests/backbones."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ditbench.backbones import Backbone, Stream
from ditbench.engine.fills import Fill, Key, Misplaced, Pass, Reuse
from ditbench.engine.layout import Layout, Shape, Unit
from ditbench.engine.ledger import bill
from ditbench.engine.plan import ASK, Plan, by_step
from ditbench.engine.rows import Rows
from ditbench.engine.run import Parts, Run, attached
from ditbench.engine.trace import Trace
from ditbench.faults import Fault
from tests.backbones.networks import inputs, make

TOKENS = 12


@pytest.fixture
def backbone() -> Backbone:
    return make("pixart")


class First:
    """The first tokens of every sample."""

    def choose(self, unit: Unit, step: int, stream: Stream, count: int) -> Rows:
        return Rows(torch.arange(count).expand(stream.samples, -1), stream.tokens)


def run_of(backbone: Backbone, shares: np.ndarray, fill: type = Reuse, **options: bool) -> Run:
    made = Plan(backbone.layout, backbone.layout.by_branch, shares)
    return Run(backbone, made, TOKENS, lambda: Parts(fill(), First()), **options)


def call(backbone: Backbone, run: Run, step: int, batch: int = 2) -> torch.Tensor:
    with attached(run):
        answer: torch.Tensor = backbone.network(**inputs(backbone, "pixart", step, batch))[0]
        return answer


def test_a_scatter_of_all_tokens_overwrites_the_whole_cache() -> None:
    cache, key = Reuse(), Key(0, "image")
    stale, fresh = torch.randn(2, TOKENS, 4), torch.randn(2, TOKENS, 4)
    cache.keep(key, 0, stale.clone())
    assert torch.equal(cache.complete(key, 1, Rows(torch.arange(TOKENS).expand(2, -1), TOKENS), fresh), fresh)
    assert torch.equal(cache.supply(key, 2), fresh)
    assert cache.nbytes() == fresh.nbytes


def test_rows_are_gathered_and_put_back_by_hand() -> None:
    whole = torch.arange(24.0).view(2, 4, 3)
    some = Rows(torch.tensor([[0, 2], [1, 3]]), 4)
    assert torch.equal(some.take(whole), torch.stack([whole[0, [0, 2]], whole[1, [1, 3]]]))
    one = Rows.of_samples(torch.tensor([1]), 4)
    assert torch.equal(one.take(whole), whole[1:])
    put = some.put(whole.clone(), torch.zeros(2, 2, 3))
    assert put[0, [0, 2]].sum() == put[1, [1, 3]].sum() == 0
    assert torch.equal(put[0, [1, 3]], whole[0, [1, 3]])


def test_some_tokens_are_fresh_and_the_others_reused(backbone: Backbone) -> None:
    mlp = 2
    shares = np.ones((2, 6))
    shares[1, mlp] = 0.25
    seen: dict[tuple[str, int], torch.Tensor] = {}

    class Watched(Reuse):
        def keep(self, key: Key, step: int, output: torch.Tensor) -> None:
            seen["before", key.unit] = output.clone()
            super().keep(key, step, output)

        def complete(self, key: Key, step: int, rows: Rows, part: torch.Tensor) -> torch.Tensor | None:
            whole = super().complete(key, step, rows, part)
            assert whole is not None
            seen["after", key.unit] = whole.clone()
            return whole

    run = run_of(backbone, shares, Watched)
    call(backbone, run, 0), call(backbone, run, 1)
    before, after = seen["before", mlp], seen["after", mlp]
    assert set(seen) == {("before", mlp), ("after", mlp)}, "only what a later step needs is kept"
    assert torch.equal(after[:, 3:], before[:, 3:])
    assert not torch.isclose(after[:, :3], before[:, :3]).any(dim=2).all()
    assert run.trace.computed[1].tolist() == [24, 24, 6, 24, 24, 24]
    assert run.trace.whole[1].tolist() == [2, 2, 0, 2, 2, 2]


def test_tokens_that_pass_leave_a_block_as_they_entered_it(backbone: Backbone) -> None:
    layout = backbone.layout
    made = Plan(layout, layout.by_block, np.array([[0.5, 0.0]]))
    run = Run(backbone, made, TOKENS, lambda: Parts(Pass(), First()))
    answer = call(backbone, run, 0)
    stream = backbone.enter(**inputs(backbone, "pixart", 0, 2))
    entered = stream.hidden.clone()
    part = stream.at(First().choose(layout.by_block[0], 0, stream, 6))
    for branch in range(3):
        backbone.add(part, branch, backbone.compute(part, branch))
    stream.hidden = torch.cat([part.hidden, entered[:, 6:]], dim=1)
    assert torch.equal(answer, backbone.leave(stream)[0])


def test_misplaced_is_reuse_of_other_tokens() -> None:
    fill = Misplaced(shift=3)
    output = torch.arange(TOKENS * 2.0).view(1, TOKENS, 2)
    fill.keep(Key(0, "image"), 0, output)
    assert torch.equal(fill.supply(Key(0, "image"), 1)[0, 3], output[0, 0])


def test_a_step_can_be_several_calls_with_state_of_their_own(backbone: Backbone) -> None:
    """Wan's pipeline calls its network for one branch of guidance after the other."""
    shares = np.ones((2, 6))
    shares[1] = 0
    both = run_of(backbone, shares, by_itself=False)
    apart = [run_of(backbone, shares) for _ in range(2)]
    for step in range(2):
        for branch in range(2):
            with attached(both):
                given = inputs(backbone, "pixart", 2 * step + branch, 2)
                together = backbone.network(**given)[0]
            with attached(apart[branch]):
                assert torch.equal(together, backbone.network(**given)[0])
        both.advance()
    assert both.step == 2
    assert both.trace.samples == 4
    assert both.trace.realised_ratio == 0.5
    with pytest.raises(Fault, match="asks for step 3"):
        call(backbone, both, 0)


def test_a_call_too_many_in_a_step_is_a_fault(backbone: Backbone) -> None:
    run = run_of(backbone, np.ones((2, 6)), by_itself=False)
    call(backbone, run, 0)
    run.advance()
    run.advance()  # nothing was called in between: still the same step
    call(backbone, run, 1)
    with pytest.raises(Fault, match="more often"):
        call(backbone, run, 1)


def test_bad_plans_are_refused(backbone: Backbone) -> None:
    shares = np.ones((2, 6))
    shares[0, 0] = 0
    with pytest.raises(Fault, match="first step"):
        run_of(backbone, shares)
    with pytest.raises(Fault, match="2 blocks"):
        longer = Layout.regular(3, ("self", "cross", "mlp"))
        Run(backbone, Plan(longer, longer.by_branch, np.ones((2, 9))), TOKENS, lambda: Parts(Reuse()))
    half = Plan(backbone.layout, backbone.layout.by_branch, np.array([[1.0] * 6, [0.5] * 6]))
    with pytest.raises(Fault, match="selector"):
        Run(backbone, half, TOKENS, lambda: Parts(Reuse()))
    asking = Plan(backbone.layout, backbone.layout.by_branch, np.array([[1.0] * 6, [ASK] * 6]))
    with pytest.raises(Fault, match="decider"):
        Run(backbone, asking, TOKENS, lambda: Parts(Reuse()))
    run = run_of(backbone, np.ones((1, 6)))
    call(backbone, run, 0)
    with pytest.raises(Fault, match="the plan has 1"):
        call(backbone, run, 1)


def test_units_must_split_the_network() -> None:
    layout = Layout.regular(2, ("a", "b"))
    for units in ([], [Unit(0, 2)], [Unit(0, 2), Unit(1, 4)], [Unit(1, 4)]):
        with pytest.raises(Fault, match="follow each other"):
            Plan(layout, tuple(units), np.ones((1, len(units))))
    with pytest.raises(Fault, match="no blocks 1 to 2"):
        layout.span(1, 3)
    assert [layout.label(u) for u in (layout.by_branch[3], layout.by_block[1], layout.span(0, 2))] == [
        "1.b",
        "1",
        "0-1",
    ]


def test_a_ratio_weighs_units_by_their_branches() -> None:
    layout = Layout.regular(4, ("a",))
    plan = Plan(layout, (layout.span(0, 3), layout.span(3, 4)), np.array([[1.0, 1.0], [0.0, 1.0]]))
    assert plan.nominal_ratio == 3 / 8
    assert by_step(Shape(4, layout, 10), np.arange(4) % 2 == 0).nominal_ratio == 0.5


def test_traces_add_and_survive_json() -> None:
    shape = Shape(2, Layout.regular(1, ("a",)), 10)
    one = Trace.empty(shape)
    one.samples = 2
    one.entered[:] = 2
    one.record(0, 0, 10, 2)
    one.record(1, 0, 5, 2)
    one.note(1, {"text": 2})
    two = Trace.from_summary(one.summary())
    two.add(one)
    assert two.samples == 4
    assert two.noted["text"].tolist() == [0, 4]
    assert two.whole.tolist() == [[4], [0]] and two.squares.tolist() == [[400], [100]]
    assert two.realised_ratio == one.realised_ratio == 0.25
    with pytest.raises(Fault):
        two.add(Trace.empty(Shape(3, shape.layout, 10)))


def test_what_a_cache_holds_is_counted(backbone: Backbone) -> None:
    shares = np.ones((2, 6))
    shares[1, :3] = 0
    run = run_of(backbone, shares)
    call(backbone, run, 0), call(backbone, run, 1)
    assert run.trace.cache_bytes == 3 * TOKENS * 16 * 4
    fill: Fill = Pass()
    assert fill.nbytes() == 0


def test_a_plan_survives_json_to_the_token() -> None:
    layout, tokens = Layout.regular(1, ("a",)), 4096
    shares = np.arange(tokens + 1)[:, None] / tokens
    again = Plan.from_json(json.loads(json.dumps(Plan(layout, layout.by_branch, shares).to_json())))
    assert again.counts(tokens)[:, 0].tolist() == list(range(tokens + 1))


def test_steps_that_never_ran_are_not_counted_as_left_out(backbone: Backbone) -> None:
    run = run_of(backbone, np.ones((4, 6)))
    call(backbone, run, 0), call(backbone, run, 1)
    assert run.trace.steps_run == 2
    assert run.trace.realised_ratio == 0
    assert bill(run.trace, run.costs).left_out == 0


def test_a_forward_that_others_replaced_is_named_or_stays(backbone: Backbone) -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    network = backbone.network
    expected = network(**inputs(backbone, "pixart", 0, 2))[0]
    add_hook_to_module(network, ModelHook())  # as offloading does
    hooked = network.forward
    answer = call(backbone, run_of(backbone, np.ones((1, 6))), 0)
    assert torch.equal(answer, expected)
    assert network.forward is hooked
    with attached(run_of(backbone, np.ones((1, 6)))), pytest.raises(Fault, match="accelerated already"):
        call(backbone, run_of(backbone, np.ones((1, 6))), 0)
    remove_hook_from_module(network)
    network.forward = lambda **given: None
    with pytest.raises(Fault, match="something else stands in"):
        call(backbone, run_of(backbone, np.ones((1, 6))), 0)
    del network.forward
