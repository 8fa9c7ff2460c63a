"""The ledger: what a traced run cost, in multiply-accumulate operations (MACs).

Three figures are kept apart, because published ones differ in what they count: the linear layers (and convolutions),
the products of attention, and what the thop tool reports (linear layers and LayerNorms, but no products). All are for
one image, one branch of classifier-free guidance, and the whole sampling run.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditbench.engine.costs import Costs
from ditbench.engine.trace import Trace
from ditbench.faults import Fault


@dataclass(frozen=True)
class Bill:
    """MACs of one image, one CFG branch, the whole run.

    `whole`, `partial` and `outside` split the total: sites computed for all tokens, for some, and what belongs to no
    branch (embeddings, modulation, head). `left_out` is the share of sites that computed nothing. `selecting` is what
    looking for the tokens to compute took besides (maps of attention made once more); no published figure counts it,
    so it stands apart from the total.
    """

    linear: float
    attention: float
    thop: float
    whole: float
    partial: float
    outside: float
    left_out: float
    selecting: float = 0.0

    @property
    def total(self) -> float:
        return self.linear + self.attention


def bill(trace: Trace, costs: Costs) -> Bill:
    """What a traced run cost per image."""
    if trace.samples == 0:
        raise Fault("an empty trace has no cost: nothing was run")
    if len(costs.branches) != len(trace.shape.layout):
        raise Fault(f"costs of {len(costs.branches)} branches do not fit a trace of {len(trace.shape.layout)}")
    unknown = sorted(set(trace.noted) - set(costs.noted))
    if unknown:
        raise Fault(f"no cost is known for {', '.join(unknown)}")
    tokens = trace.shape.tokens
    # What is computed by some of a branch's heads or channels costs that share: of projections, products and all.
    ran, computed, squares = (_by_branch(counts, trace) for counts in (trace.ran, trace.computed, trace.squares))
    whole = _by_branch(trace.whole)
    linear = _linear(costs, computed, ran) - int(trace.spared.sum())
    attention = _attention(costs, computed, squares, ran)
    whole_tokens, whole_squares = ([n * factor for n in whole] for factor in (tokens, tokens**2))
    of_whole = _linear(costs, whole_tokens, whole) + _attention(costs, whole_tokens, whole_squares, whole)
    entered = int(trace.entered.sum())
    noted = trace.noted_in_all
    outside = entered * costs.step.linear + sum(n * costs.noted[name].linear for name, n in noted.items())
    norms = entered * costs.step.norm + sum(n * costs.noted[name].norm for name, n in noted.items())
    norms += sum(
        k * cost.norm + r * cost.norm_once
        for cost, k, r in zip(costs.branches, _by_branch(trace.computed), _by_branch(trace.ran), strict=True)
    )
    sites = trace.samples * trace.steps_run * len(trace.shape.layout)
    return Bill(
        linear=(linear + outside) / trace.samples,
        attention=attention / trace.samples,
        thop=(linear + outside + norms) / trace.samples,
        whole=of_whole / trace.samples,
        partial=(linear + attention - of_whole) / trace.samples,
        outside=outside / trace.samples,
        left_out=1 - int(trace.ran.sum()) / sites,
        selecting=int(trace.selecting.sum()) / trace.samples,
    )


def by_site(trace: Trace, costs: Costs, counted: str = "total") -> NDArray[np.float64]:
    """What every site [step, branch] cost an image: in linear layers and products of attention, or in one of them."""
    shape = trace.shape.sites
    found = np.zeros(shape)
    for step in range(shape[0]):
        for branch, cost in enumerate(costs.branches):
            site = ([int(counts[step, branch])] for counts in (trace.computed, trace.squares, trace.ran))
            computed, squares, ran = site
            alone = Costs((cost,), costs.step)
            macs = 0.0 if counted == "attention" else _linear(alone, computed, ran) - int(trace.spared[step, branch])
            macs += 0.0 if counted == "linear" else _attention(alone, computed, squares, ran)
            found[step, branch] = macs * trace.widths[step, branch]
    return found / trace.samples


def _by_branch(counts: NDArray[np.int64], weighed: Trace | None = None) -> list[Any]:
    """Counts of all steps together; each by its share of a branch's width where a trace is given."""
    if weighed is not None and weighed.narrowed:
        return (counts * weighed.widths).sum(axis=0).tolist()  # type: ignore[no-any-return]
    # Python's integers: sums of squares times widths can pass 64 bits in long videos.
    return [int(value) for value in counts.sum(axis=0)]


def _linear(costs: Costs, computed: list[Any], ran: list[Any]) -> Any:
    return sum(k * cost.per_token + r * cost.once for cost, k, r in zip(costs.branches, computed, ran, strict=True))


def _attention(costs: Costs, computed: list[Any], squares: list[Any], ran: list[Any]) -> Any:
    """Scores and their products with the values: 2 x width for every pair of a query and a key."""
    total: Any = 0
    for cost, k, k2, r in zip(costs.branches, computed, squares, ran, strict=True):
        if cost.keys == "computed":
            pairs = k2 + 2 * cost.joined * k + cost.joined**2 * r
        else:
            pairs = k * cost.keys
        total += 2 * cost.width * pairs
    return total
