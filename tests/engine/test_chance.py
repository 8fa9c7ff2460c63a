"""Random tokens hang on the sample, not on the batch it is in."""

from __future__ import annotations

import numpy as np
import torch

from ditbench.backbones import Stream
from ditbench.engine.chance import uniform
from ditbench.engine.layout import Unit
from ditbench.engine.selectors import RandomTokens
from ditbench.noise import chance_seed

SEEDS = [chance_seed(0, f"caption {i}") for i in range(6)]


def stream(seeds: list[int] | None, tokens: int = 64) -> Stream:
    count = 6 if seeds is None else len(seeds)
    return Stream(torch.zeros(count, tokens, 1), seeds=None if seeds is None else torch.tensor(seeds))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_a_sample_meets_the_same_chance_in_any_batch() -> None:
    whole = uniform(stream(SEEDS), 3, 5, generator())
    for i, seed in enumerate(SEEDS):
        assert torch.equal(uniform(stream([seed]), 3, 5, generator())[0], whole[i])
    rows = RandomTokens(generator()).choose(Unit(2, 3), 1, stream(SEEDS), 8).index
    alone = [RandomTokens(generator()).choose(Unit(2, 3), 1, stream([seed]), 8).index[0] for seed in SEEDS]
    assert torch.equal(rows, torch.stack(alone))


def test_every_sample_site_and_token_has_its_own() -> None:
    draws = [uniform(stream(SEEDS), step, unit, generator()) for step in range(4) for unit in range(4)]
    values = torch.stack(draws)
    assert values.min() >= 0 and values.max() < 1
    assert values.unique().numel() > 0.999 * values.numel()


def test_the_numbers_are_spread_evenly() -> None:
    values = torch.cat([uniform(stream(SEEDS, 1000), step, 0, generator()).flatten() for step in range(20)]).numpy()
    counts, _ = np.histogram(values, bins=20, range=(0, 1))
    # Twenty bins of 6,000: chi squared with 19 degrees of freedom, beyond 50 once in 7,000 times.
    assert ((counts - 6000) ** 2 / 6000).sum() < 50
    assert abs(np.corrcoef(values[:-1], values[1:])[0, 1]) < 0.01


def test_without_seeds_the_generator_decides() -> None:
    first, second = (uniform(stream(None), 0, 0, generator()) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, uniform(stream(SEEDS), 0, 0, generator()))
