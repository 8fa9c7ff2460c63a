"""DiffSparse: the tokens that every branch computes at every step, learned from what that does to the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ditbench.engine.layout import Shape
from ditbench.methods.base import knob
from ditbench.methods.toca import cycle_of, fresh_shares
from ditbench.methods.token_plans import TokenPlan, schedule_like

# Of the whole steps that training begins with: ToCa's for PixArt-alpha, as published.
TOCA_INTERVAL = 3
# Parameters of a network whose steps are all held in memory while a plan is learned.
SMALL = 100_000_000


@dataclass(frozen=True)
class DiffSparse(TokenPlan):
    """Costs of every share of tokens at every site are learned; the plan is the one of least cost at the budget.

    While training captions are sampled, the plan of the costs so far is solved exactly and executed, and the gradient
    of how far the image is from the full network's goes through it to the costs (straight through). At first as many
    whole steps as ToCa has are kept, chosen by costs of their own; they are then made cheap, by `delta`, in the layers'
    costs, which are trained once more with nothing forced but the first step.
    """

    name: ClassVar[str] = "diffsparse"
    summary: ClassVar[str] = "a learned number of tokens for every branch and step, the rest reused"
    paper: ClassVar[str] = "DiffSparse"
    learner: ClassVar[str | None] = "sparsity"

    stages: str = knob(
        "two", "whole steps at first and then none forced, or none from the start", choices=("two", "one")
    )
    loss: str = knob(
        "lpips", "between the full network's image and the plan's", choices=("lpips", "lpips-vgg", "l2", "ssim")
    )
    start: str = knob(
        "toca", "costs at the start: least near ToCa's allocation, or all alike", choices=("toca", "even")
    )
    full_steps: int = knob(-1, "whole steps of the first stage, the first included; -1: ToCa's", least=-1)
    delta: float = knob(10.0, "what the costs of whole steps are lowered by between the stages", least=0)
    layer_rate: float = knob(1.0, "of learning the layers' costs in the first stage", least=0)
    step_rate: float = knob(0.01, "of learning the steps' costs", least=0)
    unified_rate: float = knob(0.1, "of learning in the second stage", least=0)
    scaling: str = knob(
        "each",
        "what a step of learning is scaled by: each cost's own gradients (AdamW, as published), or those of all costs",
        choices=("each", "all"),
    )
    epochs: int = knob(1, "how often each part of the training sees the training captions", least=1)
    batch: int = knob(8, "images of one step of the optimiser; the paper names no number", least=1)
    at_once: int = knob(4, "images of a batch that are drawn at once: it costs memory, and changes nothing", least=1)
    kept: str = knob(
        "last",
        "the plan at the end of training, as published, or of the ends of its parts the one that is least off on all "
        "training captions",
        choices=("last", "best"),
        later=True,
    )
    checkpointing: str = knob(
        "auto",
        f"steps are run again for their gradients, which saves memory and changes nothing; auto: in networks of more "
        f"than {SMALL // 1_000_000} million parameters",
        choices=("auto", "on", "off"),
        later=True,
    )
    temperature: float = knob(1.0, "of the softmax whose gradient stands for the plan's", least=1e-6)
    training_seed: int = knob(0, "of the noise and the order of training captions", least=0)
    trainings: int = knob(
        1,
        "trainings, each with the next seed; the plan is kept that is least off on all training captions",
        least=1,
        later=True,
    )

    def runs_again(self, parameters: int) -> bool:
        """Whether steps of a network of so many parameters are run again for their gradients."""
        return self.checkpointing == "on" or (self.checkpointing == "auto" and parameters > SMALL)

    def whole_steps(self, shape: Shape) -> NDArray[np.bool_]:
        """The steps that compute everything in the first stage, before any are learned."""
        if self.full_steps < 0:
            schedule = schedule_like(shape)
            # Of few steps none are to spare for a lead: only the first is whole without being asked.
            return cycle_of(shape.steps, shape.layout.blocks, TOCA_INTERVAL, schedule, False, False, lead=1).whole[:, 0]
        whole = np.zeros(shape.steps, dtype=bool)
        count = min(max(self.full_steps, 1), shape.steps)
        whole[np.floor(np.arange(count) * shape.steps / count).astype(int)] = True
        return whole

    def allocation(self, shape: Shape) -> NDArray[np.float64]:
        """ToCa's shares of tokens [step, branch] between whole steps."""
        schedule = schedule_like(shape)
        return fresh_shares(shape, schedule.fresh, schedule)
