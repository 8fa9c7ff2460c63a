"""Plans found by trying: what DiffSparse compares its learning with, a genetic and a random search (its A.5.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ditbench.faults import Fault
from ditbench.methods.base import knob
from ditbench.methods.token_plans import TokenPlan


@dataclass(frozen=True)
class PlanSearch(TokenPlan):
    """Plans that meet the budget are drawn, images of training captions are made with each, and the best one stays.

    Published: 1,000 measurements of 500 images each, by FID. How many images is the business of `captions`.
    """

    name: ClassVar[str] = "plan-search"
    summary: ClassVar[str] = "a number of tokens for every branch and step, the best of many that were tried"
    paper: ClassVar[str] = "DiffSparse, A.5.4"
    learner: ClassVar[str | None] = "search"

    search: str = knob("genetic", "how plans to try are found", choices=("genetic", "random"))
    measurements: int = knob(1000, "plans that are tried in all", least=1)
    population: int = knob(50, "plans at a time, of the genetic search", least=2)
    mutation: float = knob(0.01, "probability that a site of a child changes", least=0, most=1)
    fitness: str = knob(
        "fid",
        "what is lowest for the best plan: FID to real images, or a distance to the full network's images",
        choices=("fid", "lpips", "lpips-vgg", "l2", "ssim"),
    )
    training_seed: int = knob(0, "of the search and of the images' noise", least=0)

    @property
    def compares_with_real_images(self) -> bool:
        return self.fitness == "fid" and not self.plan_file

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.search == "genetic" and self.measurements < self.population:
            raise Fault(f"measurements: {self.measurements} are fewer than the {self.population} of one population")
