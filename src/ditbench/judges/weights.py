"""Weights that a judge needs and ditbench does not ship: where they are, and what to say where they are not.

Nothing is ever downloaded. A configuration names places under `judge_weights`; what it does not name is looked for
in the caches of the hub and of torch on this machine.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ditbench.faults import Fault

_SAMPLE, _PLACES = 1 << 16, 16


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
            if not (path.is_dir() if self.folder else path.is_file()):
                wanted = "folder" if self.folder else "file"
                raise Fault(f"judge_weights.{self.key}: there is no {wanted} {given}; it must be {self.what}")
            return path
        return self._cached()

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
        if self.hub is None or self.file is None:
            return None
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.hub, self.file)
        if not isinstance(found, str):
            return None
        return Path(found).parents[self.file.count("/")] if self.folder else Path(found)


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
