"""SDTM: structure-then-detail token merging (CVPR 2025, arXiv 2505.11707)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from ditbench.engine.fills import BlendGroups, Fill, Pass
from ditbench.engine.layout import Shape
from ditbench.engine.plan import ASK, Plan
from ditbench.faults import Fault
from ditbench.methods.base import UNSET, Method, knob
from ditbench.methods.forms import Form, Numbers
from ditbench.methods.merges import LAYERS_EVERY, STEPS_EVERY, BlockMatching, merged_branches

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from ditbench.backbones import Stream
    from ditbench.engine.matching import Windows
    from ditbench.engine.merging import Groups, Merge, Merging
    from ditbench.engine.watch import Glance

# What the published code has beside the paper: every third step whole, and nine tenths of what merged tokens receive
# from its cache.
PROTECTED, CACHED = 3, 0.9
OWN = -1


@dataclass(frozen=True)
class SDTM(Method):
    """Early steps merge whole windows of alike neighbours, for attention and MLP; late ones tokens nobody attends to.

    In the first stage the windows whose tokens are most alike become one token each. In the second, for the MLP alone,
    the tokens that receive least attention join the most alike of the others, one of their own window if there is any.
    Tokens that have long been merged are merged rather. The text is never merged. FLUX's attention is left whole in
    both stages, as published: of its single-stream blocks the MLP alone is merged.

    The supplement and the published code are two variants. The code looks at no attention: of each window the token
    that was merged longest is a destination, and those of the others that are most like one join it; every third step
    is computed whole, and merged tokens receive a tenth of what their group gives out and nine of what they were given
    at such a step.

    SDTM* merges whatever passes a threshold, one for each stage, so that images with more that is alike are merged
    more. The paper takes the least number of a batch (`counting: batch`), which makes an image hang on those that it is
    drawn with, whatever its seed; by default each image has its own number, and is computed by itself.

    How long a token has been merged is counted in calls of blocks, as the published code does, or in steps: a token
    that any block of a step computed by itself is of age 0 after it, and within a step no age changes.
    """

    name: ClassVar[str] = "sdtm"
    learner: ClassVar[str | None] = "merging"
    summary: ClassVar[str] = "alike neighbours are computed as one, later tokens that nobody attends to"
    paper: ClassVar[str] = "SDTM"

    variant: str = knob("paper", "as the paper has it or as the code does", choices=("paper", "repo"))
    ratio: float = knob(0.5, "share of tokens that are merged away, midway", least=0, most=1)
    deviation: float = knob(
        0.2, "the ratio falls along a cosine from this above it, at the first step, to this below, at the last", least=0
    )
    switch: float = knob(
        0.4, "share of the steps of the first stage (one more belongs to it); 0: it has none", least=0, most=1
    )
    side: int = knob(2, "side of a window in tokens", least=2)
    structure_age: float = knob(0.05, "weight of how long tokens have been merged, in the first stage (a_s)")
    detail_age: float = knob(0.05, "the same in the second stage (a_d), of the paper's variant")
    groups: str = knob("mean", "what is computed of merged tokens: their mean, or one of them", choices=("mean", "one"))
    adjusting: str = knob(
        "ratio",
        "how many are merged: by the ratio, or (SDTM*) all whose priority passes a threshold, in each image",
        choices=("ratio", "threshold"),
    )
    structure_threshold: float = knob(UNSET, "of SDTM* in the first stage; -1: fitted to the ratio", least=UNSET)
    detail_threshold: float = knob(UNSET, "of SDTM* in the second stage; -1: fitted to the ratio", least=UNSET)
    multiple: int = knob(16, "windows, or tokens in the second stage, are merged in multiples of this", least=1)
    protected: int = knob(OWN, "every so manieth step is computed whole, 0: none; -1: the variant's", least=OWN)
    cached: float = knob(
        float(OWN), "share of the cache in what merged tokens receive; -1: the variant's", least=OWN, most=1
    )
    counting: str = knob(
        "image",
        "how many SDTM* merges: of each image as many as pass, or of a batch the least number of its images, computed "
        "together",
        choices=("image", "batch"),
        later=True,
    )
    clock: str = knob(
        "auto",
        "what ages are counted in: calls of blocks, or steps; auto: steps in the paper's variant, calls in the code's",
        choices=("auto", "layer", "step"),
    )
    layers_every: int = knob(1, LAYERS_EVERY, least=1, later=True)
    steps_every: int = knob(1, STEPS_EVERY, least=1, later=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.adjusting == "threshold" and self.variant == "repo":
            raise Fault(
                "adjusting: threshold is the paper's; its code has none that can be reached: take variant: paper"
            )
        if self.adjusting == "threshold" and self._cached:
            raise Fault(
                f"cached: {self._cached:g}: SDTM* gives merged tokens nothing of a cache: take adjusting: ratio"
            )
        if self.adjusting == "ratio" and self.counting == "batch":
            raise Fault("counting: batch is of SDTM*: by the ratio all images merge as many; take adjusting: threshold")

    def waits(self) -> bool:
        return self.adjusting == "threshold" and self.found is None and UNSET in self._given

    def finds(self) -> Mapping[str, Form]:
        return {"thresholds": Numbers(1, length=2)}

    @property
    def _given(self) -> tuple[float, float]:
        return self.structure_threshold, self.detail_threshold

    @property
    def fits(self) -> tuple[bool, bool]:
        """Of which stages the threshold is fitted, not given."""
        return self._given[0] == UNSET, self._given[1] == UNSET

    @property
    def thresholds(self) -> tuple[float, float]:
        """Of both stages: those that are given, or were fitted."""
        if self.waits():
            raise self.unlearned()
        fitted = self.found["thresholds"] if self.found else self._given
        return tuple(own if own != UNSET else float(fit) for own, fit in zip(self._given, fitted, strict=True))  # type: ignore[return-value]

    @property
    def _protected(self) -> int:
        own = PROTECTED if self.variant == "repo" else 0
        return own if self.protected == OWN else self.protected

    @property
    def _cached(self) -> float:
        own = CACHED if self.variant == "repo" else 0.0
        return own if self.cached == OWN else self.cached

    @property
    def counts_steps(self) -> bool:
        """Whether ages are counted in steps, not in calls of blocks."""
        return self.clock == "step" or (self.clock == "auto" and self.variant == "paper")

    @staticmethod
    def attends_whole(shape: Shape) -> bool:
        """Whether attention is left whole at all steps: FLUX's, whose positions do not bear merging."""
        return "single" in shape.layout.names

    def structure_steps(self, steps: int) -> int:
        """How many steps the first stage has: all up to the one at the switch, and none where that is 0."""
        if self.switch == 0:
            return 0
        return min(int(self.switch * steps + 1e-9) + 1, steps)

    def merged_away(self, shape: Shape) -> NDArray[np.int64]:
        """The tokens that are merged away at each step."""
        way = np.arange(shape.steps) / max(shape.steps - 1, 1)
        ratio = self.ratio - self.deviation + 2 * self.deviation * np.cos(np.pi / 2 * way)
        wanted = np.floor(ratio.clip(0, 1) * shape.tokens + 1e-9).astype(np.int64)
        gone_of_window = self.side**2 - 1
        windows = shape.tokens // self.side**2
        structure = np.minimum(wanted // (gone_of_window * self.multiple) * self.multiple, windows) * gone_of_window
        detail = np.minimum(wanted, shape.tokens - windows) // self.multiple * self.multiple
        gone: NDArray[np.int64] = np.where(
            np.arange(shape.steps) < self.structure_steps(shape.steps), structure, detail
        )
        if self._protected:
            gone[:: self._protected] = 0
        return gone

    def plan(self, shape: Shape) -> Plan:
        if self.attends_whole(shape) and self.variant == "repo":
            raise Fault("variant: the published code of SDTM has no FLUX; take variant: paper")
        steps = np.arange(shape.steps)
        first = steps < self.structure_steps(shape.steps)
        gone = self.merged_away(shape)
        early = merged_branches(shape.layout, "mlp" if self.attends_whole(shape) else "attention+mlp")
        merged = np.where(first[:, None], early, merged_branches(shape.layout, "mlp"))
        shares = np.where(merged, 1 - gone[:, None] / shape.tokens, 1.0)
        if self.adjusting == "threshold":
            if self.waits():
                raise self.unlearned()
            # A threshold that is given is asked whatever the ratio, which nobody then needs to say.
            given = ~np.where(first, *self.fits)
            if self._protected:
                given &= steps % self._protected != 0
            shares[merged & (given | (gone > 0))[:, None]] = ASK
        return Plan(shape.layout, shape.layout.by_branch, shares)

    def fill(self, shape: Shape) -> Fill:
        return BlendGroups(1 - self._cached) if self._cached else Pass()

    def selector(self, shape: Shape, generator: Generator) -> Merging:
        if self.adjusting == "ratio" or self.counting == "batch":
            return self.matching(shape, generator)
        from ditbench.engine.each_image import EachImage

        return EachImage(lambda: self.matching(shape, generator))

    def matching(self, shape: Shape, generator: Generator) -> Matching:
        """What merges a batch, or where images count by themselves, one of them."""
        return Matching(self, shape, generator)


class Matching(BlockMatching):
    """Both stages; `age` counts for each token the matchings, or the steps, since it was last computed by itself."""

    # By thresholds a whole batch merges as many: the least number that pass, of all its samples.
    finds_counts = True

    def __init__(self, method: SDTM, shape: Shape, generator: Generator) -> None:
        plan = method.plan(shape)
        self._structure = method.structure_steps(shape.steps)
        stages = (np.arange(shape.steps) >= self._structure).astype(np.int64)
        shared = method.layers_every, method.steps_every
        super().__init__(plan, shape.tokens, method.attends_whole(shape), shared, stages)
        self.method, self.generator = method, generator
        names = shape.layout.name_of
        attends = np.isin(names, ("self", "attn", "single"))
        fewer = plan.counts(shape.tokens) != shape.tokens
        merges_mlp = [bool(step[np.isin(names, ("mlp", "single"))].any()) for step in fewer]
        # Branches that attend and are merged in one: they show their attention while they compute.
        self._at_once: list[bool] = (names == "single").tolist()
        # Attention received is asked for where the second stage matches anew, by the paper.
        asks = [
            step >= self._structure and merges_mlp[step] and method.variant == "paper" for step in range(shape.steps)
        ]
        self._watched = [
            [bool(a) and asks[step] and self.makes(step, branch) for branch, a in enumerate(attends)]
            for step in range(shape.steps)
        ]
        self._received: Tensor | None = None
        self._age: Tensor | None = None
        # Where steps are counted: the step that is being counted, the ages before it, and who was merged in all of it.
        self._counted = -1
        self._before: Tensor | None = None
        self._always: Tensor | None = None

    def used_again(self, step: int, merge: Merge) -> None:
        self._count_age(step, cast("Groups", merge))

    def watches(self, branch: int, step: int) -> bool:
        return self._watched[step][branch]

    def see(self, branch: int, step: int, glance: Glance) -> int:
        from ditbench.engine.watch import map_macs, received

        if self._at_once[branch]:
            return 0
        assert glance.attention is not None
        self._received = received(glance.attention)[:, glance.image]
        return map_macs(glance.attention)

    def match_block(self, branch: int, step: int, stream: Stream, hidden: Tensor, read: Tensor, count: int) -> Merge:
        from ditbench.engine.matching import Windows
        from ditbench.engine.merging import ASK_MERGING
        from ditbench.engine.scored import grid_of

        windows = Windows(grid_of(stream), self.method.side, read.device)
        gone = None if count == ASK_MERGING else read.shape[1] - count
        if step < self._structure:
            merge = self._structural(stream, step, branch, read, windows, gone)
        elif self.method.variant == "paper":
            if self._at_once[branch]:
                self._look_at_once(stream, read)
            merge = self._inattentive(stream, step, read, windows, gone)
        else:
            assert gone is not None
            merge = self._longest_merged(stream, step, branch, read, windows, gone)
        return merge

    def _structural(
        self, stream: Stream, step: int, branch: int, read: Tensor, windows: Windows, gone: int | None
    ) -> Merge:
        from ditbench.engine.chance import uniform
        from ditbench.engine.matching import whole_windows, window_macs, window_similarity

        alike = window_similarity(read, windows)
        if self.method.variant == "repo":
            # Each token's cosine with itself counts as well there, which weighs against the age.
            alike = (alike * (windows.size - 1) + 1) / windows.size
        priority = alike + self.method.structure_age * windows.of(self._relative_age(step, read)).mean(2)
        number = self._passing(priority, 0) if gone is None else gone // (windows.size - 1)
        self.note(0, priority, number)
        chosen = priority.argsort(dim=1, descending=True, stable=True)[:, :number]
        draw = windows.of(uniform(stream, step, branch, self.generator)).argmax(2)
        self.count_macs(window_macs(read))
        merge = whole_windows(windows, chosen, draw.gather(1, chosen), read.shape[1], self.method.groups == "mean")
        self._count_age(step, merge)
        return merge

    def note(self, stage: int, priority: Tensor, merged: int) -> None:
        """Told which priorities were decided by, and how many windows or tokens are merged: what learning looks at."""

    def _passing(self, priority: Tensor, stage: int) -> int:
        """How many pass the stage's threshold, in the sample of which fewest do."""
        return int((priority >= self.method.thresholds[stage]).sum(1).min())

    def _look_at_once(self, stream: Stream, read: Tensor) -> None:
        """Attention that was received in this very branch, in which the text's tokens come first."""
        from ditbench.engine.watch import map_macs, received

        (attention,) = stream.seen
        self._received = received(attention)[:, -read.shape[1] :]
        self.count_macs(map_macs(attention))

    def _inattentive(self, stream: Stream, step: int, read: Tensor, windows: Windows, gone: int | None) -> Merge:
        from ditbench.engine.matching import nearest
        from ditbench.engine.merging import Groups

        assert self._received is not None, "attention was looked at before the MLP"
        least, most = self._received.aminmax(dim=1, keepdim=True)
        inattentive = (most - self._received) / (most - least).clamp_min(1e-12)
        priority = inattentive + self.method.detail_age * self._relative_age(step, read)
        tokens = read.shape[1]
        if gone is None:
            gone = min(self._passing(priority, 1), tokens - len(windows))
        self.note(1, priority, gone)
        sources = priority.argsort(dim=1, descending=True, stable=True)[:, :gone]
        found = nearest(read, sources, windows.grid, windows.side)
        self.count_macs(found.macs)
        merge = Groups.of(sources, found.tokens, tokens, self.method.groups == "mean")
        self._count_age(step, merge)
        return merge

    def _longest_merged(
        self, stream: Stream, step: int, branch: int, read: Tensor, windows: Windows, gone: int
    ) -> Merge:
        from ditbench.engine.chance import uniform
        from ditbench.engine.matching import bipartite, bipartite_macs, one_of_each
        from ditbench.engine.merging import Groups

        ages = self._ages(step)
        destinations = one_of_each(windows, uniform(stream, step, branch, self.generator) if ages is None else ages)
        self.count_macs(bipartite_macs(read, len(windows)))
        sources, found = bipartite(read, destinations).closest(gone)
        merge = Groups.of(sources, found, read.shape[1], self.method.groups == "mean", pooled=destinations)
        self._count_age(step, merge)
        return merge

    def _ages(self, step: int) -> Tensor | None:
        """Every token's age as it counts in a step, [samples, tokens]; None before anything was merged."""
        return self._before if self.method.counts_steps and step == self._counted else self._age

    def _relative_age(self, step: int, read: Tensor) -> Tensor:
        """Each token's age by the mean age of its sample's tokens, [samples, tokens]."""
        ages = self._ages(step)
        if ages is None:
            return read.new_zeros(read.shape[:2]).float()
        return ages / (ages.mean(1, keepdim=True) + 1e-6)

    def _count_age(self, step: int, merge: Groups) -> None:
        """Tokens that are merged are older, by a matching or by a step in which nothing else became of them."""
        merged = merge.shared if self.method.groups == "mean" else merge.away
        if not self.method.counts_steps:
            self._age = ((0 if self._age is None else self._age) + 1) * merged.float()
            return
        if step != self._counted:
            self._counted, self._before, self._always = step, self._age, None
        self._always = merged if self._always is None else self._always & merged
        self._age = ((0 if self._before is None else self._before) + 1) * self._always.float()

    def nbytes(self) -> int:
        """The memory that is kept from one step to the next."""
        ages = (self._age, self._before, self._always)
        return super().nbytes() + sum(kept.nbytes for kept in ages if kept is not None)
