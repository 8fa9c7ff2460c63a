"""A plan as a small picture: steps across, blocks down, one panel per branch; the fuller, the more is computed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from typing import Any

CELL = 12
PANEL_GAP = 22
TOP = 18
LEFT = 26
BOTTOM = 20


def plan_width(plan: dict[str, Any]) -> int:
    """The width of a plan's picture in its own units."""
    return int(LEFT + len(plan["branches"]) * (plan["steps"] * CELL + PANEL_GAP) - PANEL_GAP + 2)


def plan_svg(plan: dict[str, Any], label: str, widest: int) -> str:
    """The plan of an arm as inline SVG, to the scale of the `widest` one; colours come from the page's style sheet."""
    steps, blocks, branches = plan["steps"], plan["blocks"], plan["branches"]
    panel = steps * CELL + PANEL_GAP
    width = plan_width(plan)
    height = TOP + blocks * CELL + BOTTOM
    parts = [
        f'<svg class="plan" role="img" viewBox="0 0 {width} {height}" style="width:{100 * width / widest:.1f}%" '
        f'aria-label="{escape(plan_text(plan, label), quote=True)}">'
    ]
    for b, branch in enumerate(branches):
        left = LEFT + b * panel
        parts.append(f'<text x="{left}" y="11" class="branch">{escape(str(branch))}</text>')
        parts.append(f'<rect class="frame" x="{left}" y="{TOP}" width="{steps * CELL}" height="{blocks * CELL}"/>')
        for block in range(blocks):
            shares = [plan["shares"][step][block][b] for step in range(steps)]
            parts += _bars(shares, left, TOP + block * CELL)
        parts += [
            f'<text x="{left}" y="{height - 5}" class="tick">1</text>',
            f'<text x="{left + steps * CELL}" y="{height - 5}" class="tick" text-anchor="end">{steps}</text>',
        ]
    for block in (0, blocks - 1):
        y = TOP + block * CELL + CELL - 2
        parts.append(f'<text x="{LEFT - 6}" y="{y}" class="tick" text-anchor="end">{block + 1}</text>')
    return "".join([*parts, "</svg>"])


def _bars(shares: Sequence[float], left: int, top: int) -> Iterator[str]:
    """One block's steps; neighbours of one share are one rectangle each, cut by hairlines of the frame."""
    step = 0
    for share, run in groupby(shares):
        count = len(list(run))
        if share > 0:
            x = left + step * CELL
            yield (
                f'<rect class="on" x="{x + 0.5:g}" y="{top + 0.5:g}" width="{count * CELL - 1}" '
                f'height="{CELL - 1}" opacity="{0.15 + 0.85 * share:.2f}"/>'
            )
        step += count


def plan_text(plan: dict[str, Any], label: str) -> str:
    """The plan in one sentence, for those who do not see the picture."""
    shares = [s for step in plan["shares"] for block in step for s in block]
    mean = sum(shares) / max(len(shares), 1)
    whole = [i + 1 for i, step in enumerate(plan["shares"]) if all(share == 1 for block in step for share in block)]
    if len(whole) == plan["steps"]:
        steps = f"every one of the {plan['steps']} steps computes everything"
    elif whole:
        steps = f"{len(whole)} of {plan['steps']} steps compute everything ({', '.join(map(str, whole))})"
    else:
        steps = f"none of the {plan['steps']} steps computes everything"
    return f"Plan of {label}: {steps}; {mean:.0%} of all token computations are done."
