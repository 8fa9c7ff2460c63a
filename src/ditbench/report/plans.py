"""A plan as a small picture: steps across, blocks down, a panel per kind of unit; the fuller, the more is computed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ditbench.faults import Fault

if TYPE_CHECKING:
    from ditbench.engine.trace import Trace
    from ditbench.report.results import Cell

CELL = 12
PANEL_GAP = 22
TOP = 18
LEFT = 26
BOTTOM = 20

ASKED = -1.0  # as plans have it: decided while sampling


def plan_width(plan: Mapping[str, Any]) -> int:
    """The width of a plan's picture in its own units."""
    return int(LEFT + len(panels(plan)) * (plan["steps"] * CELL + PANEL_GAP) - PANEL_GAP + 2)


def panels(plan: Mapping[str, Any]) -> dict[str, dict[int, int]]:
    """For every kind of unit (a branch's name, `block`, `span`) which unit covers which block."""
    found: dict[str, dict[int, int]] = {}
    for number, (start, stop) in enumerate(plan["units"]):
        branches = plan["layout"][start:stop]
        blocks = sorted({block for block, _ in branches})
        kind = branches[0][1] if len(branches) == 1 else "block" if len(blocks) == 1 else "span"
        found.setdefault(kind, {}).update(dict.fromkeys(blocks, number))
    return found


def plan_svg(plan: Mapping[str, Any], label: str, widest: int) -> str:
    """The plan of an arm as inline SVG, to the scale of the `widest` one; colours come from the page's style sheet."""
    steps, kinds = plan["steps"], panels(plan)
    blocks = plan["layout"][-1][0] + 1
    panel = steps * CELL + PANEL_GAP
    width = plan_width(plan)
    height = TOP + blocks * CELL + BOTTOM
    parts = [
        f'<svg class="plan" role="img" viewBox="0 0 {width} {height}" style="width:{100 * width / widest:.1f}%" '
        f'aria-label="{escape(plan_text(plan, label), quote=True)}">'
    ]
    for place, (kind, unit_of) in enumerate(kinds.items()):
        left = LEFT + place * panel
        parts.append(f'<text x="{left}" y="11" class="branch">{escape(kind)}</text>')
        parts.append(f'<rect class="frame" x="{left}" y="{TOP}" width="{steps * CELL}" height="{blocks * CELL}"/>')
        for block, unit in unit_of.items():
            shares = [plan["shares"][step][unit] for step in range(steps)]
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
        if share != 0:
            x = left + step * CELL
            kind, opacity = ("asked", 1.0) if share == ASKED else ("on", 0.15 + 0.85 * share)
            yield (
                f'<rect class="{kind}" x="{x + 0.5:g}" y="{top + 0.5:g}" width="{count * CELL - 1}" '
                f'height="{CELL - 1}" opacity="{opacity:.2f}"/>'
            )
        step += count


def plan_text(plan: Mapping[str, Any], label: str) -> str:
    """The plan in one sentence, for those who do not see the picture."""
    sizes = [stop - start for start, stop in plan["units"]]
    known = [(s, n) for step in plan["shares"] for s, n in zip(step, sizes, strict=True) if s != ASKED]
    mean = sum(share * size for share, size in known) / max(plan["steps"] * sum(sizes), 1)
    whole = [i + 1 for i, step in enumerate(plan["shares"]) if all(share == 1 for share in step)]
    if len(whole) == plan["steps"]:
        steps = f"every one of the {plan['steps']} steps computes everything"
    elif whole:
        steps = f"{len(whole)} of {plan['steps']} steps compute everything ({', '.join(map(str, whole))})"
    else:
        steps = f"none of the {plan['steps']} steps computes everything"
    asked = 1 - sum(size for _, size in known) / max(plan["steps"] * sum(sizes), 1)
    online = f", and {asked:.0%} are decided while sampling" if asked else ""
    return f"Plan of {label}: {steps}; {mean:.0%} of all token computations are done{online}."


def decides_online(plan: Mapping[str, Any]) -> bool:
    """Whether a plan leaves anything to be decided while sampling."""
    return any(share == ASKED for step in plan["shares"] for share in step)


def executed(trace: Trace) -> dict[str, Any]:
    """What ran, in the form of a plan: of every branch at every step the share of tokens, on the mean over images."""
    shares = trace.computed / (trace.shape.tokens * max(trace.samples, 1))
    return {
        "steps": trace.shape.steps,
        "layout": trace.shape.layout.to_json(),
        "units": [[branch, branch + 1] for branch in range(len(trace.shape.layout))],
        "shares": shares.tolist(),
    }


def trace_of(cell: Cell) -> Trace | None:
    """What all images of a cell executed, added up; None where no record tells it.

    The ledger has added it up beside its own record. Where an older one did not, or its file was damaged, the shards'
    records say it, which are many.
    """
    from ditbench.engine.trace import Trace
    from ditbench.records import read_record
    from ditbench.shapes import check_trace

    if cell.traced and "cost" in cell.bodies:
        with suppress(OSError, ValueError, RecursionError, Fault):
            beside = cell.traced[0].parent if cell.elsewhere else cell.traced[0].parents[1]
            added = beside / "trace.json"
            body = json.loads(added.read_text(encoding="utf-8"))
            check_trace(added, body)
            return Trace.from_summary(body)
    if cell.elsewhere and cell.traced:
        return None  # a part of its images says nothing of all
    bodies = [read_record(path, "shard")["trace"] for path in cell.traced]
    timed = cell.bodies.get("latency", {}).get("trace")  # of arms that are timed only, as with random weights
    whole: Trace | None = None
    for body in bodies or ([timed] if timed else []):
        part = Trace.from_summary(body)
        if whole is None:
            whole = part
        else:
            whole.add(part)
    return whole
