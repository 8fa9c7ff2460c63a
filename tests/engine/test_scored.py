"""Scores, ages and bonuses: against maps of attention worked out in full, and against sums made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch.nn import functional

from ditbench.backbones import Stream
from ditbench.engine import watch
from ditbench.engine.fills import Reuse
from ditbench.engine.layout import Layout, Unit
from ditbench.engine.plan import Plan
from ditbench.engine.run import Parts, Run, attached
from ditbench.engine.scored import ScoredTokens, Terms, grid_of, with_bonus
from ditbench.engine.scores import SCORES, RandomScore, Score, normalised, score_of
from ditbench.faults import Fault
from tests.backbones.networks import NETWORKS, TEXT, inputs, make

CROSSING = ("pixart", "pixart-1024", "wan")
STEPS = 4
NONE = Terms()


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def run_with(name: str, score: str, batch: int = 2, terms: Terms = NONE, halves: int = 1) -> tuple[Run, list]:
    """A run in which every other step computes half of the tokens of each MLP, and its answers."""
    backbone = make(name)
    tokens = backbone.tokens(**inputs(backbone, name, 0, 1))
    shares = np.ones((STEPS, len(backbone.layout)))
    shares[1::2] = np.where(backbone.layout.name_of == backbone.layout.branches[-1].name, 0.5, 0.0)
    plan = Plan(backbone.layout, backbone.layout.by_branch, shares)
    run = Run(
        backbone,
        plan,
        tokens,
        lambda: Parts(Reuse(), ScoredTokens(score_of(score, plan.layout, generator()), plan, tokens, terms)),
        halves=halves,
    )
    found = []
    for step in range(STEPS):
        with attached(run):
            found.append(backbone.network(**inputs(backbone, name, step, batch))[0])
    return run, found


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("score", SCORES)
def test_looking_on_changes_nothing_and_is_billed(name: str, score: str) -> None:
    if score == "entropy" and name not in CROSSING:
        with pytest.raises(Fault, match="needs a branch cross in every block"):
            run_with(name, score)
        return
    run, found = run_with(name, score)
    backbone = make(name)
    # The first step is whole, and watched: it is the network's own to the last bit.
    assert torch.equal(found[0], backbone.network(**inputs(backbone, name, 0, 2))[0])
    maps = score in ("attention", "entropy")
    # FLUX's single-stream blocks attend for some tokens too.
    partly = maps and name.startswith("flux")
    assert (run.trace.selecting > 0).tolist() == [maps, partly, maps, partly]
    assert run.kept_bytes > 0


@pytest.mark.parametrize("name", ["dit", "sd3", "sd3.5-large", "flux-dev", "wan", "pixart"])
@pytest.mark.parametrize("chunk", [1 << 25, 7])
def test_attention_received_is_the_mean_map_s_column_sums(
    name: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "CHUNK", chunk)
    backbone = make(name)
    stream = backbone.enter(**inputs(backbone, name, 0, 2))
    with watch.attending(2) as seen:
        output = backbone.compute(stream, 0)
    (attention,) = seen
    # The fused kernel's own answer, from the explicit map.
    scores = attention.queries @ attention.keys.transpose(-1, -2) * attention.queries.shape[-1] ** -0.5
    explicit = scores.softmax(-1)
    expected = functional.scaled_dot_product_attention(attention.queries, attention.keys, attention.values)
    assert torch.allclose(explicit @ attention.values, expected, atol=1e-5)
    joint = name in ("sd3", "sd3.5-large", "flux-dev")
    assert attention.keys.shape[2] == stream.tokens + TEXT * joint
    assert torch.allclose(watch.received(attention), explicit.mean(1).sum(1), atol=1e-5)
    shares = explicit.mean(1)
    assert torch.allclose(watch.entropies(attention), -(shares * (shares + 1e-7).log()).sum(-1), atol=1e-5)
    # Which tokens are the image's: their values alone move when the image does.
    first = TEXT if backbone.text_leads else 0
    changed = backbone.enter(**inputs(backbone, name, 0, 2))
    changed.hidden = changed.hidden + torch.randn_like(changed.hidden)
    with watch.attending(2) as again:
        backbone.compute(changed, 0)
    moved = (again[0].values != attention.values).any(-1).any(1).any(0)
    assert moved.nonzero().flatten().tolist() == list(range(first, first + stream.tokens))
    assert output.image.shape[1] == stream.tokens


@pytest.mark.parametrize("masked", [False, True])
def test_the_plain_processor_shows_what_the_fused_kernel_does(masked: bool) -> None:
    backbone = make("pixart")
    given = inputs(backbone, "pixart", 0, 2, masked)
    found = []
    for processor in (AttnProcessor2_0(), AttnProcessor()):
        backbone.network.set_attn_processor(processor)
        stream = backbone.enter(**given)
        with watch.attending(2) as seen:
            backbone.compute(stream, 1)
        (attention,) = seen
        found.append((attention.values, watch.entropies(attention), watch.received(attention)))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*found, strict=True))
    assert (found[0][2][:, -1] < 1e-6).all() == masked


def test_a_mask_is_part_of_the_map() -> None:
    attention = watch.Attention(*(torch.randn(1, 2, 3, 4) for _ in range(3)), None)
    added = torch.tensor([0.0, -torch.inf, 0.0]).expand(1, 1, 1, 3)
    for bias in (added, added == 0, added.expand(1, 1, 3, 3)):
        received = watch.received(attention._replace(bias=bias))
        assert received[0, 1] == 0
        assert received.sum() == pytest.approx(3)


class Given(Score):
    """Scores that a test names."""

    name = "given"

    def __init__(self, layout: Layout, values: torch.Tensor) -> None:
        super().__init__(layout, generator())
        self.values = values

    def of(self, unit: Unit, step: int, stream: Stream) -> torch.Tensor:
        return self.values


def chosen(selector: ScoredTokens, steps: int, count: int, halves: int = 1) -> list[list[list[int]]]:
    """The tokens chosen at every step from the second on."""
    samples, tokens = selector.score.values.shape
    stream = Stream(torch.zeros(samples, tokens, 1), halves=halves)
    unit = Unit(0, 1)
    return [selector.choose(unit, step, stream, count).index.tolist() for step in range(1, steps)]


def selector_of(
    values: list[list[float]], terms: Terms, shares: list[float], passed: list[int] | None = None
) -> ScoredTokens:
    layout = Layout.regular(1, ("mlp",))
    plan = Plan(layout, layout.by_branch, np.array(shares)[:, None])
    skipped = None if passed is None else np.array(passed, dtype=bool)[:, None]
    return ScoredTokens(Given(layout, torch.tensor(values)), plan, len(values[0]), terms, skipped)


def test_the_highest_scores_are_chosen_in_raster_order_and_the_first_of_equals() -> None:
    selector = selector_of([[1.0, 3.0, 2.0, 3.0]], Terms(), [1, 0.5, 0.5])
    assert chosen(selector, 3, 2) == [[[1, 3]], [[1, 3]]]
    assert chosen(selector_of([[1.0, 1.0, 1.0, 1.0]], Terms(), [1, 0.5]), 2, 2) == [[[0, 1]]]


def test_age_outweighs_a_score_and_ends_with_a_full_step() -> None:
    # Squares sum to 1: 0.8 and 0.6. A step of age is worth 0.3, so the second token comes at every other step.
    selector = selector_of([[0.8, 0.6]], Terms(age=0.3), [1, 0.5, 0.5, 0.5, 1, 0.5, 0.5])
    assert [tokens for (tokens,) in chosen(selector, 4, 1)] == [[0], [1], [0]]
    selector = selector_of([[0.8, 0.6]], Terms(age=0.3), [1, 0.5, 1, 0.5, 0.5])
    stream, unit = Stream(torch.zeros(1, 2, 1)), Unit(0, 1)
    assert [selector.choose(unit, step, stream, 1).index.tolist()[0] for step in (1, 3, 4)] == [[0], [0], [1]]


def test_nobody_ages_in_a_step_that_is_passed_over() -> None:
    shares = [1, 0, 0.5, 0.5]
    ages = selector_of([[0.8, 0.6]], Terms(age=0.15), shares)
    passed = selector_of([[0.8, 0.6]], Terms(age=0.15), shares, passed=[0, 1, 0, 0])
    stream, unit = Stream(torch.zeros(1, 2, 1)), Unit(0, 1)
    for selector, last in ((ages, [1]), (passed, [0])):
        picks = [selector.choose(unit, step, stream, 1).index.tolist()[0] for step in (2, 3)]
        assert picks == [[0], last]


def test_branches_of_guidance_share_a_choice_or_do_not() -> None:
    values = [[0.0, 3.0, 0.0], [0.0, 0.0, 4.0], [2.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    apart = chosen(selector_of(values, Terms(), [1, 0.3]), 2, 1, halves=2)
    shared = chosen(selector_of(values, Terms(shared=True), [1, 0.3]), 2, 1, halves=2)
    assert apart == [[[1], [2], [0], [2]]]
    assert shared == [[[1], [2], [1], [2]]]
    # Where a batch holds one branch, samples stay apart whatever is asked for.
    assert chosen(selector_of(values, Terms(shared=True), [1, 0.3]), 2, 1, halves=1) == apart


def test_the_best_of_a_neighbourhood_gains() -> None:
    total = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 9.0, 8.0]]).reshape(1, 9)
    grown = with_bonus(total, (3, 3), 2, 0.5).reshape(3, 3)
    # Squares of two from the upper left; what is left over at the edges is a neighbourhood too.
    assert grown.tolist() == [[1.0, 2.0, 3.0], [4.0, 7.5, 9.0], [7.0, 13.5, 12.0]]
    with pytest.raises(Fault, match="grid of the 7 tokens"):
        grid_of(Stream(torch.zeros(1, 7, 1)))


def test_scores_have_unit_length_and_random_ones_are_the_generator_s() -> None:
    assert normalised(torch.tensor([[3.0, 4.0]])).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)]]
    layout = Layout.regular(1, ("mlp",))
    first, second = (RandomScore(layout, generator()).of(Unit(0, 1), 0, Stream(torch.zeros(2, 5, 1))) for _ in range(2))
    assert torch.equal(first, second)
    assert first.unique().numel() == 10


def test_a_batch_that_is_no_pair_is_refused() -> None:
    with pytest.raises(Fault, match="batch of 3 cannot hold 2 branches"):
        run_with("pixart", "norm", batch=3, halves=2)


@pytest.mark.parametrize("score", [name for name in SCORES if name != "random"])
def test_a_sample_is_chosen_for_by_itself(score: str) -> None:
    _, both = run_with("pixart", score, batch=2)
    run, _ = run_with("pixart", score, batch=2)
    backbone = make("pixart")
    alone, _ = run_with("pixart", score, batch=2)
    assert run.trace.summary() == alone.trace.summary()
    single: list[torch.Tensor] = []
    tokens, plan = run.tokens, run.plan
    one = Run(
        backbone,
        plan,
        tokens,
        lambda: Parts(Reuse(), ScoredTokens(score_of(score, plan.layout, generator()), plan, tokens, Terms())),
    )
    for step in range(STEPS):
        given = inputs(backbone, "pixart", step, 2)
        given = {key: value[:1] if torch.is_tensor(value) else value for key, value in given.items()}
        with attached(one):
            single.append(backbone.network(**given)[0])
    assert all(torch.allclose(a[:1], b, atol=1e-5) for a, b in zip(both, single, strict=True))


@pytest.mark.parametrize("score", ["attention", "value-norm"])
def test_attention_that_a_processor_hides_is_one_sentence(score: str) -> None:
    class Hidden:
        """Attends in words of its own."""

        def __call__(self, attn: Any, hidden_states: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
            mixed: torch.Tensor = attn.to_out[0](attn.to_v(hidden_states))
            return mixed

    backbone = make("dit")
    network = backbone.network
    for block in network.transformer_blocks:
        block.attn1.set_processor(Hidden())
    tokens = backbone.tokens(**inputs(backbone, "dit", 0, 1))
    plan = Plan(backbone.layout, backbone.layout.by_branch, np.array([[1.0] * len(backbone.layout), [0, 0.5] * 2]))
    chooser = ScoredTokens(score_of(score, plan.layout, generator()), plan, tokens, NONE)
    run = Run(backbone, plan, tokens, lambda: Parts(Reuse(), chooser))
    with attached(run), pytest.raises(Fault, match="this network's processor shows nothing"):
        network(**inputs(backbone, "dit", 0, 1))
