"""Prompt sets of HPS: HPDv2's benchmark is a JSON list for each style, anime, concept-art, paintings and photo."""

from __future__ import annotations

import re
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from ditbench.caption_files.formats.base import Entry, Format
from ditbench.caption_files.place import Place, read_json
from ditbench.faults import Fault
from ditbench.mistakes import shown

_BEGINS = re.compile(rb"\s*\[")


class Hps(Format):
    """A file's prompts in their order, or a folder's styles in turn; `group` is the style.

    In turn, so that a set that is cut short has as many prompts of each style as of any.
    """

    name = "hps"
    summary = "HPDv2's JSON lists of prompts (texts, or objects with `prompt`): one style's file or a folder of them"
    folders = True

    @classmethod
    def fits(cls, place: Place) -> bool:
        return bool(place.parts) if place.is_folder else place.suffix == ".json" and bool(_BEGINS.match(place.head))

    @classmethod
    def read(cls, place: Place, column: str | None = None) -> list[Entry]:
        if place.is_folder and not place.parts:
            raise Fault(f"{place} holds no .json file; the benchmark has one for each style")
        turns = zip_longest(*(_style(path) for path in place.parts))
        return [entry for entry in chain.from_iterable(turns) if entry is not None]


def _style(path: Path) -> list[Entry]:
    body = read_json(path)
    if not isinstance(body, list):
        raise Fault(f"{path} must be a JSON list of prompts, found {shown(body)}")
    return [Entry(_prompt(path, number, one), group=path.stem) for number, one in enumerate(body)]


def _prompt(path: Path, number: int, one: Any) -> str:
    match one:
        case str():
            return one
        case {"prompt": str() as text}:
            return text
    raise Fault(f"{path}: item {number} must be a prompt, or have the text `prompt`; found {shown(one)}")
