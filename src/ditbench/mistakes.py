"""Mistakes in what a user wrote, told in one line each: the key, what was found, and what is possible."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError

from ditbench.faults import Fault

# What a text must look like, by the pattern that it must match.
ARM, DEVICE, PATH = r"^[a-z0-9][a-z0-9._-]*$", r"^(cpu|cuda(:\d+)?)$", r"^[\w./][\w./+@,:=%-]*$"
_PATTERNS = {
    ARM: "is no name of an arm; possible: lower-case letters, digits and . _ -, a letter or digit first",
    DEVICE: "is not a device; possible: cpu, cuda, cuda:0, cuda:1, …",
    PATH: "must be a path of letters, digits and . / _ + @ , : = % -, the last not first: commands are made of it",
}
# Name and password in an address.
_SECRETS = re.compile(r"://\S*@")
LONGEST = 60
MOST_VALUES = 1_000_000
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")


def possible(name: str, valid: Iterable[str]) -> str:
    """The nearest valid word, and all that are possible."""
    valid = list(valid)
    near = difflib.get_close_matches(name, valid, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"{hint} Possible: {', '.join(valid) or 'none'}"


def shown(value: Any) -> str:
    """A value as it was written, if that is short; of an address, without who opens it."""
    text = _SECRETS.sub("://…@", repr(value))
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def told(source: str, problems: Iterable[str], origins: Mapping[str, str] | None = None) -> str:
    """All mistakes with their source, a line each; `origins` says which top-level keys came from elsewhere."""
    origins = origins or {}
    return "\n".join(f"{origins.get(re.split('[.:]', problem)[0], source)}: {problem}" for problem in problems)


# Of a setting that is a plain value or one of keys: which of both was meant; it is no part of the setting's name.
PLAIN, KEYS = "(plain)", "(keys)"


def lines_of(error: ValidationError, form: type, hidden: Iterable[str] = ()) -> list[str]:
    """What pydantic found wrong with a `form`, a line each; `hidden` keys of it are not for users."""
    return [_line(problem, form, set(hidden)) for problem in error.errors()]


def _line(problem: Any, form: type, hidden: set[str]) -> str:
    place = tuple(part for part in problem["loc"] if part not in (PLAIN, KEYS))
    key = ".".join(str(part) for part in place)
    found, kind, context = shown(problem["input"]), problem["type"], problem.get("ctx", {})
    match kind:
        case "extra_forbidden" | "unexpected_keyword_argument":
            valid = [name for name in _keys_at(form, place) if name not in hidden]
            return f"{key}: unknown key{possible(str(place[-1]), valid)}"
        case "missing" | "missing_argument":
            return f"{key}: missing"
        case "value_error":
            return f"{key}: {found} {context['error']}"
        case "too_short":
            return f"{key}: {found} must name at least {context['min_length']}"
        case "string_too_short":
            return f"{key}: {found} must not be empty"
        case "greater_than_equal":
            return f"{key}: {found} must be >= {context['ge']}"
        case "less_than_equal":
            return f"{key}: {found} must be <= {context['le']}"
        case "string_pattern_mismatch":
            says = _PATTERNS.get(context["pattern"], f"must match {context['pattern']}")
            return f"{key.removesuffix('.[key]')}: {found} {says}"
    wanted = re.sub(r"^(Input|String) should ", "must ", problem["msg"])
    return f"{key}: {found} {wanted}" if wanted != problem["msg"] else f"{key}: {found}: {wanted}"


def _keys_at(form: type, place: tuple[Any, ...]) -> list[str]:
    """The keys that are valid where an unknown one was found."""
    kind: Any = form
    for part in place[:-1]:
        kind = _bare(kind)
        # A list's items and a dictionary's values are the last of its parts.
        kind = get_type_hints(kind)[part] if _has_keys(kind) else get_args(kind)[-1]
    return _names(_bare(kind))


def _bare(kind: Any) -> Any:
    """A type without what annotates it, and of several the one that has keys; without None."""
    while get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) not in (Union, UnionType):
        return kind
    parts = [_bare(part) for part in get_args(kind) if part is not NoneType]
    return next(filter(_has_keys, parts), parts[0])


def _has_keys(kind: Any) -> bool:
    return isinstance(kind, type) and (issubclass(kind, BaseModel) or is_dataclass(kind))


def _names(kind: Any) -> list[str]:
    if issubclass(kind, BaseModel):
        return [field.alias or name for name, field in kind.model_fields.items()]
    return [field.name for field in fields(kind)]


def read_yaml(path: Path) -> tuple[Any, list[str]]:
    """What a YAML file holds, and a line for each key that stands twice in a mapping: it would keep the last one.

    A Fault where it cannot be read, or holds what no setting can be: values that contain themselves or stand for a
    million others, and texts with control characters, which would reach terminals, paths and pages.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        whole = yaml.compose(text, Loader=yaml.SafeLoader)
        if size_of(whole) > MOST_VALUES:
            raise Fault(f"{path} stands for more than {MOST_VALUES:,} values by its anchors (&) and aliases (*)")
        body = yaml.safe_load(text)
        return body, list(_repeated(whole, "", set()))
    except (yaml.YAMLError, ValueError, OSError) as error:  # a date that is none is a ValueError of Python's
        raise Fault(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise Fault(f"{path} cannot be read as YAML: it is nested too deeply, or a value contains itself") from None


def read_value(text: str) -> Any:
    """A word of a command line with the type that YAML gives it; as it is where it is no YAML."""
    import yaml

    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def size_of(node: Any, known: dict[int, int] | None = None) -> int:
    """How many values a YAML node stands for, its aliases written out; a RecursionError where it contains itself."""
    known = {} if known is None else known
    if id(node) not in known:
        kind = getattr(node, "id", "")
        parts = node.value if kind == "sequence" else itertools.chain(*node.value) if kind == "mapping" else ()
        known[id(node)] = 1 + sum(size_of(part, known) for part in parts)
    return known[id(node)]


def _repeated(node: Any, place: str, seen: set[int]) -> Iterator[str]:
    """What is wrong with the keys and texts of a node; what has an alias is gone through once."""
    kind = getattr(node, "id", "")
    if node is None or id(node) in seen:
        return
    seen.add(id(node))
    if kind == "scalar" and (found := unprintable(node.value)):
        yield f"{place.removesuffix('.') or 'the text'}: holds the character {found}, which no text here may have"
    if kind == "sequence":
        for number, value in enumerate(node.value):
            yield from _repeated(value, f"{place}{number}.", seen)
        return
    first: dict[str, int] = {}
    for key, value in node.value if kind == "mapping" else ():
        name, line = f"{place}{key.value}", key.start_mark.line + 1
        if name in first:
            yield f"{name}: given twice, in lines {first[name]} and {line}; keep one"
        first.setdefault(name, line)
        yield from _repeated(value, f"{name}.", seen)


def unprintable(text: str) -> str | None:
    """The first control character of a text, line ends and tabs apart, or half of a surrogate pair, by its number."""
    found = _UNPRINTABLE.search(text)
    return f"U+{ord(found[0]):04X}" if found else None
