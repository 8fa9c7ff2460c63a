"""A file (or folder) of captions as the formats see it: its first bytes to know it by, its whole to read."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ditbench.faults import Fault

# Enough of a file to know its format by: the workflow asks for that each time it plans.
HEAD = 65_536


@dataclass(frozen=True)
class Place:
    """Where captions are."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def suffix(self) -> str:
        return self.path.suffix.lower()

    @property
    def is_folder(self) -> bool:
        return os.path.isdir(self.path)  # unlike pathlib's, for names that can be no folder's too

    @cached_property
    def parts(self) -> list[Path]:
        """The files: itself, or the .json files of a folder by name."""
        return sorted(self.path.glob("*.json")) if self.is_folder else [self.path]

    @cached_property
    def head(self) -> bytes:
        """The first bytes of a file, without a byte order mark; of a folder none."""
        if self.is_folder:
            return b""
        try:
            with self.path.open("rb") as file:
                return file.read(HEAD).removeprefix(b"\xef\xbb\xbf")
        except OSError as error:
            raise Fault(f"{self.path} cannot be read ({error.strerror})") from error

    @cached_property
    def first_line(self) -> str:
        """The first line that is not empty, as far as `head` holds it."""
        return next((line.decode(errors="replace") for line in self.head.splitlines() if line.strip()), "")

    @cached_property
    def sha256(self) -> str:
        """The digest of a file's bytes; of a folder, over the names and digests of its parts."""
        try:
            digests = [hashlib.sha256(part.read_bytes()).hexdigest() for part in self.parts]
        except OSError as error:
            raise Fault(f"{self.path} cannot be read ({error.strerror})") from error
        if not self.is_folder:
            return digests[0]
        lines = [f"{part.name} {digest}\n" for part, digest in zip(self.parts, digests, strict=True)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_text(path: Path) -> str:
    """A UTF-8 text."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise Fault(f"{path} is not UTF-8 text (line {line}); save it as UTF-8") from error
    except OSError as error:
        raise Fault(f"{path} cannot be read ({error.strerror})") from error


def read_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 text; the one that a last line feed begins is none."""
    # Only line ends of files end a line: splitlines would also break at exotic separators inside a caption.
    lines = read_text(path).split("\n")
    return lines[:-1] if lines[-1] == "" else lines


def read_json(path: Path) -> Any:
    """What a JSON file holds."""
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise Fault(f"{path} is not JSON ({error})") from error
    except RecursionError as error:
        raise Fault(f"{path} is not JSON of captions (it is nested too deeply)") from error
