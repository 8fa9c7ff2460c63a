"""What every block family keeps to, on a small random network of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ditbench.backbones import Backbone, Stream
from ditbench.engine.deciders import Random
from ditbench.engine.fills import Fill, Key, Pass, Reuse
from ditbench.engine.layout import Unit
from ditbench.engine.ledger import bill
from ditbench.engine.plan import ASK, Plan
from ditbench.engine.rows import Rows
from ditbench.engine.run import Parts, Run, attached
from ditbench.engine.selectors import RandomTokens
from tests.backbones.networks import NETWORKS, inputs, make

STEPS = 3
DTYPES = [torch.float32, torch.bfloat16]
BATCHES = [1, 4]

each_family = pytest.mark.parametrize("name", NETWORKS)


class EveryToken:
    """Chooses all tokens: the whole unit, but through the gather path, and backwards, so that places must be kept."""

    def choose(self, unit: Unit, step: int, stream: Stream, count: int) -> Rows:
        return Rows(torch.arange(stream.tokens).flip(0).expand(stream.samples, -1), stream.tokens)


class Same:
    """Chooses the first tokens, with one object for all units that choose as many."""

    def __init__(self) -> None:
        self.known: dict[tuple[int, int], Rows] = {}

    def choose(self, unit: Unit, step: int, stream: Stream, count: int) -> Rows:
        rows = Rows(torch.arange(count).expand(stream.samples, -1), stream.tokens)
        return self.known.setdefault((step, count), rows)


def units(backbone: Backbone, scope: str) -> tuple[Unit, ...]:
    layout = backbone.layout
    if scope == "span":
        return (layout.span(0, layout.blocks - 1), layout.span(layout.blocks - 1, layout.blocks))
    return layout.by_branch if scope == "branch" else layout.by_block


def plan(backbone: Backbone, shares: list[float | np.ndarray], scope: str = "branch") -> Plan:
    chosen = units(backbone, scope)
    return Plan(backbone.layout, chosen, np.stack([np.broadcast_to(s, len(chosen)) for s in shares]))


def run_of(
    backbone: Backbone,
    name: str,
    made: Plan,
    fill: Callable[[], Fill] = Reuse,
    selector: object = None,
    decider: object = None,
) -> Run:
    tokens = backbone.tokens(**inputs(backbone, name, 0, 1))
    chooser = selector or RandomTokens(torch.Generator().manual_seed(0))
    return Run(backbone, made, tokens, lambda: Parts(fill(), chooser, decider))  # type: ignore[arg-type]


def answers(backbone: Backbone, name: str, run: Run | None, batch: int, masked: bool = False) -> list[torch.Tensor]:
    """The network's answers over a sampling run, under a run or as it is."""
    found = []
    for step in range(STEPS if run is None else run.plan.steps):
        given = inputs(backbone, name, step, batch, masked)
        if run is None:
            found.append(backbone.network(**given)[0])
        else:
            with attached(run):
                found.append(backbone.network(**given)[0])
    return found


@each_family
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scope", ["branch", "block", "span"])
def test_a_full_plan_is_the_network_to_the_last_bit(
    name: str, dtype: torch.dtype, batch: int, masked: bool, scope: str
) -> None:
    backbone = make(name, dtype)
    expected = answers(backbone, name, None, batch, masked)
    actual = answers(backbone, name, run_of(backbone, name, plan(backbone, [1.0] * STEPS, scope)), batch, masked)
    assert all(torch.isfinite(e).all() and e.std() > 0 for e in expected)
    assert all(torch.equal(e, a) for e, a in zip(expected, actual, strict=True))


class Always(Reuse):
    """Keeps what is there and wants every computation."""

    wants_all = True


class NoScatter(Always):
    """A scatter that does nothing: what was kept of the first step stays."""

    def complete(self, key: Key, step: int, rows: Rows, part: torch.Tensor) -> torch.Tensor | None:
        return self.supply(key, step)


@each_family
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scope", ["branch", "block", "span"])
def test_every_token_through_the_gather_path_is_the_network_but_for_rounding(
    name: str, dtype: torch.dtype, scope: str
) -> None:
    backbone = make(name, dtype)
    run = gathering(backbone, name, scope, Always)
    assert off_by_rounding(backbone, name, answers(backbone, name, run, 2))
    kept = [run.trace.computed[step].sum() for step in range(STEPS)]
    assert kept[0] == kept[1] == kept[2]


@each_family
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scope", ["branch", "block", "span"])
def test_a_scatter_that_does_nothing_is_no_rounding(name: str, dtype: torch.dtype, scope: str) -> None:
    """What the test above would say of it."""
    backbone = make(name, dtype)
    stale = answers(backbone, name, gathering(backbone, name, scope, NoScatter), 2)
    assert not off_by_rounding(backbone, name, stale)


def gathering(backbone: Backbone, name: str, scope: str, fill: Callable[[], Fill]) -> Run:
    """A run that gathers every token, over what the first step left."""
    run = run_of(backbone, name, plan(backbone, [1.0] * STEPS, scope), fill, EveryToken())
    # As many as there are, but not the way of a whole unit.
    tokens = backbone.tokens(**inputs(backbone, name, 0, 1))
    run._counts[1:] = [[_Some(tokens) for _ in step] for step in run._counts[1:]]
    return run


def off_by_rounding(backbone: Backbone, name: str, actual: list[torch.Tensor]) -> bool:
    """Whether answers are hardly farther from the same network in float64 than the network's own are.

    Other shapes of the same products round otherwise, but not more: over all numbers by half as much again, at the
    farthest of any step by twice as much. (The farthest number of one step is luck: a CPU whose kernels sum in another
    order halves it or doubles it.)
    """
    own = [answer.double() for answer in answers(backbone, name, None, 2)]
    exact = _exact(backbone, name)
    allowed = [(a - true).abs() for a, true in zip(own, exact, strict=True)]
    off = [(found.double() - true).abs() for found, true in zip(actual, exact, strict=True)]
    farthest = max(step.max() for step in allowed)
    spread = all(o.square().mean().sqrt() <= 1.5 * a.square().mean().sqrt() for o, a in zip(off, allowed, strict=True))
    return spread and all(bool(o.max() <= 2 * farthest) for o in off)


def _exact(backbone: Backbone, name: str) -> list[torch.Tensor]:
    """The answers of the same weights to the same inputs, computed in float64."""
    network = make(name, torch.float64).network
    network.load_state_dict(backbone.network.state_dict())
    return [network(**_widened(inputs(backbone, name, step, 2)))[0] for step in range(STEPS)]


def _widened(given: dict[str, Any]) -> dict[str, Any]:
    """Inputs in float64. FLUX.1 takes times and guidance a thousandfold, in its own dtype: rounded as an input is."""
    wide: dict[str, Any] = {}
    for key, value in given.items():
        if isinstance(value, dict):
            wide[key] = _widened(value)
        elif not torch.is_tensor(value) or not value.is_floating_point():
            wide[key] = value
        elif "img_ids" in given and key in ("timestep", "guidance"):
            wide[key] = (value * 1000).double() / 1000
        else:
            wide[key] = value.double()
    return wide


class _Some(int):
    """A count of all tokens that takes the path of some."""

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = int.__hash__


@each_family
@pytest.mark.parametrize("scope", ["branch", "block"])
def test_reuse_of_everything_keeps_outputs_but_not_gates(name: str, scope: str) -> None:
    backbone = make(name)
    run = run_of(backbone, name, plan(backbone, [1.0, 0.0], scope))
    reused = answers(backbone, name, run, 2)[1]
    # By hand: the first step's outputs; the second step's gates where a unit is one branch, else the first step's.
    first, second = (backbone.enter(**inputs(backbone, name, step, 2)) for step in (0, 1))
    for unit in units(backbone, scope):
        before = (first.hidden, first.text)
        for branch in range(unit.start, unit.stop):
            output = backbone.compute(first, branch)
            backbone.add(first, branch, output)
            if unit.single:
                backbone.add(second, branch, output)
        if not unit.single:
            second.hidden = second.hidden + (first.hidden - before[0])
            if first.text is not before[1] and first.text is not None and second.text is not None:
                second.text = second.text + (first.text - before[1])
    by_hand = backbone.leave(second)[0]
    assert torch.allclose(reused, by_hand, atol=1e-4 * float(by_hand.abs().max()))
    assert not torch.allclose(reused, answers(backbone, name, None, 2)[1], atol=1e-2)


@each_family
@pytest.mark.parametrize("scope", ["branch", "block"])
@pytest.mark.parametrize("fill", [Reuse, Pass])
def test_gathers_shared_between_units_change_nothing(name: str, scope: str, fill: type) -> None:
    backbone = make(name)
    made = plan(backbone, [1.0, 0.5, 0.25], scope)

    class Apart(Same):
        def choose(self, unit: Unit, step: int, stream: Stream, count: int) -> Rows:
            shared = super().choose(unit, step, stream, count)
            return Rows(shared.index, shared.tokens)

    shared = answers(backbone, name, run_of(backbone, name, made, fill, Same()), 2)
    apart = answers(backbone, name, run_of(backbone, name, made, fill, Apart()), 2)
    for one, other in zip(shared, apart, strict=True):
        assert torch.allclose(one, other, atol=2e-5 * float(one.abs().max()))


SAMPLES = 3


@each_family
@pytest.mark.parametrize("scope", ["branch", "block"])
@pytest.mark.parametrize("fill", [Reuse, Pass])
def test_some_samples_compute_and_the_others_do_not(name: str, scope: str, fill: type) -> None:
    """Each sample of an online plan is what it would be alone under its own decisions."""
    backbone = make(name)
    mixed = np.full(len(units(backbone, scope)), ASK)
    mixed[1::3] = 0.5
    made = plan(backbone, [1.0, ASK, mixed], scope)

    class Alternate:
        def __init__(self, sample: int | None) -> None:
            self.sample = sample

        def decide(self, unit: Unit, step: int, stream: Stream, backbone: Backbone) -> torch.Tensor:
            wanted = (torch.arange(SAMPLES) + step + unit.start) % 2 == 0
            return wanted if self.sample is None else wanted[self.sample : self.sample + 1]

    run = run_of(backbone, name, made, fill, Same(), Alternate(None))
    together = answers(backbone, name, run, SAMPLES)
    for sample in range(SAMPLES):
        single = run_of(backbone, name, made, fill, Same(), Alternate(sample))
        for step in range(STEPS):
            given = {
                key: value[sample : sample + 1] if torch.is_tensor(value) and value.shape[:1] == (SAMPLES,) else value
                for key, value in inputs(backbone, name, step, SAMPLES).items()
            }
            given = {
                key: {k: None if v is None else v[sample : sample + 1] for k, v in value.items()}
                if isinstance(value, dict)
                else value
                for key, value in given.items()
            }
            with attached(single):
                alone = backbone.network(**given)[0]
            assert torch.allclose(alone[0], together[step][sample], atol=2e-5 * float(alone.abs().max()))
    assert 0 < run.trace.ran[1].sum() < SAMPLES * len(backbone.layout)


@each_family
def test_nothing_is_left_behind(name: str) -> None:
    """Another batch size, an aborted run and a second prompt find the network as it was."""
    backbone = make(name)
    network = backbone.network
    given = inputs(backbone, name, 0, 2)
    expected = network(**given)[0]
    state = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    made = plan(backbone, [1.0, 0.5])
    with pytest.raises(RuntimeError), attached(run_of(backbone, name, made)):
        network(**given)
        raise RuntimeError("stopped in the middle")
    answers(backbone, name, run_of(backbone, name, made), 4)
    assert torch.equal(network(**given)[0], expected)
    assert "forward" not in vars(network)
    assert all(torch.equal(state[key], tensor) for key, tensor in network.state_dict().items())


@each_family
@pytest.mark.parametrize("kind", ["full", "some", "reuse", "blocks", "pass", "online", "online branches"])
def test_the_bill_equals_torchs_flop_counter(name: str, kind: str) -> None:
    backbone = make(name)
    rng = np.random.default_rng(0)
    mixed = rng.choice([0.0, 0.2, 0.5, 0.75, 1.0], size=(2, len(backbone.layout)))
    made, fill = {
        "full": lambda: (plan(backbone, [1.0] * 3), Reuse),
        "some": lambda: (plan(backbone, [1.0, *mixed]), Reuse),
        "reuse": lambda: (plan(backbone, [1.0, 0.0, 0.0]), Reuse),
        "blocks": lambda: (plan(backbone, [1.0, 0.3, 0.0], "block"), Reuse),
        "pass": lambda: (plan(backbone, [0.5, *mixed]), Pass),
        "online": lambda: (plan(backbone, [1.0, ASK, ASK], "block"), Reuse),
        "online branches": lambda: (plan(backbone, [1.0, ASK, mixed[0]]), Reuse),
    }[kind]()
    run = run_of(backbone, name, made, fill, decider=Random(0.5))
    with FlopCounterMode(display=False) as counter:
        answers(backbone, name, run, 3)
    charged = bill(run.trace, run.costs)
    assert charged.total * 3 == pytest.approx(counter.get_total_flops() / 2, rel=1e-12)
    assert charged.whole + charged.partial + charged.outside == pytest.approx(charged.total)


@each_family
def test_costs_need_no_weights(name: str) -> None:
    """On the device `meta` a run costs what it costs with values."""
    made = [make(name, device=device) for device in ("meta", "cpu")]
    bills = []
    for backbone in made:
        run = run_of(backbone, name, plan(backbone, [1.0, 0.5, 0.0]))
        answers(backbone, name, run, 1)
        bills.append(bill(run.trace, run.costs))
    assert bills[0] == bills[1]


@each_family
def test_gradients_flow_through_a_run(name: str) -> None:
    """Learners differentiate through whole sampling runs: nothing that autograd needs may be overwritten."""
    backbone = make(name)
    backbone.network.requires_grad_(True)
    outputs = answers(backbone, name, run_of(backbone, name, plan(backbone, [1.0, 0.5, 0.0])), 2)
    sum(output.float().pow(2).mean() for output in outputs).backward()  # type: ignore[union-attr]
    grads = [p.grad for p in backbone.network.parameters() if p.grad is not None]
    assert grads and all(torch.isfinite(g).all() for g in grads)


@each_family
def test_a_router_learns_beside_a_frozen_network(name: str) -> None:
    """What a selector reads of the stream may be kept for its own gradient: it must not be overwritten."""
    backbone = make(name)
    width = backbone.enter(**inputs(backbone, name, 0, 2)).hidden.shape[-1]
    router = torch.nn.Linear(width, 1)
    scores: list[torch.Tensor] = []

    class Routed:
        def choose(self, unit: Unit, step: int, stream: Stream, count: int) -> Rows:
            scores.append(router(stream.hidden).sigmoid()[..., 0])
            return Rows(scores[-1].topk(count, dim=1).indices.sort(dim=1).values, stream.tokens)

    outputs = answers(backbone, name, run_of(backbone, name, plan(backbone, [1.0, 0.5, 0.0]), Reuse, Routed()), 2)
    loss = sum(output.float().mean() for output in outputs) + sum(score.mean() for score in scores)
    loss.backward()  # type: ignore[union-attr]
    assert router.weight.grad is not None and torch.isfinite(router.weight.grad).all()
