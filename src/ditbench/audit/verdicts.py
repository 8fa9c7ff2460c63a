"""Verdicts: whether our figure is the printed one, to the digits that were printed."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Literal

from ditbench.audit.sheet import half_unit

Kind = Literal["exact", "within rounding", "not reproduced", "waits"]
KINDS: tuple[Kind, ...] = ("exact", "within rounding", "not reproduced", "waits")


@dataclass(frozen=True)
class Verdict:
    """What came out, why, and ours as a multiple of the printed figure."""

    kind: Kind
    reason: str
    ratio: float | None = None

    @property
    def told(self) -> str:
        """The verdict and its reason in words."""
        return f"{self.kind}: {self.reason}" if self.reason else self.kind


def judge(printed: str, ours: float | None, band: tuple[float, float] | None = None, ratio: str = "") -> Verdict:
    """Exact: ours rounds to the printed digits. Within rounding: one unit of the last digit off at most, or inside the
    band that the rounding of the printed `ratio` leaves. Without ours there is no reading that reproduces it."""
    if ours is None:
        return Verdict("not reproduced", "no reading is known")
    value, half = half_unit(printed)
    multiple = ours / float(value)
    if rounded(printed, ours) == value:
        return Verdict("exact", "", multiple)
    off = abs(Decimal(ours) - value)
    if off <= 2 * half:
        return Verdict("within rounding", f"{off / (2 * half):.1f} of a unit of the last digit off", multiple)
    if band is not None and Decimal(band[0]) <= value + half and Decimal(band[1]) >= value - half:
        low, high = (shown(printed, edge) for edge in band)
        return Verdict("within rounding", f"{ratio}, rounded, allows {low} to {high}", multiple)
    return Verdict("not reproduced", f"ours is {multiple:.3f} times the printed figure", multiple)


def rounded(printed: str, ours: float) -> Decimal:
    """Ours to as many digits as were printed."""
    unit = Decimal(1).scaleb(int(half_unit(printed)[0].as_tuple().exponent))
    return Decimal(ours).quantize(unit, ROUND_HALF_EVEN)


def shown(printed: str, ours: float) -> str:
    """Ours with a digit more than was printed."""
    number = half_unit(printed)[0]
    if "E" in printed:
        return f"{ours:.{len(number.as_tuple().digits)}E}"
    return f"{ours:.{max(0, -int(number.as_tuple().exponent)) + 1}f}"


def saved(printed: str, baseline: str) -> tuple[float, float]:
    """The least and the most that a row can save of the row it is compared with, by the printed digits of both."""
    (row, row_half), (whole, whole_half) = half_unit(printed), half_unit(baseline)
    return (
        float(1 - (row + row_half) / (whole - whole_half)),
        float(1 - (row - row_half) / (whole + whole_half)),
    )
