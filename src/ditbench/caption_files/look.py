"""What a caption file holds, for a person who is about to name it in a configuration."""

from __future__ import annotations

from collections import Counter
from typing import Any

from ditbench.caption_files.choose import EMPTY, Choice, choose
from ditbench.caption_files.options import CaptionFile
from ditbench.caption_files.overlap import overlaps
from ditbench.caption_files.overlap import told as overlaps_told

SHOWN = 5


def look(file: CaptionFile, training: CaptionFile | None = None) -> dict[str, Any]:
    """Format, counts, groups, repetitions and the first captions of a file; with `training`, what the two share."""
    kind = file.kind()
    entries = file.entries()
    images = len({entry.image for entry in entries if entry.image is not None})
    whole = choose(entries, None, Choice(per_image="all") if images else Choice())
    texts = [entry.text for entry in whole.entries]
    repeated = Counter(text for text in texts)
    body: dict[str, Any] = {
        "file": str(file.path),
        "sha256": file.place.sha256,
        "format": kind.name,
        "format_found_out": file.format is None,
        "captions": len(texts),
        "empty": whole.dropped.get(EMPTY, 0),
        "images": images or None,
        "groups": dict(Counter(entry.group for entry in whole.entries if entry.group is not None)) or None,
        "repeated": whole.repeated,
        "most_repeated": [[text, times] for text, times in repeated.most_common(SHOWN) if times > 1],
        "first": texts[:SHOWN],
    }
    if training is not None:
        shared = overlaps(texts, [entry.text for entry in training.entries()])
        body["overlaps"] = len(shared)
        body["overlaps_told"] = overlaps_told(shared, len(texts), str(training.path))
    return body


def told(body: dict[str, Any]) -> str:
    """The same for a person."""
    how = "found out" if body["format_found_out"] else "as told"
    lines = [
        f"{body['file']}: {body['captions']} captions, format {body['format']} ({how})",
        f"sha256  {body['sha256']}",
        f"empty   {body['empty']} passed over",
    ]
    if body["images"]:
        lines.append(f"images  {body['images']}: `captions.per_image` says which caption of each, the first by default")
    if body["groups"]:
        lines.append("groups  " + ", ".join(f"{name} {number}" for name, number in body["groups"].items()))
    lines.append(f"repeat  {body['repeated']} repeat an earlier one; `captions.duplicates: drop` leaves them out")
    lines += [f"        {times} times: {text}" for text, times in body["most_repeated"]]
    if "overlaps" in body:
        lines.append(f"overlap {body['overlaps_told']}")
    return "\n".join([*lines, "first", *(f"        {text}" for text in body["first"])])
