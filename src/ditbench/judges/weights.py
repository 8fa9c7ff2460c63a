"""Weights that a judge needs and ditbench does not ship: where they are, and what to say where they are not.

Nothing is ever downloaded. A configuration names places under `judge_weights`: a path, or a repository of the hub
(`owner/name`, `owner/name:file`) that is in the hub's cache. What it does not name is looked for in the caches of the
hub and of torch on this machine.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ditbench.faults import Fault

_SAMPLE, _PLACES = 1 << 16, 16
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[\w./-]+)?")


@dataclass(frozen=True)
class Weights:
    """A file, or a folder, that a judge reads. `key` is its name under `judge_weights`.

    `hub` is the repository that offers it on the hub, and `file` the file in it (or one that a whole snapshot has).
    """

    key: str
    what: str  # "clean-fid's Inception, inception-2015-12-05.pt"
    offered: str  # where its owner offers it
    hub: str | None = None
    file: str | None = None
    folder: bool = False
    torch_hub: str | None = None  # its name among the checkpoints that torch has downloaded

    def find(self, places: Mapping[str, str]) -> Path | None:
        """Where it is on this machine; None where nobody says and the hub's cache has none."""
        if given := places.get(self.key):
            path = Path(given).expanduser()
            if path.is_dir() if self.folder else path.is_file():
                return path
            if HUB_ID.fullmatch(given) is not None:
                return self._of_hub(given)
            wanted = "folder" if self.folder else "file"
            raise Fault(f"judge_weights.{self.key}: there is no {wanted} {given}; it must be {self.what}")
        return self._cached()

    def _of_hub(self, given: str) -> Path:
        """A file of the hub's cache by `owner/name` or `owner/name:file`; a Fault that says how to get it."""
        name, _, file = given.partition(":")
        file = file or self.file or ""
        if not file:
            raise Fault(
                f"judge_weights.{self.key}: there is no file {given}; of a repository of the hub say which file it is, "
                f"{name}:FILE, or give a path; it must be {self.what}"
            )
        if (path := self._in_hub(name, file)) is None:
            raise Fault(
                f"judge_weights.{self.key}: there is no file {given}, nor is {file} of {name} in the hub's cache on "
                f"this machine; if it is offered there, `hf download {name} {file}` gets it; it must be {self.what}"
            )
        return path

    def need(self, places: Mapping[str, str], judge: str) -> Path:
        """Where it is; a Fault that says what is missing where it is not."""
        path = self.find(places)
        if path is None:
            raise Fault(
                f"judge {judge} needs {self.what}, which is not on this machine; its owner offers it at "
                f"{self.offered}; give its place as `judge_weights: {{{self.key}: PATH}}`, or leave {judge} out of "
                "`judges`"
            )
        return path

    def _cached(self) -> Path | None:
        if self.torch_hub is not None:
            home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "torch"
            path = Path(home).expanduser() / "hub" / "checkpoints" / self.torch_hub
            return path if path.is_file() else None
        return None if self.hub is None or self.file is None else self._in_hub(self.hub, self.file)

    def _in_hub(self, name: str, file: str) -> Path | None:
        """A file of a repository, or the folder of the whole snapshot, where the hub's cache has it."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(name, file)
        if not isinstance(found, str):
            return None
        return Path(found).parents[file.count("/")] if self.folder else Path(found)


def identity(path: Path) -> str:
    """Sixteen hex digits that tell a file from others: of its size, and of samples from all over it.

    Whole checkpoints of gigabytes would take longer to read than to use.
    """
    size = path.stat().st_size
    digest = hashlib.sha256(f"{size}".encode())
    with path.open("rb") as stream:
        for number in range(_PLACES):
            stream.seek(number * max(0, size - _SAMPLE) // max(_PLACES - 1, 1))
            digest.update(stream.read(_SAMPLE))
    return digest.hexdigest()[:16]


@contextmanager
def reading(judge: str, weights: Weights, place: Path) -> Iterator[None]:
    """Within the context, whatever goes wrong is that the file is not what it should be."""
    try:
        yield
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise Fault(f"judge {judge}: {place} is not {weights.what} ({lines[0]})") from error
