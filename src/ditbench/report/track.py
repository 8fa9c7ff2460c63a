"""Publishes cells to MLflow: one run per cell, in one experiment per world.

MLflow is a view of the records and can be rebuilt from them at any time. Publishing is repeatable: a cell's run is
found by its key, left alone when nothing changed and replaced when something did. An SQLite store is opened by one
process at a time, because several that open a fresh file at once ruin it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import socket
import sys
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from ditbench.cells import NOTHING
from ditbench.faults import Fault
from ditbench.report import escapes, learning, study_runs
from ditbench.report.plans import trace_of
from ditbench.report.ratios import ratios_figure
from ditbench.report.results import Cell, Results, load_results
from ditbench.report.samples import caption_record
from ditbench.report.store import await_writable, fault_of, store_file, store_uri
from ditbench.report.transaction import one_transaction
from ditbench.report.views import VIEW, experiment_tags, metric_name
from ditbench.study import Study
from ditbench.sweeps import run_studies

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from ditbench.config import Config

KEY, DIGEST, FOLDER = "ditbench.key", "ditbench.digest", "ditbench.results"
PARENT, ALL_SEEDS = "mlflow.parentRunId", "seeds"
# The name of the settings' file in <results>/configs. Not in the digest: other settings, an added arm for instance,
# leave a cell what it was.
CONFIG = "config.hash"
# Part of every digest: a higher number publishes every cell anew.
FORMAT = 2
ARTIFACTS = ("spec.json", "plan.json", "cost.json", "scores.json", "latency.json", "failure.json")
LOGGED = ("spec", "images", "cost", "scores", "latency")
# Logs of a stage that are files of their own; those of more shards are one.
LOGS = 4
_LOG = re.compile(r"(.+\.seed[0-9]+)(?:\.[0-9]+-[0-9]+)?\.log")
# Without it MLflow opens its pages for language models.
TRAINING = "?workflowType=machine_learning"
# How long a server may take to answer before it counts as unreachable.
PATIENCE_S = 5
# A run without a digest this old was left by a publication that died.
ABANDONED_MS = 3600 * 1000
# As many metrics as MLflow takes at once.
BATCH = 1000
# For how many cells something is drawn before they are written.
AHEAD = 4


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


# The store


def quiet_mlflow() -> None:
    """Settings that must be made before MLflow is imported: no telemetry, no long waits for a silent server."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(2 * PATIENCE_S))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


@contextmanager
def locked(uri: str) -> Iterator[None]:
    """Lets one process at a time use an SQLite store; a server looks after itself."""
    import fcntl

    file = store_file(uri)
    if file is None:
        yield
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = file.with_name(f".{file.name}.lock").open("w")
    except OSError as error:
        raise Fault(f"{file}: the MLflow store cannot be written there ({error.strerror})") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        await_writable(file)
        yield


def open_store(uri: str) -> MlflowClient:
    """A client of a store that answers and has today's schema; call it under `locked`."""
    _check_reachable(uri)
    quiet_mlflow()
    import logging

    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    for name in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        _upgrade(uri)
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    except MlflowException as error:
        raise _store_fault(uri, error) from error
    except Exception as error:  # SQLAlchemy, alembic and requests all have their own
        raise _store_fault(uri, error) from error
    return client


def _upgrade(uri: str) -> None:
    """Gives an SQLite store the schema of the installed MLflow: on a copy, so that a stop leaves no half-made file."""
    file = store_file(uri)
    if file is None:
        return
    from mlflow.store.db import utils

    fresh = not file.is_file() or file.stat().st_size == 0
    if not fresh and _has_todays_schema(uri):
        return
    partial = file.with_name(f".{file.name}.partial")
    partial.unlink(missing_ok=True)
    if not fresh:
        shutil.copyfile(file, partial)
    engine = utils.create_sqlalchemy_engine_with_retry(f"sqlite:///{partial}")
    try:
        if fresh:
            utils._initialize_tables(engine)
        else:
            utils._upgrade_db(engine)
    finally:
        engine.dispose()
    os.replace(partial, file)


def _has_todays_schema(uri: str) -> bool:
    from mlflow.store.db import utils

    engine = utils.create_sqlalchemy_engine_with_retry(uri)
    try:
        return bool(utils._get_schema_version(engine) == utils._get_latest_schema_revision())
    finally:
        engine.dispose()


def _store_fault(uri: str, error: Exception) -> Fault:
    file = store_file(uri)
    reason = " ".join(str(error).split())[:300]
    if file is None:
        return Fault(
            f"MLflow at {without_secrets(uri)} does not serve us: {reason}; the records are kept, publish again"
        )
    if isinstance(error, OSError):
        return Fault(f"{file} cannot be written: {reason}; make room or change its rights, and publish again")
    return fault_of(file, reason)


def _check_reachable(uri: str) -> None:
    """Answers within seconds whether anybody listens, before MLflow's own patience begins."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=PATIENCE_S).close()
    except OSError as error:
        raise Fault(
            f"MLflow at {without_secrets(uri)} cannot be reached ({error.strerror or error}); start the server or "
            "change mlflow.uri and run again; the records are kept"
        ) from error


def without_secrets(uri: str) -> str:
    """An address without user name and password."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


# What a run holds


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
        if path.is_file():
            yield name, path.read_bytes()
    if not cell.traced and "trace" in cell.bodies.get("latency", {}):  # timed only, as with random weights
        yield "trace.json", json.dumps(cell.bodies["latency"]["trace"]).encode("utf-8")
    if trace := trace_of(cell) if cell.traced else None:  # what all shards executed, added up
        yield "trace.json", json.dumps(trace.summary()).encode("utf-8")
    for stage in LOGGED:
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


# Publishing


def publish(config: Config, results: str | Path | None, out: str | Path, code: str | None = None) -> dict[str, Any]:
    """Publishes every finished or failed cell of a config, and writes a record of the runs and their links."""
    from ditbench.config import kept_settings
    from ditbench.records import Clock, write_record

    clock = Clock()
    with clock("load"):
        found = load_results(config, results)
        studies = run_studies(config)
    with clock("write"):
        body = publish_results(found, studies, store_uri(config, found.root), kept_settings(config).stem)
    write_record(out, "published", body, timings=clock.seconds, code=code)
    for each in body["experiments"]:
        count = sum(run["world"] == each["world"] for run in body["runs"])
        print(f"MLflow: {count} runs of world {each['world']} in {body['uri']}", file=sys.stderr)
        start = "" if body["uri"].startswith("http") else ", after `ditbench mlflow`"
        print(f"MLflow: {each['table']}{start}", file=sys.stderr, flush=True)
    return body


def publish_results(results: Results, studies: Sequence[Study], uri: str, settings: str = "") -> dict[str, Any]:
    """Publishes results that have been read; returns the runs and the links that open them.

    `settings` is the hash of the configuration that asked for them, a tag of every run.
    """
    logs = logs_by_cell(results.root)
    plans = [(cell, publication(cell, results, studies, logs)) for cell in results.cells if cell.state != "not run"]
    experiments, runs = [], []
    with locked(uri):
        client = open_store(uri)
        try:
            for world in dict.fromkeys(cell.world for cell, _ in plans):
                experiment = _experiment(client, uri, world, studies)
                known = _known_runs(client, experiment, folder_id(results.root))
                ids, parents = [], _publish_arms(client, experiment, world, plans, results, known, settings)
                here = [(cell, _beneath(plan, parents.get(cell.arm))) for cell, plan in plans if cell.world == world]
                drawn = _drawn_ahead([plan for _, plan in here], known)
                for (cell, _), plan in zip(here, drawn, strict=True):
                    run_id, action = _publish_one(client, experiment, plan, known, settings)
                    ids.append(run_id)
                    if results.of_arm(world, cell.arm)[0] is cell:
                        lesson = learning_publication(cell, results, parents.get(cell.arm) or run_id)
                        if lesson is not None:
                            _publish_one(client, experiment, lesson, known, settings)
                    row = {"world": world, "arm": cell.arm, "seed": cell.seed, "state": cell.state}
                    row |= {"run_id": run_id, "experiment_id": experiment, "digest": plan.digest, "action": action}
                    runs.append(row | {"link": f"{base_link(uri)}/#/experiments/{experiment}/runs/{run_id}{TRAINING}"})
                for study in studies:
                    tables = study_publication(study, results) if study.world == world else None
                    if tables is not None:
                        _publish_one(client, experiment, tables, known, settings)
                links = {"table": table_link(uri, experiment), "charts": charts_link(uri, experiment)}
                links |= {"compare": compare_link(uri, experiment, ids)}
                experiments.append({"world": world, "experiment_id": experiment, **links})
        except Fault:
            raise
        except Exception as error:
            raise _store_fault(uri, error) from error
    return {"uri": _stored_uri(uri, results.root), "experiments": experiments, "runs": runs}


def _beneath(plan: Publication, parent: str | None) -> Publication:
    """A cell's publication beneath the run of its arm, where the arm has one."""
    return plan if parent is None else replace(plan, tags=plan.tags | {PARENT: parent})


def _drawn_ahead(plans: Sequence[Publication], known: Mapping[str, list[Any]]) -> Iterator[Publication]:
    """The publications in their order; a thread draws for the next ones while one is written.

    What is kept as it is is not drawn.
    """
    waiting: deque[Publication] = deque()
    with ThreadPoolExecutor(max_workers=1) as pool:
        for plan in plans:
            kept = _is_there(plan.digest, known.get(_place(plan), []))
            waiting.append(plan if kept else replace(plan, draw=pool.submit(plan.draw).result))
            if len(waiting) > AHEAD:
                yield waiting.popleft()
        yield from waiting


def _place(plan: Publication) -> str:
    """What a publication is of, whatever its spec: a cell's world, arm and seed."""
    return plan.key.rpartition("/")[0]


def _is_there(digest: str, runs: Sequence[Any]) -> bool:
    """Whether one run alone is there, and with this content: nothing is to be done."""
    return len(runs) == 1 and runs[0].data.tags.get(DIGEST) == digest


def _publish_arms(
    client: MlflowClient,
    experiment: str,
    world: str,
    plans: Sequence[tuple[Cell, Publication]],
    results: Results,
    known: Mapping[str, list[Any]],
    settings: str,
) -> dict[str, str]:
    """The runs of those arms of a world that have several seeds; one that has no longer several goes."""
    by_arm: dict[str, list[tuple[Cell, Publication]]] = {}
    for cell, plan in plans:
        if cell.world == world:
            by_arm.setdefault(cell.arm, []).append((cell, plan))
    found = {}
    for arm, of_seeds in by_arm.items():
        if len(of_seeds) > 1:
            whole = arm_publication([cell for cell, _ in of_seeds], [plan for _, plan in of_seeds], results)
            found[arm], _ = _publish_one(client, experiment, whole, known, settings)
        else:
            for run in known.get(f"{world}/{arm}/{ALL_SEEDS}", ()):
                client.delete_run(run.info.run_id)
    return found


def _stored_uri(uri: str, root: Path) -> str:
    """The store as it may be told: relative to the results, without secrets."""
    file = store_file(uri)
    if file is not None and file.parent == root.resolve():
        return f"sqlite:///{file.name} in the results folder"
    return without_secrets(uri)


def base_link(uri: str, port: int = 5000) -> str:
    """Where the user interface of a store is: on its server, or where `ditbench mlflow` starts it."""
    return without_secrets(uri).rstrip("/") if uri.startswith("http") else f"http://127.0.0.1:{port}"


def table_link(uri: str, experiment: str, port: int = 5000) -> str:
    """Opens the runs of an experiment with the columns of its study."""
    return f"{base_link(uri, port)}/#/experiments/{experiment}/runs{TRAINING}&viewStateShareKey={VIEW}"


def charts_link(uri: str, experiment: str, port: int = 5000) -> str:
    """Opens the charts of an experiment: quality against speed first, then a bar chart for each measure."""
    return f"{table_link(uri, experiment, port)}&compareRunsMode=CHART"


def compare_link(uri: str, experiment: str, runs: Sequence[str], port: int = 5000) -> str:
    """Opens runs side by side."""
    chosen, where = (json.dumps(list(ids), separators=(",", ":")) for ids in (runs, [experiment]))
    # The runs must come first: that page reads its address in no other order.
    return f"{base_link(uri, port)}/#/compare-runs?runs={chosen}&experiments={where}&{TRAINING[1:]}"


def _experiment(client: MlflowClient, uri: str, world: str, studies: Sequence[Study]) -> str:
    """The experiment of a world, made, restored or brought up to date; its id."""
    name = f"ditbench/{world}"
    store = store_file(uri)
    # Beside the store: several results folders may share one.
    place = (store.parent / "mlartifacts" / world).resolve().as_uri() if store is not None else None
    experiment = client.get_experiment_by_name(name)
    if experiment is not None and experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    if experiment is not None and place is not None and experiment.artifact_location != place:
        # MLflow keeps absolute paths: after a move the old experiment points to where nothing is any more.
        stamp = hashlib.sha256(experiment.artifact_location.encode()).hexdigest()[:6]
        client.rename_experiment(experiment.experiment_id, f"{name} (before its folder moved, {stamp})")
        experiment = None
    made = experiment.experiment_id if experiment is not None else _create(client, name, place)
    for key, value in experiment_tags(world, studies).items():
        if experiment is None or experiment.tags.get(key) != value:
            client.set_experiment_tag(made, key, value)
    return str(made)


def _create(client: MlflowClient, name: str, place: str | None) -> str:
    from mlflow.exceptions import MlflowException

    try:
        return str(client.create_experiment(name, artifact_location=place))
    except MlflowException:
        # Another publication to the same server may have been faster.
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise
        return str(experiment.experiment_id)


def _publish_one(
    client: MlflowClient, experiment: str, plan: Publication, known: Mapping[str, list[Any]], settings: str
) -> tuple[str, str]:
    """Makes the store hold exactly one run of a cell, with its present content; the run's id and what was done.

    `known` are the runs that this folder had in the experiment before, by cell: where one alone holds the content
    already, there is nothing more to ask of the store.
    """
    digest = plan.digest
    action, there = "kept", known.get(_place(plan), [])
    if _is_there(digest, there):
        _tag_settings(client, there[0], settings)
        return str(there[0].info.run_id), action
    if not any(run.data.tags.get(DIGEST) == digest for run in there):
        created = _create_run(client, experiment, plan, digest, settings)
        action = "written"
        if not there and _alone(client):
            return created, action
    # A new run is written before the old one goes: a stop in between loses nothing, the next publication tidies up.
    # Whoever publishes last sees all and keeps the same one as everybody else would.
    runs = _runs_of(client, experiment, plan)
    kept = min(run.info.run_id for run in runs if run.data.tags.get(DIGEST) == digest)
    for run in runs:
        unfinished = DIGEST not in run.data.tags
        if run.info.run_id != kept and (not unfinished or _abandoned(client, run)):
            client.delete_run(run.info.run_id)
            action = "replaced" if action == "written" else action
    _tag_settings(client, next(run for run in runs if run.info.run_id == kept), settings)
    return kept, action


def _tag_settings(client: MlflowClient, run: Any, settings: str) -> None:
    """Says on a run which configuration was the last to ask for it, where that has changed."""
    if settings and run.data.tags.get(CONFIG) != settings:
        client.set_tag(run.info.run_id, CONFIG, settings)


def _known_runs(client: MlflowClient, experiment: str, folder: str) -> dict[str, list[Any]]:
    """All runs of a results folder in an experiment, by the cell that they are of; a page of them at a time."""
    found: dict[str, list[Any]] = {}
    page: str | None = None
    while True:
        runs = client.search_runs([experiment], f"tags.`{FOLDER}` = '{folder}'", max_results=1000, page_token=page)
        for run in runs:
            found.setdefault(run.data.tags.get("ditbench.cell", ""), []).append(run)
        page = runs.token
        if not page:
            return found


def _alone(client: MlflowClient) -> bool:
    """Whether nobody else can be publishing: a store in a file is locked while somebody does (see `locked`)."""
    return bool(client.tracking_uri.startswith("sqlite"))


def _abandoned(client: MlflowClient, run: Any) -> bool:
    """Whether an unfinished run is nobody's: an SQLite store has one writer at a time, a server may have others."""
    created = int(run.data.tags.get("ditbench.published_ms", 0))
    return _alone(client) or time.time() * 1000 - created > ABANDONED_MS


def _runs_of(client: MlflowClient, experiment: str, plan: Publication) -> list[Any]:
    place = _place(plan)
    # Of all specs: a cell whose knobs changed has a new key, and its old run must go. Of this results folder alone:
    # other runs of the workflow may publish cells of the same name to the same server.
    wanted = f"tags.`ditbench.cell` = '{place}' and tags.`{FOLDER}` = '{plan.tags[FOLDER]}'"
    return list(client.search_runs([experiment], wanted, max_results=1000))


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


def _create_run(client: MlflowClient, experiment: str, plan: Publication, digest: str, settings: str) -> str:
    """Writes a run; returns its id."""
    if plan.model is None:
        with one_transaction(client):
            run = _write_run(client, experiment, plan, settings)
            client.set_tag(run.info.run_id, DIGEST, digest)
        return str(run.info.run_id)
    run = _write_run(client, experiment, plan, settings)
    _register(client, run.info.run_id, plan.model)
    # Last of all: a run with a digest is a whole one.
    client.set_tag(run.info.run_id, DIGEST, digest)
    return str(run.info.run_id)


def _write_run(client: MlflowClient, experiment: str, plan: Publication, settings: str) -> Any:
    """All of a run but the digest that says that it is whole."""
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    tags = plan.tags | {KEY: plan.key, "ditbench.cell": _place(plan), "ditbench.published_ms": str(now)}
    tags |= {CONFIG: settings} if settings else {}
    run = client.create_run(experiment, start_time=plan.start_ms or now, tags=tags, run_name=plan.name)
    run_id, stamp = run.info.run_id, plan.end_ms or now
    metrics = [Metric(name, value, stamp, 0) for name, value in plan.metrics.items()]
    client.log_batch(run_id, metrics, [Param(k, v) for k, v in plan.params.items()])
    points = [
        Metric(name, value, stamp, step)
        for name, values in plan.curves.items()
        for step, value in enumerate(values)
        if math.isfinite(value)
    ]
    for first in range(0, len(points), BATCH):
        client.log_batch(run_id, points[first : first + BATCH])
    _log_datasets(client, run_id, plan)
    _log_files(client, run, {**plan.files, **plan.draw()})
    client.set_terminated(run_id, "FAILED" if plan.failed else "FINISHED", end_time=stamp)
    return run


def _log_files(client: MlflowClient, run: Any, files: Mapping[str, bytes]) -> None:
    """Writes a run's artifacts: straight to where they will lie, where that is a folder of this machine."""
    from mlflow.utils.file_utils import local_file_uri_to_path

    uri = run.info.artifact_uri
    if urlsplit(uri).scheme in ("", "file"):
        _write_files(Path(local_file_uri_to_path(uri)), files)
        return
    with tempfile.TemporaryDirectory() as folder:
        _write_files(Path(folder), files)
        client.log_artifacts(run.info.run_id, folder)


def _write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _log_datasets(client: MlflowClient, run_id: str, plan: Publication) -> None:
    """The caption set and the references as the run's data sets, known by their own hashes."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = []
    for given, folder, context in ((plan.captions, "captions", "evaluation"), (plan.references, "references", "real")):
        if given is not None:
            name, digest = given
            data = Dataset(name, digest[:12] or "unknown", "local", json.dumps({"uri": f"{folder}/{name}.json"}))
            inputs.append(DatasetInput(data, [InputTag("mlflow.data.context", context)]))
    if inputs:
        client.log_inputs(run_id, datasets=inputs)


def _register(client: MlflowClient, run_id: str, name: str) -> None:
    """Makes what a run learned the newest version of a registered model; the run's artifacts are that version."""
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException):  # there already
        client.create_registered_model(name, description="What an arm of ditbench learned: learned.json")
    uri = client.get_run(run_id).info.artifact_uri
    client.create_model_version(name, source=uri, run_id=run_id)


# The user interface


def serve(config: Config, results: str | Path | None = None, port: int = 5000, host: str = "127.0.0.1") -> None:
    """Starts MLflow's user interface on the results' store until it is interrupted.

    Only this machine can open it, unless `host` says otherwise. Where `port` is taken, the next free one serves.
    """
    import signal
    import subprocess

    root = Path(results if results is not None else config.results)
    uri = store_uri(config, root)
    file = store_file(uri)
    if file is not None and not file.is_file():
        there = "" if results is None else f" --config results={results}"
        raise Fault(f"nothing has been published to {file} yet: `uv run snakemake --cores all{there}` does")
    if uri.startswith("http"):
        raise Fault(f"runs are published to {without_secrets(uri)}; open that address, there is nothing to start here")
    asked, port = port, _free_port(port)
    if port != asked:
        print(f"port {asked} is taken, {port} serves", file=sys.stderr)
    with locked(uri):
        experiments = open_store(uri).search_experiments(filter_string="name LIKE 'ditbench/%'")
    links = [f"{experiment.name}: {table_link(uri, experiment.experiment_id, port)}" for experiment in experiments]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--registry-store-uri", uri]
    command += ["--host", host, "--port", str(port), "--workers", "1"]
    # Without this MLflow starts seven more processes, for jobs that we do not have.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    # What its libraries warn each other of is nobody's business here.
    environment.setdefault("PYTHONWARNINGS", "ignore")
    # A group of its own: MLflow's server starts another process, and both must go when we are told to stop.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        print("MLflow's server starts …", file=sys.stderr, flush=True)
        while server.poll() is None and not _answers(port):
            time.sleep(0.2)
        if server.poll() is None:
            print("\n".join([*links, "Ctrl+C stops it"]), flush=True)
        code = server.wait()
    except KeyboardInterrupt:
        return
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
    raise Fault(f"MLflow's server stopped with exit code {code}; what it said is above")


def _answers(port: int) -> bool:
    """Whether somebody listens at a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port(first: int) -> int:
    for port in range(first, first + 20):
        if not _answers(port):
            return port
    raise Fault(f"no port from {first} to {first + 19} is free on this machine; stop a server that you no longer need")
