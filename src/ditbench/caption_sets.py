"""Caption sets and reference images: what every arm of a run is given and compared with."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditbench.records import Clock, write_record

if TYPE_CHECKING:
    from ditbench.caption_files.options import Selection
    from ditbench.worlds import World

SPLIT = "evaluation"
TRAINING_SPLIT = "train"
# Reference images are drawn with a seed of their own: they must not be the very scenes that are generated.
REFERENCE_SEED = 1_000_003


def caption_id(text: str, occurrence: int = 1) -> str:
    """Twelve hex digits that name a caption in files and decide its starting noise; a repetition adds its number."""
    name = hashlib.sha256(text.encode()).hexdigest()[:12]
    return name if occurrence == 1 else f"{name}-{occurrence}"


def caption_ids(texts: Sequence[str]) -> list[str]:
    """A name for each caption, no two alike: a caption that stands in a set again has noise of its own."""
    seen: Counter[str] = Counter()
    ids = []
    for text in texts:
        seen[text] += 1
        ids.append(caption_id(text, seen[text]))
    return ids


def write_captions(
    world: World,
    name: str,
    count: int,
    seed: int,
    out: Path,
    selection: Selection | None = None,
    code: str | None = None,
    split: str = SPLIT,
) -> None:
    """Writes captions: drawn from a split of the world's grammar, or those that are selected from a file."""
    clock = Clock()
    with clock("compute"):
        if selection is None:
            entries = [{"text": text} for text in world.draw_captions(count, seed, split)]
            source: dict[str, Any] = {
                "name": world.name,
                "sha256": None,
                "format": "world",
                "found": count,
                "dropped": {},
            }
        else:
            entries, source = _from_file(selection, count)
        texts = [entry["text"] for entry in entries]
    if selection is not None:
        print(foreign(world, texts, selection.file.path), end="", file=sys.stderr)
    body = {
        "world": world.name,
        "name": name,
        "split": "file" if selection else split,
        "seed": seed,
        "count": len(texts),
        "sha256": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
        "source": source,
        "captions": [{"id": name, **entry} for name, entry in zip(caption_ids(texts), entries, strict=True)],
    }
    write_record(out, "captions", body, timings=clock.seconds, code=code)


def _from_file(selection: Selection, count: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The captions of a file with what it says of each, and where they come from; what was left out goes to stderr."""
    from ditbench.caption_files.choose import NOT_DRAWN

    chosen = selection.take(count)
    source = selection.source(chosen)
    left_out = [f"{number} ({reason})" for reason, number in chosen.dropped.items() if reason != NOT_DRAWN]
    said = [f"left out {', '.join(left_out)}"] if left_out else []
    if chosen.repeated:
        said.append(f"{chosen.repeated} of {count} captions repeat an earlier one and are drawn from other noise")
    if said:
        print(f"{selection.file.path} ({source['format']}): {'; '.join(said)}", file=sys.stderr)
    entries = [{k: v for k, v in entry._asdict().items() if v is not None} for entry in chosen.entries]
    return entries, source


def foreign(world: World, texts: Sequence[str], source: Path) -> str:
    """How many captions the world's grammar does not have, and what follows; nothing where it has all of them."""
    from ditbench.judges.registry import grammar_judges

    strange = [text for text in texts if not world.understands(text)]
    if not strange:
        return ""
    blind = grammar_judges(world.name)
    says = f"; {' and '.join(blind)} cannot judge such a set: leave it out of `judges`" if blind else ""
    return (
        f"{source}: {len(strange)} of {len(texts)} captions lie outside the grammar of {world.name}, "
        f"the first is {strange[0]!r}; it was not trained to draw them{says}\n"
    )


def write_references(world: World, count: int, out: Path, code: str | None = None) -> None:
    """Writes the world's real images as a shard, and its record."""
    from ditbench.storage import write_shard

    clock = Clock()
    with clock("compute"):
        images = world.references(count, REFERENCE_SEED)
    with clock("write"):
        digest = write_shard(out.with_suffix(".zip"), images, [f"reference{i}" for i in range(count)])
    body = {"world": world.name, "name": out.stem, "count": count, "sha256": digest, "source": f"seed {REFERENCE_SEED}"}
    write_record(out, "references", body, timings=clock.seconds, code=code)
