"""The configuration of a run, checked whole before anything starts: every mistake in one line each."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from ditbench.faults import Fault
from ditbench.mistakes import ARM, DEVICE, KEYS, PATH, PLAIN, lines_of, possible, read_value, read_yaml, told

Count = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Device = Annotated[str, Field(pattern=DEVICE)]
ArmName = Annotated[str, Field(pattern=ARM, max_length=80)]


# Of an SQLite store the file is needed, to lock it and to see that it is there: no other driver, no options behind it.
_STORE = re.compile(r"(https?|postgresql|mysql|mssql)(\+\w+)?://.+|sqlite:///(?!:memory:)[^?]+|databricks.*")
_PASSWORD = re.compile(r"://[^@\s]*:\S+@")
# More jobs an arm, or arms of a sweep, are a slip: a campaign of a thousandth of them takes minutes to be planned.
MOST_SHARDS = MOST_ARMS = 10_000


def _finite(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 1e15:  # neither is NaN
        raise ValueError("must be a finite number")
    return value


def _distinct(values: list[Any]) -> list[Any]:
    if len(set(values)) < len(values):
        raise ValueError("names one thing twice")
    return values


# Not a union: of a word its mistakes would be told twice, as no whole number and as no other.
Number = Annotated[Any, AfterValidator(_finite), WithJsonSchema({"type": "number"})]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StopwatchConfig(_Part):
    """How speed is measured: `batch` images at once in the first of `modes` is what tables call the speed-up.

    Other `batches` and modes are timed besides, each against the full model in the same. On a `contended` machine no
    speed is given unless one asks for a report all the same, which then says so.
    """

    rounds: Count = 4
    batch: Count = 8
    batches: Annotated[list[Count], AfterValidator(_distinct)] = []
    modes: Annotated[list[Literal["eager", "compiled", "graphs"]], Field(min_length=1), AfterValidator(_distinct)] = [
        "eager"
    ]
    contended: Literal["refuse", "report"] = "refuse"


def _of_this_machine(folder: str) -> str:
    if "://" in folder:
        raise ValueError("must be a folder that is mounted here; an address would be taken for a folder's name")
    return folder


class MlflowConfig(_Part):
    """Where runs are published; null is `sqlite:///<results>/mlflow.db`."""

    uri: str | None = None

    @field_validator("uri")
    @classmethod
    def _kept(cls, uri: str | None) -> str | None:
        """What MLflow would take for a folder, or keep in memory until the job ends, is told before hours of work."""
        if uri is not None and not _STORE.fullmatch(uri):
            possible = "sqlite:///FILE without options, http(s)://HOST, postgresql://…, mysql://…"
            raise ValueError(f"is no store of runs; possible: {possible}")
        if uri is not None and _PASSWORD.search(uri):
            raise ValueError(
                "has a password, which would be kept with the results; MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD open a server, PGPASSWORD or ~/.pgpass a database of PostgreSQL's"
            )
        return uri


class ReferencesConfig(_Part):
    """Real images that sets are compared with: those of a folder or ZIP file, or their statistics in an .npz file.

    Of the images the first `count` by name are taken. `crop: centre` cuts the square in the middle and scales it to
    `size` pixels, as generated images have them.
    """

    folder: str | None = None
    statistics: str | None = None
    count: Count | None = None
    crop: Literal["none", "centre"] = "none"
    size: Count | None = None

    @model_validator(mode="after")
    def _one_source(self) -> ReferencesConfig:
        if (self.folder is None) == (self.statistics is None):
            raise ValueError("needs either `folder` or `statistics`")
        if self.statistics is not None and (self.count is not None or self.crop != "none" or self.size is not None):
            raise ValueError("`count`, `crop` and `size` are of images; statistics have been made already")
        if self.size is not None and self.crop == "none":
            raise ValueError("`size` needs `crop: centre`, or pictures would be squeezed")
        return self


# A number of renders or, by keys, real images; what is wrong is told of the one that was meant.
References = Annotated[
    Annotated[Count, Tag(PLAIN)] | Annotated[ReferencesConfig, Tag(KEYS)],
    Discriminator(lambda said: KEYS if isinstance(said, Mapping | ReferencesConfig) else PLAIN),
]


class TrainingCaptionsConfig(_Part):
    """Captions that something was fitted on, which those of the run are compared with."""

    file: str
    format: str | None = None
    column: str | None = None


class CaptionsConfig(_Part):
    """Which captions: drawn from the world's grammar with `seed`, or those of a `file`.

    The file's `format` is found out where it is not given. Of its captions one is taken `per_image`, if it has several
    for an image, repetitions are kept or dropped, and of the rest the first or a random `sample` is taken. What is in
    the captions of `train` too is refused, reported, or dropped: `overlap`.
    """

    seed: Seed = 0
    file: str | None = None
    format: str | None = None
    column: str | None = None
    sample: Literal["first", "random"] = "first"
    per_image: Literal["first", "random", "longest", "all"] | None = None
    duplicates: Literal["keep", "drop"] = "keep"
    train: TrainingCaptionsConfig | None = None
    overlap: Literal["refuse", "report", "drop"] = "refuse"


class LearningConfig(_Part):
    """What methods are fitted on that learn before they sample: so many training captions, chosen with `seed`.

    They are those of `captions.train`, or else of the world's own training split. What is fine-tuned sees the images
    with captions at `pairs` (a folder, webdataset shards, parquet), or else the world's own. Each arm's training is
    given so many `threads`; what is learned differs by rounding.
    """

    captions: Count = 64
    seed: Seed = 0
    pairs: str | None = None
    threads: Annotated[int, Field(ge=1, le=1024)] = 1


class ArmConfig(_Part):
    """One arm besides those of the studies."""

    method: str
    knobs: dict[str, Any] = {}
    steps: Count | None = None
    weights_of: ArmName | None = None  # the arm whose fine-tuned weights it runs on


class RangeConfig(_Part):
    """Numbers `from` one `to` another, `by` a step; both ends belong to it."""

    first: Annotated[Number, Field(alias="from")]
    to: Number
    by: Annotated[Number, Field(gt=0)]

    @model_validator(mode="after")
    def _upwards(self) -> RangeConfig:
        if self.to < self.first:
            raise ValueError("must go upwards: `to` is below `from`")
        if (self.to - self.first) / self.by > 1000:
            raise ValueError("has more than 1,000 values")
        return self


class SweepConfig(_Part):
    """Arms of one method by its knobs: each a value, a list or a range. All combinations are made."""

    method: str
    knobs: dict[str, Any] = {}
    steps: Count | list[Count] | None = None

    @field_validator("knobs")
    @classmethod
    def _ranges(cls, knobs: dict[str, Any]) -> dict[str, Any]:
        """What has keys is a range; a union of types would tell a mistake in it once for each of them."""
        return {knob: _range(knob, said) if isinstance(said, Mapping) else said for knob, said in knobs.items()}


def _range(knob: str, said: Mapping[str, Any]) -> RangeConfig:
    try:
        return RangeConfig.model_validate(dict(said))
    except ValidationError as error:
        lines = (f"{knob}.{line}" if line[0] != ":" else f"{knob}{line}" for line in lines_of(error, RangeConfig))
        raise ValueError(f"is wrong: {'; '.join(lines)}") from None


class Config(_Part):
    """All settings of a run."""

    world: str = "scenes"
    images: Count = 512
    seeds: Annotated[list[Seed], Field(min_length=1), AfterValidator(_distinct)] = [0]
    shard: Count = 512
    batch: Count = 16
    device: Device = "cpu"
    captions: CaptionsConfig = CaptionsConfig()
    references: References = 2000
    judges: Annotated[list[str], Field(min_length=1), AfterValidator(_distinct)] | None = None
    weights: dict[str, Annotated[str, Field(min_length=1)]] = {}
    judge_weights: dict[str, Annotated[str, Field(min_length=1)]] = {}
    stopwatch: StopwatchConfig = StopwatchConfig()
    studies: Annotated[list[str], Field(min_length=1), AfterValidator(_distinct)] = ["embedded"]
    arms: dict[ArmName, ArmConfig] = {}
    elsewhere: Annotated[list[Annotated[str, Field(pattern=PATH)]], AfterValidator(_distinct)] = []
    sweeps: dict[ArmName, SweepConfig] = {}
    learning: LearningConfig = LearningConfig()
    patience: Count | None = 7200
    mlflow: MlflowConfig = MlflowConfig()
    results: Annotated[str, Field(pattern=PATH), AfterValidator(_of_this_machine)] = "results"


def load_config(path: str | Path) -> Config:
    """Reads and checks a configuration file; all mistakes are told in one Fault."""
    return check_config(read_settings(path), str(path))


def read_settings(path: str | Path) -> Any:
    """What a configuration file says, unchecked but for keys that are given twice."""
    path = Path(path)
    if not os.path.exists(path):  # unlike pathlib's, says so of names that can be no file's too
        raise Fault(f"no configuration file {path}")
    body, wrong = read_yaml(path)
    if wrong:
        raise Fault(told(str(path), wrong))
    return body


def origins_of(files: Iterable[str | Path], given: Iterable[str] = ()) -> dict[str, str]:
    """Where each top-level key was last said: which of some files, or the command line for those `given` there.

    Keys given twice in a file are told: Snakemake, which has read the same files, passes over them.
    """
    found: dict[str, str] = {}
    for file in files:
        path = Path(file)
        name = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        body = read_settings(name)
        found |= dict.fromkeys(body if isinstance(body, dict) else (), str(name))
    return found | dict.fromkeys(given, "--config")


def keep_settings(config: Config) -> str:
    """Writes settings to a file in the results that is named by their content, for the commands of a run to read."""
    from ditbench.storage import replacing

    path = kept_settings(config)
    if not path.exists():
        with replacing(path) as partial:
            partial.write_text(_text(config), encoding="utf-8")
    return str(path)


def kept_settings(config: Config) -> Path:
    """Where `keep_settings` writes them."""
    from ditbench.runs import SETTINGS

    return Path(config.results) / SETTINGS / f"{hashlib.sha256(_text(config).encode()).hexdigest()[:8]}.yaml"


def _text(config: Config) -> str:
    return json.dumps(config.model_dump(by_alias=True), indent=1, sort_keys=True)


def schema() -> dict[str, Any]:
    """The configuration as a JSON schema, for editors and other programs."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return head | Config.model_json_schema()


def check_config(body: Any, source: str = "config.yaml", origins: Mapping[str, str] | None = None) -> Config:
    """Checks settings that were read already, from Snakemake for instance.

    `origins` says which top-level keys came from elsewhere than `source`.
    """
    if body is None:
        body = {}
    if not isinstance(body, Mapping):
        raise Fault(f"{source} must hold keys and values (world, images, studies, …), not {body!r}")
    problems: list[str] = []
    wrong: set[Any] = set()
    config = Config()
    try:
        config = Config.model_validate(dict(body))
    except ValidationError as error:
        problems += lines_of(error, Config)
        wrong = {problem["loc"][0] for problem in error.errors()}
        with suppress(ValidationError):  # keys that are wrong together
            config = Config.model_validate({key: said for key, said in body.items() if key not in wrong})
    # What clashes and what has no such name is told even where something else is wrong, so that one run tells all.
    problems += _clashes(config, wrong)
    problems += _wrong_names(body)
    if problems:
        raise Fault(told(source, problems, origins))
    return config


def _clashes(config: Config, wrong: Set[Any]) -> Iterator[str]:
    """Settings that do not go together, but for keys that are wrong by themselves."""
    if not wrong & {"stopwatch", "device"} and "graphs" in config.stopwatch.modes and config.device == "cpu":
        yield "stopwatch.modes: CUDA graphs need a GPU, and device is cpu; possible there: eager, compiled"
    if not wrong & {"images", "shard"} and config.images / config.shard > MOST_SHARDS:
        yield (
            f"shard: {config.images:,} images in shards of {config.shard:,} are more than {MOST_SHARDS:,} jobs an arm; "
            "make shards larger"
        )


def retyped(value: Any) -> Any:
    """A setting of Snakemake's command line, whose nested values arrive as text, with the types YAML gives them."""
    if isinstance(value, Mapping):
        return {name: retyped(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [retyped(inner) for inner in value]
    if not isinstance(value, str):
        return value
    typed = read_value(value)
    return typed if isinstance(typed, int | float | bool) else value


def _wrong_names(body: Mapping[str, Any]) -> Iterator[str]:
    from ditbench.caption_files.options import mistakes_in
    from ditbench.judges import judges_of
    from ditbench.judges.registry import weight_keys
    from ditbench.methods import method_names
    from ditbench.methods.registry import method_class, problem_of
    from ditbench.study import not_of_arms, study_names, study_path
    from ditbench.worlds import world_names

    world = body.get("world", "scenes")
    if isinstance(world, str) and world not in world_names():
        yield f"world: no world {world!r}{possible(world, world_names())}"
    elif isinstance(world, str):
        known = judges_of(world)
        for i, judge in enumerate(_list(body.get("judges"))):
            if isinstance(judge, str) and judge not in known:
                yield f"judges.{i}: no judge {judge!r} in world {world}{possible(judge, known)}"
    if isinstance(world, str) and isinstance(body.get("references"), Mapping) and "fid" in judges_of(world):
        yield f"references: world {world} compares with renders of its own: give their number"
    yield from mistakes_in(body.get("captions"))
    weights = body.get("weights")
    for name in weights if isinstance(weights, Mapping) else ():
        if name not in world_names():
            yield f"weights.{name}: no world {name!r}{possible(str(name), world_names())}"
    judged_with = body.get("judge_weights")
    for name in judged_with if isinstance(judged_with, Mapping) else ():
        if name not in weight_keys():
            yield f"judge_weights.{name}: no judge needs {name!r}{possible(str(name), weight_keys())}"
    for i, study in enumerate(_list(body.get("studies"))):
        try:
            path = study_path(str(study))
        except Fault:
            yield f"studies.{i}: no study {study!r}{possible(str(study), study_names())}"
            continue
        if problem := not_of_arms(path):
            yield f"studies.{i}: {problem}"
    yield from _wrong_sweeps(body.get("sweeps"))
    arms = body.get("arms")
    for name, arm in arms.items() if isinstance(arms, Mapping) else ():
        method = arm.get("method") if isinstance(arm, Mapping) else None
        if not isinstance(method, str):
            continue
        if method not in method_names():
            yield f"arms.{name}.method: no method {method!r}{possible(method, method_names())}"
            continue
        knobs = arm.get("knobs", {})
        for knob, value in knobs.items() if isinstance(knobs, Mapping) else ():
            problem = problem_of(method_class(method), knob, value)
            if problem:
                yield (
                    f"arms.{name}.knobs.{problem}"
                    if knob in method_class(method).knobs()
                    else f"arms.{name}: {problem}"
                )


def _wrong_sweeps(sweeps: Any) -> Iterator[str]:
    """Methods and values of sweeps that there are not; what is no sweep at all is told by its type."""
    from ditbench.methods import method_names
    from ditbench.methods.registry import method_class, problem_of
    from ditbench.sweeps import values_of

    for name, body in sweeps.items() if isinstance(sweeps, Mapping) else ():
        try:
            sweep = SweepConfig.model_validate(body)
        except ValidationError:
            continue
        if sweep.method not in method_names():
            yield f"sweeps.{name}.method: no method {sweep.method!r}{possible(sweep.method, method_names())}"
            continue
        counts = [len(values_of(said)) for said in [*sweep.knobs.values(), sweep.steps]]
        if (count := math.prod(counts)) > MOST_ARMS:
            yield f"sweeps.{name}: makes {count:,} arms; {MOST_ARMS:,} are the most"
        for knob, said in sweep.knobs.items():
            values = values_of(said)
            if not values:
                yield f"sweeps.{name}.knobs.{knob}: an empty list makes no arm"
            # One line for a knob that is not: it is wrong for all its values.
            wrong = dict.fromkeys(
                filter(None, (problem_of(method_class(sweep.method), knob, value) for value in values))
            )
            place = f"sweeps.{name}.knobs." if knob in method_class(sweep.method).knobs() else f"sweeps.{name}: "
            yield from (f"{place}{problem}" for problem in wrong)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
