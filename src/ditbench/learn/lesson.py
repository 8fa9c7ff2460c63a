"""What a learner works with: a method, a loaded world, and training captions."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditbench.faults import Fault
from ditbench.patience import progress
from ditbench.records import SEAL, seal
from ditbench.storage import replacing

if TYPE_CHECKING:
    from ditbench.engine.ledger import Bill
    from ditbench.engine.trace import Trace
    from ditbench.generate import Sampler, Texts
    from ditbench.learn.real import RealImages
    from ditbench.methods import Method

# Learning draws from noise of its own: no evaluation has this seed by default.
SEED = 2_000_003


class Notebook:
    """What a learner has found out so far, kept in a file: a learner that is stopped goes on from there."""

    def __init__(self, path: Path, of: str) -> None:
        self.path, self._of = path, of
        body: Any = {}
        if path.exists():
            try:
                body = json.loads(path.read_text(encoding="utf-8"))
                # A number that has changed on a disk would be learned from like any other.
                whole = body.pop(SEAL, None) == seal(body)
            except (OSError, ValueError, AttributeError, TypeError):
                whole = False
            if not whole:
                print(f"ditbench: {path} is damaged, so that learning begins anew", file=sys.stderr, flush=True)
                body = {}
        self._kept: dict[str, Any] = body["kept"] if body.get("of") == of else {}

    def once(self, name: str, work: Callable[[], Any]) -> Any:
        """The answer of `work`, which is done only where it has not been done before."""
        if name not in self._kept:
            self.note(name, work())
        return self._kept[name]

    def recall(self, name: str) -> Any:
        """What was last noted under a name; None if nothing was."""
        return self._kept.get(name)

    def note(self, name: str, value: Any) -> None:
        """Keeps a value, instead of the last one of that name."""
        self._kept[name] = value
        progress()
        if int(os.environ.get("RANK", "0")):
            return  # of several processes one keeps the file
        body = {"of": self._of, "kept": self._kept}
        with replacing(self.path) as partial:
            partial.write_text(json.dumps({**body, SEAL: seal(body)}), encoding="utf-8")

    def forget(self) -> None:
        """Takes the file away: what was learned is written."""
        self.path.unlink(missing_ok=True)


@dataclass
class Lesson:
    """A method that is to be fitted, and what it is fitted on."""

    method: Method
    spec: Mapping[str, Any]
    sampler: Sampler
    texts: Texts
    batch: int
    notebook: Notebook
    # Where networks that judges look through are, by their keys in a configuration.
    judge_places: Mapping[str, str] = field(default_factory=dict)
    # Where images with captions are that networks are fine-tuned on; None: the world's own.
    pairs: str | None = None
    # What real images a search may compare with; None: the world's own, where it has any.
    real_images: RealImages | None = None
    # What else results hang on: the captions and the code.
    stamp: str = ""

    @property
    def label(self) -> str:
        """Whose lesson, for messages."""
        return f"{self.spec['arm']} in {self.spec['world']}"

    def of_some(self, captions: int) -> Lesson:
        """The lesson with its first training captions; 0: with all of them."""
        there = len(self.texts.ids)
        if captions > there:
            raise Fault(
                f"captions: {captions} of {there} training captions cannot be; ask for fewer, or make "
                f"{captions} of them with learning.captions: {captions}"
            )
        return replace(self, texts=self.texts.part(0, captions)) if captions else self

    def say(self, text: str) -> None:
        """Tells how far learning has come."""
        if not int(os.environ.get("RANK", "0")):
            print(f"{self.label}: {text}", file=sys.stderr, flush=True)

    def batches(self) -> list[Texts]:
        """The training captions, as many at once as the run draws."""
        count = len(self.texts.ids)
        return [self.texts.part(first, first + self.batch) for first in range(0, count, self.batch)]

    def run(self, method: Method, batches: list[Texts] | None = None) -> tuple[Trace, Bill]:
        """What a method executes on the training captions, or on some of them, and what that costs an image."""
        from ditbench.engine.ledger import bill

        ran: Trace | None = None
        for part in batches or self.batches():
            _, trace = self.sampler.run(method, self.spec["steps"], SEED, part)
            if ran is None:
                ran = trace
            else:
                ran.add(trace)
        assert ran is not None and self.sampler.costs is not None
        return ran, bill(ran, self.sampler.costs)
