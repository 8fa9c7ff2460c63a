"""What MLflow's runs hold: of cells, of arms of several seeds, of trainings and of studies."""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from ditbench.cells import NOTHING
from ditbench.failures import NOTE
from ditbench.faults import Fault
from ditbench.report import escapes
from ditbench.report.plans import trace_of
from ditbench.report.ratios import ratios_figure
from ditbench.report.results import Cell, Results
from ditbench.report.samples import caption_record
from ditbench.report.tracking import learning, study_runs
from ditbench.report.tracking.views import metric_name
from ditbench.study import Study

FOLDER = "ditbench.results"
PARENT, ALL_SEEDS = "mlflow.parentRunId", "seeds"
# Part of every digest: a higher number publishes every cell anew.
FORMAT = 2
ARTIFACTS = ("spec.json", "plan.json", "cost.json", "scores.json", "latency.json", NOTE)
LOGGED = ("spec", "images", "cost", "scores", "latency")
# Logs of a stage that are files of their own; those of more shards are one.
LOGS = 4
_LOG = re.compile(r"(.+\.seed[0-9]+)(?:\.[0-9]+-[0-9]+)?\.log")


@dataclass(frozen=True)
class Publication:
    """All that one cell's run will hold. Everything in it is in the digest."""

    key: str
    name: str
    failed: bool
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    files: dict[str, bytes] = field(repr=False)
    captions: tuple[str, str] | None
    start_ms: int
    end_ms: int
    # The images that it was compared with, by name and hash.
    references: tuple[str, str] | None = None
    # What it is registered as, for others to take: what was learned.
    model: str | None = None
    # Numbers that came one after the other, by metric.
    curves: dict[str, list[float]] = field(default_factory=dict, repr=False)
    # What more files are drawn of, and how: drawing takes longer than all else of a run that stays as it is.
    drawn_of: str = ""
    draw: Callable[[], dict[str, bytes]] = field(default=dict, repr=False, compare=False)

    @property
    def digest(self) -> str:
        hashes = {name: hashlib.sha256(data).hexdigest() for name, data in self.files.items()}
        hashes |= {"drawn": self.drawn_of} if self.drawn_of else {}
        content: list[Any] = [FORMAT, self.name, self.failed, self.params, self.metrics, self.tags, hashes]
        content += [self.captions, self.references, self.model, *([self.curves] if self.curves else [])]
        return hashlib.sha256(json.dumps([*content, self.start_ms, self.end_ms], sort_keys=True).encode()).hexdigest()


def publication(
    cell: Cell,
    results: Results,
    studies: Sequence[Study],
    logs: Mapping[tuple[str, str], Sequence[Path]] | None = None,
) -> Publication:
    """What the run of a cell will hold; `logs` are those of all cells, read here where they are not given."""
    logs = logs_by_cell(results.root) if logs is None else logs
    spec, cost = cell.spec, cell.bodies.get("cost", {})
    citing = [s for s in studies if s.world == cell.world and any(row.arm == cell.arm for row in s.rows)]
    label = citing[0].row(cell.arm).label if citing else cell.arm
    params = {"arm": cell.arm, "method": str(spec["method"])}
    # One each, for MLflow's plots and sorting; together, for reading.
    params |= {f"knob.{k}": str(v) for k, v in spec["knobs"].items()}
    params["knobs"] = ", ".join(f"{k}={v}" for k, v in _telling_first(spec)) or "none"
    params["steps"] = str(cost.get("steps", spec["steps"] or "default"))
    params |= {"seed": str(cell.seed), "images": str(spec["images"])}
    if spec.get("weights"):
        params["weights"] = str(spec["weights"])
    if cost:
        params["nominal_ratio"] = "online" if cost["nominal_ratio"] is None else f"{cost['nominal_ratio']:.4g}"
        params["realised_ratio"] = f"{cost['realised_ratio']:.4g}"
    start, end = _period(cell)
    several = len(results.of_arm(cell.world, cell.arm)) > 1
    return Publication(
        key=f"{cell.world}/{cell.arm}/seed{cell.seed}/{cell.hash}",
        name=f"{cell.arm} seed{cell.seed}" if several else cell.arm,
        failed=cell.state == "failed",
        params=params,
        metrics=dict(_metrics(cell)),
        tags=_tags(cell, [study.name for study in citing], label)
        | _colour(cell, studies)
        | {FOLDER: folder_id(results.root)},
        files=dict(_files(cell, results, logs)),
        drawn_of=_drawn_of(cell),
        draw=lambda: _grid(cell, results),
        captions=_captions(cell, results.root),
        start_ms=start,
        end_ms=end,
        references=_references(cell),
    )


def _telling_first(spec: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The knobs of a spec, those that are set to other than their defaults first: a column shows but the first ones."""
    from ditbench.methods import knob_fields

    known = knob_fields(str(spec["method"]))
    return sorted(spec["knobs"].items(), key=lambda item: item[0] in known and known[item[0]].default == item[1])


def study_publication(study: Study, results: Results) -> Publication | None:
    """What the run of a study will hold; None where nothing of it has been run."""
    cells = study_runs.cells_of(study, results)
    if not cells:
        return None
    files = study_runs.tables_kept(study, results)
    spans = [span for span in map(_period, cells) if span != (0, 0)]
    tags = {"label": study.title, "studies": study.name, "world": study.world, FOLDER: folder_id(results.root)}
    tags |= {"mlflow.source.name": "ditbench publish", "mlflow.source.type": "LOCAL"}
    return Publication(
        key=f"{study.world}/study/{study.name}/tables",
        name=f"study {study.name}",
        failed=False,
        params={},
        metrics={},
        tags=tags | {"mlflow.note.content": study_runs.study_note(files)},
        files=files,
        drawn_of=hashlib.sha256(study.model_dump_json().encode()).hexdigest(),  # and of the tables' numbers
        draw=lambda: study_runs.figures_kept(study, results),
        captions=None,
        start_ms=min((start for start, _ in spans), default=0),
        end_ms=max((end for _, end in spans), default=0),
    )


def arm_publication(cells: Sequence[Cell], plans: Sequence[Publication], results: Results) -> Publication:
    """What the run of an arm of several seeds will hold, beneath which those of its seeds are: means over the seeds."""
    first, plan = cells[0], plans[0]
    shared = {name: value for name, value in plan.params.items() if all(p.params.get(name) == value for p in plans)}
    means = {
        name: sum(p.metrics[name] for p in plans) / len(plans)
        for name in plan.metrics
        if all(name in p.metrics for p in plans)
    }
    tags = {name: value for name, value in plan.tags.items() if all(p.tags.get(name) == value for p in plans)}
    spans = [(p.start_ms, p.end_ms) for p in plans if (p.start_ms, p.end_ms) != (0, 0)]
    return Publication(
        key=f"{first.world}/{first.arm}/{ALL_SEEDS}/{'+'.join(cell.hash for cell in cells)}",
        name=first.arm,
        failed=any(p.failed for p in plans),
        params=shared | {"seed": ", ".join(str(cell.seed) for cell in cells)},
        metrics={name: _rounded(value) for name, value in means.items()},
        tags=tags | {FOLDER: folder_id(results.root), "mlflow.note.content": "Means over the seeds beneath."},
        files={},
        captions=plan.captions,
        references=plan.references,
        start_ms=min((start for start, _ in spans), default=0),
        end_ms=max((end for _, end in spans), default=0),
    )


def learning_publication(cell: Cell, results: Results, parent: str) -> Publication | None:
    """What the run of an arm's learning will hold, beneath its first cell's run `parent`; None where there is none."""
    record = learning.learned_record(cell, results)
    if record is None:
        return None
    place = results.root / "learned" / cell.world / cell.arm
    found, training = record["found"], record["training"]
    drawn = ratios_figure(found, record["knobs"], "svg")
    start, end = learning.period(record)
    params = {"arm": cell.arm, "method": str(record["method"]), "learner": str(record["learner"])}
    params |= {f"knob.{k}": str(v) for k, v in record["knobs"].items()}
    params["training_captions"] = str(training["count"])
    return Publication(
        key=f"{cell.world}/{cell.arm}/learning/{record['arm_hash']}",
        name=f"{cell.arm} learning",
        failed=False,
        params=params,
        metrics={name: _rounded(value) for name, value in learning.summary(found)},
        tags={PARENT: parent, "world": cell.world, FOLDER: folder_id(results.root)},
        files={"learned.json": (place / "learned.json").read_bytes()}
        | ({} if drawn is None else {"ratios.svg": drawn}),
        captions=None if training["name"] == NOTHING else (str(training["name"]), str(training["sha256"])),
        start_ms=start,
        end_ms=end,
        curves=learning.curves(found),
        model=f"ditbench-{cell.world}-{cell.arm}",
    )


def _metrics(cell: Cell) -> Iterator[tuple[str, float]]:
    """One number for each measure. The ends of its interval stand in the run's note: MLflow draws none, and as metrics
    of their own they would be two thirds of all columns and charts."""
    for measure, value in cell.values.items():
        if not measure.endswith("-ratio"):  # ratios are params: what was asked for, not what came of it
            yield metric_name(measure), _rounded(value.value)


def _captions(cell: Cell, root: Path) -> tuple[str, str]:
    """The name and the hash of the cell's caption set; without its record the hash is empty."""
    name = str(cell.spec["captions"])
    path = root / "captions" / cell.world / f"{name}.json"
    return name, str(caption_record(path)["sha256"]) if path.is_file() else ""


def _references(cell: Cell) -> tuple[str, str] | None:
    """The name and the hash of the images that the cell's were compared with."""
    known = cell.bodies.get("scores", {}).get("reference_set") or {}
    return (str(known.get("name", "references")), str(known["sha256"])) if known.get("sha256") else None


def _rounded(value: float) -> float:
    """Six digits, because MLflow's tables print all there are; the records keep the rest."""
    return float(f"{value:.6g}")


def _tags(cell: Cell, studies: Sequence[str], label: str) -> dict[str, str]:
    known = next(iter(cell.provenance.values()), {})
    hardware = known.get("hardware") or {}
    latency = cell.bodies.get("latency", {})
    tags = {
        "label": label,
        "state": cell.state_text,
        "studies": ", ".join(studies),
        "world": cell.world,
        "spec.hash": cell.hash,
        "code.ditbench": known.get("ditbench"),
        "code.dirty": known.get("dirty"),
        "versions": ", ".join(f"{n} {known[n]}" for n in ("python", "torch", "diffusers") if known.get(n)),
        "hardware": ", ".join(str(hardware[n]) for n in ("gpu", "cpu") if hardware.get(n)),
        "timing.contended": latency.get("contended"),
        "results.path": cell.folder.as_posix(),
        "taken_from": cell.elsewhere and cell.elsewhere.name,
        "mlflow.source.name": "ditbench publish",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": known.get("git"),
        "mlflow.note.content": note(cell, label),
    }
    for kind, made in cell.provenance.items():
        tags[f"code.{kind}"] = made.get("code")
    return {name: str(value) for name, value in tags.items() if value not in (None, "")}


def _colour(cell: Cell, studies: Sequence[Study]) -> dict[str, str]:
    """The colour that the arm has in the figure of its world's first study.

    Arms of further studies go on with the palette: charts show the runs of all studies together.
    """
    from ditbench.report.figures import BASELINE_COLOUR, COLOURS, CONTROL_COLOUR, arm_colours

    found: dict[str, str] = {}
    taken = 0
    for study in studies:
        for arm, own in arm_colours(study).items() if study.world == cell.world else ():
            if arm in found:
                continue
            if own not in (BASELINE_COLOUR, CONTROL_COLOUR):
                own, taken = COLOURS[taken % len(COLOURS)], taken + 1
            found[arm] = own
    return {"mlflow.runColor": found[cell.arm]} if cell.arm in found else {}


def note(cell: Cell, label: str) -> str:
    """A summary of a cell in Markdown: its numbers with their intervals, and what stands behind them."""
    told = escapes.markdown(cell.state_text)
    lines = [f"**{escapes.markdown(label)}** in the world {cell.world}, seed {cell.seed}: {told}", ""]
    if cell.values:
        lines += ["| measure | value | 95 % interval or spread of rounds | n | paired difference to full |"]
        lines += ["|:--|--:|:--|--:|:--|"]
    for measure, value in cell.values.items():
        both = value.low is not None and value.high is not None
        interval = f"{value.low:.4g} to {value.high:.4g}" if both else ""
        d = cell.differences.get(measure)
        paired = f"{d.difference:+.3g} ({d.low:+.3g} to {d.high:+.3g})" if d else ""
        lines.append(f"| {measure} | {value.value:.4g} {value.unit} | {interval} | {value.n or ''} | {paired} |")
    lines += ["", f"Records: `{cell.folder.as_posix()}/` in the results folder; spec {cell.hash}."]
    return "\n".join(lines)


def _files(cell: Cell, results: Results, logs: Mapping[tuple[str, str], Sequence[Path]]) -> Iterator[tuple[str, bytes]]:
    folder = results.root / cell.folder
    for name in ARTIFACTS:
        path = folder / name
        if path.is_file() and (name != NOTE or cell.state == "failed"):  # else what the note says is over
            yield name, path.read_bytes()
    if not cell.traced and "trace" in cell.bodies.get("latency", {}):  # timed only, as with random weights
        yield "trace.json", json.dumps(cell.bodies["latency"]["trace"]).encode("utf-8")
    if trace := trace_of(cell) if cell.traced else None:  # what all shards executed, added up
        yield "trace.json", json.dumps(trace.summary()).encode("utf-8")
    for stage in LOGGED if cell.elsewhere is None else ():
        paths = logs.get((stage, f"{cell.world}.{cell.arm}.seed{cell.seed}"), [])
        if len(paths) > LOGS:
            said = b"".join(b"== %s\n%s" % (path.name.encode(), path.read_bytes()) for path in paths)
            yield f"logs/{stage}.log", said
        else:
            yield from ((f"logs/{stage}/{path.name}", path.read_bytes()) for path in paths)


def logs_by_cell(root: Path) -> dict[tuple[str, str], list[Path]]:
    """What the jobs of all cells said, by stage and cell (`world.arm.seedN`); each folder is read once."""
    found: dict[tuple[str, str], list[Path]] = {}
    for stage in LOGGED:
        try:
            entries = sorted(os.scandir(root / "logs" / stage), key=lambda entry: entry.name)
        except OSError:  # no job of this stage has run
            continue
        for entry in entries:
            # A shard's log has its range besides: `world.arm.seedN.00000-00299.log`.
            said = _LOG.fullmatch(entry.name)
            if said and entry.stat().st_size > 0:
                found.setdefault((stage, said[1]), []).append(Path(entry.path))
    return found


def _drawn_of(cell: Cell) -> str:
    """The hash of the archive that the first of a cell's pictures are in; nothing where there are none."""
    from ditbench.records import read_record

    return str(read_record(cell.shards[0], "shard").get("sha256", "")) if cell.shards else ""


def _grid(cell: Cell, results: Results) -> dict[str, bytes]:
    from ditbench.report.figures import sample_grid
    from ditbench.report.samples import one_arm

    try:
        found = one_arm(results, cell)
    except Fault:
        return {}  # a damaged shard is told in the report; the numbers are still worth publishing
    return {"samples.png": sample_grid(found.arms, found.captions, found.images)} if found else {}


def _period(cell: Cell) -> tuple[int, int]:
    """When the cell's jobs began and ended, in milliseconds; a cell without jobs was never busy."""
    spans = []
    for job in cell.jobs:
        if job.created:
            end = datetime.fromisoformat(job.created).timestamp()
            spans.append((end - float(job.timings.get("total_s") or 0), end))
    if not spans:
        return 0, 0
    return int(1000 * min(s[0] for s in spans)), int(1000 * max(s[1] for s in spans))


def folder_id(root: Path) -> str:
    """A results folder's own mark, made once, whoever asks first; it moves with the folder."""
    path = root / ".folder-id"
    if not path.exists():
        mine = root / f".folder-id.{uuid.uuid4().hex}"
        mine.write_text(uuid.uuid4().hex)
        try:
            os.link(mine, path)  # fails where another process was first
        except FileExistsError:
            pass
        finally:
            mine.unlink()
    return path.read_text()
