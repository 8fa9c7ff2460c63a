"""What kind of method an arm is: words instead of numbers, read from the plan that it ran by and from its bill.

A trait is a measure whose values are the places of its words, so that a study may have it as a column; published
traits are written as words. Nothing here is said by a method of itself, but whether a training has fitted it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NO, YES = "✗", "✓"
# The finest part of a network that is left out by itself, what of a block, and three questions.
TRAITS: dict[str, tuple[str, ...]] = {
    "granularity": ("step", "block", "layer", "token"),
    "leaves-out": ("block", "attention", "MLP", "attention & MLP"),
    "learnable": (NO, YES),
    "token-pruning": (NO, YES),
    "feature-cache": (NO, YES),
}
_MLP = "mlp"
_WHOLE = "single"  # a branch that is attention and MLP in one


def word_of(measure: str, value: float) -> str:
    """The word that a trait's value stands for."""
    return TRAITS[measure][round(value)]


def place_of(measure: str, text: str | bool) -> float | None:
    """The value of a trait's word; YAML's `yes` and `no` are words too. None where it is none of them."""
    if isinstance(text, bool):
        text = YES if text else NO
    words = TRAITS[measure]
    return float(words.index(text)) if text in words else None


def trait(measure: str, method: str, plan: Mapping[str, Any] | None, cost: Mapping[str, Any] | None) -> float | None:
    """A trait of an arm; None where it leaves nothing out, or its plan or bill is missing."""
    if measure == "learnable":
        return place_of(measure, _learns(method))
    if plan is None or cost is None:
        return None
    of_tokens = _in_tokens(plan)
    if measure == "feature-cache":
        return place_of(measure, cost["cache_bytes"] > 0)
    if measure == "token-pruning":
        # Tokens of which nothing is kept: they pass by, or take what others have.
        return place_of(measure, of_tokens and not cost["cache_bytes"])
    found = _granularity(plan, of_tokens) if measure == "granularity" else _left_out(plan)
    return None if found is None else place_of(measure, found)


def _learns(method: str) -> bool:
    """Whether a training fits it; a threshold that is calibrated is none."""
    from ditbench.methods.base import Thresholded
    from ditbench.methods.registry import method_class

    known = method_class(method)
    return known.learner is not None and not issubclass(known, Thresholded)


def _units_left_out(plan: Mapping[str, Any]) -> list[int]:
    """The units that are not computed whole at every step; where sampling decides, they may be left out."""
    return [unit for unit in range(len(plan["units"])) if any(row[unit] != 1 for row in plan["shares"])]


def _in_tokens(plan: Mapping[str, Any]) -> bool:
    """Whether some unit computes some of its tokens at a step, neither none nor all."""
    return any(0 < share < 1 for row in plan["shares"] for share in row)


def _whole(plan: Mapping[str, Any], unit: int) -> bool:
    """Whether a unit is computed for all tokens or for none, at every step."""
    return not any(0 < row[unit] < 1 for row in plan["shares"])


def _granularity(plan: Mapping[str, Any], of_tokens: bool) -> str | None:
    if of_tokens:
        return "token"
    units = plan["units"]
    if not (partly := _units_left_out(plan)):
        return None
    block_of = [block for block, _ in plan["layout"]]
    finest = "step"
    for row in plan["shares"]:
        out = [unit for unit in partly if row[unit] != 1]
        if not out or len(out) == len(units):
            continue
        gone = {branch for unit in out for branch in range(*units[unit])}
        blocks = {block_of[branch] for branch in gone}
        if any(block in blocks and branch not in gone for branch, block in enumerate(block_of)):
            return "layer"
        finest = "block"
    return finest


def _left_out(plan: Mapping[str, Any]) -> str | None:
    """What of a block is left out by itself: the block where it is left out whole, else those of its branches."""
    partly = _units_left_out(plan)
    if not partly:
        return None
    if any(plan["units"][unit][1] - plan["units"][unit][0] > 1 and _whole(plan, unit) for unit in partly):
        return "block"
    names = {plan["layout"][branch][1] for unit in partly for branch in range(*plan["units"][unit])}
    if names == {_MLP}:
        return "MLP"
    return "attention & MLP" if names & {_MLP, _WHOLE} else "attention"
