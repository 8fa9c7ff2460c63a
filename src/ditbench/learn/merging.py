"""The thresholds of SDTM*: as much is merged over the training captions as by SDTM's ratio, in each of its stages.

Priorities are noted while training captions are sampled by the ratio, and the first threshold of a stage is the one
that as many of them pass as the ratio merges. Merging changes the priorities (what is merged is more alike afterwards),
so what the thresholds themselves merge is watched, and each is halved in on until that is what the ratio merges.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from ditbench.faults import Fault
from ditbench.methods.sdtm import SDTM, Matching

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Generator, Tensor

    from ditbench.engine.layout import Shape
    from ditbench.learn.lesson import Lesson

ROUNDS = 9
NEAR = 0.02  # how far what a stage merges may be from what the ratio merges in it


def learn(lesson: Lesson) -> dict[str, Any]:
    """The two thresholds, the shares that they and the ratio merge in each stage, and leave out of all steps."""
    method = lesson.method
    if not isinstance(method, SDTM):
        raise Fault(f"{method.name} has no thresholds of merging")
    by_ratio = _noting(method, adjusting="ratio", counting="image")
    trace, _ = lesson.run(by_ratio)
    left_out = trace.realised_ratio
    if not by_ratio.notes.priorities[0] and not by_ratio.notes.priorities[1]:
        raise Fault(f"ratio: {method.ratio:g} merges nothing, so no threshold can be fitted to it")
    wanted = by_ratio.notes.means
    aims = [share if fits else None for share, fits in zip(wanted, method.fits, strict=True)]
    stages = [
        _Search(share, np.concatenate(noted) if noted else None)
        for share, noted in zip(wanted, by_ratio.notes.priorities, strict=True)
    ]
    tried: list[Tried] = []
    for _ in range(ROUNDS):
        own = _noting(method, found={"thresholds": [stage.threshold for stage in stages]})
        reached = lesson.run(own)[0].realised_ratio
        tried.append(Tried([stage.threshold for stage in stages], own.notes.means, reached))
        told = " and ".join(
            f"{stage.threshold:.4f} ({share:.1%}, the ratio {aim:.1%})"
            for stage, share, aim in zip(stages, own.notes.means, wanted, strict=True)
        )
        lesson.say(f"thresholds {told} leave out {reached:.1%} of all tokens, the ratio {left_out:.1%}")
        if max(tried[-1].off(aims)) <= NEAR:
            break
        for stage, share, off in zip(stages, own.notes.means, tried[-1].off(aims), strict=True):
            if off > NEAR:
                stage.saw(share)
    best = min(tried, key=lambda one: max(one.off(aims)))
    return {
        "thresholds": best.thresholds,
        "merged": best.merged,
        "merged_by_ratio": wanted,
        "left_out": best.left_out,
        "left_out_by_ratio": left_out,
    }


class Tried(NamedTuple):
    """Two thresholds, the share that each merged in its stage, and that of all tokens that was left out."""

    thresholds: list[float]
    merged: list[float]
    left_out: float

    def off(self, aims: list[float | None]) -> list[float]:
        """How far each stage is from the share it is to merge, as a share of that; 0 where its threshold was given."""
        return [
            0.0 if aim is None else abs(own - aim) / aim if aim else own
            for own, aim in zip(self.merged, aims, strict=True)
        ]


@dataclass
class Notes:
    """For each stage the priorities of its windows or tokens, and the shares of them that were merged."""

    priorities: tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]] = field(default_factory=lambda: ([], []))
    merged: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))

    @property
    def means(self) -> list[float]:
        """Of each stage the mean share that was merged; 0 for one without any."""
        return [float(np.mean(merged)) if merged else 0.0 for merged in self.merged]


@dataclass(frozen=True)
class _Noting(SDTM):
    """SDTM, watched."""

    name: ClassVar[str] = "sdtm, watched"
    notes: Notes = field(kw_only=True, default_factory=Notes)

    def matching(self, shape: Shape, generator: Generator) -> Matching:
        return _NotingMatching(self, shape, generator, self.notes)


class _NotingMatching(Matching):
    """Keeps what it decides by."""

    def __init__(self, method: SDTM, shape: Shape, generator: Generator, notes: Notes) -> None:
        super().__init__(method, shape, generator)
        self._notes = notes

    def note(self, stage: int, priority: Tensor, merged: int) -> None:
        self._notes.priorities[stage].append(priority.float().flatten().cpu().numpy())
        self._notes.merged[stage].append(merged / priority.shape[1])


def _noting(method: SDTM, **changes: Any) -> _Noting:
    knobs = {name: getattr(method, name) for name in method.knobs()}
    found = changes.pop("found", None)
    return replace(_Noting(**{**knobs, **changes}), found=found)


class _Search:
    """Of one stage: the threshold to try, between one that merges too much and one that merges too little."""

    def __init__(self, share: float, priorities: NDArray[np.float32] | None) -> None:
        self._share, self._priorities = share, priorities
        self._low: float | None = None
        self._high: float | None = None
        # A stage without any merges nothing.
        nothing = float(np.finfo(np.float32).max)
        self.threshold = nothing if priorities is None else float(np.quantile(priorities, 1 - share))

    def saw(self, merged: float) -> None:
        """How much the threshold has merged."""
        if self._priorities is None:
            return
        if merged > self._share:
            self._low = self.threshold
        else:
            self._high = self.threshold
        spread = float(np.std(self._priorities))
        if self._low is None or self._high is None:
            self.threshold += spread / 2 if self._high is None else -spread / 2
        else:
            self.threshold = (self._low + self._high) / 2
