"""TokenCache: which tokens of which blocks take what was computed before, by a predictor that was trained to say so.

What is known of it (arXiv 2409.18523; there is no code) leaves things open. Where it does, the knobs say what we chose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ditbench.engine.layout import Shape
from ditbench.engine.plan import Plan
from ditbench.faults import Fault
from ditbench.methods.base import Method, knob
from ditbench.methods.forms import SHARES, WEIGHTS, Form, Numbers

if TYPE_CHECKING:
    from torch import Generator

    from ditbench.engine.selectors import Selector

# What a variant has where a knob is left to it. How many blocks the journal's leaves alone is not known.
PREDICTOR = {"v1": "places", "v2": "tokens"}
SCHEDULE = {"v1": "two-phase", "v2": "percentiles"}
LAST = {"v1": 0, "v2": 2}


def two_phase(steps: int, first: int, early: int, late: int) -> NDArray[np.bool_]:
    """The full steps of the two-phase round robin: every `early`-th of the `first` steps, then every `late`-th."""
    step = np.arange(steps)
    full: NDArray[np.bool_] = np.where(step < first, step % early == 0, (step - first) % late == 0)
    full[:1] = True
    return full


def at_percentiles(importance: NDArray[np.float64], count: int) -> NDArray[np.bool_]:
    """So many full steps, each where the importance [steps] added up so far reaches the next equal part of its sum.

    No two of them are one step, and the first is the first.
    """
    before = np.cumsum(importance) - importance
    parts = importance.sum() * np.arange(count) / count
    places = np.searchsorted(before, parts - 1e-9 * importance.sum())
    for number in range(1, count):
        places[number] = max(places[number], places[number - 1] + 1)
    places = np.minimum(places, len(importance) - count + np.arange(count))
    return np.isin(np.arange(len(importance)), places)


def apportioned(wanted: NDArray[np.float64], total: int, most: int) -> NDArray[np.int64]:
    """Whole numbers up to `most` that come to `total`, in proportion to what is `wanted` as far as that goes."""
    assert 0 <= total <= most * len(wanted), "so many cannot be shared out"
    shares, free, left = np.zeros(len(wanted)), np.ones(len(wanted), dtype=bool), float(total)
    while True:
        whole = wanted[free].sum()
        shares[free] = wanted[free] * left / whole if whole > 0 else left / free.sum()
        over = free & (shares > most)
        if not over.any():
            break
        # What one may not have goes to the others.
        shares[over], free = most, free & ~over
        left -= most * int(over.sum())
    counts = np.floor(shares + 1e-9).astype(np.int64)
    by_rest = np.argsort(counts - shares, kind="stable")
    counts[by_rest[counts[by_rest] < most][: total - counts.sum()]] += 1
    return counts


@dataclass(frozen=True)
class TokenCache(Method):
    """Between full steps, tokens whose weight is small take what their block last gave them; the others are computed.

    `v1`: what a branch gives out is mixed, w f(z_t) + (1 - w) f(z_t+1), and w is told by block, time and place alone;
    blocks of least weight in all are those in which tokens are left out. `v2` (the journal's): the mix is of what
    blocks add, its weights are told by a copy of the first block that reads the tokens, and are charged for; the last
    blocks are always computed. The `ratio` of all tokens with the least weights is left out: how many that is of each
    block is the mean over training captions, which tokens each image says for itself. Full steps lie where the weights
    of training captions, added up, reach equal parts of their sum.

    With no price on weights the answer is off least where all of them are one, which is where training takes them; what
    orders tokens then is how fast they went there. So v1 is given the price here that is the journal's.

    The network is not trained (but for `rank`): the predictor is, on the full network's own sampling of training
    captions, so that its answer changes least. The text's own tokens are computed with any of the image's.
    """

    name: ClassVar[str] = "tokencache"
    summary: ClassVar[str] = "between full steps, tokens of little predicted weight take what was computed before"
    paper: ClassVar[str] = "arXiv 2409.18523"
    learner: ClassVar[str | None] = "predictor"
    fits_what_it_takes: ClassVar[bool] = True  # a plan from the predictor that it takes
    has_stand_in: ClassVar[bool] = True

    variant: str = knob(
        "v2", "what is mixed and how blocks are chosen: the first version's, or the journal's", choices=("v1", "v2")
    )
    ratio: float = knob(
        0.85,
        "share of the tokens that a step between full ones leaves out, of blocks that may; not published: with the "
        "default schedule the seconds printed for DiT come to this",
        least=0,
        most=1,
    )
    schedule: str = knob(
        "auto",
        "full steps: in two phases (v1, and on SD3 by SDTM's authors), or at percentiles of the weights (v2)",
        choices=("auto", "two-phase", "percentiles"),
    )
    phase: float = knob(0.5, "share of the steps, from noise on, that are of the first phase", least=0, most=1)
    early: int = knob(4, "steps from one full step to the next in the first phase (K1)", least=1)
    late: int = knob(2, "steps from one full step to the next in the second phase (K2)", least=1)
    full_steps: int = knob(0, "how many are full, at percentiles; 0: as many as in two phases", least=0)
    predictor: str = knob(
        "auto",
        "what weights are told by: block, time and place (v1), or the tokens as they enter the network (v2)",
        choices=("auto", "places", "tokens"),
    )
    allocation: str = knob(
        "learned", "of blocks: by the weights, as the variant has it, or all alike", choices=("learned", "even")
    )
    chosen: float = knob(0.9, "v1: share of the blocks in which tokens are left out; not published", least=0, most=1)
    last: int = knob(
        -1, "last blocks that are always computed (K); -1: none in v1, 2 in v2, which is not published", least=-1
    )
    keys: str = knob(
        "stale",
        "of tokens that are left out, in attention: as they last were, or dropped as MoD does; not published",
        choices=("stale", "drop"),
    )
    guidance: str = knob(
        "separate",
        "tokens of both branches of guidance: each by its own weights, or both by the greater or the mean of two",
        choices=("separate", "max", "mean"),
    )
    penalty: float = knob(
        0.01,
        "price of the mean weight (lambda); not published, and v1 has none: 0, by which all weights end at one",
        least=0,
    )
    epochs: int = knob(1, "how often the training captions are sampled, each time from other noise", least=1)
    rate: float = knob(1e-3, "of learning the predictor", least=0)
    block_rate: float = knob(1e-4, "of learning its copy of the first block, and additions to the last ones", least=0)
    rank: int = knob(0, "v2: of additions to the last blocks, trained with the predictor (LoRA); 0: none", least=0)
    checkpointing: str = knob("off", "blocks are run again for their gradients: less memory", choices=("off", "on"))
    training_seed: int = knob(0, "of the noise of training, and of what starts at random", least=0)
    weights_file: str = knob(
        "", "a record of learning whose predictor is taken, or shipped:NAME, instead of training one"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank and not self.kept_last:
            raise Fault("rank: additions are of the last blocks, and `last` keeps none")
        if self.variant == "v1" and self.allocation == "learned" and self.chosen < self.ratio:
            raise Fault(
                f"ratio: {self.ratio:g} of all tokens cannot be left out in {self.chosen:g} of the blocks; raise chosen"
            )

    @property
    def told_by(self) -> str:
        """What the predictor reads."""
        return PREDICTOR[self.variant] if self.predictor == "auto" else self.predictor

    @property
    def scheduled(self) -> str:
        """How full steps are found."""
        return SCHEDULE[self.variant] if self.schedule == "auto" else self.schedule

    @property
    def kept_last(self) -> int:
        """How many of the last blocks are always computed."""
        return LAST[self.variant] if self.last < 0 else self.last

    @property
    def worn(self) -> Mapping[str, Any] | None:
        """The predictor stands beside the network; only additions to its last blocks are worn."""
        return self.found if self.found and self.found.get("rank") else self.lent

    def waits(self) -> bool:
        return self.found is None

    def finds(self) -> Mapping[str, Form]:
        return {**WEIGHTS, "shares": SHARES, "rank": Numbers(least=0, most=1e6, needed=False)}

    # The plan

    def blocks(self, shape: Shape) -> int:
        """How many blocks, the first ones, may leave tokens out."""
        blocks = shape.layout.blocks - self.kept_last
        if blocks < 1:
            raise Fault(f"last: {self.kept_last} of {shape.layout.blocks} blocks leave none whose tokens are left out")
        return blocks

    def full(self, steps: int, importance: NDArray[np.float64] | None) -> NDArray[np.bool_]:
        """The full steps; `importance` [steps] is what percentiles are of."""
        phases = two_phase(steps, round(self.phase * steps), self.early, self.late)
        if self.scheduled == "two-phase":
            return phases
        assert importance is not None
        return at_percentiles(importance, min(self.full_steps or int(phases.sum()), steps))

    def counts(self, shape: Shape, importance: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.int64]:
        """Tokens computed in every block that may leave some out, [step, block], if no step were full.

        `importance` is the mean weight of each such block at each step; `wanted` how many of its tokens are among those
        of greatest weight.
        """
        blocks, tokens = self.blocks(shape), shape.tokens
        total = round((1 - self.ratio) * blocks * tokens)
        if self.allocation == "even":
            return np.tile(apportioned(np.full(blocks, total / blocks), total, tokens), (shape.steps, 1))
        if self.variant == "v2":
            return np.stack([apportioned(row, total, tokens) for row in wanted])
        least = min(blocks, max(round(self.chosen * blocks), int(np.ceil(blocks - total / tokens - 1e-9)), 1))
        counts = np.full((shape.steps, blocks), tokens, dtype=np.int64)
        for step, row in enumerate(importance):
            places = np.sort(np.argsort(row, kind="stable")[:least])
            left = total - (blocks - least) * tokens
            counts[step, places] = apportioned(np.full(least, left / least), left, tokens)
        return counts

    def shares(self, shape: Shape, importance: NDArray[np.float64], wanted: NDArray[np.float64]) -> NDArray[np.float64]:
        """The share of tokens computed at every site [step, branch]."""
        of_block = np.ones((shape.steps, shape.layout.blocks))
        of_block[:, : self.blocks(shape)] = self.counts(shape, importance, wanted) / shape.tokens
        of_block[self.full(shape.steps, importance.mean(1))] = 1
        return of_block[:, shape.layout.block_of]

    def plan(self, shape: Shape) -> Plan:
        if self.found is not None:
            shares = np.asarray(self.found["shares"], dtype=np.float64)
            if shares.shape != shape.sites:
                raise self.misfit(
                    f"the predictor's plan is of {len(shares)} steps and {shares.shape[1]} branches, "
                    f"this run has {shape.steps} and {len(shape.layout)}"
                )
        elif self.allocation == "even" and self.scheduled == "two-phase":
            alike = np.zeros((shape.steps, self.blocks(shape)))
            shares = self.shares(shape, alike, alike)
        else:
            raise Fault(
                f"{self.unlearned()}; before that, what it costs is known with the knobs `allocation: even` and "
                "`schedule: two-phase`, where nothing of the plan hangs on the predictor"
            )
        if self.variant == "v1":
            return Plan(shape.layout, shape.layout.by_branch, shares)
        first = [unit.start for unit in shape.layout.by_block]
        return Plan(shape.layout, shape.layout.by_block, shares[:, first])

    def selector(self, shape: Shape, generator: Generator) -> Selector:
        from ditbench.engine.keys import KeptKeys
        from ditbench.engine.outfit import tuned_tensors
        from ditbench.engine.predicted import PredictedTokens

        plan = self.plan(shape)
        counts = plan.counts(shape.tokens)
        some = [bool(step.any()) for step in (counts > 0) & (counts < shape.tokens)]
        tensors = None
        if self.found is not None and "file" in self.found:
            tensors = tuned_tensors(self.found["file"], self.found["sha256"])
        keys = KeptKeys(plan, shape.tokens) if self.keys == "stale" else None
        blocks = self.blocks(shape)
        return PredictedTokens(tensors, self.told_by, blocks, shape.layout, some, self.guidance, keys)
