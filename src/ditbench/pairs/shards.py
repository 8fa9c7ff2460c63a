"""Webdataset shards: tar files whose members of one key are a pair (a.jpg and a.txt, or a.json with the caption)."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ditbench.faults import Fault

if TYPE_CHECKING:
    from ditbench.pairs.places import Pair

# Where a .json keeps its caption, in the order in which they are looked for.
CAPTIONS = ("caption", "text", "prompt")


class _Piece(NamedTuple):
    """Bytes of a shard."""

    start: int
    size: int


class Shards:
    """Pairs in the order of shards and members. Shards are read at places, never unpacked."""

    def __init__(self, files: list[Path]) -> None:
        self._pairs: list[tuple[Path, str, _Piece, _Piece, bool]] = []
        for file in files:
            self._pairs += _pairs_of(file)

    def __len__(self) -> int:
        return len(self._pairs)

    def at(self, number: int) -> Pair:
        from ditbench.pairs.places import Pair
        from ditbench.pictures import picture

        file, key, image, text, in_json = self._pairs[number]
        with file.open("rb") as opened:
            opened.seek(image.start)
            pixels = opened.read(image.size)
            opened.seek(text.start)
            words = opened.read(text.size).decode("utf-8", errors="replace").strip()
        where = f"{file}, {key}"
        return Pair(picture(pixels, where), _caption(words, where) if in_json else words)


def _pairs_of(file: Path) -> list[tuple[Path, str, _Piece, _Piece, bool]]:
    from ditbench.pairs.places import IMAGES

    members: dict[str, dict[str, _Piece]] = {}
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                if member.isfile():
                    folder, _, name = member.name.rpartition("/")
                    key, _, ending = name.partition(".")  # as webdataset has it: the first dot divides
                    piece = _Piece(member.offset_data, member.size)
                    members.setdefault(f"{folder}/{key}", {})[f".{ending.lower()}"] = piece
    except (tarfile.TarError, OSError) as error:
        raise Fault(f"{file} cannot be read as a tar file without compression: {error}") from error
    found = []
    for key, pieces in members.items():
        image = next((pieces[ending] for ending in IMAGES if ending in pieces), None)
        text = pieces.get(".txt") or pieces.get(".json")
        if image is not None and text is not None:
            found.append((file, key.removeprefix("/"), image, text, ".txt" not in pieces))
    return found


def _caption(words: str, where: str) -> str:
    try:
        body = json.loads(words)
        return str(next(body[name] for name in CAPTIONS if name in body))
    except (ValueError, TypeError, StopIteration) as error:
        raise Fault(f"{where}.json has no caption: it must hold one of {', '.join(CAPTIONS)}") from error
