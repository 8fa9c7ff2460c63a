"""Finds the format files of this package, and the format of a file."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from pathlib import Path

from ditbench.caption_files.formats.base import Format
from ditbench.caption_files.place import Place
from ditbench.faults import Fault
from ditbench.mistakes import possible

_NOT_FORMATS = {"base", "registry"}
# What no format fits is text, but for names that promise more than lines.
_NOT_TEXT = {".json", ".jsonl", ".tsv", ".csv", ".parquet"}
TEXT = "text"


@cache
def _classes() -> dict[str, type[Format]]:
    found: dict[str, type[Format]] = {}
    for info in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if info.name in _NOT_FORMATS:
            continue
        module = importlib.import_module(f"{__package__}.{info.name}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, Format) and value.__module__ == module.__name__:
                if value.name in found:
                    raise Fault(f"two formats of captions are called {value.name!r}: {found[value.name]}, {value}")
                found[value.name] = value
    return dict(sorted(found.items()))


def format_names() -> list[str]:
    """The names of all formats."""
    return list(_classes())


def get_format(name: str) -> type[Format]:
    """A format by its name."""
    if name not in _classes():
        raise Fault(f"no format of captions {name!r}{possible(name, _classes())}")
    return _classes()[name]


def detect(place: Place) -> type[Format]:
    """The format that a file or folder seems to have."""
    fitting = [found for found in _classes().values() if found.fits(place)]
    if len(fitting) > 1:
        names = " or ".join(found.name for found in fitting)
        raise Fault(f"{place} may be {names}; say which as `captions.format`")
    if fitting:
        return fitting[0]
    if place.is_folder:
        raise Fault(f"{place} is a folder without .json files of prompts; name a file")
    if place.suffix in _NOT_TEXT:
        raise Fault(
            f"{place}: the format of this {place.suffix} file is not known; say it as `captions.format`. "
            f"Possible: {', '.join(_classes())}"
        )
    return _classes()[TEXT]
