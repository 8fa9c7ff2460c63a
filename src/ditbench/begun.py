"""A shard while it is drawn: once a minute what is finished of it is kept, and a job that was stopped goes on there.

So a shard may be as long as suits the planning: few long jobs lose no more to a kill than many short ones. What is kept
lies in a hidden folder beside the shard, and goes when the shard is whole. A shard drawn in one go and one drawn with
stops are equal byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
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
        self._folder = out.with_name(f".{out.stem}.parts")
        captions = hashlib.sha256("\n".join(ids).encode()).hexdigest()
        # As it is read back from JSON.
        self._maker: dict[str, Any] = json.loads(json.dumps({**maker, "first": first, "captions": captions}))
        self._parts: list[Path] = []
        self._held: list[NDArray[np.uint8]] = []
        self._kept = 0
        self._go_on()
        self._told = time.monotonic()

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
        return join_shards(archive, self._parts)

    def forget(self) -> None:
        """Removes what was kept on the way."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _keep(self) -> None:
        import numpy as np

        assert self.trace is not None and self.costs is not None
        begin, images = self._kept, np.concatenate(self._held)
        archive = self._folder / f"{self.first + begin:05d}.zip"
        digest = write_shard(archive, images, self.ids[begin : begin + len(images)], self.first + begin)
        body = {"maker": self._maker, "begin": begin, "count": len(images), "file": archive.name, "sha256": digest}
        # All that was executed so far, not this part's: sums come out alike with stops and without.
        body |= {"trace": self.trace.summary(), "costs": self.costs.to_json(), "seconds": self.seconds}
        write_record(archive.with_suffix(".json"), "part", body)
        self._parts.append(archive)
        self._kept += len(images)
        self._held.clear()

    def _go_on(self) -> None:
        """Takes up what an earlier job kept, as far as it is whole and of the same making."""
        records = sorted(self._folder.glob("*.json"))
        for path in records:
            try:
                record = read_record(path, "part")
                archive = check_contents(path.with_name(record["file"]), record["sha256"], "it is drawn again")
            except Fault as fault:
                print(f"{fault}: going on from image {self.first + self._kept}", file=sys.stderr, flush=True)
                break
            if record["maker"] != self._maker or record["begin"] != self._kept:
                break
            self.trace, self.costs = Trace.from_summary(record["trace"]), Costs.from_json(record["costs"])
            self.seconds = record["seconds"]
            self._parts.append(archive)
            self._kept += record["count"]
        for path in records[len(self._parts) :]:
            path.unlink(missing_ok=True)
        if records and not self._parts:
            self.forget()
