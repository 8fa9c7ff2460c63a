"""Routers of Learning-to-Cache: numbers that say which branches a step may take over from the step before it.

While the full network samples training captions, each step that may reuse is run once more with every branch's output
mixed of what it gives now and what it gave one step before. The gradient of how far that answer is from the full
one's, and the price of computing, move the router of that step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ditbench.engine.run import Run
from ditbench.faults import Fault
from ditbench.learn.lesson import SEED
from ditbench.learn.processes import Team
from ditbench.macs import count_macs
from ditbench.methods import get_method
from ditbench.methods.l2c import LearningToCache

if TYPE_CHECKING:
    from ditbench.backbones import Backbone, Output
    from ditbench.engine.costs import Costs
    from ditbench.learn.lesson import Lesson

CLAMP = 5.0  # logits stay within, as published
STATE = "routers"


def learn(lesson: Lesson) -> dict[str, Any]:
    """The probability that each branch of each step is worth computing, and theta where a target asks for one."""
    method = lesson.method
    assert isinstance(method, LearningToCache)
    world = lesson.sampler.world
    steps = method.steps(lesson.spec["steps"] or world.default_steps)
    assert lesson.sampler.handle.backbone is not None
    branches = len(lesson.sampler.handle.backbone.layout)
    routers = Routers(method, steps, branches, lesson.sampler.device)
    batches = lesson.batches()
    done = routers.load(lesson.notebook.recall(STATE))
    for number in range(done, method.epochs * len(batches)):
        epoch, part = divmod(number, len(batches))
        mine = batches[part].at(routers.portion(len(batches[part].ids)))
        lesson.sampler.run(
            get_method("full"), lesson.spec["steps"], SEED + epoch, mine, lambda make: _Tutor(make(), routers)
        )
        lesson.notebook.note(STATE, routers.state(number + 1))
        lesson.say(
            f"batch {number + 1} of {method.epochs * len(batches)}: off by {routers.losses[-1]:.3g} "
            f"({routers.losses[0]:.3g} at first), {routers.open():.0%} of the routers say more than half"
        )
    found: dict[str, Any] = {"keep": routers.keep(), "losses": routers.losses, "updates": routers.updates}
    return found | _theta(lesson, method, found) if method.target else found


class Routers:
    """Their logits and optimiser, one parameter for each step that may reuse."""

    def __init__(self, method: LearningToCache, steps: int, branches: int, device: str) -> None:
        self.method, self.steps = method, steps
        generator = torch.Generator().manual_seed(SEED)
        self.logits: dict[int, Tensor] = {}
        for step in method.reusing(steps).nonzero()[0].tolist():
            start = torch.randn(branches, generator=generator) if method.start == "random" else torch.zeros(branches)
            self.logits[step] = start.to(device).requires_grad_()
        if not self.logits:
            raise Fault(f"l2c has nothing to learn at {steps} step(s): every one is computed")
        self.branches = branches
        self._optimiser = torch.optim.AdamW(self.logits.values(), lr=method.rate, weight_decay=0)
        self.losses: list[float] = []  # means over a batch's steps
        self.updates = 0
        self._of_batch: list[float] = []
        self._team, self._weight = Team(), 1.0

    def portion(self, captions: int) -> list[int]:
        """Which captions of a batch this process samples, of all that learn together."""
        mine, self._weight = self._team.portion(captions)
        return mine

    def weigh(self, step: int) -> Tensor | None:
        """How much of each branch is computed at a step, with its gradient; None where all is."""
        return torch.sigmoid(self.logits[step]) if step in self.logits else None

    def update(self, weights: Tensor, off: Tensor) -> None:
        """One step of the optimiser; only the router in use has a gradient."""
        self._optimiser.zero_grad(set_to_none=True)
        (self._weight * (off + self.method.penalty * weights.sum())).backward()  # type: ignore[no-untyped-call]
        self._team.add_gradients(self.logits.values())
        self._optimiser.step()
        with torch.no_grad():
            for logits in self.logits.values():
                logits.clamp_(-CLAMP, CLAMP)
        self._of_batch.append(self._team.total(self._weight * float(off.detach())))
        self.updates += 1

    def state(self, done: int) -> dict[str, Any]:
        """What training goes on from, after `done` batches."""
        self.losses.append(sum(self._of_batch) / len(self._of_batch))
        self._of_batch = []
        moments = [
            {name: value.tolist() for name, value in self._optimiser.state[logits].items()}
            for logits in self.logits.values()
        ]
        logits = [logits.tolist() for logits in self.logits.values()]
        return {
            "done": done,
            "logits": logits,
            "moments": moments,
            "losses": self.losses,
            "updates": self.updates,
        }

    def load(self, state: dict[str, Any] | None) -> int:
        """Goes on from a state; answers with how many batches are done."""
        if state is None:
            return 0
        with torch.no_grad():
            for logits, values, moments in zip(self.logits.values(), state["logits"], state["moments"], strict=True):
                logits.copy_(torch.tensor(values))
                self._optimiser.state[logits] = {
                    name: torch.tensor(value, device=logits.device if name != "step" else "cpu")
                    for name, value in moments.items()
                }
        self.losses, self.updates = state["losses"], state["updates"]
        return int(state["done"])

    def keep(self) -> list[list[float]]:
        """Probabilities of every site [step, branch]; 1 in steps that are computed."""
        rows = [[1.0] * self.branches for _ in range(self.steps)]
        for step, logits in self.logits.items():
            rows[step] = torch.sigmoid(logits.detach()).tolist()
        return rows

    def open(self) -> float:
        """The share of routers that say more than half."""
        return float(torch.stack([logits.detach() > 0 for logits in self.logits.values()]).float().mean())


class _Tutor:
    """The full network in a run's place; beside its steps the routers learn."""

    def __init__(self, run: Run, routers: Routers) -> None:
        self._run, self._routers = run, routers
        self.backbone, self.trace = run.backbone, run.trace
        # Of each call of the network in a step (one for each branch of guidance, or one for both): what its branches
        # gave out when it was last made.
        self._given: list[list[Output]] = []
        self._step = self._call = 0
        self._text_tokens = 0

    @property
    def costs(self) -> Costs:
        """As `Run.costs`."""
        return self.backbone.costs(self._run.tokens, self._text_tokens)

    def advance(self) -> None:
        """The next call of the network belongs to the next step."""
        self._step, self._call = self._step + 1, 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The full network's answer, and the lesson of the step if it has one."""
        self._text_tokens = self.backbone.text_tokens(*args, **kwargs)
        given: list[Output] = []

        def noted(branch: int, output: Output) -> Output:
            given.append(output)
            return output

        with torch.no_grad():
            answer = through(self.backbone, args, kwargs, noted)
        with torch.enable_grad():
            weights = self._routers.weigh(self._step)
            if weights is not None:
                self._teach(weights, self._given[self._call], answer, args, kwargs)
        if self._call == len(self._given):
            self._given.append(given)
        self._given[self._call] = given
        self._call += 1
        return answer

    def _teach(
        self, weights: Tensor, before: list[Output], answer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        mixed = through(self.backbone, args, kwargs, lambda branch, now: _mixed(weights[branch], before[branch], now))
        pairs = zip(_tensors(mixed), _tensors(answer), strict=True)
        off = torch.stack([((own.float() - full.float()) ** 2).mean() for own, full in pairs]).sum()
        self._routers.update(weights, off)


def through(
    backbone: Backbone, args: tuple[Any, ...], kwargs: dict[str, Any], change: Callable[[int, Output], Output]
) -> Any:
    """One forward of a network, in which `change` has a say in what every branch gives out."""
    stream = backbone.enter(*args, **kwargs)
    for branch in range(len(backbone.layout)):
        backbone.add(stream, branch, change(branch, backbone.compute(stream, branch)))
    return backbone.leave(stream)


def _mixed(weight: Tensor, before: Output, now: Output) -> Output:
    """`weight` of what is computed, and for the rest what was computed before."""
    from ditbench.backbones.stream import Output

    def of(old: Tensor | None, new: Tensor | None) -> Tensor | None:
        if old is None or new is None:
            return new
        share = weight.to(new.dtype)
        return share * new + (1 - share) * old

    image = of(before.image, now.image)
    assert image is not None
    return Output(image, of(before.text, now.text))


def _tensors(answer: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(answer) if torch.is_tensor(leaf)]


def _theta(lesson: Lesson, method: LearningToCache, found: dict[str, Any]) -> dict[str, Any]:
    """The theta whose plan comes nearest to the target."""
    steps, world = lesson.spec["steps"], lesson.spec["world"]
    full = count_macs(world, get_method("full"), steps=steps)["total"]
    shares = sorted(
        {0.0, *(p for row, r in zip(found["keep"], method.reusing(len(found["keep"])), strict=True) if r for p in row)}
    )

    def speed(theta: float) -> float:
        candidate = method.knowing({**found, "theta": theta})
        return float(full / count_macs(world, candidate, steps=steps)["total"])

    # The cost falls with theta.
    low, high = 0, len(shares) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if speed(shares[middle]) < method.target else (low, middle)
    reached = {theta: speed(theta) for theta in (shares[low], shares[high])}
    theta = min(reached, key=lambda each: abs(reached[each] - method.target))
    if abs(reached[theta] - method.target) > 0.1 * method.target:
        raise Fault(
            f"no theta of l2c makes it {method.target:g} times as cheap as full: the nearest is "
            f"{reached[theta]:.2f} times, at {theta:.3g}"
        )
    return {"theta": theta, "reached": reached[theta]}
