"""What methods have in common whose plan says for every branch and step how many tokens are computed, at a given total.

Tokens are chosen as ToCa chooses them, and those that are not computed receive what their branch last gave out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ditbench.engine.layout import Shape
from ditbench.engine.plan import Plan
from ditbench.methods.base import Method, knob
from ditbench.methods.forms import SHARES, Form
from ditbench.methods.toca import OWN, SCORES, Schedule, schedule_of

if TYPE_CHECKING:
    from torch import Generator

    from ditbench.engine.fills import Fill
    from ditbench.engine.scored import ScoredTokens


# On FLUX DiffSparse has PixArt's bonus (its A.5.1), and not ToCa's. The score that it names there, entropy of attention
# to the text by itself, needs a branch that FLUX has not: ToCa's stands for it, attention received.
OWN_TERMS: dict[tuple[str, ...], dict[str, Any]] = {("attn", "mlp", "single"): {"bonus": 0.4, "cell": 4}}


def schedule_like(shape: Shape) -> Schedule:
    """ToCa's schedule for a network with such branches, with the terms that DiffSparse sets otherwise."""
    return schedule_of("auto", shape)._replace(**OWN_TERMS.get(shape.layout.names, {}))


@dataclass(frozen=True)
class TokenPlan(Method):
    """Base of methods that find such a plan before they sample; they `wait` for it."""

    ratio: float = knob(
        0.43, "share of the token computations of all steps that is left out (the paper's R)", least=0, most=1
    )
    budget: str = knob(
        "tokens",
        "what the ratio is a share of: token computations, each of a branch counting alike, MACs of branches, MACs of "
        "all linear layers (as published figures count: embeddings included, products of attention not), or the time "
        "that branches take on the device that learns",
        choices=("tokens", "macs", "macs-linear", "milliseconds"),
    )
    levels: int = knob(5, "how many shares of tokens a site chooses from, evenly from 0 to 1", least=2)
    score: str = knob("auto", "what tokens are chosen by; auto: ToCa's for such a network", choices=SCORES)
    age: float = knob(0.25 / 3, "weight of one step of a token's age", least=0)
    bonus: float = knob(OWN, "share that the best of a neighbourhood gains; -1: ToCa's for such a network", least=-1)
    cell: int = knob(-1, "side of a neighbourhood in tokens; -1: ToCa's for such a network", least=-1)
    guidance: str = knob(
        "auto", "whether both branches of guidance compute the same tokens", choices=("auto", "shared", "separate")
    )
    filling: str = knob(
        "reuse",
        "what tokens receive that are not computed: what they last received, or a forecast from the last two times",
        choices=("reuse", "taylor"),
    )
    captions: int = knob(0, "as many of the training captions are learned from; 0: all there are", least=0)
    plan_file: str = knob("", "a record of learning whose plan is taken, or shipped:NAME, instead of looking for one")

    def waits(self) -> bool:
        return self.found is None

    def finds(self) -> Mapping[str, Form]:
        return {"shares": SHARES}

    @property
    def candidates(self) -> tuple[float, ...]:
        """The shares of tokens that a site chooses from."""
        return tuple(float(share) for share in np.linspace(0, 1, self.levels))

    def plan(self, shape: Shape) -> Plan:
        if self.found is None:
            raise self.unlearned()
        shares = np.asarray(self.found["shares"], dtype=np.float64)
        if shares.shape != shape.sites:
            raise self.misfit(
                f"the plan is of {len(shares)} steps and {shares.shape[1]} branches, "
                f"this run has {shape.steps} and {len(shape.layout)}"
            )
        return self.plan_of(shape, shares)

    @staticmethod
    def plan_of(shape: Shape, shares: NDArray[np.float64]) -> Plan:
        """A plan of shares of tokens [step, branch]."""
        return Plan(shape.layout, shape.layout.by_branch, shares)

    def fill(self, shape: Shape) -> Fill:
        from ditbench.engine.fills import Reuse
        from ditbench.engine.forecasts import TokenTaylor

        return Reuse() if self.filling == "reuse" else TokenTaylor()

    def selector(self, shape: Shape, generator: Generator) -> ScoredTokens:
        return self.selecting(self.plan(shape), shape, generator)

    def selecting(self, plan: Plan, shape: Shape, generator: Generator, always: bool = False) -> ScoredTokens:
        """The selector of a plan; with `always`, one that can order the tokens of any site."""
        from ditbench.engine.scored import ScoredTokens, Terms
        from ditbench.engine.scores import score_of

        own = schedule_like(shape)
        terms = Terms(
            age=self.age,
            bonus=own.bonus if self.bonus == OWN else self.bonus,
            cell=own.cell if self.cell < 1 else self.cell,
            shared=own.shared if self.guidance == "auto" else self.guidance == "shared",
        )
        score = score_of(own.score if self.score == "auto" else self.score, shape.layout, generator)
        return ScoredTokens(score, plan, shape.tokens, terms, always=always)
