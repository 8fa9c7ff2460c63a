"""Parquet files with a column of images, as bytes or as the hub's datasets have them, and a column of captions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditbench.faults import Fault

if TYPE_CHECKING:
    from ditbench.pairs.places import Pair

IMAGE_COLUMNS, TEXT_COLUMNS = ("image", "jpg", "png", "img"), ("text", "caption", "prompt")


class Tables:
    """Pairs in the order of files and rows; one group of rows is held at a time."""

    def __init__(self, files: list[Path]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._groups: list[tuple[Any, int, int, tuple[str, str], Path]] = []
        self._count, self._held = 0, (-1, None)
        for file in files:
            try:
                table = pq.ParquetFile(file)
            except (pa.ArrowException, OSError) as error:
                raise Fault(f"{file} cannot be read as parquet: {error}") from error
            columns = tuple(_column(file, table.schema_arrow.names, names) for names in (IMAGE_COLUMNS, TEXT_COLUMNS))
            for group in range(table.num_row_groups):
                self._groups.append((table, group, self._count, columns, file))  # type: ignore[arg-type]
                self._count += table.metadata.row_group(group).num_rows

    def __len__(self) -> int:
        return self._count

    def at(self, number: int) -> Pair:
        from ditbench.pairs.places import Pair
        from ditbench.pictures import picture

        place = next(n for n in reversed(range(len(self._groups))) if self._groups[n][2] <= number)
        table, group, first, columns, file = self._groups[place]
        if self._held[0] != place:
            self._held = (place, table.read_row_group(group, columns=list(columns)))
        held: Any = self._held[1]
        image, caption = (held.column(name)[number - first].as_py() for name in columns)
        pixels = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(pixels, bytes):
            raise Fault(f"{file}, row {number - first}: column {columns[0]} holds no bytes of an image")
        return Pair(picture(pixels, f"{file}, row {number - first}"), str(caption or ""))


def _column(file: Path, there: list[str], names: tuple[str, ...]) -> str:
    found = next((name for name in names if name in there), None)
    if found is None:
        raise Fault(f"{file} has columns {', '.join(there)}; one of {', '.join(names)} is needed")
    return found
