"""Plain text: a caption a line."""

from __future__ import annotations

from ditbench.caption_files.formats.base import Entry, Format
from ditbench.caption_files.place import Place, read_lines


class Text(Format):
    """UTF-8, empty lines passed over."""

    name = "text"
    summary = "UTF-8 text, a caption a line"

    @classmethod
    def fits(cls, place: Place) -> bool:
        return False  # what nothing else fits

    @classmethod
    def read(cls, place: Place, column: str | None = None) -> list[Entry]:
        return [Entry(line) for line in read_lines(place.path)]
