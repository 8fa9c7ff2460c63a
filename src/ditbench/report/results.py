"""Everything that the report shows, read from the records of the cells that a config asks for.

The table of cells comes from `ditbench.cells`; the disk is never searched. A cell is done, failed (with a reason)
or not run, and what cannot be read is said in its place rather than left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ditbench.failures import NOTE, outdated
from ditbench.faults import Fault
from ditbench.study import BASELINE
from ditbench.traits import TRAITS, trait

if TYPE_CHECKING:
    from ditbench.cells import Spec
    from ditbench.config import Config
    from ditbench.elsewhere import Pack
    from ditbench.runs import Run

State = Literal["done", "failed", "not run"]
Kind = Literal["measured", "derived", "published"]

# Which stage of the workflow writes a kind of record, in a reader's words.
STAGES = {
    "captions": "captions",
    "references": "references",
    "embeddings": "text embeddings",
    "learned": "learning",
    "spec": "spec",
    "shard": "images",
    "cost": "ledger",
    "scores": "judges",
    "latency": "stopwatch",
    "report": "report",
    "published": "publishing",
}
# What makes a cell complete besides its shards.
CELL_RECORDS = ("scores", "cost", "latency")
GIGA = 1e9


@dataclass(frozen=True)
class Value:
    """One number with its interval, where it comes from and how much stands behind it."""

    value: float
    low: float | None = None
    high: float | None = None
    n: int | None = None
    unit: str = ""
    direction: str = ""
    kind: Kind = "measured"
    interval: str = ""
    source: str = ""


@dataclass(frozen=True)
class Difference:
    """A paired difference to another arm: same captions, same noise."""

    difference: float
    low: float
    high: float
    n: int
    against: str

    @property
    def distinguishable(self) -> bool:
        """Whether the interval leaves zero out."""
        return not self.low <= 0 <= self.high


@dataclass(frozen=True)
class Job:
    """One job's time, from the provenance of its record, and the cores that it held meanwhile."""

    stage: str
    arm: str | None
    record: str
    timings: dict[str, float]
    created: str
    threads: int = 1


@dataclass(frozen=True)
class Cell:
    """One arm in one world with one seed, and what its records say. `folder` is relative to the results."""

    spec: dict[str, Any]
    hash: str
    folder: Path
    state: State
    reason: str = ""
    values: dict[str, Value] = field(default_factory=dict)
    differences: dict[str, Difference] = field(default_factory=dict)
    plan: dict[str, Any] | None = None
    provenance: dict[str, dict[str, Any]] = field(default_factory=dict)
    bodies: dict[str, dict[str, Any]] = field(default_factory=dict)
    jobs: tuple[Job, ...] = ()
    shards: tuple[Path, ...] = ()
    traced: tuple[Path, ...] = ()  # records of images, which tell what ran; their pictures may be elsewhere
    elsewhere: Path | None = None  # the file of finished cells that it was taken from

    @property
    def arm(self) -> str:
        return str(self.spec["arm"])

    @property
    def seed(self) -> int:
        return int(self.spec["seed"])

    @property
    def world(self) -> str:
        return str(self.spec["world"])

    def value(self, measure: str) -> Value | None:
        """The value of a measure. The main speed-up goes by the names of its batch and mode too: `speedup-b8`."""
        latency = self.bodies.get("latency", {})
        mode, batch = latency.get("mode"), latency.get("batch")
        if measure in (f"speedup-{mode}", f"speedup-b{batch}", f"speedup-{mode}-b{batch}"):
            measure = "speedup"
        return self._trait(measure) if measure in TRAITS else self.values.get(measure)

    def _trait(self, measure: str) -> Value | None:
        """A trait of its method, as it ran; the value is the place of a word."""
        found = trait(measure, str(self.spec["method"]), self.plan, self.bodies.get("cost"))
        return None if found is None else Value(found, kind="derived", source=str(self.folder / "plan.json"))

    @property
    def anchor(self) -> str:
        """The cell's place in the page."""
        return f"cell-{self.world}-{self.arm}-seed{self.seed}"

    @property
    def state_text(self) -> str:
        """The state with its reason, for a person."""
        return f"{self.state}: {self.reason}" if self.reason else self.state


@dataclass(frozen=True)
class Results:
    """The cells of a config, the jobs that made them and the last run. `root` is the results folder.

    `absent` is why an arm that has no cell has none, in few words, and `trouble` the whole sentence.
    `damaged` says of each record that several cells share why it cannot be read.
    """

    root: Path
    cells: tuple[Cell, ...]
    jobs: tuple[Job, ...]
    run: Run | None = None
    absent: str = "not in the config"
    trouble: str = ""
    damaged: tuple[str, ...] = ()

    def of_arm(self, world: str, arm: str) -> list[Cell]:
        """The cells of one arm, one per seed."""
        return list(self._by_arm.get((world, arm), ()))

    @cached_property
    def _by_arm(self) -> dict[tuple[str, str], list[Cell]]:
        found: dict[tuple[str, str], list[Cell]] = {}
        for cell in self.cells:
            found.setdefault((cell.world, cell.arm), []).append(cell)
        return found


def load_results(config: Config, results: str | Path | None = None) -> Results:
    """Reads the records of every cell of a config; `results` replaces the config's results folder."""
    from ditbench.cells import cell_table, reference_set, shard_ranges
    from ditbench.config import kept_settings
    from ditbench.elsewhere import packs_of

    root = Path(results if results is not None else config.results)
    specs = cell_table(config)
    shards = [f"{a:05d}-{b:05d}" for a, b in shard_ranges(config)]
    found = read_results(specs, root, shards, reference_set(config), packs_of(config.elsewhere, root))
    same = found.run is not None and found.run.settings == kept_settings(config).name
    return found if same else replace(found, run=None)


def read_results(
    specs: Iterable[Spec],
    root: Path,
    shard_names: Sequence[str],
    references: str | None = None,
    packs: Sequence[Pack] = (),
) -> Results:
    """Reads the records of the cells of `specs`, whose images lie in shards of the given names.

    Cells that a file of `packs` has are those of the file.
    """
    from ditbench.elsewhere import finished_elsewhere
    from ditbench.runs import read_run

    asked = list(specs)
    taken = finished_elsewhere(packs, asked)
    cells = tuple(
        _packed_cell(spec, root, taken[spec.hash], shard_names)
        if spec.hash in taken
        else read_cell(spec, root, shard_names)
        for spec in asked
    )
    own = [cell for cell in cells if cell.elsewhere is None]
    shared = {(str(c.spec["world"]), str(c.spec["captions"])) for c in own}
    made = [job for world, captions in sorted(shared) for job in _shared_jobs(root, world, captions, references)]
    made += _learning_jobs(root, own)
    # No cell's numbers are read from these: what is wrong with one is said, and costs nothing else.
    damaged = dict.fromkeys(job for job in made if isinstance(job, str))
    jobs = [job for job in made if isinstance(job, Job)]
    # Those that another run has done are not this one's.
    jobs += [job for cell in cells for job in (cell.jobs if cell.elsewhere is None else _drawing(cell, root))]
    jobs += _closing_jobs(root)
    return Results(root, cells, tuple(jobs), read_run(root), damaged=tuple(damaged))


def read_cell(spec: Spec, root: Path, shard_names: Sequence[str]) -> Cell:
    """Reads one cell; unreadable or foreign records make it failed, missing ones make it not run."""
    from dataclasses import asdict

    from ditbench.worlds import get_world

    if get_world(spec.world).no_images(spec.weights):
        shard_names = ()  # timed and billed only: complete without images and scores
    folder = Path(spec.folder(root))
    kept: dict[str, Any] = {"spec": asdict(spec), "hash": spec.hash, "folder": folder.relative_to(root)}
    try:
        return _read_cell(folder, kept, shard_names)
    except Fault as fault:
        return Cell(**kept, state="failed", reason=str(fault))


def _drawing(cell: Cell, root: Path) -> Iterator[Job]:
    """The jobs that drew images here for a cell whose records are of elsewhere."""
    from ditbench.records import read_record

    yield from (_job("shard", cell.arm, path, read_record(path, "shard")) for path in cell.shards)


def _packed_cell(spec: Spec, root: Path, pack: Pack, shard_names: Sequence[str]) -> Cell:
    """Reads a cell that was finished elsewhere: its records are here.

    Images of the full model are drawn here all the same where cells of this run are compared with them.
    """
    from dataclasses import asdict

    from ditbench.elsewhere import FIRST_SHARD

    folder = pack.cells[spec.hash]
    kept: dict[str, Any] = {"spec": asdict(spec), "hash": spec.hash, "folder": folder.relative_to(root.absolute())}
    try:
        cell = _read_cell(folder, kept, ())
    except Fault as fault:
        return Cell(**kept, state="failed", reason=str(fault), elsewhere=pack.path)
    first = folder / FIRST_SHARD
    cell = replace(cell, traced=(first,) if first.is_file() else (), elsewhere=pack.path)
    here = read_cell(spec, root, shard_names) if spec.arm == BASELINE else None
    if here is None:
        return cell
    if here.state == "failed":
        return replace(cell, state="failed", reason=here.reason)
    return replace(cell, shards=here.shards)


def _read_cell(folder: Path, kept: dict[str, Any], shard_names: Sequence[str]) -> Cell:
    from ditbench.records import read_record

    spec_path = folder / "spec.json"
    if not spec_path.is_file():
        failure = _failure(folder) or _shared_failure(folder, kept)
        return Cell(**kept, state="failed" if failure else "not run", reason=failure or "")
    written = read_record(spec_path, "spec")
    if written["hash"] != kept["hash"]:
        changed = [name for name, value in kept["spec"].items() if written.get(name) != value]
        return Cell(**kept, state="not run", reason=f"its records are of another {', '.join(changed) or 'version'}")
    if "found" in written:
        kept = {**kept, "spec": {**kept["spec"], "found": written["found"]}}
    places = {kind: folder / f"{kind}.json" for kind in CELL_RECORDS}
    bodies = {kind: read_record(path, kind) for kind, path in places.items() if path.is_file()}
    foreign = [kind for kind, body in bodies.items() if body["spec_hash"] != kept["hash"]]
    if foreign:
        return Cell(**kept, state="not run", reason=f"{', '.join(foreign)} of another spec")
    shard_paths = [folder / "shards" / f"{name}.json" for name in shard_names]
    shards = {path: read_record(path, "shard") for path in shard_paths if path.is_file()}

    missing = [STAGES[kind] for kind in CELL_RECORDS if kind not in bodies and (kind != "scores" or shard_paths)]
    failure = _failure(folder, shard_names) or (_shared_failure(folder, kept) if missing else None)
    if len(shards) < len(shard_paths):
        missing.insert(0, f"images ({len(shards)} of {len(shard_paths)} shards)" if shards else "images")
    state: State = "failed" if failure else "not run" if missing else "done"
    waiting = f"{', '.join(missing)} missing" if missing and (bodies or shards) else ""
    records = [("shard", path, body) for path, body in shards.items()]
    records += [(kind, places[kind], body) for kind, body in bodies.items()]
    return Cell(
        **kept,
        state=state,
        reason=failure or waiting,
        values=dict(_values(bodies, kept["folder"])),
        differences=dict(_differences(bodies.get("scores"))),
        plan=_plan(folder / "plan.json", written.get("plan_sha256")),
        provenance={kind: body.get("provenance", {}) for kind, _, body in records},
        bodies=bodies,
        jobs=tuple(
            _job(kind, kept["spec"]["arm"], path, body) for kind, path, body in [("spec", spec_path, written), *records]
        ),
        shards=tuple(shards),
        traced=tuple(shards),
    )


def _failure(folder: Path, shard_names: Sequence[str] = ()) -> str | None:
    """Why a stage of the cell failed, if one did and what it should have made is not there."""
    from ditbench.records import parse

    path = folder / NOTE
    if not path.is_file():
        return None
    try:
        body = parse(path.read_text(encoding="utf-8"))
        reason = f"{body['stage']}: {body['reason']}"
        return None if outdated(body, folder, shard_names) else reason
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return f"{path.name} cannot be read"


def _shared_failure(cell: Path, kept: dict[str, Any]) -> str | None:
    """Why a stage that serves every cell of the world failed: its note lies beside its own record."""
    root, world = cell.parents[3], str(kept["spec"]["world"])
    places = [root / stage / world for stage in ("captions", "embeddings", "references")]
    if kept["spec"].get("learning"):
        places.append(root / "learned" / world / str(kept["spec"]["arm"]))
    return next(filter(None, map(_failure, places)), None)


def _plan(path: Path, sha256: str | None) -> dict[str, Any] | None:
    from ditbench.records import parse
    from ditbench.shapes import check_plan
    from ditbench.storage import check_contents

    if not path.is_file():
        return None
    check_contents(path, sha256, "delete the spec.json beside it and run again")
    try:
        body: dict[str, Any] = parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Fault(f"{path} cannot be read as JSON ({error}); delete it and run again") from error
    except RecursionError:
        raise Fault(f"{path} cannot be read as JSON: it is nested too deeply; delete it and run again") from None
    check_plan(path, body)
    return body


def _values(bodies: dict[str, dict[str, Any]], folder: Path) -> Iterator[tuple[str, Value]]:
    """The numbers of a cell by measure name."""
    for m in bodies.get("scores", {}).get("measures", []):
        value = Value(
            m["value"],
            m.get("low"),
            m.get("high"),
            m.get("n"),
            m.get("unit", ""),
            m["direction"],
            interval=m.get("method_of_interval", ""),
            source=str(folder / "scores.json"),
        )
        yield m["name"], value
    if cost := bodies.get("cost"):
        yield from _costs(cost, str(folder / "cost.json"))
    if latency := bodies.get("latency"):
        yield from _speeds(latency, str(folder / "latency.json"))


def _speeds(latency: dict[str, Any], source: str) -> Iterator[tuple[str, Value]]:
    """The numbers of a latency record; none where it was refused."""
    if latency.get("refused"):
        return
    n = latency["rounds"]
    spread = f"slowest and fastest of {n} rounds"

    def of_rounds(v: dict[str, float], unit: str, direction: str) -> Value:
        return Value(v["value"], v["low"], v["high"], n, unit, direction, interval=spread, source=source)

    yield "speedup", of_rounds(latency["speedup"], "x", "higher")
    yield "seconds-per-image", of_rounds(latency["seconds_per_image"], "s", "lower")
    for lap in latency.get("others", ()):
        if lap.get("refused"):
            continue
        mode = "" if lap["mode"] == latency["mode"] else f"-{lap['mode']}"
        batch = "" if lap["batch"] == latency["batch"] else f"-b{lap['batch']}"
        yield f"speedup{mode}{batch}", of_rounds(lap["speedup"], "x", "higher")
    for name, key, unit in (
        ("latency-p50", "p50_seconds", "s"),
        ("latency-p90", "p90_seconds", "s"),
        ("energy-per-image", "joules_per_image", "J"),
    ):
        if latency.get(key) is not None:
            yield name, Value(latency[key], n=n, unit=unit, direction="lower", source=source)
    if forwards := (latency.get("forward_seconds") or {}).get("arm"):
        # Of plans whose calls differ by step the middle call tells nothing of the others.
        mean = sum(forwards) / len(forwards)
        yield "forward-ms", Value(1e3 * mean, n=len(forwards), unit="ms", direction="lower", source=source)
    # Null on a CPU, where a process has one peak for both arms.
    if (peak := latency.get("peak_bytes")) is not None:
        yield "peak-memory", Value(peak / GIGA, unit="GB", direction="lower", source=source)


def _costs(cost: dict[str, Any], source: str) -> Iterator[tuple[str, Value]]:
    """The numbers of a cost record: MACs and ratios, and what is kept between steps for one sample."""
    for part in ("linear", "attention", "thop", "total"):
        yield f"macs-{part}", Value(cost[part] / GIGA, unit="G", direction="lower", kind="derived", source=source)
    if "selecting" in cost:
        # A part of the total: that a method chooses nothing makes it no better.
        yield "macs-selecting", Value(cost["selecting"] / GIGA, unit="G", kind="derived", source=source)
    for part in ("nominal", "realised"):
        if (ratio := cost[f"{part}_ratio"]) is not None:  # a plan that is made while sampling means no ratio before
            yield f"{part}-ratio", Value(ratio, direction="higher", kind="derived", source=source)
    yield "cache-bytes", Value(cost["cache_bytes"], unit="B", direction="lower", kind="derived", source=source)


def _differences(scores: dict[str, Any] | None) -> Iterator[tuple[str, Difference]]:
    for p in (scores or {}).get("paired", []):
        yield p["name"], Difference(p["difference"], p["low"], p["high"], p["n"], p["against"])


def _job(kind: str, arm: str | None, path: Path, body: dict[str, Any]) -> Job:
    provenance = body.get("provenance", {})
    timings, created = dict(provenance.get("timings") or {}), str(provenance.get("created", ""))
    return Job(STAGES[kind], arm, path.name, timings, created, provenance.get("threads") or 1)


def _shared_jobs(root: Path, world: str, captions: str, references: str | None) -> Iterator[Job | str]:
    """The jobs that serve every arm of a world; instead of one whose record cannot be read, why not."""
    for kind, name in (("captions", captions), ("references", references), ("embeddings", captions)):
        path = root / kind / world / f"{name}.json"
        if name is not None and path.is_file():
            yield _job_or_why(kind, None, path)


def _job_or_why(kind: str, arm: str | None, path: Path) -> Job | str:
    from ditbench.records import read_record

    try:
        return _job(kind, arm, path, read_record(path, kind))
    except Fault as fault:
        return str(fault)


def _learning_jobs(root: Path, cells: Iterable[Cell]) -> Iterator[Job | str]:
    """The jobs that fitted methods, and those that made what they were fitted on."""
    learners = {
        (str(c.spec["world"]), str(c.spec["arm"])): str(c.spec["learning"]) for c in cells if c.spec.get("learning")
    }
    for world, name in sorted({(world, name) for (world, _), name in learners.items()}):
        yield from _shared_jobs(root, world, name, None)
    for world, arm in sorted(learners):
        path = root / "learned" / world / arm / "learned.json"
        if path.is_file():
            yield _job_or_why("learned", arm, path)


def _closing_jobs(root: Path) -> Iterator[Job]:
    """The jobs that end a run: those that wrote the last page and published last."""
    for kind, path in (("report", root / "report" / "report.json"), ("published", root / "published.json")):
        job = _job_or_why(kind, None, path)
        if isinstance(job, Job):  # the next report replaces the others
            yield job
