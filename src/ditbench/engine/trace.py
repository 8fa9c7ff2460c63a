"""What a run executed: the tokens computed at every site. Every MACs figure is computed from a trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ditbench.engine.layout import Layout, Shape
from ditbench.faults import Fault

Counts = NDArray[np.int64]

_SITES = ("computed", "squares", "ran", "whole")
_STEPS = ("entered", "selecting")


@dataclass
class Trace:
    """Sums over `samples`, the rows of the network's batch; with classifier-free guidance each branch is a row.

    At every site [step, branch]: `computed` tokens, the sum of their `squares` (each sample's count squared, which
    attention costs grow with; where tokens attend to more than themselves, what stands for it), how many samples `ran`
    it at all, and how many for their `whole` tokens. At every step:
    samples that `entered` the network, and the MACs of `selecting`, of all samples together. `noted` counts at every
    step what belongs to no branch (text projections, modulations), in samples. `cache_bytes` is the most that was kept
    from one step to the next, for one sample. `widths` are the shares of a branch's heads or channels that its tokens
    were computed by; 1 but where a method narrows branches. `spared` are MACs of linear layers at every site, of all
    samples together, that its tokens did without: the text's that were left out, and attention that was kept. They are
    negative where tokens attend that do not count as computed.
    """

    shape: Shape
    computed: Counts
    squares: Counts
    ran: Counts
    whole: Counts
    entered: Counts
    samples: int = 0
    noted: dict[str, Counts] = field(default_factory=dict)
    cache_bytes: float = 0.0
    selecting: Counts = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    widths: NDArray[np.float64] = field(default_factory=lambda: np.ones(0))
    spared: Counts = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __post_init__(self) -> None:
        if not len(self.selecting):
            self.selecting = np.zeros(self.shape.steps, dtype=np.int64)
        if not len(self.widths):
            self.widths = np.ones(self.shape.sites)
        if not len(self.spared):
            self.spared = np.zeros(self.shape.sites, dtype=np.int64)

    @classmethod
    def empty(cls, shape: Shape) -> Trace:
        sites: Any = {name: np.zeros(shape.sites, dtype=np.int64) for name in _SITES}
        return cls(shape, **sites, entered=np.zeros(shape.steps, dtype=np.int64))

    def record(
        self,
        step: int,
        branch: int,
        tokens: int,
        samples: int,
        width: float = 1.0,
        square: int | None = None,
        spared: int = 0,
        whole: bool = True,
    ) -> None:
        """Notes that `tokens` tokens of each of `samples` samples were computed at a site, by a share of its width.

        `square` stands for their number squared where they attend to more than themselves, or to nothing; `spared` MACs
        of linear layers were not needed for a sample. Without `whole` not even all tokens are the whole branch.
        """
        self._widen(step, branch, width)
        self.spared[step, branch] += spared * samples
        self.computed[step, branch] += tokens * samples
        self.squares[step, branch] += (tokens * tokens if square is None else square) * samples
        self.ran[step, branch] += samples
        if whole and tokens == self.shape.tokens and width == 1:
            self.whole[step, branch] += samples

    def _widen(self, step: int, branch: int, width: float) -> None:
        if self.ran[step, branch] and self.widths[step, branch] != width:
            raise Fault(
                f"step {step + 1} computes branch {branch} by one width for some samples and another for others"
            )
        self.widths[step, branch] = width

    @property
    def narrowed(self) -> bool:
        """Whether some branch was computed by some of its width."""
        return bool((self.widths != 1).any())

    def note(self, step: int, counts: Mapping[str, int]) -> None:
        """Counts what belongs to no branch."""
        for name, count in counts.items():
            self._noted(name)[step] += count

    def _noted(self, name: str) -> Counts:
        return self.noted.setdefault(name, np.zeros(self.shape.steps, dtype=np.int64))

    @property
    def noted_in_all(self) -> dict[str, int]:
        """What belongs to no branch, over all steps."""
        return {name: int(counts.sum()) for name, counts in self.noted.items()}

    def repeat(self, like: int, step: int) -> None:
        """Counts for `step` what was counted for the step `like`."""
        for counts in (
            *(getattr(self, name) for name in (*_SITES, *_STEPS)),
            *self.noted.values(),
            self.widths,
            self.spared,
        ):
            counts[step] = counts[like]

    def add(self, other: Trace) -> None:
        """Counts the runs of `other` as well."""
        if other.shape != self.shape:
            raise Fault(f"traces of different shapes cannot be added: {_said(self.shape)} and {_said(other.shape)}")
        for step, branch in np.argwhere((other.ran > 0) & (self.widths != other.widths)).tolist():
            self._widen(step, branch, float(other.widths[step, branch]))
        for name in (*_SITES, *_STEPS):
            getattr(self, name)[...] += getattr(other, name)
        self.spared += other.spared
        self.samples += other.samples
        for name, counts in other.noted.items():
            self._noted(name)[...] += counts
        self.cache_bytes = max(self.cache_bytes, other.cache_bytes)

    @property
    def shares(self) -> NDArray[np.float64]:
        """The mean share of tokens computed at every site; what was computed by half its width counts half."""
        return self.computed * self.widths / max(self.samples * self.shape.tokens, 1)

    @property
    def steps_run(self) -> int:
        """How many of the steps ran: a pipeline may begin in the middle of its sampler's steps, or be stopped."""
        return int((self.entered > 0).sum())

    @property
    def realised_ratio(self) -> float:
        """The share of token computations that was left out of the steps that ran."""
        ran = self.shares[self.entered > 0]
        return float(1 - ran.mean()) if ran.size else 0.0

    def summary(self) -> dict[str, Any]:
        return {
            "steps": self.shape.steps,
            "layout": self.shape.layout.to_json(),
            "tokens": self.shape.tokens,
            "samples": self.samples,
            **{name: getattr(self, name).tolist() for name in (*_SITES, *_STEPS)},
            "noted": {name: counts.tolist() for name, counts in sorted(self.noted.items())},
            "cache_bytes": self.cache_bytes,
            **({"widths": self.widths.tolist()} if self.narrowed else {}),
            **({"spared": self.spared.tolist()} if self.spared.any() else {}),
        }

    @classmethod
    def from_summary(cls, body: dict[str, Any]) -> Trace:
        shape = Shape(body["steps"], Layout.from_json(body["layout"]), body["tokens"])
        # Records from before there was anything to select by have no `selecting`.
        counts: Any = {name: np.asarray(body.get(name, []), dtype=np.int64) for name in (*_SITES, *_STEPS)}
        noted = {name: np.asarray(values, dtype=np.int64) for name, values in body["noted"].items()}
        rest: Any = {"samples": body["samples"], "noted": noted, "cache_bytes": body["cache_bytes"]}
        rest["widths"] = np.asarray(body.get("widths", []), dtype=np.float64)
        rest["spared"] = np.asarray(body.get("spared", []), dtype=np.int64)
        return cls(shape, **counts, **rest)


def _said(shape: Shape) -> str:
    return f"{shape.steps} steps, {len(shape.layout)} branches, {shape.tokens} tokens"
