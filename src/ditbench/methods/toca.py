"""ToCa: token-wise feature caching (arXiv 2410.05317)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ditbench.engine.layout import Layout, Shape
from ditbench.engine.plan import Plan
from ditbench.faults import Fault
from ditbench.methods.base import Method, knob

if TYPE_CHECKING:
    from torch import Generator

    from ditbench.engine.selectors import Selector

SCORES = ("auto", "attention", "entropy", "value-norm", "key-norm", "similarity", "norm", "random", "none")
OWN = -1.0  # of a knob: what the schedule has


class Line(NamedTuple):
    """A straight line of a share from 0 to 1."""

    start: float
    slope: float

    def __call__(self, share: NDArray[np.float64] | float) -> NDArray[np.float64] | float:
        return self.start + self.slope * share


class Schedule(NamedTuple):
    """What was published for one kind of network.

    The ratio of tokens at a site is the product of the method's, of `time` (a line of count / steps), of `depth` (of
    block / last block) and of its branch's factor in `branches`, 0 where the branch is reused whole. A full step
    decides the steps to the next one: N / `interval` (a line of count / steps), and 2 within `sensitive`. `fresh`: the
    method's ratio as it was published for that network (1 - R). `down`: the
    count is that of samplers that count to 0. `lead` steps are full before intervals are counted. `deep`: what counts
    as the last block, where that is not the network's, and blocks of another kind are then counted anew. `text`: among
    the text's tokens is chosen too.
    """

    time: Line
    depth: Line
    branches: dict[str, float]
    interval: Line = Line(1, 0)
    down: bool = False
    sensitive: tuple[float, float] | None = None
    score: str = "attention"
    bonus: float = 0.0
    cell: int = 1
    shared: bool = False
    lead: int = 1
    deep: int | None = None
    text: bool = False
    fresh: float = 0.3


SCHEDULES: dict[str, Schedule] = {
    # PixArt-alpha, 20 steps.
    "pixart": Schedule(
        time=Line(1.9, -1.8),
        depth=Line(1.6, -1.2),
        branches={"self": 0.0, "cross": 0.6, "mlp": 1.6},
        interval=Line(0.8, 0.4),
        score="entropy",
        bonus=0.4,
        cell=4,
        shared=True,
    ),
    # DiT-XL/2, 50 DDIM steps: no tokens in the first quarter, most at the end.
    "ddim50": Schedule(
        time=Line(3, -4),
        depth=Line(0.8, 0.4),
        branches={"self": 0.0, "mlp": 2.5},
        interval=Line(1.4, -0.8),
        down=True,
        sensitive=(0.2, 0.4),
        bonus=0.6,
        cell=2,
        fresh=0.07,
    ),
    # DiT-XL/2, 250 DDPM steps.
    "ddpm250": Schedule(
        time=Line(1.4, -0.8),
        depth=Line(1.8, -1.6),
        branches={"self": 0.0, "mlp": 2.5},
        interval=Line(1.4, -0.8),
        down=True,
        sensitive=(0.2, 0.4),
        bonus=0.6,
        cell=2,
        fresh=0.07,
    ),
    # FLUX, 50 steps: attention is kept, in single-stream blocks too. Published code counts the blocks of both kinds as
    # if each had the 28 of PixArt and DiT.
    "flux": Schedule(
        time=Line(1, 0),
        depth=Line(1.5, -1),
        branches={"attn": 0.0, "mlp": 0.4, "single": 1.6},
        lead=3,
        deep=27,
        text=True,
        fresh=0.1,
    ),
    # None was published for MMDiT, nor for Wan, which has PixArt's branches and gets PixArt's. Here
    # attention is reused, one ratio holds for all else, and there is no bonus.
    "flat": Schedule(
        time=Line(1, 0),
        depth=Line(1, 0),
        branches={"self": 0.0, "attn": 0.0, "attn2": 0.0, "cross": 1.0, "mlp": 1.0},
    ),
}


def schedule_of(name: str, shape: Shape) -> Schedule:
    """A published schedule by its name, or the one that fits a network where that is `auto`."""
    names = shape.layout.names
    if name == "auto":
        own = {
            ("self", "cross", "mlp"): "pixart",
            ("self", "mlp"): "ddpm250" if shape.steps > 100 else "ddim50",
            ("attn", "mlp", "single"): "flux",
        }
        name = own.get(names, "flat")
    schedule = SCHEDULES[name]
    unknown = [branch for branch in names if branch not in schedule.branches]
    if unknown:
        raise Fault(
            f"schedule: {name!r} says nothing of branch {unknown[0]!r} (this network has {', '.join(names)}); "
            + ("take `auto`" if name == "flat" else "take `flat`, or `auto`")
        )
    return schedule


class Cycle(NamedTuple):
    """Where every site [step, block] stands: computed whole, or so many counts away from a multiple of the interval."""

    whole: NDArray[np.bool_]
    phase: NDArray[np.int64]


def cycle_of(
    steps: int, blocks: int, interval: int, schedule: Schedule, weighted: bool, flips: bool, lead: int | None = None
) -> Cycle:
    """The full steps, counted as published.

    With `flips`, as in the published code, every block of a step decides anew, and the first block of a full step has
    changed the interval meanwhile: where the new one does not divide the count, that step's other blocks are not
    computed whole; and an interval of 1 is lengthened to 2 in places. Without, a step is full in all blocks or in none,
    and at an interval of 1 every step is. `lead`: as many full steps come first, where that is not the schedule's.
    """
    weighted = weighted and (flips or interval > 1)
    led = (schedule.lead if lead is None else lead) - 1
    whole = np.zeros((steps, blocks), dtype=bool)
    phase = np.zeros((steps, blocks), dtype=np.int64)
    every = interval
    for step in range(steps):
        # Intervals are counted from the last of the steps that lead.
        count = steps - 1 - step if schedule.down else step - led
        for block in range(blocks):
            if block and not flips:
                whole[step, block], phase[step, block] = whole[step, 0], phase[step, 0]
                continue
            full = step <= led or count % every == 0
            whole[step, block], phase[step, block] = full, 0 if full else count % every
            if block == 0 and full and weighted:
                every = _next_interval(interval, count / steps, schedule)
    return Cycle(whole, phase)


def _next_interval(interval: int, share: float, schedule: Schedule) -> int:
    """The steps from a full one to the next."""
    if schedule.sensitive and schedule.sensitive[0] <= share < schedule.sensitive[1]:
        return 2
    # Half to even, as torch rounds too.
    return max(1, round(interval / float(schedule.interval(share))))


def fresh_shares(shape: Shape, fresh: float, schedule: Schedule) -> NDArray[np.float64]:
    """The share of tokens at every site [step, branch] of a step that computes some."""
    layout, step = shape.layout, np.arange(shape.steps)
    count = shape.steps - 1 - step if schedule.down else step
    in_time = np.asarray(schedule.time(count / shape.steps))
    in_depth = np.asarray(schedule.depth(_depth(layout, schedule)))
    of_branch = np.array([schedule.branches[name] for name in layout.name_of])
    ratio = (fresh * np.outer(np.broadcast_to(in_time, shape.steps), in_depth * of_branch)).clip(0, 1)
    # Truncated to whole tokens, as published.
    shares: NDArray[np.float64] = np.floor(ratio * shape.tokens + 1e-9) / shape.tokens
    return shares


def _depth(layout: Layout, schedule: Schedule) -> NDArray[np.float64]:
    """How deep every branch lies: 1 in the block that the schedule takes for the last."""
    block = layout.block_of.astype(np.float64)
    if schedule.deep is None:
        return block / max(layout.blocks - 1, 1)
    other = layout.name_of == "single"
    if other.any():
        block[other] -= block[other].min()
    return block / schedule.deep


@dataclass(frozen=True)
class ToCa(Method):
    """Full steps at intervals; in between attention is reused and some tokens of the other branches are computed.

    Which: those with the highest sum of a score (attention they received, or how undecided their attention to the text
    was), of their age since they were last computed, and of a bonus for the best of its neighbourhood.

    `repo` counts as the published code does, in which a full step may reach the first block only; in `paper` a step is
    full or not. Where a video pipeline calls its network for one branch of guidance after the other, each selects for
    itself. On FLUX tokens of the text are chosen as those of the image are: each by themselves, and together in
    single-stream blocks, which compute the chosen tokens' MLP beside the attention that they kept.
    """

    name: ClassVar[str] = "toca"
    summary: ClassVar[str] = "between full steps, attention reused and the most important tokens of the rest computed"
    paper: ClassVar[str] = "arXiv 2410.05317"

    interval: int = knob(3, "steps from one full step to the next, before they are weighted (the paper's N)", least=1)
    fresh: float = knob(
        0.3,
        "the ratio of tokens computed (1 - R); published: 0.3 for PixArt-alpha, 0.07 for DiT, 0.1 for FLUX",
        least=0,
        most=1,
    )
    variant: str = knob("paper", "whether a full step reaches all blocks, or as in the code", choices=("paper", "repo"))
    schedule: str = knob("auto", "how the ratio changes with time, depth and branch", choices=("auto", *SCHEDULES))
    intervals: str = knob(
        "weighted", "longer and shorter intervals as published, or all the same", choices=("weighted", "uniform")
    )
    score: str = knob("auto", "what tokens are chosen by; auto: the schedule's", choices=SCORES)
    lead: int = knob(0, "full steps at the start, before intervals are counted; 0: the schedule's", least=0)
    age: float = knob(0.25, "weight of a token's age in intervals (the paper's third term)", least=0)
    bonus: float = knob(OWN, "share that the best of a neighbourhood gains; -1: the schedule's", least=-1)
    cell: int = knob(-1, "side of a neighbourhood in tokens; -1: the schedule's", least=-1)
    guidance: str = knob(
        "auto", "whether both branches of guidance compute the same tokens", choices=("auto", "shared", "separate")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if OWN < self.bonus < 0:
            raise Fault(f"bonus: {self.bonus!r} must be 0 or more, or -1 for the schedule's")
        if self.cell == 0:
            raise Fault("cell: 0 must be 1 or more, or -1 for the schedule's")

    def cycle(self, shape: Shape) -> Cycle:
        """Where every site stands between full steps."""
        # Published code without tokens is FORA: nothing is weighted.
        weighted = self.intervals == "weighted" and self.fresh > 0
        return cycle_of(
            shape.steps,
            shape.layout.blocks,
            self.interval,
            schedule_of(self.schedule, shape),
            weighted,
            self.variant == "repo",
            self.leading(),
        )

    def leading(self) -> int | None:
        """The full steps at the start; None: the schedule's. Without tokens published code is FORA in this too."""
        return self.lead or (None if self.fresh > 0 else 1)

    def plan(self, shape: Shape) -> Plan:
        shares = fresh_shares(shape, self.fresh, schedule_of(self.schedule, shape))
        shares[self.cycle(shape).whole[:, shape.layout.block_of]] = 1
        return Plan(shape.layout, shape.layout.by_branch, shares)

    def passed(self, shape: Shape) -> NDArray[np.bool_] | None:
        """Sites [step, branch] that are passed over altogether; None where there are none."""
        return None

    def selector(self, shape: Shape, generator: Generator) -> Selector:
        from ditbench.engine.joint import JointTokens
        from ditbench.engine.recall import RecalledAttention
        from ditbench.engine.scored import ScoredTokens, Terms
        from ditbench.engine.scores import score_of

        own = schedule_of(self.schedule, shape)
        terms = Terms(
            age=self.age / self.interval,
            bonus=self.own_bonus(own) if self.bonus == OWN else self.bonus,
            cell=own.cell if self.cell < 1 else self.cell,
            shared=own.shared if self.guidance == "auto" else self.guidance == "shared",
        )

        def among(tokens: int, terms: Terms) -> ScoredTokens:
            score = score_of(self.own_score(own), shape.layout, generator)
            plan = self.plan(replace(shape, tokens=tokens))
            return ScoredTokens(score, plan, tokens, terms, self.passed(shape))

        image = among(shape.tokens, terms)
        if not own.text:
            return image
        whole = self.cycle(shape).whole[:, shape.layout.block_of]
        some = ~whole & (self.plan(shape).shares > 0)
        recalled = RecalledAttention(np.flatnonzero(shape.layout.name_of == "single").tolist(), whole, some)
        # A text has no neighbourhoods.
        return JointTokens(image, lambda tokens: among(tokens, replace(terms, bonus=0.0, cell=1)), recalled)

    def own_bonus(self, schedule: Schedule) -> float:
        """What the best of a neighbourhood gains where nobody says."""
        return schedule.bonus

    def own_score(self, schedule: Schedule) -> str:
        """What tokens are chosen by."""
        return schedule.score if self.score == "auto" else self.score
