"""TeaCache: timestep embedding tells (arXiv 2411.19108)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ditbench.engine.layout import Shape
from ditbench.engine.plan import ASK, Plan
from ditbench.faults import Fault
from ditbench.methods.base import UNSET, Thresholded, knob
from ditbench.methods.forms import Form, Numbers

if TYPE_CHECKING:
    from ditbench.engine.deciders import Decider

# The published fits, highest power first. Wan's are of its default mode, which watches the time's embedding, and of the
# code's `use_ret_steps`, which watches the projection of it.
FITS: dict[str, tuple[float, ...]] = {
    "identity": (1.0, 0.0),
    "flux": (498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861),
    "wan-1.3b": (2396.76752, -1311.10545, 201.331979, -8.29855975, 0.137887774),
    "wan-14b": (-5784.54975374, 5449.50911966, -1811.16591783, 256.27178429, -13.02252404),
    "wan-1.3b-ret-steps": (-52186.2437, 9230.41404, -528.275948, 13.6987616, -0.0499875664),
    "wan-14b-ret-steps": (-303318.725, 49053.7029, -2655.30556, 58.7365115, -0.315583525),
}


@dataclass(frozen=True)
class TeaCache(Thresholded):
    """The whole network, or what it added when it was last computed.

    The relative change of the first block's modulated input from step to step (of the time's embedding in Wan) goes
    through a polynomial, and adds up until the threshold. The first and the last step are always computed. Polynomials
    were published for FLUX and Wan alone; `identity` takes the change as it is. A polynomial that is negative counts as
    0, and changes beyond `most` as `most`. With `fit`, calibration fits a polynomial on training captions, of the
    degree of the published ones, and changes out of its range count as its ends.
    """

    name: ClassVar[str] = "teacache"
    summary: ClassVar[str] = "the whole network only when its modulated input has changed enough (online)"
    paper: ClassVar[str] = "arXiv 2411.19108"

    threshold: float = knob(UNSET, "sum of changes at which all is computed; 0.25 to 0.8 for FLUX-dev", least=UNSET)
    polynomial: str = knob("identity", "a published fit, fit, or coefficients such as 2.5,-0.1,0, highest power first")
    most: float = knob(1.0, "the largest change that the polynomial was fitted to", least=0)
    watch: str = knob(
        "input",
        "what must change: the modulated input, or the projection of the time (Wan, PixArt; Wan's ret-steps)",
        choices=("input", "projection"),
    )
    first: int = knob(1, "steps at the start that are always computed; 5 with Wan's ret-steps", least=1)
    last: int = knob(1, "steps at the end that are always computed; 0 with Wan's ret-steps", least=0)
    pool: str = knob(
        "sample", "who is decided together; pair: both branches of guidance", choices=("sample", "pair", "batch")
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.most == 0:
            raise Fault("most: 0 would take every change for none")

    def fits_polynomial(self) -> bool:
        return self.polynomial == "fit"

    def waits(self) -> bool:
        return (self.target > 0 or self.fits_polynomial()) and self.found is None

    def finds(self) -> Mapping[str, Form]:
        fitted: dict[str, Form] = {"coefficients": Numbers(1), "least": Numbers(), "most": Numbers()}
        return {**super().finds(), **(fitted if self.fits_polynomial() else {})}

    def coefficients(self) -> list[float]:
        """The polynomial's, highest power first."""
        if self.fits_polynomial():
            if self.found is None:
                raise self.unlearned()
            return [float(c) for c in self.found["coefficients"]]
        if self.polynomial in FITS:
            return list(FITS[self.polynomial])
        try:
            given = [float(word) for word in self.polynomial.split(",")]
        except ValueError:
            given = [math.nan]
        if not all(map(math.isfinite, given)):
            raise Fault(
                f"polynomial: {self.polynomial!r} must be one of {', '.join(FITS)}, fit, or numbers with commas between"
            )
        return given

    def plan(self, shape: Shape) -> Plan:
        self.need_threshold()
        if not self.waits():
            self.coefficients()
        return Plan(shape.layout, (shape.layout.span(0, shape.layout.blocks),), np.full((shape.steps, 1), ASK))

    def decider(self, shape: Shape) -> Decider:
        from ditbench.engine.changes import ModulatedInput

        step = np.arange(shape.steps)
        forced = ((step < self.first) | (step >= shape.steps - self.last)).tolist()
        fitted = self.found if self.fits_polynomial() and self.found else {"least": 0.0, "most": self.most}
        return ModulatedInput(
            self.bound,
            self.pool,  # type: ignore[arg-type]
            forced,
            self.coefficients(),
            fitted["most"],
            fitted["least"],
            self.watch == "projection",
        )
