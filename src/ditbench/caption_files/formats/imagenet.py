"""ImageNet's classes, for worlds that draw classes: lists of all classes, or the class of each of many images."""

from __future__ import annotations

import re
from typing import Any

from ditbench.caption_files.formats.base import Entry, Format
from ditbench.caption_files.place import Place, read_json, read_lines
from ditbench.faults import Fault
from ditbench.mistakes import shown

_SYNSET = re.compile(r"(n\d{8})\s+(\S.*)")
_LABELLED = re.compile(r"(\S+\.JPEG)\s+(\d+)", re.IGNORECASE)
_INDEX = re.compile(rb'\s*\{\s*"0"\s*:\s*\[\s*"n\d{8}"')


class ImageNet(Format):
    """Captions such as `class 207: golden retriever`, which is how worlds of classes write them."""

    name = "imagenet"
    summary = "LOC_synset_mapping.txt, imagenet_class_index.json, or lines `ILSVRC2012_val_00000001.JPEG 65`"

    @classmethod
    def fits(cls, place: Place) -> bool:
        line = place.first_line.strip()
        return bool(_SYNSET.fullmatch(line) or _LABELLED.fullmatch(line) or _INDEX.match(place.head))

    @classmethod
    def read(cls, place: Place, column: str | None = None) -> list[Entry]:
        if place.head.lstrip()[:1] == b"{":
            return _index(place, read_json(place.path))
        lines = [line.strip() for line in read_lines(place.path)]
        return _labels(place, lines) if _LABELLED.fullmatch(place.first_line.strip()) else _synsets(place, lines)


def _caption(number: int, names: str) -> Entry:
    return Entry(f"class {number}: {names.split(',')[0].replace('_', ' ').strip()}")


def _index(place: Place, body: Any) -> list[Entry]:
    if not isinstance(body, dict):
        raise Fault(f'{place} must map class numbers to names, as {{"0": ["n01440764", "tench"]}}; found {shown(body)}')
    entries = []
    for number in range(len(body)):
        match body.get(str(number)):
            case [str(), str() as name]:
                entries.append(_caption(number, name))
            case found:
                raise Fault(f'{place}: class "{number}" must be [wnid, name], found {shown(found)}')
    return entries


def _synsets(place: Place, lines: list[str]) -> list[Entry]:
    entries, before, classes = [], "", 0
    for number, line in enumerate(lines, start=1):
        if not line:
            entries.append(Entry(""))
            continue
        match = _SYNSET.fullmatch(line)
        if match is None:
            raise Fault(f"{place}: line {number} must be a wnid and names, as `n01440764 tench`; found {shown(line)}")
        # Classes have their numbers by sorted wnids: a list in another order would name other classes.
        if match[1] <= before:
            raise Fault(f"{place}: line {number} has {match[1]} after {before}; classes are numbered by sorted wnids")
        entries.append(_caption(classes, match[2]))
        before, classes = match[1], classes + 1
    return entries


def _labels(place: Place, lines: list[str]) -> list[Entry]:
    entries = []
    for number, line in enumerate(lines, start=1):
        match = _LABELLED.fullmatch(line)
        if line and match is None:
            raise Fault(f"{place}: line {number} must be an image and its class, as `a.JPEG 65`; found {shown(line)}")
        entries.append(Entry(f"class {int(match[2])}", match[1]) if match else Entry(""))
    return entries
