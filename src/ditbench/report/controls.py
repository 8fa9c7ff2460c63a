"""Do the judges see harm? Every control arm, which must do harm, has to rank last wherever quality is judged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ditbench.study import is_cost

if TYPE_CHECKING:
    from ditbench.report.tables import Heading, Line


def passed(headings: Sequence[Heading], lines: Sequence[Line]) -> Iterator[str]:
    """One sentence for each control that no judge misplaces: what it vouches for, or that it can't yet."""
    for control in _controls(lines):
        ranks = [_ranks_last(control, lines, i, heading) for i, heading in _quality(headings)]
        checked = [last for last in ranks if last is not None]
        if not checked:
            if ranks and _rivals(control, lines):
                yield f"{control.label} (control) has no numbers yet: nothing shows that the judges see harm."
        elif all(checked):
            which = "all" if len(checked) == len(ranks) else f"{len(checked)} of the"
            rest = "" if len(checked) == len(ranks) else "; the others have no numbers to compare"
            yield f"{control.label} (control) ranks last in {which} {len(ranks)} columns of quality, as it must{rest}."


def warnings(headings: Sequence[Heading], lines: Sequence[Line]) -> Iterator[str]:
    """One sentence for each column in which a control does not rank last."""
    for control in _controls(lines):
        for i, heading in _quality(headings):
            if _ranks_last(control, lines, i, heading) is False:
                better = [line for line in _rivals(control, lines) if not _worse(control, line, i, heading)]
                told = ", ".join(f"{line.label} {line.entries[i].text}" for line in better)
                yield (
                    f"Do not trust {heading.label} here: the control {control.label} must rank last and does not "
                    f"({control.entries[i].text}; not better: {told})"
                )


def _controls(lines: Sequence[Line]) -> Iterator[Line]:
    return (line for line in lines if line.role == "control")


def _rivals(control: Line, lines: Sequence[Line]) -> list[Line]:
    """What was measured with the same seed and is no control."""
    return [line for line in lines if line.role in ("baseline", "arm") and line.seed == control.seed and not line.blank]


def _quality(headings: Sequence[Heading]) -> list[tuple[int, Heading]]:
    """The columns that judges fill, with their places."""
    return [(i, heading) for i, heading in enumerate(headings) if not is_cost(heading.measure) and heading.direction]


def _ranks_last(control: Line, lines: Sequence[Line], i: int, heading: Heading) -> bool | None:
    """Whether a control is worse than everything else; None where there are no two numbers to compare."""
    rivals = [line for line in _rivals(control, lines) if _number(line, i) is not None]
    if _number(control, i) is None or not rivals:
        return None
    return all(_worse(control, line, i, heading) for line in rivals)


def _worse(control: Line, line: Line, i: int, heading: Heading) -> bool:
    mine, other = _number(control, i), _number(line, i)
    if mine is None or other is None:
        return True
    return mine > other if heading.direction == "lower" else mine < other


def _number(line: Line, i: int) -> float | None:
    value = line.entries[i].value
    return None if value is None or math.isnan(value.value) else value.value
