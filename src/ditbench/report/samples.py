"""The same captions drawn by every arm of a study, side by side."""

from __future__ import annotations

import base64
import io
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditbench.faults import Fault
from ditbench.report.results import Cell, Results
from ditbench.study import Study

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

COUNT = 8
PICTURES = 480  # of one study at most: of many arms fewer captions are shown
SHOWN = 256  # pixels of the longer side at most, so that a page of many arms stays small


@dataclass(frozen=True)
class Samples:
    """The first captions of a set, not chosen ones; `images[row][column]` is None where an arm has none."""

    arms: tuple[str, ...]  # their labels
    captions: tuple[str, ...]
    images: tuple[tuple[NDArray[np.uint8] | None, ...], ...]
    problems: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()  # the arms' names
    seed: int | None = None  # whose pictures they are, where there are several seeds


def collect(study: Study, results: Results, count: int = COUNT) -> Samples | None:
    """The first `count` captions, or fewer of many arms, and what each arm drew; None while no image exists.

    Where the captions' record cannot be read there are no pictures, and the problem is said.
    """
    rows = [row for row in study.rows if row.method]
    count = max(1, min(count, PICTURES // max(1, len(rows))))
    often = Counter(row.label for row in rows)
    # Arms of one label stand in groups of their own.
    labels = [f"{row.label}, {row.group}" if row.group and often[row.label] > 1 else row.label for row in rows]
    found = (next(iter(results.of_arm(study.world, row.arm)), None) for row in rows)
    columns = list(zip(labels, found, strict=True))
    first = next((cell for _, cell in columns if cell is not None and cell.shards), None)
    if first is None:
        return None
    try:
        entries = _captions(results, first)[:count]
    except Fault as fault:  # without it nothing says which picture is of which caption
        return Samples(tuple(labels), (), (), (str(fault),), tuple(row.arm for row in rows))
    drawn, problems = [], []
    for label, cell in columns:
        try:
            drawn.append(_images(cell, count) if cell else {})
        except Fault as fault:
            drawn.append({})
            problems.append(f"{label}: {fault}")
    return Samples(
        tuple(label for label, _ in columns),
        tuple(entry["text"] for entry in entries),
        tuple(tuple(images.get(entry["id"]) for images in drawn) for entry in entries),
        tuple(problems),
        tuple(row.arm for row in rows),
        first.seed if len({cell.seed for cell in results.cells}) > 1 else None,
    )


def one_arm(results: Results, cell: Cell, count: int = COUNT) -> Samples | None:
    """The first images of one cell."""
    if not cell.shards:
        return None
    entries, images = _captions(results, cell)[:count], _images(cell, count)
    rows = tuple((images.get(entry["id"]),) for entry in entries)
    return Samples((cell.arm,), tuple(entry["text"] for entry in entries), rows)


def _captions(results: Results, cell: Cell) -> list[dict[str, Any]]:
    path = results.root / "captions" / cell.world / f"{cell.spec['captions']}.json"
    entries: list[dict[str, Any]] = caption_record(path)["captions"]
    return entries


def caption_record(path: Path) -> dict[str, Any]:
    """The record of a caption set. It is read once: that of a campaign has megabytes, and every cell asks for it."""
    return _read_captions(path, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=4)
def _read_captions(path: Path, changed: int) -> dict[str, Any]:
    from ditbench.records import read_record

    return read_record(path, "captions")


def _images(cell: Cell, count: int) -> dict[str, NDArray[np.uint8]]:
    """The first images by caption id, from as many shards as it takes."""
    from ditbench.records import read_record
    from ditbench.storage import images_of, read_shard

    found: dict[str, NDArray[np.uint8]] = {}
    for path in cell.shards:
        if len(found) >= count:
            break
        ids, images = read_shard(images_of(path, read_record(path, "shard")))
        if images.ndim == 5:  # of a video, the frame in the middle
            images = images[:, images.shape[1] // 2]
        found |= dict(zip(ids[:count], images[:count], strict=True))
    return found


def data_uri(image: NDArray[np.uint8]) -> str:
    """An image inside an address, for pages without files beside them: as it is, or a large one smaller."""
    from PIL import Image

    out, picture = io.BytesIO(), Image.fromarray(image)
    kind: str = "png"
    more: dict[str, Any] = {"optimize": True}
    if max(picture.size) > SHOWN:
        picture.thumbnail((SHOWN, SHOWN), Image.Resampling.LANCZOS)
        kind, more = "webp", {"quality": 90}
    picture.save(out, format=kind.upper(), **more)
    return f"data:image/{kind};base64," + base64.b64encode(out.getvalue()).decode("ascii")
