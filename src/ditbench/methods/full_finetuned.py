"""The control of all methods that fine-tune: the same training, and nothing left out."""

from dataclasses import dataclass
from typing import ClassVar

from ditbench.engine.layout import Shape
from ditbench.engine.plan import Plan, full_plan
from ditbench.methods.tuned import Clipped


@dataclass(frozen=True)
class FullFinetuned(Clipped):
    """All tokens of all units, by weights that were trained as those of DiffCR and MoD are, on the same pairs.

    What a fine-tuned method gains over this arm is its own; what this one gains over `full` is the training's.
    """

    name: ClassVar[str] = "full-finetuned"
    summary: ClassVar[str] = "the whole network, fine-tuned as routed ones are: their fair control"
    paper: ClassVar[str] = "arXiv 2412.16822, Table 1"

    lends_weights: ClassVar[bool] = True

    def plan(self, shape: Shape) -> Plan:
        return full_plan(shape)
