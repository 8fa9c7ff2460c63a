"""COCO's caption annotations: captions_{train,val}{2014,2017}.json, about five captions for each image."""

from __future__ import annotations

import re
from typing import Any

from ditbench.caption_files.formats.base import Entry, Format
from ditbench.caption_files.place import Place, read_json
from ditbench.faults import Fault
from ditbench.mistakes import shown

# COCO's own files begin with `info` and `images`, and their annotations are megabytes away.
_BEGINS = re.compile(rb'\s*\{\s*"(info|images|licenses|annotations|type)"\s*:')


class Coco(Format):
    """Captions in the order of the annotations; `image` is COCO's number of the image."""

    name = "coco"
    summary = "COCO's captions_*.json: `annotations`, each with `image_id` and `caption`"
    images = True

    @classmethod
    def fits(cls, place: Place) -> bool:
        return bool(_BEGINS.match(place.head))

    @classmethod
    def read(cls, place: Place, column: str | None = None) -> list[Entry]:
        body = read_json(place.path)
        annotations = body.get("annotations") if isinstance(body, dict) else None
        if not isinstance(annotations, list):
            found = f"keys {', '.join(map(str, body)) or 'none'}" if isinstance(body, dict) else shown(body)
            raise Fault(f"{place}: `annotations` must be a list, as in COCO's captions_*.json; found {found}")
        return [_entry(place, number, one) for number, one in enumerate(annotations)]


def _entry(place: Place, number: int, one: Any) -> Entry:
    match one:
        case {"image_id": int() | str() as image, "caption": str() as text}:
            return Entry(text, image)
    found = f"keys {', '.join(map(str, one))}" if isinstance(one, dict) else shown(one)
    raise Fault(
        f"{place}: annotations[{number}] must have `image_id` and the text `caption`, as in COCO's captions_*.json; "
        f"found {found}"
    )
