"""A method for campaigns: FORA, but for what `trouble.txt` in the working folder tells it to do wrong.

The file is no code, so that a run in trouble and the run after it are of the same cells.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from torch import Tensor

from ditbench.engine.fills import Fill, Key, Reuse
from ditbench.engine.layout import Shape
from ditbench.engine.plan import Plan, by_step
from ditbench.methods.base import Method


class NoNumbers(Reuse):
    """Reuses what is no number."""

    def supply(self, key: Key, step: int) -> Tensor | None:
        kept = super().supply(key, step)
        return None if kept is None else kept * float("nan")


@dataclass(frozen=True)
class Troubled(Method):
    """All units at every second step."""

    name: ClassVar[str] = "troubled"
    summary: ClassVar[str] = "for tests: FORA, and what goes wrong with it"
    paper: ClassVar[str] = ""

    def plan(self, shape: Shape) -> Plan:
        if trouble() == "raise":
            raise ZeroDivisionError("a token was divided by none")
        if trouble() == "leak":
            from ditbench.methods.full import Full

            Full.plan = Troubled.plan  # type: ignore[method-assign, assignment]
        return by_step(shape, np.arange(shape.steps) % 2 == 0)

    def fill(self, shape: Shape) -> Fill:
        if trouble() == "hang":
            time.sleep(3600)
        return NoNumbers() if trouble() == "nan" else super().fill(shape)


def trouble() -> str:
    """What to do wrong; nothing where there is no file."""
    path = Path("trouble.txt")
    return path.read_text().strip() if path.exists() else ""
