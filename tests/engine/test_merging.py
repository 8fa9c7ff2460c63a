"""Merging by hand, the matchings against plain loops, and branches that compute groups on every block family."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from ditbench.backbones import Backbone
from ditbench.engine.facility import Weighted, facilities
from ditbench.engine.fills import BlendGroups, Pass
from ditbench.engine.matching import (
    Windows,
    bipartite,
    nearest,
    nearest_kept,
    one_of_each,
    whole_windows,
    window_similarity,
)
from ditbench.engine.merging import Groups, Merge, Site
from ditbench.engine.plan import Plan
from ditbench.engine.ranked import page_rank
from ditbench.engine.run import Parts, Run, attached
from ditbench.faults import Fault
from ditbench.methods.sito import SiTo, pruned
from tests.backbones.networks import inputs, make

FAMILIES = ("pixart", "dit", "sd3", "sd3.5-medium", "flux-dev", "wan")
CPU = torch.device("cpu")


def features(samples: int = 2, tokens: int = 16, width: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.randn(samples, tokens, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- groups ---


def test_groups_are_means_and_copies_worked_out_by_hand() -> None:
    # Tokens 1 and 4 join token 2, token 0 joins token 5; token 3 stays alone.
    groups = Groups.of(torch.tensor([[1, 4, 0]]), torch.tensor([[2, 2, 5]]), tokens=6)
    assert groups.kept.tolist() == [[2, 3, 5]]
    assert groups.group.tolist() == [[2, 0, 0, 1, 0, 2]]
    read = torch.tensor([[[10.0], [1.0], [4.0], [7.0], [1.0], [20.0]]])
    assert groups.before(read).flatten().tolist() == [2, 7, 15]
    assert groups.after(torch.tensor([[[0.0], [1.0], [2.0]]])).flatten().tolist() == [2, 0, 0, 1, 0, 2]
    assert groups.shared.tolist() == [[True, True, True, False, True, True]]
    assert groups.away.tolist() == [[True, True, False, False, True, False]]


def test_groups_may_compute_the_one_that_is_kept() -> None:
    groups = Groups.of(torch.tensor([[0]]), torch.tensor([[1]]), tokens=3, mean=False)
    read = torch.tensor([[[1.0], [2.0], [3.0]]])
    assert groups.before(read).flatten().tolist() == [2, 3]


def test_pooled_tokens_count_as_shared_even_alone() -> None:
    groups = Groups.of(torch.tensor([[0]]), torch.tensor([[1]]), tokens=4, pooled=torch.tensor([[1, 3]]))
    assert groups.shared.tolist() == [[True, True, False, True]]


# --- matchings ---


def test_windows_leave_out_what_fills_no_square() -> None:
    windows = Windows((3, 5), 2, CPU)
    assert windows.members.tolist() == [[0, 1, 5, 6], [2, 3, 7, 8]]
    values = torch.arange(15.0)[None]
    assert one_of_each(windows, values).tolist() == [[6, 8]]


def test_every_source_finds_its_best_destination() -> None:
    tokens = features()
    destinations = torch.tensor([[3, 8, 1], [0, 15, 7]])
    found = bipartite(tokens, destinations)
    for sample in range(2):
        ends = destinations[sample].tolist()
        assert found.sources[sample].tolist() == [token for token in range(16) if token not in ends]
        for source, best, cosine in zip(*(part[sample] for part in found), strict=True):
            cosines = [functional.cosine_similarity(tokens[sample, source], tokens[sample, end], dim=0) for end in ends]
            assert int(best) == ends[int(np.argmax(cosines))]
            assert float(cosine) == pytest.approx(float(max(cosines)))
    sources, _ = found.closest(4)
    kept = {int(s): float(c) for s, c in zip(found.sources[0], found.cosines[0], strict=True)}
    assert sorted(sources[0].tolist()) == sorted(sorted(kept, key=lambda s: -kept[s])[:4])


def test_window_similarity_is_the_mean_of_pairs() -> None:
    tokens, windows = features(), Windows((4, 4), 2, CPU)
    inside = functional.normalize(tokens, dim=-1)[:, windows.members]
    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    expected = torch.stack([(inside[:, :, i] * inside[:, :, j]).sum(-1) for i, j in pairs]).mean(0)
    torch.testing.assert_close(window_similarity(tokens, windows), expected)


def test_whole_windows_become_one_token_each() -> None:
    windows = Windows((4, 4), 2, CPU)
    groups = whole_windows(windows, torch.tensor([[3, 0]]), torch.tensor([[1, 2]]), 16, mean=True)
    # Window 3 holds 10, 11, 14, 15 and is kept at 11; window 0 holds 0, 1, 4, 5 and is kept at 4.
    assert groups.kept.shape == (1, 10)
    assert {10, 14, 15, 0, 1, 5}.isdisjoint(groups.kept[0].tolist())
    stands_for = groups.kept[0, groups.group[0]]
    assert stands_for[[10, 11, 14, 15]].tolist() == [11] * 4
    assert stands_for[[0, 1, 4, 5]].tolist() == [4] * 4
    assert stands_for[[2, 9]].tolist() == [2, 9]


def test_nearest_prefers_its_window_and_never_a_source() -> None:
    tokens = features(1)
    sources = torch.tensor([[0, 1, 4, 10]])
    found = nearest(tokens, sources, (4, 4), 2).tokens[0].tolist()
    assert found[:3] == [5, 5, 5], "the one of their window that is no source"
    normed = functional.normalize(tokens[0], dim=-1)
    assert found[3] == max((11, 14, 15), key=lambda token: float(normed[10] @ normed[token]))
    # Where a whole window are sources, the best of all others.
    away = torch.tensor([[0, 1, 4, 5]])
    others = [token for token in range(16) if token not in (0, 1, 4, 5)]
    best = max(others, key=lambda token: float(normed[0] @ normed[token]))
    assert nearest(tokens, away, (4, 4), 2).tokens[0, 0] == best


@pytest.mark.parametrize(("grid", "side"), [((8, 8), 2), ((5, 7), 2), ((6, 9), 3)])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.75, 0.9])
def test_looking_inside_windows_first_finds_whom_looking_everywhere_does(
    grid: tuple[int, int], side: int, share: float
) -> None:
    tokens = grid[0] * grid[1]
    read = features(3, tokens, 8)
    order = torch.rand(3, tokens, generator=torch.Generator().manual_seed(1)).argsort(1)
    sources = order[:, : int(share * tokens)]
    found = nearest(read, sources, grid, side)
    # Everywhere, as a table of all cosines in which those of one window stand first.
    normed = functional.normalize(read, dim=-1)
    numbers = torch.arange(tokens)
    window = (numbers // grid[1] // side) * 100 + numbers % grid[1] // side
    cosines = normed @ normed.transpose(1, 2) + 3 * (window[:, None] == window)
    for sample in range(3):
        gone = sources[sample]
        cosines[sample][:, gone] = -torch.inf
        assert torch.equal(found.tokens[sample], cosines[sample][gone].argmax(1))


def test_nearest_is_billed_as_it_is_executed() -> None:
    read = features(2, 64, 8)
    # A window of the first sample leaves whole, and none of the second.
    sources = torch.tensor([[0, 1, 8, 9, 20], [0, 2, 4, 6, 20]])
    with FlopCounterMode(display=False) as counter:
        found = nearest(read, sources, (8, 8), 2)
    norms = 2 * 64 * 8
    assert found.macs == counter.get_total_flops() // 2 + norms
    assert found.macs == 2 * 8 * (64 + 64 * 4 + 4 * 59)
    # Without data: as if as many windows left whole as can.
    assert nearest(read.to("meta"), sources.to("meta"), (8, 8), 2).macs == found.macs


def test_sito_is_billed_as_it_is_executed() -> None:
    read = features(2, 64, 8)
    noise = torch.randn(2, 64, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with FlopCounterMode(display=False) as counter:
        found = pruned(read, SiTo(), noise, (8, 8), 24)
    norms = 3 * 2 * 64 * 8  # for the sums, the bases and those that are left
    assert found.macs == counter.get_total_flops() // 2 + norms


def test_tokens_left_out_copy_the_most_alike_that_are_computed() -> None:
    tokens = features(1)
    groups = nearest_kept(tokens, torch.tensor([[2, 7]]))
    normed = functional.normalize(tokens[0], dim=-1)
    kept = [token for token in range(16) if token not in (2, 7)]
    assert groups.kept[0].tolist() == kept
    for token in (2, 7):
        best = max(kept, key=lambda other: float(normed[token] @ normed[other]))
        assert groups.kept[0, groups.group[0, token]] == best


def test_facilities_are_the_greedy_choice() -> None:
    tokens, windows = features(1, 16), Windows((4, 4), 4, CPU)
    normed = functional.normalize(tokens[0], dim=-1)
    cosines = (normed @ normed.T).numpy()
    chosen: list[int] = []
    for _ in range(5):
        rest = [token for token in range(16) if token not in chosen]
        chosen.append(max(rest, key=lambda token: np.maximum(-1, cosines[:, [*chosen, token]].max(1)).sum()))
    found = facilities(tokens, windows, 5)[0, 0].tolist()
    # Two that are each other's nearest gain as much: either may be taken.
    assert cosines[:, found].max(1).sum() == pytest.approx(cosines[:, chosen].max(1).sum())
    assert len(set(found)) == 5 and found == sorted(found)


def test_weights_are_means_both_ways_and_hard_ones_are_groups() -> None:
    tokens, windows = features(2, 16), Windows((4, 4), 2, CPU)
    destinations = facilities(tokens, windows, 2)
    soft = Weighted.of(tokens, windows, destinations, 0.5)
    ones = torch.ones(2, 16, 3, dtype=torch.float64)
    torch.testing.assert_close(soft.before(ones), torch.ones(2, 8, 3, dtype=torch.float64))
    torch.testing.assert_close(soft.after(torch.ones(2, 8, 3, dtype=torch.float64)), ones)
    hard = Weighted.of(tokens, windows, destinations, 1e-6)
    normed = functional.normalize(tokens, dim=-1)
    output = torch.randn(2, 8, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    spread = hard.after(output)
    for sample in range(2):
        for window, members in enumerate(windows.members.tolist()):
            ends = [members[place] for place in destinations[sample, window].tolist()]
            for token in members:
                best = int(np.argmax([float(normed[sample, token] @ normed[sample, end]) for end in ends]))
                torch.testing.assert_close(spread[sample, token], output[sample, 2 * window + best])


def test_page_rank_is_the_eigenvector() -> None:
    attends = torch.rand(1, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(2)
    rank = page_rank(attends, 200)[0]
    torch.testing.assert_close(rank @ attends[0], rank)
    assert float(rank.sum()) == pytest.approx(1)
    assert page_rank(attends, 1)[0].tolist() == pytest.approx((attends[0].sum(0) / 6).tolist())


# --- on networks ---


class _Pairs:
    """Every second token joins the one before it; looks at nothing."""

    def __init__(self, mean: bool = True, attends_whole: bool = False) -> None:
        self.mean, self.attends_whole = mean, attends_whole
        self.seen: list[tuple[int, int]] = []

    def looks(self, branch: int, step: int) -> bool:
        return step == 0

    def look(self, branch: int, step: int, stream: Any, read: torch.Tensor) -> None:
        self.seen.append((step, branch))

    def match(self, branch: int, step: int, stream: Any, read: torch.Tensor, count: int) -> Merge:
        samples, tokens, _ = read.shape
        sources = torch.arange(1, 2 * (tokens - count), 2).expand(samples, -1)
        return Groups.of(sources, sources - 1, tokens, self.mean)

    def kind(self, step: int) -> None:
        return None

    def macs(self) -> int:
        return 7


def run_of(backbone: Backbone, name: str, shares: np.ndarray, pairs: _Pairs, fill: Any = None) -> Run:
    plan = Plan(backbone.layout, backbone.layout.by_branch, shares)
    tokens = backbone.tokens(**inputs(backbone, name, 0, 2))
    return Run(backbone, plan, tokens, lambda: Parts(fill or Pass(), pairs))


def answers(run: Run, backbone: Backbone, name: str) -> list[torch.Tensor]:
    with torch.no_grad(), attached(run):
        return [backbone.network(**inputs(backbone, name, step, 2))[0] for step in range(run.plan.steps)]


@pytest.mark.parametrize("name", FAMILIES)
def test_looking_on_changes_no_bit_and_what_is_merged_is_billed(name: str) -> None:
    backbone = make(name, torch.float32)
    sites = (2, len(backbone.layout))
    expected = answers(run_of(backbone, name, np.ones(sites), _Pairs()), backbone, name)
    with torch.no_grad():
        plain = [backbone.network(**inputs(backbone, name, step, 2))[0] for step in range(2)]
    assert all(torch.equal(mine, own) for mine, own in zip(expected, plain, strict=True))
    # Merged for real, each branch by itself: another answer, of whole tokens, that is billed as computed.
    for branch in range(sites[1]):
        shares = np.ones(sites)
        shares[1, branch] = 0.75
        pairs = _Pairs()
        run = run_of(backbone, name, shares, pairs)
        first, second = answers(run, backbone, name)
        assert torch.equal(first, plain[0])
        assert torch.isfinite(second).all() and not torch.allclose(second, plain[1], rtol=1e-4, atol=1e-5), branch
        assert run.trace.computed[1, branch] == 2 * 0.75 * run.tokens
        assert run.trace.selecting.tolist() == [0, 7]
        assert pairs.seen == [(0, unit) for unit in range(sites[1])]


def test_a_single_stream_block_merges_its_mlp_alone() -> None:
    """Worked out with the network's own modules: all tokens attend, pairs of them share what the MLP gives out."""
    backbone = make("flux-schnell", torch.float64)
    branch = len(backbone.layout) - 1
    layer = backbone.network.single_transformer_blocks[-1]
    stream = backbone.enter(**inputs(backbone, "flux-schnell", 0, 2))
    assert stream.text is not None
    text, tokens = stream.text.shape[1], stream.tokens
    attended: list[torch.Tensor] = []
    layer.attn.register_forward_hook(lambda module, args, output: attended.append(output))
    stream.site = Site(_Pairs(attends_whole=True), branch, 0, tokens // 2)
    output = backbone.compute(stream, branch)
    both = torch.cat([stream.text, stream.hidden], dim=1)
    shift, scale, _ = layer.norm.linear(layer.norm.silu(stream.condition("embedded")))[:, None].chunk(3, dim=2)
    read = layer.norm.norm(both) * (1 + scale) + shift
    means = (read[:, text::2] + read[:, text + 1 :: 2]) / 2
    widened = torch.cat([read[:, :text], means.repeat_interleave(2, dim=1)], dim=1)
    expected = layer.proj_out(torch.cat([attended[0], layer.act_mlp(layer.proj_mlp(widened))], dim=2))
    torch.testing.assert_close(torch.cat([output.text, output.image], dim=1), expected)
    whole = layer.proj_out
    # An adapter around it, hooks that move its weight, a weight in another type than what it reads.
    hooked, other = copy.deepcopy(whole), copy.deepcopy(whole).float()
    hooked.register_forward_pre_hook(lambda module, args: None)
    for strange, told in ((torch.nn.Sequential(whole), "Sequential"), (hooked, "Linear"), (other, "float32")):
        layer.proj_out = strange
        with pytest.raises(Fault, match=f"not a .*{told}.*fuse adapters"):
            backbone.compute(stream, branch)


@pytest.mark.parametrize("name", ["pixart", "dit", "sd3"])
def test_a_merged_mlp_is_the_mlp_of_the_means(name: str) -> None:
    """Worked out with the network's own modules, for the last branch of the first block."""
    backbone = make(name, torch.float64)
    branch = next(unit for unit in range(len(backbone.layout)) if backbone.layout.branches[unit] == (0, "mlp"))
    shares = np.ones((1, len(backbone.layout)))
    shares[0, branch] = 0.5
    given = inputs(backbone, name, 0, 2)
    with torch.no_grad():
        stream = backbone.enter(**given)
        for unit in range(branch):
            backbone.add(stream, unit, backbone.compute(stream, unit))
        whole = backbone.compute(stream, branch)
        stream.site = _Recorder()  # type: ignore[assignment]
        backbone.compute(stream, branch)
        read = stream.site.read  # type: ignore[union-attr]
        stream.site = None
        layer = backbone.network.transformer_blocks[0]
        means = (read[:, 0::2] + read[:, 1::2]) / 2
        expected = layer.ff(means).repeat_interleave(2, dim=1)
        backbone.add(stream, branch, type(whole)(expected, whole.text))
        for unit in range(branch + 1, len(backbone.layout)):
            backbone.add(stream, unit, backbone.compute(stream, unit))
        answer = backbone.leave(stream)
    expected_answer = answer.sample if hasattr(answer, "sample") else answer[0]
    (found,) = answers(run_of(backbone, name, shares, _Pairs()), backbone, name)
    torch.testing.assert_close(found, expected_answer, rtol=1e-9, atol=1e-9)


class _Recorder:
    """A site that keeps what the module reads and changes nothing."""

    read: torch.Tensor

    def before(self, stream: Any, read: torch.Tensor) -> torch.Tensor:
        self.read = read.clone()
        return read

    def after(self, stream: Any, output: torch.Tensor) -> torch.Tensor:
        return output


def test_a_blend_mixes_what_was_cached_into_merged_tokens_alone() -> None:
    backbone = make("pixart", torch.float64)
    sites = (2, len(backbone.layout))
    shares = np.ones(sites)
    shares[1, -1] = 0.75  # the last MLP

    def last(weight: float) -> torch.Tensor:
        fill = BlendGroups(weight)
        return answers(run_of(backbone, "pixart", shares, _Pairs(), fill), backbone, "pixart")[1]

    fresh = answers(run_of(backbone, "pixart", shares, _Pairs()), backbone, "pixart")[1]
    torch.testing.assert_close(last(1.0), fresh, rtol=1e-9, atol=1e-9)
    # What comes after the last branch treats every token by itself.
    patches = functional.unfold(last(0.0) - fresh, 2, stride=2).abs().sum(1)
    changed = patches > 1e-9
    assert changed[:, :6].all() and not changed[:, 6:].any(), "the first 6 of 12 tokens are merged in pairs"


def test_plans_of_spans_cannot_be_merged() -> None:
    backbone = make("pixart", torch.float32)
    plan = Plan(backbone.layout, backbone.layout.by_block, np.ones((1, backbone.layout.blocks)))
    with pytest.raises(Exception, match="branch by branch"):
        Run(backbone, plan, 16, lambda: Parts(Pass(), _Pairs()))
