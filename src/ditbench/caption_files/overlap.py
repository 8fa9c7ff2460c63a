"""Whether captions that judge a method were seen when it was fitted."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditbench.caption_files.choose import tidy, wording
from ditbench.caption_files.options import CaptionFile, selection_of, training_of
from ditbench.faults import Fault
from ditbench.records import Clock, read_record, write_record

if TYPE_CHECKING:
    from ditbench.config import CaptionsConfig
    from ditbench.worlds import World

# Overlaps that are told in full.
TOLD = 5


def overlaps(captions: Iterable[str], training: Iterable[str]) -> list[tuple[str, str]]:
    """Captions with the training caption of the same wording: capitals, spaces and punctuation make no difference."""
    trained: dict[str, str] = {}
    for text in map(tidy, training):
        if text:
            trained.setdefault(wording(text), text)
    return [(text, trained[wording(text)]) for text in captions if wording(text) in trained]


def told(shared: Sequence[tuple[str, str]], count: int, training: str) -> str:
    """How many overlap, and the first of them."""
    first = "; ".join(repr(text) if text == other else f"{text!r} as {other!r}" for text, other in shared[:TOLD])
    more = f" (the first: {first})" if shared else ""
    return f"{len(shared)} of {count} captions are among the training captions of {training}{more}"


def _shared(texts: Sequence[str], training: Sequence[str], name: str, rule: str) -> list[tuple[str, str]]:
    """What overlaps; a Fault where anything does and `rule` is not "report"."""
    shared = overlaps(texts, training)
    if shared and rule != "report":
        raise Fault(
            f"captions.train: {told(shared, len(texts), name)}; name other captions, or set `captions.overlap` to "
            "drop (leave those out) or report (keep them, and say so)"
        )
    return shared


def refuse_overlap(captions: CaptionsConfig, count: int, worlds: Iterable[World]) -> None:
    """A Fault, before a run starts, where its captions were trained with and its settings do not allow that.

    The job that writes the comparison would fail too, but a run goes on with what does not need a failed job.
    """
    train, selection = training_of(captions), selection_of(captions)
    if train is None or captions.overlap != "refuse":
        return
    training = [entry.text for entry in train.entries()]
    if selection is not None:
        _shared([entry.text for entry in selection.take(count).entries], training, train.path.name, captions.overlap)
        return
    for world in worlds:
        _shared(world.draw_captions(count, captions.seed), training, train.path.name, captions.overlap)


def write_overlap(captions: Path, train: CaptionFile, rule: str, out: Path, code: str | None = None) -> None:
    """Compares a caption set with training captions; a Fault where they overlap and `rule` is not "report"."""
    clock = Clock()
    record = read_record(captions, "captions")
    texts = [entry["text"] for entry in record["captions"]]
    with clock("compute"):
        training = [entry.text for entry in train.entries()]
        shared = _shared(texts, training, train.path.name, rule)
    print(told(shared, len(texts), train.path.name), file=sys.stderr)
    body: dict[str, Any] = {
        "captions": {"name": record["name"], "sha256": record["sha256"], "count": len(texts)},
        "training": {
            "name": train.path.name,
            "sha256": train.place.sha256,
            "format": train.kind().name,
            "count": len(training),
        },
        "rule": rule,
        "overlaps": len(shared),
        "first": [{"caption": text, "training": other} for text, other in shared[:TOLD]],
    }
    write_record(out, "overlap", body, timings=clock.seconds, code=code)
