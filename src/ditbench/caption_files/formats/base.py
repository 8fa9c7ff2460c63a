"""What a format of caption files is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from ditbench.caption_files.place import Place


class Entry(NamedTuple):
    """A caption as a file has it: which image it describes and which part of the set it belongs to, where it says so.

    An empty text is a caption that is missing there; whoever chooses counts and passes over it.
    """

    text: str
    image: int | str | None = None
    group: str | None = None


class Format(ABC):
    """A format of caption files. A new one is a file in this folder with one such class."""

    name: ClassVar[str]  # as `captions.format` has it
    summary: ClassVar[str]
    images: ClassVar[bool] = False  # several captions may describe one image
    columns: ClassVar[bool] = False  # captions stand in a column that has a name
    folders: ClassVar[bool] = False  # a folder of such files is a set too

    @classmethod
    @abstractmethod
    def fits(cls, place: Place) -> bool:
        """Whether a file seems to be of this format, from its name and its first bytes; no two formats fit one."""

    @classmethod
    @abstractmethod
    def read(cls, place: Place, column: str | None = None) -> list[Entry]:
        """All captions in their order; a Fault says where the file is not as the format wants it."""
