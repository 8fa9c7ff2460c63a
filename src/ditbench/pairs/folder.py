"""Images in a folder: their captions in text files beside them, or all in one metadata.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ditbench.faults import Fault

if TYPE_CHECKING:
    from ditbench.pairs.places import Pair

METADATA = "metadata.jsonl"


class Folder:
    """Pairs by their images' names."""

    def __init__(self, files: list[Path]) -> None:
        from ditbench.pairs.places import IMAGES

        lists = [file for file in files if file.name == METADATA]
        if lists:
            self._pairs: list[tuple[Path, str | None]] = [pair for file in lists for pair in _listed(file)]
            return
        there = set(files)
        images = [file for file in files if file.suffix.lower() in IMAGES]
        self._pairs = [(file, None) for file in images if file.with_suffix(".txt") in there]

    def __len__(self) -> int:
        return len(self._pairs)

    def at(self, number: int) -> Pair:
        from ditbench.pairs.places import Pair
        from ditbench.pictures import picture

        file, caption = self._pairs[number]
        if caption is None:
            caption = _text(file.with_suffix(".txt"))
        return Pair(picture(file.read_bytes(), file), caption)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise Fault(f"{file} cannot be read as a caption in UTF-8: {error}") from error


def _listed(file: Path) -> list[tuple[Path, str | None]]:
    found: list[tuple[Path, str | None]] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            body = json.loads(line)
            name, text = body["file_name"], body["text"]
        except (ValueError, KeyError, TypeError) as error:
            raise Fault(f'{file}, line {number}: must be {{"file_name": …, "text": …}}') from error
        path = file.parent / str(name)
        if not path.is_file():
            raise Fault(f"{file}, line {number}: there is no {path}")
        found.append((path, str(text)))
    return found
