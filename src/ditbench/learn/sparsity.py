"""Costs of computing tokens, learned through the whole sampling run, and the plan of least cost (DiffSparse).

Training has up to three parts. `layers`: costs of every level at every site, while whole steps are given. `steps`: a
cost of being whole for every step, while the layers' plan is given; the cheapest whole steps are then made cheap in the
layers' costs. `unified`: these costs alone, with no whole step but the first.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ditbench.faults import Fault
from ditbench.learn.budget import Budget
from ditbench.learn.gates import Gates, LevelGates, StepGates
from ditbench.learn.lesson import SEED
from ditbench.learn.losses import loss_of
from ditbench.learn.optimisers import OPTIMISERS
from ditbench.learn.processes import Team
from ditbench.learn.relaxed import RelaxedRun
from ditbench.learn.site_times import site_times
from ditbench.learn.sources import place_of
from ditbench.learn.teacher import Teacher
from ditbench.methods.diffsparse import DiffSparse
from ditbench.methods.token_plans import TokenPlan
from ditbench.noise import chance_seed
from ditbench.solve.knapsack import solve_tokens
from ditbench.solve.straight_through import straight_through

if TYPE_CHECKING:
    from ditbench.engine.plan import Plan
    from ditbench.engine.scored import ScoredTokens
    from ditbench.generate import Texts
    from ditbench.learn.lesson import Lesson

STATE, TIMES = "sparsity", "site times"
NOTE_SECONDS = 20.0


def learn(lesson: Lesson) -> dict[str, Any]:
    """The shares of tokens of every step and branch, the costs behind them, and how training went."""
    method = lesson.method
    assert isinstance(method, DiffSparse)
    if method.plan_file:
        return transferred(place_of(method.plan_file, lesson.notebook.path.parent), method)
    training, levels, compared = _best(lesson, method)
    school = training.school
    shares = school.budget.candidates[levels]
    measured = {"times": school.times} if school.times else {}
    return {
        **measured,
        **compared,
        "shares": shares.tolist(),
        "layers": training.layers.detach().tolist(),
        "steps": training.steps.detach().tolist(),
        "whole": training.whole.tolist(),
        "left_out": school.budget.used(levels),
        "history": training.history,
    }


def _best(lesson: Lesson, method: DiffSparse) -> tuple[Training, NDArray[np.int64], dict[str, Any]]:
    """The training whose plan is least off, that plan's levels, and what is told of the others."""
    first = method.training_seed
    seeds = range(first, first + method.trainings)
    if method.trainings == 1 and method.kept == "last":
        training = _trained(lesson, method, STATE)
        return training, training.levels(), {}
    # Compared under noise that none of them has seen.
    judging = School(lesson, method, method.loss, seeds.stop)
    best: tuple[float, Training, NDArray[np.int64]] | None = None
    told: list[dict[str, Any]] = []
    for seed in seeds:
        trained = _trained(lesson, replace(method, training_seed=seed), STATE if seed == first else f"{STATE} {seed}")
        for part, levels in trained.ends if method.kept == "best" else trained.ends[-1:]:
            off = lesson.notebook.once(f"off {seed} {part}", lambda: judging.off_of_all(levels))  # noqa: B023
            lesson.say(f"seed {seed}, after {part}: off by {off:.4g} on all training captions")
            told.append({"seed": seed, "after": part, "loss": off})
            if best is None or off < best[0]:
                best = off, trained, levels
                kept = told[-1]
    assert best is not None
    return best[1], best[2], {"trainings": {"tried": told, "kept": kept}}


def _trained(lesson: Lesson, method: DiffSparse, note: str) -> Training:
    """A training, gone on with from where it was noted, to its end."""
    school = School(lesson, method, method.loss, method.training_seed)
    training = Training(school, method, note)
    training.recall(school.lesson.notebook.recall(note))
    training.finish(school.lesson)
    return training


def transferred(path: Path, method: TokenPlan) -> dict[str, Any]:
    """The plan of a record of learning, for a network with as many steps and branches."""
    from ditbench.learn.record import read_learned

    record = read_learned(path)
    if "shares" not in record["found"]:
        raise Fault(f"plan_file: {path} is of {record['method']}, whose learner makes no plan of tokens")
    told = record["knobs"].get("ratio")
    if told is not None and told != method.ratio:
        raise Fault(f"plan_file: {path} leaves out {told:g}, this arm says ratio {method.ratio:g}; give it the same")
    names = ("world", "method", "knobs", "arm", "arm_hash", "training", "provenance")
    return {"shares": record["found"]["shares"], "from": {name: record[name] for name in names}}


def pixels(images: NDArray[np.uint8]) -> Tensor:
    """Images as [n, 3, height, width]."""
    return torch.from_numpy(images).movedim(-1, 1).float()


class School:
    """What plans are tried with: the full network's images of captions, a loss of theirs, and a budget."""

    def __init__(self, lesson: Lesson, method: TokenPlan, loss: str, seed: int) -> None:
        self.lesson, self.method, self.seed = lesson.of_some(method.captions), method, SEED + seed
        self.team = Team()
        sampler = lesson.sampler
        self.world, self.sampler = sampler.world, sampler
        self.steps = method.steps(lesson.spec["steps"] or self.world.default_steps)
        self.shape = self.world.shape(self.steps)
        assert sampler.handle.backbone is not None
        self.backbone = sampler.handle.backbone
        self.times = self._measured() if method.budget == "milliseconds" else None
        costs = self.backbone.costs(self.shape.tokens, self.world.text_tokens)
        self.budget = Budget(
            method,
            self.shape,
            costs,
            self.times and self.times["milliseconds"],
            self._outside() if method.budget == "macs-linear" else 0.0,
        )
        self.loss = loss_of(loss, self.world, sampler.device, lesson.judge_places)
        folder = lesson.notebook.path.parent.parent / "teachers"
        spec = lesson.spec
        self._teacher = Teacher(
            folder, [spec["world"], spec["weights"], spec["dtype"], self.steps, self.seed, lesson.stamp]
        )

    def _outside(self) -> float:
        """MACs of a whole run that belong to no branch: embeddings, modulation, head."""
        from ditbench.macs import count_macs
        from ditbench.methods.full import Full

        return float(count_macs(self.world.name, Full(), steps=self.steps)["outside"])

    def _measured(self) -> dict[str, Any]:
        """What branches take here, measured once in all of training; several processes plan by their mean."""
        times: dict[str, Any] = self.lesson.notebook.once(
            TIMES, lambda: site_times(self.lesson, self.method, self.shape)
        )
        own = times["milliseconds"]
        mean = self.team.sum(torch.tensor(list(own.values()), dtype=torch.float64)) / self.team.size
        return times | {"milliseconds": dict(zip(own, mean.tolist(), strict=True))}

    def plan(self, levels: NDArray[np.int64]) -> Plan:
        """The plan of levels [step, branch]."""
        return self.method.plan_of(self.shape, self.budget.candidates[levels])

    def originals(self, texts: Texts) -> Tensor:
        """The full network's images of some captions."""

        def draw(places: list[int]) -> Tensor:
            some = texts.at(places)
            full = np.full(self.shape.sites, len(self.budget.candidates) - 1)
            nothing = LevelGates(torch.ones(*self.shape.sites, 1), self.budget.counts, [True] * self.steps)
            return self._drawn(full, nothing, some, gradients=False)

        return self._teacher.images(texts.ids, draw).to(self.sampler.device)

    def off(self, levels: NDArray[np.int64], gates: Gates, texts: Texts) -> Tensor:
        """The loss of each image, with gradients to the gates."""
        return self.loss(self._drawn(levels, gates, texts, gradients=True), self.originals(texts))

    def images(self, levels: NDArray[np.int64]) -> Iterator[tuple[Texts, NDArray[np.uint8]]]:
        """Images [n, height, width, 3] of all training captions as the plan of levels draws them, some at a time."""
        method = self.method.knowing({"shares": self.budget.candidates[levels].tolist()})
        for part in self.lesson.batches():
            images, _ = self.sampler.run(method, self.lesson.spec["steps"], self.seed, part)
            yield part, images.reshape(-1, *images.shape[2:]) if images.ndim == 5 else images  # of videos the frames

    @torch.no_grad()
    def off_of_all(self, levels: NDArray[np.int64]) -> float:
        """The mean loss of these images."""
        device, found = self.sampler.device, []
        for part, images in self.images(levels):
            own = pixels(images).to(device) / 127.5 - 1
            found.append(self.loss(own, self.originals(part)))
        return float(torch.cat(found).mean())

    def _runs_again(self) -> bool:
        parameters = sum(parameter.numel() for parameter in self.backbone.network.parameters())
        return isinstance(self.method, DiffSparse) and self.method.runs_again(parameters)

    def _drawn(self, levels: NDArray[np.int64], gates: Gates, texts: Texts, gradients: bool) -> Tensor:
        plan = self.plan(levels)
        generator = torch.Generator(self.backbone.network.device).manual_seed(0)

        def selector() -> ScoredTokens:
            return self.method.selecting(plan, self.shape, generator, always=gradients)

        seeds = [chance_seed(self.seed, caption) for caption in texts.ids]
        run = RelaxedRun(
            self.backbone,
            plan,
            self.shape.tokens,
            gates,
            selector,
            self.world.halves,
            seeds,
            gradients and self._runs_again(),
        )
        return self.sampler.draw_through(run, self.steps, self.seed, texts)


class Training:
    """The costs, and how far their training has come."""

    def __init__(self, school: School, method: DiffSparse, note: str = STATE) -> None:
        self.school, self.method, self.note = school, method, note
        shape, candidates = school.shape, school.budget.candidates
        self.preset = method.whole_steps(shape)
        self.whole = self.preset
        self.first = np.arange(shape.steps) == 0
        layers = torch.zeros(*shape.sites, len(candidates))
        if method.start == "toca":
            # Its allocation is the cheapest; from it costs rise as a parabola.
            layers = torch.tensor((candidates - method.allocation(shape)[..., None]) ** 2, dtype=torch.float32)
        device = school.sampler.device
        self.layers = layers.to(device).requires_grad_()
        self.steps = torch.zeros(shape.steps, 2)
        self.steps[:, 1] = torch.where(torch.tensor(self.preset), 0.0, 1e-3)  # ties are the preset's
        self.steps = self.steps.to(device).requires_grad_()
        two = method.stages == "two"
        self.parts = ["layers", "steps", "unified"] if two else ["single"]
        self.part = self.done = 0
        # The plan at the end of every part.
        self.ends: list[tuple[str, NDArray[np.int64]]] = []
        self._optimiser = self._new_optimiser()
        self.history: dict[str, list[Any]] = {
            name: [] for name in ("part", "loss", "changed", "expected", "solved", "seconds")
        }
        self._last: NDArray[np.int64] | None = None

    # What is solved

    def levels(self) -> NDArray[np.int64]:
        """The levels of the costs as they are, with whole steps as this part of training has them."""
        return self.school.budget.solve(self._costs(), self._forced())

    def _forced(self) -> NDArray[np.bool_]:
        return self.preset if self.parts[min(self.part, len(self.parts) - 1)] in ("layers", "steps") else self.first

    def _costs(self) -> NDArray[np.float64]:
        return self.layers.detach().double().cpu().numpy()

    def cheapest_steps(self) -> NDArray[np.bool_]:
        """As many whole steps as were preset, those of least cost; the first is always one."""
        costs = self.steps.detach().double().cpu().numpy()
        whole = self.first.copy()
        count = int(self.preset.sum()) - 1
        if count > 0:
            whole[1:] = solve_tokens(costs[1:], [0, 1], count).choices == 1
        return whole

    # Training

    def finish(self, lesson: Lesson) -> None:
        """Trains what is left, and keeps notes of it."""
        noted = told = time.monotonic()
        while self.part < len(self.parts):
            batches = self._batches(len(lesson.texts.ids))
            while self.done < len(batches):
                began = time.monotonic()
                self._learn_from(lesson.texts, batches[self.done])
                self.done += 1
                now = time.monotonic()
                self.history["seconds"].append(now - began)
                if now - noted > NOTE_SECONDS:
                    noted = now
                    lesson.notebook.note(self.note, self.state())
                if now - told > NOTE_SECONDS or self.done == len(batches):
                    told = now
                    lesson.say(self._told(len(batches)))
            self._end_part()
            lesson.notebook.note(self.note, self.state())

    def _batches(self, count: int) -> list[list[int]]:
        found = []
        for epoch in range(self.method.epochs):
            order = list(range(count))
            random.Random(f"{self.method.training_seed} {self.part} {epoch}").shuffle(order)
            found += [order[first : first + self.method.batch] for first in range(0, count, self.method.batch)]
        return found

    def _learn_from(self, texts: Texts, places: list[int]) -> None:
        """One step of the optimiser."""
        budget, method = self.school.budget, self.method
        if self.parts[self.part] == "steps":
            whole, levels = self.cheapest_steps(), budget.between(self._costs(), self.preset)
            counts = np.array(budget.counts)[levels].tolist()
            levels[whole] = len(budget.candidates) - 1
            picked = straight_through(self.steps, torch.tensor(whole).long(), method.temperature)
            soft = torch.softmax(-self.steps.detach() / method.temperature, 1)
            expected = float((soft[1:, 1].sum() + 1) / len(soft))
        else:
            levels, size = self.levels(), self.layers.shape
            flat = self.layers.flatten(0, 1)
            picked = straight_through(flat, torch.tensor(levels).flatten(), method.temperature).view(size)
            soft = torch.softmax(-self.layers.detach() / method.temperature, 2).cpu().double()
            soft[torch.tensor(self._forced())] = torch.eye(size[2], dtype=torch.float64)[-1]
            expected = budget.expected(soft.numpy())
        # Images are gone through some at a time; what all of them say goes on to the costs at once.
        leaf, total = picked.detach().requires_grad_(), 0.0
        team = self.school.team
        mine = team.share(places)
        for first in range(0, len(mine), self.method.at_once):
            gates: Gates
            if self.parts[self.part] == "steps":
                gates = StepGates(leaf, counts)
            else:
                gates = LevelGates(leaf, budget.counts, self._forced().tolist())
            part = texts.at(mine[first : first + self.method.at_once])
            off = self.school.off(levels, gates, part).sum() / len(places)
            off.backward()  # type: ignore[no-untyped-call]
            total += float(off.detach())
        gradient = leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
        self._optimiser.zero_grad(set_to_none=True)
        picked.backward(team.sum(gradient))  # type: ignore[no-untyped-call]
        self._optimiser.step()
        changed = -1 if self._last is None else int((self._last != levels).sum())
        self._last = levels
        for name, value in (
            ("part", self.parts[self.part]),
            ("loss", float(team.sum(torch.tensor(total, dtype=torch.float64)))),
            ("changed", changed),
            ("expected", expected),
            ("solved", budget.used(levels)),
        ):
            self.history[name].append(value)

    def _end_part(self) -> None:
        """From a part of training to the next."""
        if self.parts[self.part] != "steps":  # steps' costs are no plan until the layers' have been trained with them
            self.ends.append((self.parts[self.part], self.levels()))
        if self.parts[self.part] == "steps":
            self.whole = self.cheapest_steps()
            with torch.no_grad():
                self.layers[torch.tensor(self.whole), :, -1] -= self.method.delta
        self.part, self.done, self._last = self.part + 1, 0, None
        if self.part < len(self.parts):
            self._optimiser = self._new_optimiser()

    def _new_optimiser(self) -> torch.optim.Optimizer:
        part = self.parts[self.part]
        rate = {"steps": self.method.step_rate, "unified": self.method.unified_rate}.get(part, self.method.layer_rate)
        return OPTIMISERS[self.method.scaling]([self.steps if part == "steps" else self.layers], lr=rate)

    def _told(self, count: int) -> str:
        recent = self.history["loss"][-min(8, self.done) :]
        changed = self.history["changed"][-1]  # -1 where there was no plan before
        left = sum(self.history["seconds"][-8:]) / len(self.history["seconds"][-8:]) * (count - self.done)
        return (
            f"{self.parts[self.part]}, batch {self.done} of {count}: off by {sum(recent) / len(recent):.4g}, "
            f"{'its first plan' if changed < 0 else f'{changed} levels changed'}, {left:.0f} s left of this part"
        )

    # What training goes on from

    def state(self) -> dict[str, Any]:
        """All of it, as plain data."""
        moments = [
            {name: value.tolist() for name, value in moment.items()} for moment in self._optimiser.state.values()
        ]
        return {
            "part": self.part,
            "done": self.done,
            "layers": self.layers.detach().tolist(),
            "steps": self.steps.detach().tolist(),
            "whole": self.whole.tolist(),
            "moments": moments,
            "last": None if self._last is None else self._last.tolist(),
            "ends": [[part, levels.tolist()] for part, levels in self.ends],
            "history": self.history,
        }

    def recall(self, state: dict[str, Any] | None) -> None:
        """Goes on from a state."""
        if state is None:
            return
        with torch.no_grad():
            self.layers.copy_(torch.tensor(state["layers"]))
            self.steps.copy_(torch.tensor(state["steps"]))
        self.part, self.done, self.history = state["part"], state["done"], state["history"]
        self.whole = np.array(state["whole"])
        self.ends = [(part, np.array(levels)) for part, levels in state["ends"]]
        self._last = None if state["last"] is None else np.array(state["last"])
        if self.part == len(self.parts):
            return
        self._optimiser = self._new_optimiser()
        for parameter, moments in zip(self._optimiser.param_groups[0]["params"], state["moments"], strict=False):
            self._optimiser.state[parameter] = {
                name: torch.tensor(value, device="cpu" if name == "step" else parameter.device)
                for name, value in moments.items()
            }
