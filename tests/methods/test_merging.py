"""Methods that merge, prune and copy tokens: schedules by hand, published costs, no state from one run to the next."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import PixArtTransformer2DModel

from ditbench.backbones import Backbone
from ditbench.backbones.families import backbone_of
from ditbench.engine.fills import Pass
from ditbench.engine.layout import Branch, Layout, Shape
from ditbench.engine.ledger import by_site
from ditbench.engine.matching import Windows, window_similarity
from ditbench.engine.plan import Plan
from ditbench.engine.ranked import page_rank
from ditbench.engine.run import Parts, Run, attached
from ditbench.engine.scored import grid_of
from ditbench.faults import Fault
from ditbench.macs import count_macs
from ditbench.methods import Method, get_method
from ditbench.sampling import run_of
from tests.backbones.networks import make

STEPS, SIDE = 5, 16
MMDIT = Shape(50, Layout.regular(24, ("attn", "mlp")), 4096)
MERGING: list[tuple[str, dict[str, Any]]] = [
    ("tomesd", {"pattern": "every", "where": "all"}),
    ("sito", {"where": "attention+mlp"}),
    ("sdtm", {}),
    ("sdtm", {"variant": "repo", "groups": "one"}),
    ("toma", {"tile": 4, "weights_every": 2, "destinations_every": 4}),
    ("at-edm", {"groups": 2}),
]
IDS = [f"{name}-{knobs.get('variant', '')}".rstrip("-") for name, knobs in MERGING]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    """A PixArt of four blocks with 256 tokens."""
    torch.manual_seed(0)
    network = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=4,
        in_channels=3,
        out_channels=6,
        sample_size=2 * SIDE,
        patch_size=2,
        caption_channels=12,
        use_additional_conditions=False,
    )
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return backbone_of(network.double().eval())


def given(step: int, samples: int) -> dict[str, Any]:
    """Inputs of which each sample has its own, whatever batch it is in."""
    each = [torch.Generator().manual_seed(7 + sample) for sample in range(samples)]
    latents = [torch.randn(3, 2 * SIDE, 2 * SIDE, generator=own, dtype=torch.float64) for own in each]
    texts = [torch.randn(5, 12, generator=own, dtype=torch.float64) for own in each]
    return {
        "hidden_states": torch.stack(latents) * (1 - step / 10),
        "encoder_hidden_states": torch.stack(texts),
        "timestep": torch.full((samples,), 900 - 100 * step),
        "return_dict": False,
    }


def sampled(backbone: Backbone, method: Method, samples: int, steps: int = STEPS) -> tuple[list[torch.Tensor], Any]:
    shape = backbone.shape(steps, **given(0, 1))
    run = run_of(method, backbone, shape, seeds=list(range(samples)))
    with torch.no_grad(), attached(run):
        return [backbone.network(**given(step, samples))[0] for step in range(steps)], run.trace


@pytest.mark.parametrize(("name", "knobs"), MERGING, ids=IDS)
def test_without_a_ratio_every_bit_is_the_networks(backbone: Backbone, name: str, knobs: dict[str, Any]) -> None:
    knobs = {**knobs, "ratio": 0, **({"deviation": 0} if name in ("tomesd", "sdtm") else {})}
    answers, trace = sampled(backbone, get_method(name, knobs), 2)
    with torch.no_grad():
        plain = [backbone.network(**given(step, 2))[0] for step in range(STEPS)]
    assert trace.realised_ratio == 0
    assert all(torch.equal(mine, own) for mine, own in zip(answers, plain, strict=True))


@pytest.mark.parametrize(("name", "knobs"), MERGING, ids=IDS)
def test_runs_leave_nothing_behind_and_batches_change_no_sample(
    backbone: Backbone, name: str, knobs: dict[str, Any]
) -> None:
    method = get_method(name, knobs)
    first, trace = sampled(backbone, method, 3)
    assert 0.05 < trace.realised_ratio < 0.9
    sampled(backbone, method, 1, steps=3)
    again, _ = sampled(backbone, method, 3)
    alone, _ = sampled(backbone, method, 1)
    for step in range(STEPS):
        assert torch.equal(first[step], again[step])
        torch.testing.assert_close(alone[step], first[step][:1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "knobs"), MERGING, ids=IDS)
def test_the_trace_is_the_plan(backbone: Backbone, name: str, knobs: dict[str, Any]) -> None:
    method = get_method(name, knobs)
    plan = method.plan(backbone.shape(STEPS, **given(0, 1)))
    _, trace = sampled(backbone, method, 2)
    planned = np.repeat(plan.counts(SIDE**2), plan.sizes, axis=1)
    assert np.array_equal(trace.computed, 2 * planned)
    assert trace.selecting.sum() > 0


def test_tomesd_merges_what_diffcrs_table_1_billed() -> None:
    """Before the MLP alone: 5.589 and 11.177 % less of linear layers at 10 and 20 % (DiffCR, Table 1)."""
    full = count_macs("pixart-sigma-512", get_method("full"), text_tokens=120)["linear"]
    for ratio, saved in ((0.1, 5.589), (0.2, 11.177)):
        knobs = {"ratio": ratio, "where": "mlp", "pattern": "every", "deviation": 0}
        merged = count_macs("pixart-sigma-512", get_method("tomesd", knobs), text_tokens=120)["linear"]
        assert 100 * (1 - merged / full) == pytest.approx(saved, abs=6e-3)


def test_tomesd_falls_from_step_to_step_and_is_staggered_over_blocks() -> None:
    left = get_method("tomesd", {"ratio": 0.4, "deviation": 0.2}).left(
        Shape(3, Layout.regular(5, ("self", "mlp")), 100)
    )
    assert left.tolist() == pytest.approx(
        np.array([[1, 0.4, 0.7, 0.4, 1], [1, 0.6, 0.8, 0.6, 1], [1, 0.8, 0.9, 0.8, 1]])
    )
    most = get_method("tomesd", {"ratio": 0.9, "deviation": 0, "pattern": "every"})
    assert most.left(Shape(1, Layout.regular(1, ("self", "mlp")), 100)).item() == pytest.approx(0.25)


def test_sdtms_schedule_by_hand() -> None:
    gone = get_method("sdtm", {"ratio": 0.3, "deviation": 0.2}).merged_away(MMDIT)
    # 0.5 x 4096 = 2048: 42 times 16 windows of three tokens less; 0.1 x 4096 = 409: 25 times 16 tokens.
    assert gone[0] == 42 * 16 * 3 and gone[-1] == 25 * 16
    # Step 20 is the last of the structure stage: 0.1 + 0.4 cos(pi/2 x 20/49) = 0.42068, 1723 tokens, 35 x 16 windows.
    assert gone[20] == 35 * 16 * 3
    assert gone[21] % 16 == 0 and gone[21] == int((0.1 + 0.4 * np.cos(np.pi / 2 * 21 / 49)) * 4096) // 16 * 16
    plan = get_method("sdtm", {"ratio": 0.3}).plan(MMDIT)
    attention = plan.shares[:, MMDIT.layout.name_of == "attn"]
    assert (attention[:21] < 1).all() and (attention[21:] == 1).all()
    assert (plan.shares[:, MMDIT.layout.name_of == "mlp"] < 1).all()


def test_without_a_switch_sdtm_has_no_first_stage() -> None:
    assert get_method("sdtm", {"switch": 0.0}).structure_steps(50) == 0
    plan = get_method("sdtm", {"switch": 0.0}).plan(MMDIT)
    assert (plan.shares[:, MMDIT.layout.name_of == "attn"] == 1).all()
    assert (plan.shares[:, MMDIT.layout.name_of == "mlp"] < 1).all()
    assert [get_method("sdtm", {"switch": share}).structure_steps(50) for share in (0.4, 1.0)] == [21, 50]


@pytest.mark.parametrize(
    ("knobs", "ages"),
    [({}, [1, 1, 2, 2]), ({"clock": "layer"}, [1, 2, 3, 4]), ({"variant": "repo", "protected": 0}, [1, 2, 3, 4])],
)
def test_ages_are_counted_in_steps_or_in_calls_of_blocks(knobs: dict[str, Any], ages: list[int]) -> None:
    """Two blocks and two steps, in which the same window is the one that is merged."""
    shape = Shape(2, Layout.regular(2, ("self", "mlp")), 16)
    # Of 16 tokens 3 go, all in one window; what is merged longer is merged rather.
    method = get_method("sdtm", {"ratio": 0.2, "deviation": 0, "multiple": 1, "switch": 1.0, **knobs})
    selector: Any = method.selector(shape, torch.Generator())
    read = torch.randn(1, 16, 4, generator=torch.Generator().manual_seed(3))
    read[:, [0, 1, 4, 5]] = 1.0
    stream: Any = SimpleNamespace(hidden=read, tokens=16, samples=1, seeds=None, given=read, device=read.device)
    stream.setting = SimpleNamespace(grid=(4, 4))
    found = []
    for step in range(2):
        for block in range(2):
            merge = selector.match(2 * block, step, stream, read, 13)
            assert merge.shared[0].nonzero().flatten().tolist() == [0, 1, 4, 5], "alike tokens come first"
            found.append(int(selector._age[0].max()))
            assert set(selector._age[0].tolist()) == {0.0, float(found[-1])}
    assert found == ages


def test_a_token_that_one_block_of_a_step_computes_is_of_age_0() -> None:
    shape = Shape(2, Layout.regular(2, ("self", "mlp")), 16)
    selector: Any = get_method("sdtm", {"multiple": 1, "switch": 1.0}).selector(shape, torch.Generator())

    def merged(*tokens: int) -> Any:
        return SimpleNamespace(shared=torch.isin(torch.arange(16), torch.tensor(tokens))[None])

    selector._count_age(0, merged(0, 1, 2))
    selector._count_age(0, merged(1, 2, 3))
    selector._count_age(1, merged(2, 3))
    assert selector._ages(1)[0, :4].tolist() == [0, 1, 1, 0]  # within a step as before it
    assert selector._ages(2)[0, :4].tolist() == [0, 0, 2, 1]


def test_sdtms_code_protects_every_third_step() -> None:
    gone = get_method("sdtm", {"variant": "repo", "ratio": 0.3}).merged_away(MMDIT)
    assert (gone[::3] == 0).all() and (np.delete(gone, np.s_[::3]) > 0).all()
    saved = {
        variant: get_method("sdtm", {"variant": variant, "ratio": 0.3}).plan(MMDIT).nominal_ratio
        for variant in ("paper", "repo")
    }
    assert saved["repo"] == pytest.approx(saved["paper"] * 2 / 3, rel=0.05)


def test_sdtm_never_merges_the_text_of_cross_attention() -> None:
    shape = Shape(10, Layout.regular(3, ("self", "cross", "mlp")), 256)
    plan = get_method("sdtm").plan(shape)
    assert (plan.shares[:, shape.layout.name_of == "cross"] == 1).all()


def test_sdtms_second_stage_merges_those_that_receive_least_attention(backbone: Backbone) -> None:
    method = get_method("sdtm", {"switch": 0.0, "ratio": 0.5, "deviation": 0, "detail_age": 0})
    shape = backbone.shape(2, **given(0, 1))
    run = run_of(method, backbone, shape)
    selector: Any = run.branches[0].selector
    found = []
    match_block = selector.match_block

    def watched(*args: Any) -> Any:
        merge = match_block(*args)
        if args[1] == 1:
            found.append((selector._received.clone(), merge.away.clone()))
        return merge

    selector.match_block = watched
    with torch.no_grad(), attached(run):
        for step in range(2):
            backbone.network(**given(step, 1))
    assert len(found) == 4, "once a block"
    for received, away in found:
        assert int(away.sum()) == 128
        assert float(received[away].max()) <= float(received[~away].min())


def test_at_edm_copies_the_tokens_that_left(backbone: Backbone) -> None:
    """With one group, all that left come back as copies of others at the end of the network: as many answers differ."""
    method = get_method("at-edm", {"groups": 1, "ratio": 0.75})
    answers, _ = sampled(backbone, method, 1, steps=1)
    patches = torch.nn.functional.unfold(answers[0], 2, stride=2)[0].T
    assert len(torch.unique(patches.round(decimals=9), dim=0)) == SIDE**2 // 4


def test_at_edm_spares_the_last_blocks_of_the_second_half_in_early_steps() -> None:
    shape = Shape(10, Layout.regular(8, ("attn", "mlp")), 64)
    plan = get_method("at-edm", {"ratio": 0.5, "groups": 2}).plan(shape)
    by_branch = np.repeat(plan.shares, plan.sizes, axis=1)[:, ::2]
    assert by_branch[0].tolist() == [1, 0.5, 0.5, 0.5, 1, 0.5, 0.5, 1]
    assert by_branch[2].tolist() == by_branch[0].tolist()
    assert by_branch[3].tolist() == [1, 0.5, 0.5, 0.5, 1, 0.5, 0.5, 0.5]
    with pytest.raises(Fault, match="each needs a block that ranks"):
        get_method("at-edm", {"groups": 5}).plan(shape)


def test_toma_says_where_its_tiles_do_not_fit() -> None:
    with pytest.raises(Fault, match="does not divide a grid of 10 x 10"):
        get_method("toma").plan(Shape(4, Layout.regular(1, ("self", "mlp")), 100))


def test_toma_makes_its_weights_as_often_as_it_says(backbone: Backbone) -> None:
    def looked(**knobs: Any) -> list[int]:
        _, trace = sampled(backbone, get_method("toma", {"tile": 4, **knobs}), 1)
        return [int(count) for count in trace.selecting]

    often, seldom = looked(weights_every=1, destinations_every=1), looked(weights_every=2, destinations_every=4)
    assert often[0] == often[1] == seldom[0] == seldom[4]
    assert seldom[1] == seldom[3] < seldom[2] < seldom[0]


FLUX = Layout((Branch(0, "attn"), Branch(0, "mlp"), Branch(1, "single")))


def test_sdtm_leaves_flux_s_attention_whole_in_both_stages() -> None:
    counts = get_method("sdtm", {"multiple": 1}).plan(Shape(20, FLUX, 256)).counts(256)
    assert (counts[:, 0] == 256).all()
    assert (counts[:, 1:] < 256).all()
    with pytest.raises(Fault, match="has no FLUX"):
        get_method("sdtm", {"variant": "repo"}).plan(Shape(20, FLUX, 256))


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("sdtm", {"multiple": 1, "ratio": 0.4}),
        (
            "sdtm",
            {
                "ratio": 0.4,
                "multiple": 1,
                "adjusting": "threshold",
                "structure_threshold": -0.5,
                "detail_threshold": 0.2,
            },
        ),
        ("tomesd", {"pattern": "every", "where": "mlp"}),
        ("sito", {"where": "mlp"}),
        ("toma", {"where": "mlp", "tile": 2}),
    ],
)
def test_flux_merges_the_mlp_alone_and_leaves_nothing_behind(name: str, knobs: dict[str, Any]) -> None:
    backbone = make("flux-schnell")

    def answers(samples: int) -> tuple[list[torch.Tensor], Any]:
        torch.manual_seed(0)
        given = [backbone.example_inputs(2, (8, 8), 5, torch.float32, "cpu") for _ in range(STEPS)]
        run = run_of(get_method(name, knobs), backbone, backbone.shape(STEPS, **given[0]))
        found = []
        for inputs in given:
            own = {
                key: value[:samples] if torch.is_tensor(value) and len(value) == 2 else value
                for key, value in inputs.items()
            }
            with attached(run):
                found.append(backbone.network(**own)[0])
        return found, run

    found, run = answers(2)
    again, _ = answers(2)
    one, _ = answers(1)
    assert all(torch.isfinite(answer).all() for answer in found)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    singles = backbone.layout.name_of == "single"
    assert (run.trace.whole[:, backbone.layout.name_of == "attn"] == 2).all()
    assert (run.trace.computed[:, singles] < 2 * 16).any()
    # Products of attention are those of a run that merges nothing.
    pairs = by_site(run.trace, run.costs, "attention")[:, singles]
    assert (pairs == 2 * 24 * (16 + 5) ** 2).all()
    if name == "sdtm":
        for mine, alone in zip(found, one, strict=True):
            torch.testing.assert_close(mine[:1], alone, rtol=1e-4, atol=1e-4)


def test_sdtm_looks_at_the_attention_of_the_very_block_whose_mlp_it_merges() -> None:
    """In the second stage of a single-stream block the tokens that go are those that its own attention passes by."""
    backbone = make("flux-schnell")
    given = backbone.example_inputs(1, (8, 8), 5, torch.float32, "cpu")
    shape = backbone.shape(1, **given)
    method = get_method("sdtm", {"multiple": 1, "ratio": 0.3, "deviation": 0.0, "detail_age": 0.0})
    chosen: dict[int, torch.Tensor] = {}
    received: dict[int, torch.Tensor] = {}
    selector = method.selector(shape, torch.Generator())
    selector._structure = 0  # the second stage from the first step
    selector._watched = [(shape.layout.name_of != "mlp").tolist()]
    inattentive = selector._inattentive

    def spied(stream: Any, step: int, read: torch.Tensor, windows: Any, gone: int) -> Any:
        merge = inattentive(stream, step, read, windows, gone)
        chosen[len(chosen)] = merge.away[0].nonzero().flatten()
        received[len(received)] = selector._received[0]
        return merge

    selector._inattentive = spied
    counts = np.where(np.isin(shape.layout.name_of, ("mlp", "single")), 12 / 16, 1.0)[None]
    plan = Plan(shape.layout, shape.layout.by_branch, counts)
    run = Run(backbone, plan, 16, lambda: Parts(Pass(), selector))
    with attached(run):
        backbone.network(**given)
    assert len(chosen) == 4  # two MLPs and two single-stream blocks
    for number, gone in chosen.items():
        assert sorted(gone.tolist()) == sorted(received[number].argsort()[:4].tolist())
    # Each block has its own.
    assert len({tuple(values.tolist()) for values in received.values()}) == 4


def test_flux_knows_its_grid_where_it_is_not_square() -> None:
    backbone = make("flux-schnell")
    given = backbone.example_inputs(1, (8, 32), 5, torch.float32, "cpu")
    assert grid_of(backbone.enter(**given)) == (4, 16)


def test_flux_costs_what_sdtm_s_table_prints() -> None:
    """Table S2: 595.2 T whole and 386.5 T, MLPs alone: with their half of the output projections."""
    steps, width = 20, 3072
    layout = Layout(
        (*(Branch(b, n) for b in range(19) for n in ("attn", "mlp")), *(Branch(19 + b, "single") for b in range(38)))
    )
    shape = Shape(steps, layout, 4096)
    counts = get_method("sdtm", {"ratio": 0.543}).plan(shape).counts(4096)
    per_token = {"attn": (4, 0), "mlp": (0, 8), "single": (4, 8)}
    total = 0
    for number, (_, name) in enumerate(layout.branches):
        attends, widens = (factor * width**2 for factor in per_token[name])
        total += steps * (4096 + 512) * attends + int(counts[:, number].sum() + steps * 512) * widens
    assert total / 1e12 == pytest.approx(386.5, rel=2e-3)


# --- matchings that are used again ---

SHARING: list[tuple[str, dict[str, Any]]] = [
    ("tomesd", {"pattern": "every", "deviation": 0}),
    ("sito", {}),
    ("sdtm", {"deviation": 0, "switch": 1.0}),
    ("sdtm", {"deviation": 0, "switch": 0.0}),
]


def watched(backbone: Backbone, method: Method) -> tuple[list[list[Any]], Any]:
    """The merge that each branch uses, by step, and the trace."""
    run = run_of(method, backbone, backbone.shape(STEPS, **given(0, 1)), seeds=[0])
    selector: Any = run.branches[0].selector
    used: list[list[Any]] = [[] for _ in range(STEPS)]
    match = selector.match

    def spied(branch: int, step: int, *rest: Any) -> Any:
        merge = match(branch, step, *rest)
        used[step].append(merge)
        return merge

    selector.match = spied
    with torch.no_grad(), attached(run):
        for step in range(STEPS):
            backbone.network(**given(step, 1))
    return used, run.trace


@pytest.mark.parametrize(("name", "knobs"), SHARING)
def test_blocks_and_steps_may_use_one_matching(backbone: Backbone, name: str, knobs: dict[str, Any]) -> None:
    each, own = watched(backbone, get_method(name, knobs))
    pairs, halved = watched(backbone, get_method(name, {**knobs, "layers_every": 2}))
    seldom, alternating = watched(backbone, get_method(name, {**knobs, "steps_every": 2}))
    branches = len(each[0]) // 4  # merged ones, of each of four blocks
    for step in range(STEPS):
        assert len({id(merge) for merge in each[step]}) == 4
        assert len({id(merge) for merge in pairs[step]}) == 2
        assert all(merge is pairs[step][0] for merge in pairs[step][: 2 * branches])
        if step % 2:
            assert all(now is before for now, before in zip(seldom[step], seldom[step - 1], strict=True))
    # How many windows leave whole in the second stage hangs on the image.
    exact = knobs.get("switch") != 0.0
    assert (2 * halved.selecting == own.selecting).all() if exact else (halved.selecting < 0.6 * own.selecting).all()
    assert (alternating.selecting[1::2] == 0).all() and (alternating.selecting[::2] > 0).all()
    assert np.array_equal(own.computed, halved.computed) and np.array_equal(own.computed, alternating.computed)


def test_matchings_are_used_again_only_where_as_many_are_merged() -> None:
    shape = Shape(4, Layout.regular(4, ("self", "mlp")), 64)
    falling: Any = get_method("tomesd", {"layers_every": 4, "steps_every": 4, "ratio": 0.4}).selector(shape, None)
    # Staggered: none, all, half and all of a ratio that falls: at each step two matchings, for two numbers of tokens.
    assert falling._anew.tolist() == [[False, True, True, False]] * 4
    # Nor does one of the first stage of SDTM serve its second, were it as large.
    knobs = {"layers_every": 4, "steps_every": 4, "deviation": 0, "ratio": 0.75, "multiple": 1, "switch": 0.25}
    staged: Any = get_method("sdtm", knobs).selector(shape, None)
    assert staged._anew.tolist() == [[True, *[False] * 3], [False] * 4, [True, *[False] * 3], [False] * 4]


def test_what_is_not_shared_keeps_its_hash_and_every_bit(backbone: Backbone) -> None:
    alone = {"layers_every": 1, "steps_every": 1}
    for name, knobs in SHARING:
        plain, told = get_method(name, knobs), get_method(name, {**knobs, **alone})
        assert {**told.telling({**knobs, **alone})} == knobs
        for mine, own in zip(sampled(backbone, told, 1)[0], sampled(backbone, plain, 1)[0], strict=True):
            assert torch.equal(mine, own)


# --- what methods promise of single matchings ---


def test_windows_without_any_change_are_merged_first() -> None:
    """SDTM's first stage: cosines of 1 are the highest there are."""
    read = torch.randn(1, 64, 6, generator=torch.Generator().manual_seed(5))
    windows = Windows((8, 8), 2, torch.device("cpu"))
    flat = [3, 10]
    for window in flat:
        read[:, windows.members[window]] = read[:, windows.members[window][:1]]
    order = window_similarity(read, windows).argsort(1, descending=True)[0]
    assert sorted(order[:2].tolist()) == flat


def test_tomesd_s_destinations_serve_both_branches_of_guidance(backbone: Backbone) -> None:
    method = get_method("tomesd", {"pattern": "every", "deviation": 0, "ratio": 0.75})
    run = run_of(method, backbone, backbone.shape(1, **given(0, 1)), halves=2, seeds=[0, 1])
    selector: Any = run.branches[0].selector
    found = []
    match_block = selector.match_block

    def spied(*args: Any) -> Any:
        found.append(match_block(*args).kept)
        return match_block(*args)

    selector.match_block = spied
    with torch.no_grad(), attached(run):
        backbone.network(**given(0, 4))
    assert len(found) == 4
    for kept in found:  # where as many are merged as can be, the destinations are what is left
        assert torch.equal(kept[:2], kept[2:]) and not torch.equal(kept[0], kept[1])


def test_ranks_of_at_edm_do_not_hang_on_the_order_of_tokens() -> None:
    attends = torch.rand(2, 12, 12, generator=torch.Generator().manual_seed(6), dtype=torch.float64).softmax(2)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(7))
    rank = page_rank(attends, 5)
    torch.testing.assert_close(page_rank(attends[:, order][:, :, order], 5), rank[:, order])
    torch.testing.assert_close(rank.sum(1), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize(("size", "known"), [(512, 1.84), (768, 3.58), (1024, 6.02), (1536, 12.98)])
def test_sd3_costs_what_its_sizes_are_known_to(size: int, known: float) -> None:
    """Linear MACs of both branches of guidance, in T: as worked out by hand, and nearly as the paper prints them."""
    width, text, tokens = 1536, 333, (size // 16) ** 2
    # The last block's text is attended to and goes no further.
    blocks = 24 * 12 * width**2 * tokens + (23 * 12 + 3) * width**2 * text
    outside = tokens * width * (64 + 64) + text * 4096 * width
    modulation = (23 * 12 + 8) * width**2 + (256 + 2048 + 4 * width) * width
    counted = count_macs(f"sd3-medium-{size}", get_method("full"), steps=1)["linear"]
    assert counted == blocks + outside + modulation
    assert 2 * counted / 1e12 == pytest.approx(known, abs=0.01)


def test_merging_whole_layers_saves_what_is_known_of_pixart() -> None:
    """Tokens merged before every branch, 10 % of 1,024: 9.78 % less of the linear MACs (512 x 512, 120 text tokens)."""
    full = count_macs("pixart-sigma-512", get_method("full"), steps=1, text_tokens=120)["linear"]
    knobs = {"ratio": 0.1, "where": "all", "pattern": "every", "deviation": 0}
    merged = count_macs("pixart-sigma-512", get_method("tomesd", knobs), steps=1, text_tokens=120)["linear"]
    assert 100 * (1 - merged / full) == pytest.approx(9.78, abs=0.02)
