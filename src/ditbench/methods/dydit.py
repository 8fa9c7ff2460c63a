"""DyDiT: heads and channels by the timestep, and tokens of the MLP by what they hold (ICLR 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ditbench.engine.layout import Shape
from ditbench.engine.plan import ASK, Plan
from ditbench.faults import Fault
from ditbench.methods.base import knob
from ditbench.methods.forms import TIMES, WEIGHTS, Form
from ditbench.methods.tuned import Tuned, timesteps

if TYPE_CHECKING:
    import torch
    from torch import Generator, Tensor

    from ditbench.engine.fills import Fill
    from ditbench.engine.selectors import Selector
    from ditbench.engine.widths import Widths


@dataclass(frozen=True)
class DyDiT(Tuned):
    """Two routers of every block read the timestep: one keeps heads of its attention, one groups of its MLP's channels,
    the first of each always (timestep-wise dynamic width). A third reads every token as it enters the MLP, which the
    tokens that it does not keep pass by (spatial-wise dynamic token); attention computes all of them.

    Routers learn with the network, all weights of it, by Gumbel noise, straight-through gradients, and a term that
    draws the mean share of the blocks' MACs to the target. Sampling computes what is kept and no more: widths are known
    for every timestep beforehand, and are slices of the weights; tokens are gathered, of every sample as many as it
    wants. (The published code multiplies by masks, and saves no time.)

    What a share is of: self- or joint attention, its products included, MLPs, and where there is one, cross-attention.
    Where a text has a stream of its own, its heads and channels go with the image's, and all its tokens stay.
    """

    name: ClassVar[str] = "dydit"
    summary: ClassVar[str] = "learned widths for every timestep, and learned tokens for every MLP"
    paper: ClassVar[str] = "arXiv 2410.03456"
    learner: ClassVar[str | None] = "dynamic"

    tuning: str = knob(
        "full", "what of the network is trained: all, or additions of low rank to its blocks", choices=("lora", "full")
    )
    iterations: int = knob(200_000, "steps of the optimiser; 150,000 for a ratio of 0.7", least=1)
    batch: int = knob(256, "pairs of one step of the optimiser", least=1)
    rate: float = knob(1e-4, "of learning the network's weights; 2.5e-5 for a ratio of 0.7", least=0)
    decay: float = knob(0.0, "of the network's weights, by AdamW", least=0)
    average: float = knob(
        0.9999, "decay of the averaged weights that are kept (EMA); 0: the last ones", least=0, most=1
    )

    ratio: float = knob(
        0.5, "the target: share of the blocks' MACs that is computed, on average (lambda)", least=0, most=1
    )
    dynamic: str = knob(
        "both",
        "what is routed: widths by the timestep, tokens of the MLP, or both",
        choices=("both", "widths", "tokens"),
    )
    groups: int = knob(0, "of an MLP's channels; 0: as many as its block's attention has heads", least=0)
    cross: str = knob(
        "whole",
        "cross-attention, which DiT has none of: left whole, or narrowed to the heads that attention keeps",
        choices=("whole", "heads"),
    )
    order: str = knob(
        "magnitude",
        "which head and which channels are the first, that always stay: those of the largest weights, or the network's",
        choices=("magnitude", "given"),
    )
    guidance: str = knob(
        "separate",
        "tokens of both branches of guidance: each its own, or those that either wants (widths are always shared)",
        choices=("separate", "either"),
    )
    interval: int = knob(
        1, "steps from one that computes to the next; between them branches give what they gave (DeepCache)", least=1
    )
    router_rate: float = knob(1e-4, "of learning the routers; short trainings need more", least=0)
    width_bias: float = knob(15.0, "that width routers start with: the network starts complete")
    token_bias: float = knob(35.0, "that token routers start with")
    start: str = knob(
        "zero",
        "the routers' last layers at the start, beside their biases: zero, so that the network is complete whatever "
        "enters them, or as a linear layer's",
        choices=("zero", "linear"),
    )
    temperature: float = knob(5.0, "of Gumbel gates (tau)", least=1e-3)
    coefficient: float = knob(2.0, "of the squared distance of the mean share from its target", least=0)
    forced: float = knob(
        0.0005, "share of the training in which the target is 1 (100 of 200,000 steps)", least=0, most=1
    )
    falling: float = knob(
        0.005,
        "share of the training over which it then falls to the ratio (1,000 of 200,000; 5,000 of 150,000 for 0.7)",
        least=0,
        most=1,
    )
    complete: float = knob(
        0.15,
        "share of the training in which the complete network is trained as well (30,000 of 200,000)",
        least=0,
        most=1,
    )
    strata: int = knob(4, "that timesteps of a batch are drawn from in turn; 0: as many as pairs", least=0)
    skipped: float = knob(
        200.0, "norm of the gradients from which on a step is left out; 50 for a ratio of 0.7; 0: none is", least=0
    )
    clipping: float = knob(0.0, "norm that gradients are scaled down to; 0: they are not", least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.groups and self.dynamic == "tokens":
            raise Fault("groups: of channels there are none where only tokens are routed")

    @property
    def routes_widths(self) -> bool:
        """Whether timesteps say how wide blocks are."""
        return self.dynamic != "tokens"

    @property
    def routes_tokens(self) -> bool:
        """Whether tokens may pass by MLPs."""
        return self.dynamic != "widths"

    def target_at(self, step: int) -> float:
        """What the mean share is drawn to in a step of the training."""
        fallen = step + 1 - round(self.forced * self.iterations)
        falls = max(round(self.falling * self.iterations), 1)
        return 1 - (1 - self.ratio) * min(max(fallen / falls, 0.0), 1.0)

    def plan(self, shape: Shape) -> Plan:
        if self.waits():
            raise self.unlearned()
        shares = np.ones(shape.sites)
        if self.routes_tokens:
            shares[:, shape.layout.name_of == "mlp"] = ASK
        shares[np.arange(shape.steps) % self.interval != 0] = 0
        return Plan(shape.layout, shape.layout.by_branch, shares)

    def fill(self, shape: Shape) -> Fill:
        from ditbench.engine.fills import Pass, PassBy, Reuse

        return Pass() if self.interval == 1 else PassBy(Reuse())

    def finds(self) -> Mapping[str, Form]:
        return {**WEIGHTS, "times": TIMES}

    def selector(self, shape: Shape, generator: Generator) -> Selector:
        from ditbench.engine.dynamic import Dynamic, TokenRouters
        from ditbench.engine.outfit import tuned_tensors

        widths = routers = None
        if self.found is not None and "file" in self.found:
            tensors = tuned_tensors(self.found["file"], self.found["sha256"])
            widths = self._widths(tensors, shape, generator.device) if self.routes_widths else None
            routers = TokenRouters.of(tensors) if self.routes_tokens else None
        return Dynamic(widths, routers, shape.layout, self.guidance)

    def _widths(self, tensors: Mapping[str, Tensor], shape: Shape, device: torch.device) -> Widths:
        """The groups of every branch at the timesteps of a run, by the tables of what was trained."""
        from ditbench.engine.dynamic import ORDERS, TABLES, kinds_of
        from ditbench.engine.widths import Widths

        assert self.found is not None
        tables = {kind: tensors[TABLES + kind].bool() for kind in ("heads", "channels")}  # [timesteps, blocks, groups]
        if (blocks := tables["heads"].shape[1]) != shape.layout.blocks:
            raise self.misfit(f"the widths are of {blocks} blocks, here are {shape.layout.blocks}")
        kinds = kinds_of(shape.layout, self.cross)
        places = np.rint(timesteps(self.found, shape.steps)).astype(int).clip(0, len(tables["heads"]) - 1)
        kept: list[list[list[int] | None]] = []
        for place in places.tolist():
            step: list[list[int] | None] = []
            for kind, block in zip(kinds, shape.layout.block_of.tolist(), strict=True):
                some = tables[kind][place, block] if kind else None
                step.append(None if some is None or some.all() else some.nonzero().flatten().tolist())
            kept.append(step)
        orders = [
            [tensor.long() for name, tensor in sorted(tensors.items()) if name.startswith(f"{ORDERS}{branch}.")]
            for branch in range(len(shape.layout))
        ]
        return Widths(kept, orders, [tables[kind].shape[2] if kind else 1 for kind in kinds], device)
