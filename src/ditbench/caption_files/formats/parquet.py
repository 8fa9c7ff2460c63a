"""Parquet: a column of texts, or one of lists where several captions describe the image of a row."""

from __future__ import annotations

from typing import Any

from ditbench.caption_files.formats.base import Entry, Format
from ditbench.caption_files.place import Place
from ditbench.faults import Fault
from ditbench.mistakes import possible

_USUAL = ("caption", "captions", "text", "prompt")


class Parquet(Format):
    """One file; the column is `captions.column`, or the one that is meant beyond doubt."""

    name = "parquet"
    summary = "a parquet file: a column of texts or of lists of texts"
    images = True
    columns = True

    @classmethod
    def fits(cls, place: Place) -> bool:
        return place.head[:4] == b"PAR1"

    @classmethod
    def read(cls, place: Place, column: str | None = None) -> list[Entry]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            schema = pq.read_schema(place.path)
            name = _column(place, schema, column)
            values = pq.read_table(place.path, columns=[name]).column(0).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise Fault(f"{place} cannot be read as parquet ({' '.join(str(error).split())})") from error
        if not _is_list(schema.field(name).type):
            return [Entry(text or "") for text in values]
        return [Entry(text or "", row) for row, texts in enumerate(values) for text in texts or [None]]


def _is_text(kind: Any) -> bool:
    import pyarrow.types as kinds

    return bool(kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind))


def _is_list(kind: Any) -> bool:
    import pyarrow.types as kinds

    return bool(kinds.is_list(kind) or kinds.is_large_list(kind)) and _is_text(kind.value_type)


def _column(place: Place, schema: Any, column: str | None) -> str:
    """The name of the column that captions stand in."""
    fitting = [field.name for field in schema if _is_text(field.type) or _is_list(field.type)]
    if column is not None:
        if column not in schema.names:
            raise Fault(f"{place}: no column {column!r}{possible(column, schema.names)}")
        if column not in fitting:
            raise Fault(f"{place}: column {column!r} holds {schema.field(column).type}, not texts")
        return column
    usual = [name for name in fitting if name.lower() in _USUAL]
    for names in (fitting, usual):
        if len(names) == 1:
            return names[0]
    raise Fault(
        f"{place}: say which column holds the captions, as `captions.column`. Possible: {', '.join(fitting) or 'none'}"
    )
