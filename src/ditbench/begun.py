"""A shard while it is drawn: once a minute what is finished of it is kept, and a job that was stopped goes on there.

So a shard may be as long as suits the planning: few long jobs lose no more to a kill than many short ones. What is kept
lies in a hidden folder beside the shard, and goes when the shard is whole. A shard drawn in one go and one drawn with
stops are equal byte for byte. Two jobs on one shard, as when a run is started again while a job of the one before lives
on elsewhere, cost each other time at most: parts have names of their own, and are looked at again when they are joined.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditbench.engine.costs import Costs
from ditbench.engine.trace import Trace
from ditbench.faults import Fault
from ditbench.records import read_record, write_record
from ditbench.storage import check_contents, join_shards, write_shard

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KEEP_SECONDS = 60.0


@dataclass(frozen=True)
class _Part:
    """Images that are kept in an archive of their own."""

    archive: Path
    sha256: str
    count: int


class Begun:
    """The images of a shard so far, what was executed for them, and what they took.

    `maker` is whatever decides the images besides their captions: what an earlier job kept is gone on from only where
    it is the same.
    """

    def __init__(self, out: Path, first: int, ids: Sequence[str], maker: Mapping[str, Any]) -> None:
        self.first, self.ids = first, list(ids)
        self.trace: Trace | None = None
        self.costs: Costs | None = None
        self.seconds = 0.0
        whole = json.dumps([dict(maker), first, self.ids], sort_keys=True, default=str)
        self._maker = hashlib.sha256(whole.encode()).hexdigest()
        self._out = out
        self._folder = out.with_name(f".{out.stem}.{self._maker[:12]}.parts")
        self._parts: list[_Part] = []
        self._held: list[NDArray[np.uint8]] = []
        self._go_on()
        self.earlier = {"images": self.done, "seconds": self.seconds}  # of jobs before this one
        self._told = time.monotonic()

    @property
    def _kept(self) -> int:
        return sum(part.count for part in self._parts)

    @property
    def done(self) -> int:
        """How many images there are."""
        return self._kept + sum(map(len, self._held))

    def add(self, images: NDArray[np.uint8], trace: Trace, costs: Costs, seconds: float) -> None:
        """Takes the next images, with what was executed for them and how long it took."""
        self._held.append(images)
        if self.trace is None:
            self.trace = trace
        else:
            self.trace.add(trace)
        self.costs = costs
        self.seconds += seconds
        if time.monotonic() - self._told >= KEEP_SECONDS and self.done < len(self.ids):
            self._keep()
            self._told = time.monotonic()

    def write(self, archive: Path) -> str:
        """Writes the whole shard; returns its file's sha256."""
        import numpy as np

        if not self._parts:
            return write_shard(archive, np.concatenate(self._held), self.ids, self.first)
        if self._held:
            self._keep()
        assert self._kept == len(self.ids)
        for part in self._parts:
            check_contents(part.archive, part.sha256, "another job was at work on the same images; run again")
        return join_shards(archive, [part.archive for part in self._parts])

    def forget(self) -> None:
        """Removes what was kept on the way, by whomever: the shard is whole."""
        for folder in self._out.parent.glob(f".{self._out.stem}.*.parts"):
            shutil.rmtree(folder, ignore_errors=True)

    def _keep(self) -> None:
        import numpy as np

        assert self.trace is not None and self.costs is not None
        begin, images = self._kept, np.concatenate(self._held)
        archive = self._folder / f"{begin:08d}-{uuid.uuid4().hex[:8]}.zip"
        digest = write_shard(archive, images, self.ids[begin : begin + len(images)], self.first + begin)
        body = {"maker": self._maker, "begin": begin, "count": len(images), "file": archive.name, "sha256": digest}
        # All that was executed so far, not this part's: sums come out alike with stops and without.
        body |= {"trace": self.trace.summary(), "costs": self.costs.to_json(), "seconds": self.seconds}
        write_record(archive.with_suffix(".json"), "part", body)
        self._parts.append(_Part(archive, digest, len(images)))
        self._held.clear()

    def _go_on(self) -> None:
        """Takes up what an earlier job kept, as far as it is whole and of the same making."""
        for path in sorted(self._folder.glob("*.json")):
            try:
                record = read_record(path, "part")
                if record["maker"] != self._maker or record["begin"] != self._kept:
                    continue  # another job's, of other bounds
                archive = check_contents(path.with_name(record["file"]), record["sha256"], "it is drawn again")
                trace, costs = Trace.from_summary(record["trace"]), Costs.from_json(record["costs"])
                part = _Part(archive, str(record["sha256"]), int(record["count"]))
                seconds = float(record["seconds"])
            except (Fault, OSError, LookupError, TypeError, ValueError) as error:
                said = f"{path.name} of what was kept is passed over ({type(error).__name__}: {error})"
                print(f"{self._out}: {said}", file=sys.stderr, flush=True)
                continue
            self.trace, self.costs, self.seconds = trace, costs, seconds
            self._parts.append(part)
