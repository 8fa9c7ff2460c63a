"""Finds out what kind of source a path is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from ditbench.faults import Fault

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
FORMS = (
    "a folder of images with a .txt file of the same name beside each, or with a metadata.jsonl of lines "
    '{"file_name": …, "text": …}; a folder of webdataset shards (.tar); or parquet files with columns image and text'
)


class Pair(NamedTuple):
    """An image and what it shows."""

    image: Image
    caption: str


class PairSource(Protocol):
    """Numbered pairs."""

    def __len__(self) -> int:
        """How many there are."""

    def at(self, number: int) -> Pair:
        """One of them."""


def open_pairs(place: str | Path) -> PairSource:
    """The pairs at a path; a Fault where there are none, which says what there could be."""
    from ditbench.pairs.folder import Folder
    from ditbench.pairs.shards import Shards
    from ditbench.pairs.tables import Tables

    path = Path(place)
    if not path.exists():
        raise Fault(f"{path} does not exist; pairs to fine-tune on are {FORMS}")
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    shards = [file for file in files if file.suffix == ".tar"]
    tables = [file for file in files if file.suffix == ".parquet"]
    source = Shards(shards) if shards else Tables(tables) if tables else Folder(files)
    return _some(source, path)


def _some(source: PairSource, path: Path) -> PairSource:
    if not len(source):
        raise Fault(f"{path} holds no image with a caption; pairs to fine-tune on are {FORMS}")
    return source
