"""Cells: the table of what a configuration asks for, each computed once and shown wherever it is cited."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from ditbench.config import Config, Count
from ditbench.faults import Fault
from ditbench.learn.sources import ARM, KNOBS, SHIPPED, place_of
from ditbench.methods.registry import telling_knobs
from ditbench.mistakes import lines_of, possible, shown
from ditbench.study import BASELINE

if TYPE_CHECKING:
    from ditbench.methods import Method

# The arm that all others are compared with.
# What an arm learns from where something stands in for what it would learn, as weights are random, or where it takes
# what another has learned.
NOTHING = "nothing"


@dataclass(frozen=True)
class Spec:
    """One arm in one world with one seed: the unit of work, of storage and of an MLflow run."""

    world: str
    arm: str
    method: str
    knobs: dict[str, Any]
    steps: Count | None
    seed: Annotated[int, Field(ge=0)]
    images: Count
    captions: str
    captions_sha256: str | None
    dtype: str
    weights: str | None = None  # other weights than the world's own
    learning: str | None = None  # the training captions of a method that learns before it samples
    weights_of: str | None = None  # an arm whose fine-tuned weights it runs on, with the hash of that arm's training

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    @classmethod
    def read(cls, text: str, source: str) -> Spec:
        """A spec from JSON; everything that is wrong with it is one sentence that begins with its source."""
        try:
            body = json.loads(text)
        except ValueError as error:
            raise Fault(f"{source}: {shown(text)} is not JSON ({error})") from error
        if not isinstance(body, dict):
            raise Fault(f"{source} must hold keys and values (world, arm, method, …), not {shown(body)}")
        try:
            return TypeAdapter(cls).validate_json(text)
        except ValidationError as error:
            raise Fault(f"{source}: {'; '.join(lines_of(error, cls))}") from error

    @property
    def hash(self) -> str:
        """Twelve hex digits that change with everything that could change the cell's images."""
        body = asdict(self)
        del body["arm"]  # a name changes no image
        body["knobs"] = telling_knobs(self.method, self.knobs)
        if self.weights is None:
            del body["weights"]  # cells made before there was a choice keep their hashes
        if self.learning is None:
            del body["learning"]
        if self.weights_of is None:
            del body["weights_of"]
        text = json.dumps(body, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """`world/arm/seedN`, as folders and commands have it."""
        return f"{self.world}/{self.arm}/seed{self.seed}"

    def folder(self, results: str | Path) -> Path:
        """Where the cell's files are."""
        return Path(results) / "cells" / self.world / self.arm / f"seed{self.seed}"


def caption_set(config: Config) -> tuple[str, str | None]:
    """The name of the run's caption set, and the file's hash where captions come from a file."""
    from ditbench.caption_files.options import selection_of

    selection = selection_of(config.captions)
    if selection is None:
        return f"evaluation-{config.images}-seed{config.captions.seed}", None
    file = selection.file
    try:
        digest = file.place.sha256
    except Fault as fault:
        raise Fault(f"captions.file: {fault}") from fault
    mark = selection.mark
    return f"{_plain(file.path)}-{config.images}-{digest[:8]}" + (f"-{mark}" if mark else ""), digest


def _plain(path: Path) -> str:
    """A file's name as part of paths and of command lines: what is no plain letter becomes a hyphen."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", path.stem).strip("-")[:40] or "file"


def reference_set(config: Config) -> str:
    """The name of the run's reference images."""
    if isinstance(config.references, int):
        return f"renders-{config.references}"
    from ditbench.reference_sets import ReferenceSet

    return ReferenceSet.of(config.references).name


def learning_set(config: Config) -> str:
    """The name of the captions that methods learn from: what is in them hangs on nothing else."""
    from ditbench.caption_files.options import training_of

    wanted, train = config.learning, training_of(config.captions)
    if train is None:
        return f"training-{wanted.captions}-seed{wanted.seed}"
    mark = hashlib.sha256(f"{train.kind().name} {train.column}".encode()).hexdigest()[:4]
    digest = training_captions(config) or ""
    return f"{_plain(train.path)}-training-{wanted.captions}-seed{wanted.seed}-{digest[:8]}-{mark}"


def pairs_set(config: Config) -> str:
    """The name of the images with captions that networks are fine-tuned on."""
    place = config.learning.pairs
    if place is None:
        return "pairs-own"
    return f"pairs-{_plain(Path(place))}-{hashlib.sha256(place.encode()).hexdigest()[:8]}"


def training_captions(config: Config) -> str | None:
    """The hash of the training captions that the run's own are compared with, where the settings name some."""
    from ditbench.caption_files.options import training_of

    train = training_of(config.captions)
    if train is None:
        return None
    try:
        train.kind()
        return train.place.sha256
    except Fault as fault:
        raise Fault(f"captions.train: {fault}") from fault


def _learns_from(method: Method, config: Config) -> str | None:
    """The name of what a method learns from before it samples, if it does."""
    if not method.waits():
        return None
    if method.taken_from():
        if set("{}") & set(method.taken_from()):
            raise Fault(
                f"{method.taken_from()!r} is no path that a run can take a plan or weights from: what stands in braces "
                "is the workflow's own; rename the file or its folder"
            )
        if method.taken_from().startswith(SHIPPED):
            place_of(method.taken_from())  # says so now where nothing of that name is shipped
        return learning_set(config) if method.needs_captions() else NOTHING
    return pairs_set(config) if method.fine_tunes else learning_set(config)


def cell_table(config: Config) -> list[Spec]:
    """Every cell that the studies and the configuration ask for, each once."""
    from ditbench.methods import get_method, method_class
    from ditbench.worlds import RANDOM, get_world

    captions, digest = caption_set(config)
    wanted: dict[tuple[str, str], dict[str, Any]] = {}
    origin: dict[tuple[str, str], str] = {}
    for world, arm, source, body in _arms(config):
        # Defaults are written out: a knob left at its default is the same cell as one set to it.
        method = get_method(body["method"], body["knobs"])
        body = {**body, "knobs": {name: getattr(method, name) for name in method.knobs()}}
        body["learning"] = _learns_from(method, config)
        key = (world, arm)
        if wanted.setdefault(key, body) != body:
            raise Fault(
                f"arm {arm!r} means {_said(wanted[key])} in {origin[key]} but {_said(body)} in {source}; rename one"
            )
        origin.setdefault(key, source)
    for world in {world for world, _ in wanted} or {config.world}:
        body = wanted.get((world, BASELINE), {})
        if body.get("method") != BASELINE:
            raise Fault(
                f"world {world} has no arm {BASELINE!r} of method {BASELINE!r}, which all others are compared with; "
                f"add `{BASELINE}: {{method: {BASELINE}}}` to `arms` or a study that has it"
            )
    weights: dict[str, str | None] = {}
    for world in dict.fromkeys(world for world, _ in wanted):
        weights[world] = get_world(world).weights_identity(config.weights.get(world))
        if config.captions.file is None and not get_world(world).has_captions:
            get_world(world).draw_captions(config.images, config.captions.seed)  # says what is needed
    for (world, _), body in wanted.items():
        stands_in = weights[world] == RANDOM and method_class(body["method"]).has_stand_in
        if stands_in and body["learning"] == learning_set(config):
            body["learning"] = NOTHING
    for (world, arm), body in wanted.items():
        if body["learning"] and body["learning"] == pairs_set(config):
            if not (config.learning.pairs or get_world(world).has_pairs or weights[world] == RANDOM):
                from ditbench.pairs.places import FORMS

                raise Fault(
                    f"arm {arm!r} is fine-tuned, and world {world} has no pairs of its own: name as "
                    f"`learning: {{pairs: PATH}}` {FORMS}"
                )
        elif (
            body["learning"] == learning_set(config)
            and config.captions.train is None
            and not get_world(world).has_captions
        ):
            raise Fault(
                f"arm {arm!r} is fitted on training captions, and world {world} has none of its own: "
                "captions.train.file names a file of them"
            )
    for (world, arm), body in wanted.items():
        if body["weights_of"]:
            body["weights_of"] = _lent(world, arm, body, wanted, weights[world])
    sources = {place: dict(body) for place, body in wanted.items()}
    for (world, arm), body in wanted.items():
        body["knobs"] = _taking(world, arm, body["knobs"], sources, weights[world])
    specs = [
        Spec(
            world=world,
            arm=arm,
            seed=seed,
            images=config.images,
            captions=captions,
            captions_sha256=digest,
            dtype=get_world(world).dtype,
            weights=weights[world],
            **body,
        )
        for (world, arm), body in wanted.items()
        for seed in config.seeds
    ]
    same: dict[str, Spec] = {}
    for spec in specs:
        other = same.setdefault(spec.hash, spec)
        if other is not spec:
            raise Fault(f"arms {other.arm!r} and {spec.arm!r} are one and the same cell; give them one name")
    return specs


def _lent(
    world: str, arm: str, body: dict[str, Any], arms: dict[tuple[str, str], dict[str, Any]], weights: str | None
) -> str:
    """The arm that lends its weights to another, with a hash that changes with their training."""
    from ditbench.learn.job import arm_hash
    from ditbench.methods import get_method, method_class
    from ditbench.worlds import get_world

    name = body["weights_of"]
    lender = arms.get((world, name))
    if lender is None or not method_class(lender["method"]).lends_weights:
        raise Fault(
            f"arm {arm!r} is to run on the weights of {name!r}, which is no arm of this run that fine-tunes alone"
        )
    if get_method(body["method"], body["knobs"]).waits():
        raise Fault(
            f"arm {arm!r} learns before it samples, and can do so on the world's own weights only, not on {name!r}"
        )
    spec = {"world": world, **lender, "dtype": get_world(world).dtype, "weights": weights}
    return f"{name}@{arm_hash(spec)}"


def lenders_of(spec: Spec) -> Iterator[tuple[str, str]]:
    """The arms, each with its world, whose training a cell stands on besides its own."""
    taken = [str(spec.knobs[knob]) for knob in KNOBS if str(spec.knobs.get(knob, "")).startswith(ARM)]
    for text in [*([spec.weights_of] if spec.weights_of else []), *taken]:
        yield spec.world, text.removeprefix(ARM).partition("@")[0]


def _taking(
    world: str,
    arm: str,
    knobs: dict[str, Any],
    arms: dict[tuple[str, str], dict[str, Any]],
    weights: str | None,
) -> dict[str, Any]:
    """An arm's knobs; where one names another arm to take from, with a hash that changes with that arm's training."""
    from ditbench.learn.job import arm_hash
    from ditbench.methods import get_method
    from ditbench.worlds import get_world

    named = {knob: str(knobs[knob]) for knob in KNOBS if str(knobs.get(knob, "")).startswith(ARM)}
    for knob, text in named.items():
        name = text.removeprefix(ARM)
        source = arms.get((world, name))
        method = None if source is None else get_method(source["method"], source["knobs"])
        if source is None or method is None or not method.waits() or method.taken_from():
            those = sorted(a for (w, a), body in arms.items() if w == world and body["learning"] not in (None, NOTHING))
            raise Fault(f"arm {arm!r}: {knob}: {name!r} is no arm of this run that learns{possible(name, those)}")
        spec = {"world": world, **source, "dtype": get_world(world).dtype, "weights": weights}
        knobs = {**knobs, knob: f"{ARM}{name}@{arm_hash(spec)}"}
    return knobs


def _arms(config: Config) -> Iterator[tuple[str, str, str, dict[str, Any]]]:
    from ditbench.sweeps import run_studies

    for study in run_studies(config):
        if study.awaits is not None:
            raise Fault(
                f"study {study.name} awaits {study.awaits}; `ditbench study {study.name}` shows what is published"
            )
        for row in study.rows:
            if row.method is None:
                continue
            body = {"method": row.method, "knobs": dict(row.knobs), "steps": row.steps, "weights_of": row.weights_of}
            yield study.world, row.arm, f"study {study.name}", body
    for name, arm in config.arms.items():
        body = {"method": arm.method, "knobs": dict(arm.knobs), "steps": arm.steps, "weights_of": arm.weights_of}
        yield config.world, name, "arms", body


def _said(body: dict[str, Any]) -> str:
    knobs = ", ".join(f"{name}={value}" for name, value in body["knobs"].items())
    steps = f" at {body['steps']} steps" if body["steps"] else ""
    on = f" on {body['weights_of']}" if body["weights_of"] else ""
    return f"{body['method']}({knobs}){steps}{on}"


def studies_of(config: Config, spec: Spec) -> list[str]:
    """The studies that cite a cell."""
    from ditbench.sweeps import run_studies

    return [s.name for s in run_studies(config) if s.world == spec.world and any(row.arm == spec.arm for row in s.rows)]


def shard_ranges(config: Config) -> list[tuple[int, int]]:
    """The caption indices of each shard, first and last inclusive."""
    return [(a, min(a + config.shard, config.images) - 1) for a in range(0, config.images, config.shard)]


def damage(shards: Sequence[Path]) -> str:
    """What is wrong with the archives of some shards' records, and how to mend it; nothing where all are whole.

    Sizes alone are compared, which takes no time: contents are checked by whoever reads them.
    """
    from ditbench.records import read_record

    found = []
    for path in shards:
        record = read_record(path, "shard")
        archive = path.with_name(record["file"])
        size = archive.stat().st_size if archive.is_file() else None
        if size is None:
            found.append(f"{archive} is missing")
        elif size != record["bytes"]:
            found.append(f"{archive} has {size:,} bytes instead of {record['bytes']:,}")
    if not found:
        return ""
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f"{found[0]}{more}; delete the .json beside it and run again"
