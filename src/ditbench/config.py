"""The configuration of a run, checked whole before anything starts: every mistake in one line each."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from ditbench.faults import Fault

Count = Annotated[int, Field(ge=1)]
Device = Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")]
ArmName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=80)]


def _distinct(values: list[Any]) -> list[Any]:
    if len(set(values)) < len(values):
        raise ValueError("names one thing twice")
    return values


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class StopwatchConfig(_Part):
    """How speed is measured."""

    rounds: Count = 4
    batch: Count = 8


class MlflowConfig(_Part):
    """Where runs are published; null is `sqlite:///<results>/mlflow.db`."""

    uri: str | None = None


class CaptionsConfig(_Part):
    """Which captions: drawn from the world's grammar with `seed`, or the lines of a UTF-8 text `file`."""

    seed: Annotated[int, Field(ge=0)] = 0
    file: str | None = None


class ArmConfig(_Part):
    """One arm besides those of the studies."""

    method: str
    knobs: dict[str, Any] = {}
    steps: Count | None = None


class Config(_Part):
    """All settings of a run."""

    world: str = "scenes"
    images: Count = 512
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1), AfterValidator(_distinct)] = [0]
    shard: Count = 512
    batch: Count = 16
    device: Device = "cpu"
    captions: CaptionsConfig = CaptionsConfig()
    references: Count = 2000
    judges: Annotated[list[str], Field(min_length=1), AfterValidator(_distinct)] | None = None
    weights: dict[str, Annotated[str, Field(min_length=1)]] = {}
    stopwatch: StopwatchConfig = StopwatchConfig()
    studies: Annotated[list[str], Field(min_length=1), AfterValidator(_distinct)] = ["embedded"]
    arms: dict[ArmName, ArmConfig] = {}
    mlflow: MlflowConfig = MlflowConfig()
    results: Annotated[str, Field(pattern=r"^[^\s'\"{}]+$")] = "results"


def load_config(path: str | Path) -> Config:
    """Reads and checks a configuration file; all mistakes are told in one Fault."""
    return check_config(read_settings(path), str(path))


def read_settings(path: str | Path) -> Any:
    """What a configuration file says, unchecked but for keys that are given twice."""
    import yaml

    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        twice = list(_repeated(yaml.compose(text, Loader=yaml.SafeLoader)))
        body = yaml.safe_load(text)
    except FileNotFoundError:
        raise Fault(f"no configuration file {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise Fault(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if twice:
        raise Fault("\n".join(f"{path}: {problem}" for problem in twice))
    return body


def _repeated(node: Any, place: str = "") -> Iterator[str]:
    """Keys that stand twice in one mapping: YAML would keep the last one and say nothing."""
    pairs = node.value if getattr(node, "id", "") == "mapping" else []
    first: dict[str, int] = {}
    for key, value in pairs:
        name, line = f"{place}{key.value}", key.start_mark.line + 1
        if name in first:
            yield f"{name}: given twice, in lines {first[name]} and {line}; keep one"
        first.setdefault(name, line)
        yield from _repeated(value, f"{name}.")


def keep_settings(config: Config) -> str:
    """Writes settings to a file in the results that is named by their content, for the commands of a run to read."""
    from ditbench.storage import replacing

    text = json.dumps(config.model_dump(), indent=1, sort_keys=True)
    path = Path(config.results) / "configs" / f"{hashlib.sha256(text.encode()).hexdigest()[:8]}.yaml"
    if not path.exists():
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8")
    return str(path)


def schema() -> dict[str, Any]:
    """The configuration as a JSON schema, for editors and other programs."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return head | Config.model_json_schema()


def check_config(body: Any, source: str = "config.yaml") -> Config:
    """Checks settings that were read already, from Snakemake for instance."""
    if body is None:
        body = {}
    if not isinstance(body, Mapping):
        raise Fault(f"{source} must hold keys and values (world, images, studies, …), not {body!r}")
    problems: list[str] = []
    config: Config | None = None
    try:
        config = Config.model_validate(dict(body))
    except ValidationError as error:
        problems += [_one_line(problem) for problem in error.errors()]
    # Names are checked even where types are wrong elsewhere, so that one run tells all.
    problems += list(_wrong_names(body))
    if problems or config is None:
        raise Fault("\n".join(f"{source}: {problem}" for problem in problems))
    return config


def retyped(value: Any) -> Any:
    """A setting of Snakemake's command line, whose nested values arrive as text, with the types YAML gives them."""
    import yaml

    if isinstance(value, Mapping):
        return {name: retyped(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [retyped(inner) for inner in value]
    if not isinstance(value, str):
        return value
    try:
        typed = yaml.safe_load(value)
    except yaml.YAMLError:
        return value
    return typed if isinstance(typed, int | float | bool) else value


def _wrong_names(body: Mapping[str, Any]) -> Iterator[str]:
    from ditbench.methods import method_names
    from ditbench.methods.registry import method_class
    from ditbench.study import study_names, study_path
    from ditbench.worlds import get_world, world_names

    world = body.get("world", "scenes")
    if isinstance(world, str) and world not in world_names():
        yield f"world: no world {world!r}{possible(world, world_names())}"
    elif isinstance(world, str):
        known = get_world(world).judge_names
        for i, judge in enumerate(_list(body.get("judges"))):
            if isinstance(judge, str) and judge not in known:
                yield f"judges.{i}: no judge {judge!r} in world {world}{possible(judge, known)}"
    weights = body.get("weights")
    for name in weights if isinstance(weights, Mapping) else ():
        if name not in world_names():
            yield f"weights.{name}: no world {name!r}{possible(str(name), world_names())}"
    for i, study in enumerate(_list(body.get("studies"))):
        try:
            study_path(str(study))
        except Fault:
            yield f"studies.{i}: no study {study!r}{possible(str(study), study_names())}"
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
            problem = method_class(method).problem(knob, value)
            if problem:
                yield (
                    f"arms.{name}.knobs.{problem}"
                    if knob in method_class(method).knobs()
                    else f"arms.{name}: {problem}"
                )


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def possible(name: str, valid: Iterable[str]) -> str:
    """The nearest valid word, and all that are possible."""
    valid = list(valid)
    near = difflib.get_close_matches(name, valid, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"{hint} Possible: {', '.join(valid) or 'none'}"


def _one_line(problem: Any) -> str:
    """One mistake found by pydantic: the key, what was found, what was expected."""
    key = ".".join(str(part) for part in problem["loc"])
    found = repr(problem["input"])
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        return f"{key}: unknown key{possible(str(problem['loc'][-1]), _keys_at(problem['loc']))}"
    if kind == "value_error":
        return f"{key}: {found} {context['error']}"
    if kind == "too_short":
        return f"{key}: {found} must name at least {context['min_length']}"
    if kind == "missing":
        return f"{key}: missing"
    if kind == "greater_than_equal":
        return f"{key}: {found} must be >= {context['ge']}"
    if kind == "string_pattern_mismatch":
        return f"{key.removesuffix('.[key]')}: {found} {_PATTERNS[problem['loc'][0]]}"
    wanted = re.sub(r"^Input should be ", "", problem["msg"])
    return f"{key}: {found} must be {wanted}"


# What a text must look like, by the key it stands under.
_PATTERNS = {
    "device": "is not a device; possible: cpu, cuda, cuda:0, cuda:1, …",
    "results": "must be a path without spaces, quotes and braces",
    "arms": "is no name of an arm; possible: lower-case letters, digits and . _ -, a letter or digit first",
}


def _keys_at(place: tuple[Any, ...]) -> list[str]:
    models: dict[str, type[BaseModel]] = {
        "stopwatch": StopwatchConfig,
        "mlflow": MlflowConfig,
        "captions": CaptionsConfig,
        "arms": ArmConfig,
    }
    model = models.get(str(place[0]), Config) if len(place) > 1 else Config
    return list(model.model_fields)
