"""Caption sets and reference images: what every arm of a run is given and compared with."""

from __future__ import annotations

import hashlib
import sys
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ditbench.faults import Fault
from ditbench.records import Clock, write_record

if TYPE_CHECKING:
    from ditbench.worlds import World

SPLIT = "evaluation"
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


def read_caption_file(path: Path, count: int) -> list[str]:
    """The first `count` captions of a UTF-8 text file, one a line; empty lines are passed over.

    A caption may stand there several times, as in sets that people wrote; how many do is told on stderr.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise Fault(f"{path} is not UTF-8 text (line {line}); save it as UTF-8") from error
    except OSError as error:
        raise Fault(f"{path} cannot be read ({error.strerror})") from error
    # Only line feeds end a caption: splitlines would also break at exotic separators inside one.
    lines = [unicodedata.normalize("NFC", line.strip()) for line in text.replace("\r\n", "\n").split("\n")]
    filled = [line for line in lines if line]
    empty = len(lines) - len(filled) - (1 if lines[-1] == "" else 0)
    if len(filled) < count:
        raise Fault(f"{path} holds {len(filled)} captions, {count} are asked for; lower `images` or add lines")
    taken = filled[:count]
    repeated = count - len(set(taken))
    if empty or repeated:
        print(
            f"{path}: passed over {empty} empty lines; {repeated} of {count} captions repeat an earlier one and are "
            "drawn from other noise",
            file=sys.stderr,
        )
    return taken


def write_captions(
    world: World, name: str, count: int, seed: int, out: Path, file: Path | None = None, code: str | None = None
) -> None:
    """Writes the captions of a run: drawn from the world's grammar, or read from a file."""
    clock = Clock()
    with clock("compute"):
        texts = read_caption_file(file, count) if file else world.draw_captions(count, seed, SPLIT)
    if file:
        print(foreign(world, texts, file), end="", file=sys.stderr)
    body = {
        "world": world.name,
        "name": name,
        "split": "file" if file else SPLIT,
        "seed": seed,
        "count": len(texts),
        "sha256": hashlib.sha256("\n".join(texts).encode()).hexdigest(),
        "captions": [{"id": name, "text": text} for name, text in zip(caption_ids(texts), texts, strict=True)],
    }
    write_record(out, "captions", body, timings=clock.seconds, code=code)


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
