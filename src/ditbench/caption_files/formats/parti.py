"""PartiPrompts: a table with tabs, whose columns are Prompt, Category, Challenge and Note."""

from __future__ import annotations

from ditbench.caption_files.formats.base import Entry, Format
from ditbench.caption_files.place import Place, read_lines
from ditbench.faults import Fault
from ditbench.mistakes import shown

_PROMPT, _CATEGORY = "Prompt", "Category"


class Parti(Format):
    """Prompts in the file's order; `group` is the category."""

    name = "parti"
    summary = "PartiPrompts' tsv: columns Prompt and Category, others passed over"

    @classmethod
    def fits(cls, place: Place) -> bool:
        return {_PROMPT, _CATEGORY} <= set(place.first_line.strip().split("\t"))

    @classmethod
    def read(cls, place: Place, column: str | None = None) -> list[Entry]:
        # Not csv: the quotes in this file are the prompts' own, one of which begins with some.
        heads, *rows = [line.split("\t") for line in read_lines(place.path)] or [[""]]
        missing = [name for name in (_PROMPT, _CATEGORY) if name not in heads]
        if missing:
            raise Fault(f"{place}: no column {missing[0]} in the first line; found {shown(heads)}")
        prompt, category = heads.index(_PROMPT), heads.index(_CATEGORY)
        entries = []
        for number, row in enumerate(rows, start=2):
            if row == [""]:
                entries.append(Entry(""))
            elif len(row) != len(heads):
                raise Fault(f"{place}: line {number} has {len(row)} columns, the first line names {len(heads)}")
            else:
                entries.append(Entry(row[prompt], group=row[category].strip() or None))
        return entries
