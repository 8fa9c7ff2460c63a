"""The page: one file with every table, figure, sample, plan and number, which opens without a network."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ditbench import __version__
from ditbench.report import comparable, drawn, figures, plans, ratios, samples, timing
from ditbench.report.multiples import multiples_file, varied
from ditbench.report.results import STAGES, Cell, Difference, Job, Results, Value
from ditbench.report.tables import Table, build_table, number
from ditbench.report.templating import render
from ditbench.study import Axes, Study

# Shards of a cell that have a row each.
SHARDS = 12


@dataclass(frozen=True)
class Part:
    """What the page shows of one study."""

    anchor: str
    table: Table
    figures: list[tuple[str, str]]  # each with its caption
    drawn: list[tuple[str, str, str]]  # those that the study asks for: title, picture, what is told of it
    multiples: str
    samples: samples.Samples | None
    rows: list[tuple[str, list[tuple[str, str, str | None]]]]  # by caption: arm, label, image
    size: int
    baseline: str


def build_page(studies: Sequence[Study], results: Results) -> str:
    """The HTML of the whole report."""
    parts = [_part(study, results) for study in studies]
    title = parts[0].table.title if len(parts) == 1 else f"{len(parts)} studies"
    labels = {row.arm: row.label for study in reversed(studies) for row in study.rows}
    spent = timing.time_spent(results.jobs)
    planned = [cell for cell in results.cells if cell.plan and _first_of_arm(cell, results)]
    widest = max((plans.plan_width(cell.plan) for cell in planned if cell.plan), default=1)
    return render(
        "page.html.j2",
        title=title,
        lead=_lead(studies, results),
        facts=list(_facts(results)),
        troubles=list(_troubles(results)),
        damaged=results.damaged,
        studies=parts,
        plans=[_plan(cell, labels, widest) for cell in planned],
        cells=[_cell(cell, labels) for cell in results.cells],
        parts=timing.PARTS,
        version=__version__,
        first_study=studies[0].name,
        wall=_wall(timing.wall_time(results.run, results.jobs)),
        **_time(spent),
    )


def _part(study: Study, results: Results) -> Part:
    table = build_table(study, results)
    panels = multiples_file(study, table, "svg")
    found = samples.collect(study, results)
    size = next((len(image) for row in found.images for image in row if image is not None), 1) if found else 1
    return Part(
        f"study-{study.name}",
        table,
        list(_figures(study, table)),
        [(each.asked.title, each.inline(study.name), each.told) for each in drawn.drawings(study, results)],
        figures.inline_svg(panels, _multiples_text(study), f"{study.name}-multiples") if panels else "",
        found,
        list(_rows(found)) if found else [],
        size,
        study.baseline or "",
    )


def _rows(found: samples.Samples) -> Iterator[tuple[str, list[tuple[str, str, str | None]]]]:
    for caption, images in zip(found.captions, found.images, strict=True):
        drawn = [None if image is None else samples.data_uri(image) for image in images]
        yield caption, list(zip(found.keys, found.arms, drawn, strict=True))


def _multiples_text(study: Study) -> str:
    knobs = " and ".join(varied(study))
    return f"The measures of the table against {knobs}, a panel each; the dashed line is the baseline."


def _figures(study: Study, table: Table) -> Iterator[tuple[str, str]]:
    """The study's figure, and the same quality against MACs where its table has them."""
    if study.figure is None:
        return
    macs = next((c.measure for c in study.columns if c.measure in ("macs-total", "macs-linear")), study.figure.x)
    for x_measure in dict.fromkeys((study.figure.x, macs)):
        axes = Axes(x=x_measure, y=study.figure.y)
        svg = figures.pareto(study, table, axes)
        x, y = study.column(axes.x), study.column(axes.y)
        if svg is None:
            if any(line.cell is not None and not line.blank for line in table.lines):
                yield "", f"No figure of {y.label} against {x.label}: no arm has both numbers."
            continue
        points = figures.points_of(study, table, axes)
        marks = {
            p.key: (p.arm, f"{p.label}: {x.label} {number(p.x[0], x.digits)}, {y.label} {number(p.y[0], y.digits)}")
            for p in points
        }
        caption = (
            f"{y.label} against {x.label}. Bars are the intervals of the table; the thin line joins the arms that no "
            "other arm beats in both."
        )
        arms = {p.arm for p in points}
        if len(points) > len(arms):
            caption += " Each seed is a point; the line goes through the means of the arms' seeds."
        if len(arms) > figures.NAMED:
            caption += " Only of these some are named: point at the others, or tab to them."
        yield figures.inline_svg(svg, caption, f"{study.name}-{x_measure}", marks), caption


def _lead(studies: Sequence[Study], results: Results) -> str:
    from ditbench.worlds import get_world

    worlds = list(dict.fromkeys(study.world for study in studies))
    told = "; ".join(f"{name}: {get_world(name).summary}" for name in worlds)
    arms = len({(cell.world, cell.arm) for cell in results.cells})
    return f"{arms} {'arm' if arms == 1 else 'arms'} in the world {told}."


def _facts(results: Results) -> Iterator[tuple[str, str]]:
    """What was run, where and by which code."""
    done = sum(cell.state == "done" for cell in results.cells)
    yield "Cells done", f"{done} of {len(results.cells)}"
    if taken := [cell for cell in results.cells if cell.elsewhere is not None]:
        yield "Finished elsewhere", f"{len(taken)}, taken from {_listed(cell.elsewhere for cell in taken)}"
    images = _listed(cell.spec["images"] for cell in results.cells)
    yield "Images per cell", images
    yield "Seeds", _listed(cell.seed for cell in results.cells)
    known = [p for cell in results.cells for p in cell.provenance.values()]
    if not known:
        return
    yield "Machine", _listed(hardware_text(p.get("hardware") or {}) for p in known)
    yield "Versions", _listed(versions_text(p) for p in known)
    yield "Code", _listed(code_text(p) for p in known)
    created = sorted(str(p["created"]) for p in known if p.get("created"))
    if created:
        yield "Measured", _period(created[0], created[-1])


def _listed(items: Any) -> str:
    """Distinct items in their order; many are counted rather than told."""
    distinct = list(dict.fromkeys(str(item) for item in items if str(item)))
    return "; ".join(distinct) if len(distinct) <= 3 else f"{'; '.join(distinct[:2])} and {len(distinct) - 2} others"


def _period(first: str, last: str) -> str:
    """Two ISO times as one period, to the minute."""
    start, end = (text[:16].replace("T", " ") for text in (first, last))
    if start[:10] == end[:10]:
        return start if start == end else f"{start} to {end[11:]}"
    return f"{start} to {end}"


def hardware_text(hardware: dict[str, Any]) -> str:
    """A machine in words."""
    cores = f"{hardware['cores']} cores" if hardware.get("cores") else ""
    return ", ".join(str(part) for part in (hardware.get("gpu"), hardware.get("cpu"), cores) if part)


def versions_text(provenance: dict[str, Any]) -> str:
    """The versions of what computed a record."""
    names = ("ditbench", "torch", "diffusers", "python")
    return ", ".join(f"{name} {provenance[name]}" for name in names if provenance.get(name))


def code_text(provenance: dict[str, Any]) -> str:
    """The commit, and whether the files differed from it."""
    commit = str(provenance.get("git") or "")[:12]
    return f"{commit}{' with changes' if provenance.get('dirty') else ''}" if commit else "not a git checkout"


def _troubles(results: Results) -> Iterator[tuple[str, str, list[Cell]]]:
    for kind, state, words in (("failed", "failed", "failed"), ("waiting", "not run", "not run yet")):
        cells = [cell for cell in results.cells if cell.state == state]
        if cells:
            yield kind, f"{len(cells)} of {len(results.cells)} cells {words}", cells


def _first_of_arm(cell: Cell, results: Results) -> bool:
    """Whether a cell stands for its arm: an arm's plan does not depend on the seed."""
    return results.of_arm(cell.world, cell.arm)[0] is cell


def _plan(cell: Cell, labels: dict[str, str], widest: int) -> dict[str, str]:
    assert cell.plan is not None
    label = labels.get(cell.arm, cell.arm)
    text = plans.plan_text(cell.plan, label)
    sentence = text.split(": ", 1)[1]
    caption = sentence[0].upper() + sentence[1:]
    drawn = {"anchor": cell.anchor, "label": label, "svg": plans.plan_svg(cell.plan, label, widest), "text": caption}
    learned = ratios.ratios_svg(cell.spec.get("found") or {}, cell.spec["knobs"], label, f"ratios-{cell.anchor}")
    return drawn | {"ratios": learned or "", **_executed(cell, label, widest)}


def _executed(cell: Cell, label: str, widest: int) -> dict[str, str]:
    """What ran of a plan that was decided while sampling."""
    trace = plans.trace_of(cell) if cell.plan is not None and plans.decides_online(cell.plan) else None
    if trace is None:
        return {"ran": "", "ran_text": ""}
    done = plans.executed(trace)
    share = 1 - trace.realised_ratio
    text = f"What ran, on the mean over {cell.spec['images']} images: {share:.0%} of all token computations were done."
    return {
        "ran": plans.plan_svg(done, f"{label}, as it ran", max(widest, plans.plan_width(done))),
        "ran_text": text,
    }


def _cell(cell: Cell, labels: dict[str, str]) -> dict[str, Any]:
    label = labels.get(cell.arm, cell.arm)
    return {
        "anchor": cell.anchor,
        "label": f"{label} in {cell.world}, seed {cell.seed}",
        "state": cell.state_text,
        "facts": list(cell_facts(cell)),
        "measures": [_measure(cell, name) for name in cell.values],
        "jobs": list(_jobs(cell.jobs)),
        "count": len(cell.jobs),
        "seconds": timing.duration(sum(sum(timing.parts_of(job).values()) for job in cell.jobs)),
    }


def calls_text(forwards: Mapping[str, Sequence[Any]]) -> str:
    """How long calls of the network took, of the arm and of the full model; of the arm's, by how much they compute."""
    said = []
    for whose, seconds in forwards.items():
        if whose != "kinds":
            said.append(f"{whose} {_spread(seconds)}")
    text = "median of the " + ", of the ".join(said)
    kinds = forwards.get("kinds", [])
    if len(set(kinds)) > 1:
        each = {kind: [s for s, k in zip(forwards["arm"], kinds, strict=True) if k == kind] for kind in KINDS}
        parts = (f"{KINDS[kind]} ({len(found)}) {_spread(found)}" for kind, found in each.items() if found)
        text += "; the arm's calls that compute " + ", ".join(parts)
    return text


KINDS = {"all": "everything", "some": "some", "none": "nothing"}


def _spread(seconds: Sequence[float]) -> str:
    middle = sorted(seconds)[len(seconds) // 2]
    return f"{1e3 * middle:.3g} ms (from {1e3 * min(seconds):.3g} to {1e3 * max(seconds):.3g})"


def learned_text(found: Mapping[str, Any]) -> str:
    """What a learner found, in a few words: numbers, and how many of what there is a list of."""
    parts = []
    for name, value in found.items():
        if name == "sha256":
            continue
        if isinstance(value, (list, dict)):
            said = f"{len(value)} values"
        else:
            said = f"{value:.4g}" if isinstance(value, float) else str(value)
        parts.append(f"{name} {said}")
    return ", ".join(parts) or "not yet"


def cell_facts(cell: Cell) -> Iterator[tuple[str, str, bool]]:
    """Name, text, and whether the text is code."""
    spec = cell.spec
    knobs = ", ".join(f"{name} = {value}" for name, value in spec["knobs"].items())
    yield "method", f"{spec['method']}{f' ({knobs})' if knobs else ''}", False
    if spec.get("weights_of"):
        yield "fine-tuned weights of", str(spec["weights_of"]).rpartition("@")[0], True
    if spec.get("learning"):
        yield "learned from", str(spec["learning"]), True
        yield "learned", learned_text(spec.get("found") or {}), False
    steps = spec["steps"] or "the world's default"
    ran = cell.bodies.get("cost", {}).get("steps")
    yield "steps", f"{steps}{f', {ran} ran' if ran and ran != spec['steps'] else ''}", False
    yield "images, seed", f"{spec['images']}, {spec['seed']}", False
    yield "captions", str(spec["captions"]), True
    if references := comparable.references_text(cell):
        yield "references", references, False
    yield "dtype", str(spec["dtype"]), False
    drawn_with = [str(body["weights"]) for body in cell.bodies.values() if body.get("weights")]
    if drawn_with or spec.get("weights"):
        yield "weights", drawn_with[0] if drawn_with else str(spec["weights"]), True
    yield "spec hash", cell.hash, True
    yield "files", f"{cell.folder.as_posix()}/", True
    if cell.elsewhere is not None:
        yield "finished elsewhere, taken from", str(cell.elsewhere), True
    cost, latency = cell.bodies.get("cost"), cell.bodies.get("latency")
    if cost:
        nominal = "decided while sampling" if cost["nominal_ratio"] is None else f"{cost['nominal_ratio']:.1%} planned"
        ratios = f"{nominal}, {cost['realised_ratio']:.1%} realised"
        yield "tokens left out", f"{ratios}, of its own {cost['steps']} steps", False
        branches = cost["cfg_branches"]
        macs = f"{cost['linear'] / 1e9:.3g} G linear + {cost['attention'] / 1e9:.3g} G attention"
        yield "MACs", f"{macs}, one of {branches} CFG {'branch' if branches == 1 else 'branches'}", False
    if latency:
        way = f", {latency['mode']}" if latency.get("mode", "eager") != "eager" else ""
        yield "timed", f"batch {latency['batch']}{way}, {latency['rounds']} rounds in turn with the baseline", False
        if forwards := latency.get("forward_seconds"):
            yield "one call of the network", calls_text(forwards), False
        for mode, reason in latency.get("not_timed", {}).items():
            yield f"not timed as {mode}", reason, False
        if latency.get("device", "cpu") != "cpu":
            load = latency.get("gpu_load")
            yield "others on the GPU", "not checked" if load is None else f"{load:.0%} of the time", False
        if latency.get("peak_bytes") is not None:
            found = (latency.get(key) for key in ("peak_bytes", "peak_bytes_baseline"))
            peaks = (f"{peak / 1e9:.3g} GB" for peak in found if peak is not None)
            yield "peak GPU memory", ", of the baseline ".join(peaks), False
        if latency.get("refused"):
            yield "speed not given", f"the machine was contended: {latency['refused']}", False
        elif latency["contended"]:
            yield "contended", str(latency["note"]), False
    for kind, p in cell.provenance.items():
        if kind in ("shard", "latency"):
            yield "images by" if kind == "shard" else "timed on", hardware_text(p.get("hardware") or {}), False
    code = {kind: str(p["code"]) for kind, p in cell.provenance.items() if p.get("code")}
    if code:
        yield "code hashes", ", ".join(f"{kind} {value[:12]}" for kind, value in code.items()), True
    commits = dict.fromkeys(code_text(p) for p in cell.provenance.values())
    if commits:
        yield "commit", ", ".join(commits), True
        yield "versions", _listed(versions_text(p) for p in cell.provenance.values()), False
    installed = dict.fromkeys(str(p["environment"]) for p in cell.provenance.values() if p.get("environment"))
    if installed:
        yield "packages", ", ".join(installed), True


def _measure(cell: Cell, name: str) -> dict[str, Any]:
    value, paired = cell.values[name], cell.differences.get(name)
    digits = decimals_of(value.value)
    both = value.low is not None and value.high is not None
    return {
        "name": name,
        "value": _with_unit(value, digits),
        "interval": f"[{number(value.low, digits)}, {number(value.high, digits)}]" if both else "",  # type: ignore[arg-type]
        "how": value.interval,
        "n": value.n or "",
        "difference": _difference(paired, digits) if paired else "",
        "kind": value.kind,
    }


def _with_unit(value: Value, digits: int) -> str:
    if value.unit == "B":
        return _bytes(value.value)
    return f"{number(value.value, digits)}{f' {value.unit}' if value.unit else ''}"


def _bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def _difference(paired: Difference, digits: int) -> str:
    sign = "+" if paired.difference > 0 else ""
    ends = f"[{number(paired.low, digits)}, {number(paired.high, digits)}]"
    return f"{sign}{number(paired.difference, digits)} {ends}"


def decimals_of(value: float) -> int:
    """As many decimals as show four digits of a number."""
    if value == 0 or not math.isfinite(value):
        return 0
    return max(0, 3 - math.floor(math.log10(abs(value))))


def _jobs(jobs: Sequence[Job]) -> Iterator[dict[str, str]]:
    """A row for every job; one for all shards where they are many, as each cell of a campaign has."""
    shards = [job for job in jobs if job.stage == STAGES["shard"]]
    if len(shards) > SHARDS:
        whole = {part: sum(timing.parts_of(job)[part] for job in shards) for part in timing.PARTS}
        yield _job_row(f"{STAGES['shard']}, {len(shards)} shards", whole)
        jobs = [job for job in jobs if job.stage != STAGES["shard"]]
    for job in jobs:
        named = f"{job.stage} {job.record.removesuffix('.json')}" if job.stage == STAGES["shard"] else job.stage
        yield _job_row(named, timing.parts_of(job))


def _job_row(name: str, shown: Mapping[str, float]) -> dict[str, str]:
    return {"record": name, **{k: f"{v:.1f}" for k, v in shown.items()}, "total": f"{sum(shown.values()):.1f}"}


def _wall(wall: timing.Wall | None) -> dict[str, Any] | None:
    """The last run's wall time, and what its workers did in it."""
    if wall is None:
        return None
    whole = sum(wall.work.values())
    parts = [(css, name, wall.work[name] / whole) for css, name in zip(_COLOURS, timing.WORK, strict=True)]
    return {
        "share": f"{wall.share:.0%}",
        "told": timing.told(wall),
        "at_work": wall.run.at_work,
        "parts": [
            (css, name, f"{100 * share:.2f}", f"{share:.0%}" if share >= 0.01 else f"{share:.1%}")
            for css, name, share in parts
            if share >= 0.0005
        ],
    }


# The parts of a run's time in the colours of the parts of a job's.
_COLOURS = ("compute", "compute pale", "import", "load", "write", "other")


def _time(spent: list[timing.Spent]) -> dict[str, Any]:
    """The bars of the time section."""
    share = timing.compute_share(spent)
    longest = max((stage.total for stage in spent), default=0) or 1
    used = [part for part in timing.PARTS if any(stage.seconds[part] >= 0.05 for stage in spent)]
    return {
        "share": "" if share is None else f"{share:.0%}",
        "whole": timing.duration(sum(stage.total for stage in spent)),
        "spent_parts": used,
        "spent": [
            {
                "stage": stage.stage,
                "jobs": stage.jobs,
                "width": 100 * stage.total / longest,
                "parts": [(part, 100 * stage.seconds[part] / (stage.total or 1)) for part in used],
                "seconds": [(part, f"{stage.seconds[part]:.1f}") for part in used],
                "total": f"{stage.total:.1f}",
                "amount": timing.duration(stage.total),
            }
            for stage in spent
        ],
    }
