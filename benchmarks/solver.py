"""How long the exact solver takes, and how that grows with the sites.

uv run python benchmarks/solver.py [--rounds N] [--largest SITES] [--out measured/solver-cpu.json]

DiffSparse's instances (steps x blocks x branches, levels; the paper's own solver takes about 30 s for 20 x 28 and 5
levels), in costs of four kinds: normal (as learned ones may be), convex (less harm the more is computed), whole (costs
0, 1 and 2, full of ties) and equal (all the same). Each instance in a process of its own, for its memory; the median of
its rounds, the first of which pays for memory that is touched for the first time. The total computes 57 % of the tokens
(R = 43 %). Budgets of MACs have the numbers of PixArt-alpha's own branches, which have no common unit.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from ditbench.records import write_record
from ditbench.solve.knapsack import solve_tokens, solve_weights
from ditbench.worlds import get_world

SHARE = 0.57
PAPER = ((20, 28, 3, 5), (50, 28, 2, 5), (20, 28, 3, 9), (20, 28, 3, 11))  # steps, blocks, branches, levels
GROWTH = (100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
TARGETS_MS = {(20, 28, 3, 5): 30.0, (50, 28, 2, 5): 60.0, (20, 28, 3, 9): 54.0, (20, 28, 3, 11): 66.0}
MEMORY_MB = 200.0


def costs_of(kind: str, sites: int, levels: int) -> np.ndarray:
    """Costs of one kind, always the same."""
    rng, shares = np.random.default_rng(0), np.linspace(0, 1, levels)
    if kind == "normal":
        return rng.normal(size=(sites, levels))
    if kind == "convex":
        return rng.uniform(0.5, 1.5, (sites, 1)) * (1 - shares) ** 2
    if kind == "whole":
        return rng.integers(0, 3, (sites, levels)).astype(float)
    return np.zeros((sites, levels))


def weights_of(budget: str, sites: int, levels: int) -> np.ndarray:
    """What sites weigh at each level: branches of a block in turn, as PixArt has three."""
    if budget == "macs":
        world = get_world("pixart-alpha-256")
        backbone, _ = world.backbone("meta")
        costs = backbone.costs(world.tokens, world.text_tokens)
        counts = [round(share * world.tokens) for share in np.linspace(0, 1, levels)]
        of_branches = np.array([[cost.macs(count) for count in counts] for cost in costs.branches], dtype=float)
        return np.resize(of_branches, (sites, levels))
    # Self-attention, cross-attention and MLP cost 4, 2 and 8 of their parts.
    return np.resize([4.0, 2.0, 8.0], sites)[:, None] * np.arange(levels)


def measure(task: tuple[str, int, int, int, str]) -> dict[str, Any]:
    """Times of one instance, and the memory it added."""
    kind, sites, levels, rounds, budget = task
    costs, shares = costs_of(kind, sites, levels), np.linspace(0, 1, levels)
    weights = weights_of(budget, sites, levels)
    resolution = {"resolution": 10**9} if budget == "weights" else {}
    before, seconds = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []
    for _ in range(rounds):
        began = time.perf_counter()
        if budget == "tokens":
            solve_tokens(costs, shares, SHARE * sites)
        else:
            solve_weights(costs, weights, float(np.floor(SHARE * weights[:, -1].sum())), **resolution)
        seconds.append(time.perf_counter() - began)
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {
        "costs": kind,
        "budget": budget,
        "sites": sites,
        "levels": levels,
        "median_ms": 1e3 * statistics.median(seconds),
        "first_ms": 1e3 * seconds[0],
        "added_mb": added,
    }


def alone(task: tuple[str, int, int, int, str]) -> dict[str, Any]:
    """An instance, measured in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found: dict[str, Any] = pool.apply(measure, (task,))
    print(
        f"{found['sites']:>7,} sites x {found['levels']:>2} levels, {found['costs']:<6} {found['budget']:<7} "
        f"{found['median_ms']:9.1f} ms (first {found['first_ms']:.1f}), {found['added_mb']:6.1f} MB"
    )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="rounds (default %(default)s)")
    parser.add_argument("--largest", type=int, default=GROWTH[-1], help="sites of the growth curve's end")
    parser.add_argument("--out", type=Path, help="write a record")
    arguments = parser.parse_args()

    paper = []
    for steps, blocks, branches, levels in PAPER:
        for kind in ("normal", "convex", "whole", "equal"):
            found = alone((kind, steps * blocks * branches, levels, arguments.rounds, "tokens"))
            target = TARGETS_MS[steps, blocks, branches, levels]
            paper.append(found | {"instance": f"{steps} x {blocks} x {branches}", "target_ms": target})
    paper.append(alone(("normal", 1680, 5, arguments.rounds, "weights")) | {"instance": "20 x 28 x 3"})
    in_macs = (alone((kind, 1680, 5, arguments.rounds, "macs")) for kind in ("normal", "convex"))
    paper += [found | {"instance": "20 x 28 x 3"} for found in in_macs]
    growth = [
        alone((kind, sites, 5, 3, "tokens"))
        for kind in ("normal", "convex")
        for sites in GROWTH
        if sites <= arguments.largest
    ]
    if arguments.out:
        body = {"command": " ".join(sys.argv), "share": SHARE, "target_mb": MEMORY_MB, "paper": paper, "growth": growth}
        write_record(arguments.out, "solver-speed", body)
        print(arguments.out)


if __name__ == "__main__":
    main()
