"""Fine-tuning: routers, ratios and the network's weights learn together, from images, captions and noise (DiffCR).

One step of the optimiser sees a batch of timesteps from their whole distribution; pairs of one region of timesteps, to
which one set of ratios applies, go through the network together, and gradients are summed over regions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ditbench.engine.outfit import ROUTERS
from ditbench.faults import Fault
from ditbench.learn.adapters import Average, additions, everything, widened
from ditbench.learn.diffusion import objective_of
from ditbench.learn.lesson import SEED
from ditbench.learn.processes import Team
from ditbench.learn.routed import Mix, RoutedForward, mix_of
from ditbench.learn.sources import place_of
from ditbench.learn.states import read_state
from ditbench.methods import method_class
from ditbench.methods.diffcr import DiffCR
from ditbench.methods.tuned import Clipped, Routed, Tuned
from ditbench.patience import progress
from ditbench.storage import hash_file, replacing, write_tensors
from ditbench.worlds import RANDOM

if TYPE_CHECKING:
    from ditbench.learn.lesson import Lesson

WEIGHTS, STATE = "weights.safetensors", "training.pt"
NOTE_SECONDS, TELL_SECONDS = 60.0, 20.0
# Models on the way are kept whenever the mean ratio has come this much nearer to its target.
ON_THE_WAY = 0.05
# Knobs that say how what was trained is read: with others it would mean something else.
READ_BY = ("score", "gated", "variant", "regions", "edges", "dynamic", "cross")
# How often in a training its ratios are noted, for a figure of how they came about.
NOTED_RATIOS = 100
# How far the mean share of tokens in bins may be off its target before that is said.
MISSED = 0.02
# Where training goes on until it settles: the squared distance of ratios, the steps that losses are compared over, and
# the share by which they fall at least while they still fall. Losses of single steps differ far more than by that.
SETTLED_RATIO, SETTLED_STEPS, STILL_FALLS = 1e-4, 200, 0.005
# The rule of ours by which a coefficient is adjusted: over so many steps, by these factors, within these bounds.
WINDOW, RAISED, LOWERED, BOUNDS = 50, 1.5, 0.7, (0.05, 1.0)


def learn(lesson: Lesson) -> dict[str, Any]:
    """Trains, and answers with the ratios, the file of weights that lies beside the record, and how training went."""
    return fine_tuned(lesson, Training, untrained)


def fine_tuned(
    lesson: Lesson,
    training_of: Callable[[Lesson, Any, dict[str, nn.Parameter], Path], Training],
    stand_in: Callable[[Lesson, Any, Path], dict[str, Any]],
) -> dict[str, Any]:
    """Takes over what a record holds, makes a stand-in where weights are random, or trains."""
    method = lesson.method
    assert isinstance(method, Tuned)
    folder = lesson.notebook.path.parent
    if method.weights_file:
        return taken_over(place_of(method.weights_file, folder), method, folder)
    if lesson.sampler.handle.weights == RANDOM:
        return stand_in(lesson, method, folder)
    network = lesson.sampler.handle.pipeline.transformer
    with widened(network), _trained(method, network) as weights:
        training = training_of(lesson, method, weights, folder / STATE)
        training.recall()
        training.finish()
        found = training.found(folder)
    (folder / STATE).unlink(missing_ok=True)
    return found


def untrained(lesson: Lesson, method: Tuned, folder: Path) -> dict[str, Any]:
    """What stands in for training where weights are random: routers at random, every ratio at its target.

    Speed, memory and MACs of such a network are those of a trained one; it draws no images.
    """
    world, steps = lesson.sampler.world, lesson.spec["steps"]
    shape = world.shape(method.steps(steps or world.default_steps))
    assert lesson.sampler.handle.backbone is not None
    width = lesson.sampler.handle.backbone.costs(1, 1).branches[0].width
    routers = torch.randn(shape.layout.blocks, width, generator=torch.Generator().manual_seed(method.training_seed))
    write_tensors(folder / WEIGHTS, {ROUTERS: routers * width**-0.5})
    found: dict[str, Any] = {"file": WEIGHTS, "sha256": hash_file(folder / WEIGHTS), "untrained": "weights are random"}
    if isinstance(method, DiffCR):
        ratios = np.full((len(method.dividers()) + 1, shape.layout.blocks), method.ratio)
        # Any timesteps will do: all regions have one ratio.
        found |= {"ratios": ratios.tolist(), "times": np.linspace(1000, 0, shape.steps, endpoint=False).tolist()}
    return found


def _trained(method: Tuned, network: nn.Module) -> AbstractContextManager[dict[str, nn.Parameter]]:
    if method.tuning == "full":
        return everything(network)
    return additions(network, method.rank, method.training_seed)


def taken_over(path: Path, method: Tuned, folder: Path) -> dict[str, Any]:
    """What another training has found, its weights copied beside this arm's record."""
    from ditbench.learn.record import read_learned

    record = read_learned(path)
    found, source = dict(record["found"]), path.parent
    other = method_class(record["method"])
    alike = issubclass(other, Routed) == isinstance(method, Routed) and other.learner == method.learner
    if "file" not in found or not alike:
        raise Fault(f"weights_file: {path} is of {record['method']}, whose weights {method.name} cannot take")
    if isinstance(method, DiffCR) and "ratios" not in found:
        raise Fault(f"weights_file: {path} is of {record['method']}, which has no ratios")
    for name in (knob for knob in READ_BY if knob in method.knobs() and knob in record["knobs"]):
        if getattr(method, name) != record["knobs"][name]:
            raise Fault(
                f"weights_file: {path} was trained with {name} {record['knobs'][name]!r}, "
                f"this arm has {getattr(method, name)!r}; give it the same"
            )
    if isinstance(method, DiffCR) and method.at:
        if not found.get("on_the_way") or "mean" not in found:
            raise Fault(f"at: {path} holds no models on the way; name the record of the training itself")
        stages = [*found["on_the_way"], found]
        found = {**found, **min(stages, key=lambda stage: abs(stage["mean"] - method.at))}
        found.pop("missed", None)  # which was said of the last one's target
    for name in ("on_the_way", "trajectory"):
        found.pop(name, None)
    tensors = source / found["file"]
    if not tensors.is_file() or hash_file(tensors) != found["sha256"]:
        raise Fault(f"{tensors} is missing or not the file that was learned; {path} names its hash")
    with replacing(folder / WEIGHTS) as partial:
        partial.write_bytes(tensors.read_bytes())
    names = ("world", "method", "knobs", "arm", "arm_hash", "training", "provenance")
    return {**found, "file": WEIGHTS, "from": {name: record[name] for name in names}}


class Training:
    """What is trained, and how far its training has come."""

    def __init__(self, lesson: Lesson, method: Tuned, weights: dict[str, nn.Parameter], state: Path) -> None:
        self.lesson, self.method, self.weights, self.state_path = lesson, method, weights, state
        self.team, sampler = Team(), lesson.sampler
        self.world, handle = sampler.world, sampler.handle
        assert handle.backbone is not None
        self.backbone, device = handle.backbone, sampler.device
        self.steps = method.steps(lesson.spec["steps"] or self.world.default_steps)
        self.shape = self.world.shape(self.steps)
        self.pairs = self.world.pairs(handle, SEED + method.training_seed, lesson.pairs)
        self.objective = objective_of(handle.pipeline.scheduler, self.world.training_shift, self.world.training_levels)
        self.times = sampling_times(handle.pipeline.scheduler, self.steps)
        routed = method if isinstance(method, Routed) else None
        self.diffcr = method if isinstance(method, DiffCR) else None
        self.routers, self.ratios = self._routers(device), self._ratios(device)
        kind = routed.score if routed else ""
        gated = routed.scaled_blocks(self.shape.layout.blocks) if routed else None
        self.forward = RoutedForward(self.backbone, self.routers, kind, method.checkpointing == "on", gated)
        groups: list[dict[str, Any]] = [
            {"params": list(weights.values()), "rate": method.rate, "weight_decay": method.decay, "warms": True}
        ]
        if routed is not None and self.routers is not None:
            groups.append({"params": [self.routers], "rate": routed.router_rate, "weight_decay": 0.0, "warms": True})
        if self.diffcr is not None and self.ratios is not None:
            rate = self.diffcr.ratio_rate
            groups.append({"params": [self.ratios], "rate": rate, "weight_decay": 0.0, "warms": False})
        self.optimiser = torch.optim.AdamW(groups, lr=1.0)
        self.average = Average(self._kept(), method.average)
        self.weighing = self._weighing()
        self.coefficient = self.diffcr.coefficient if self.diffcr else 0.0
        self.done = 0
        self.history: dict[str, list[float]] = {"loss": [], "seconds": []}
        if self.diffcr is not None:
            self.history |= {name: [] for name in ("ratio", "deployed", "coefficient")}
        self.trajectory: list[list[list[float]]] = []
        self.on_the_way: list[dict[str, Any]] = []

    def _routers(self, device: str) -> nn.Parameter | None:
        if not isinstance(self.method, Routed):
            return None
        width = self.backbone.costs(1, 1).branches[0].width
        if self.method.start == "zero":
            return nn.Parameter(torch.zeros(self.shape.layout.blocks, width, device=device))
        # As a linear layer without a bias starts.
        generator = torch.Generator().manual_seed(self.method.training_seed)
        start = (2 * torch.rand(self.shape.layout.blocks, width, generator=generator) - 1) * width**-0.5
        return nn.Parameter(start.to(device))

    def _ratios(self, device: str) -> nn.Parameter | None:
        """One scalar for every region and block; where blocks share theirs, one for every region."""
        if self.diffcr is None:
            return None
        blocks = 1 if self.diffcr.variant == "T" else self.shape.layout.blocks
        return nn.Parameter(torch.zeros(len(self.diffcr.dividers()) + 1, blocks, device=device))

    def _kept(self) -> dict[str, Tensor]:
        """All that a file of weights holds, as it is trained."""
        kept: dict[str, Tensor] = dict(self.weights)
        return kept if self.routers is None else {**kept, ROUTERS: self.routers}

    # Ratios

    def table(self) -> Tensor:
        """The ratio of every region and block."""
        assert self.ratios is not None
        return self.ratios.expand(-1, self.shape.layout.blocks)

    def shares_of_regions(self) -> NDArray[np.float64]:
        """The share of the sampling steps that lie in each region of timesteps."""
        assert self.diffcr is not None
        count = len(self.diffcr.dividers()) + 1
        return np.bincount(self.diffcr.regions_of(self.times), minlength=count) / self.steps

    def _weighing(self) -> list[float]:
        """By region: how much more often sampling is in it than training is.

        A ratio is drawn up by how often it saves something, and down by how often it does harm: both must be counted
        alike. Where training meets timesteps as often as sampling does, that is 1 everywhere.
        """
        if self.diffcr is None or self.diffcr.mean == "batch":
            return [1.0] * (1 if self.diffcr is None else len(self.diffcr.dividers()) + 1)
        times = self.objective.times(10_000, torch.Generator().manual_seed(0))
        sampling = self.shares_of_regions()
        met = np.bincount(self._regions(times), minlength=len(sampling)) / len(times)
        return (sampling / np.maximum(met, 1e-4)).tolist()  # type: ignore[no-any-return]

    def mean(self, weights: NDArray[np.float64]) -> Tensor:
        """The mean ratio over blocks, regions weighing as given."""
        table = self.table()
        return (torch.as_tensor(weights, dtype=table.dtype, device=table.device) @ table).mean()

    def deployed(self) -> float:
        """The mean over sampling steps of what the ratios are rounded to."""
        assert self.diffcr is not None
        bins = self.diffcr.nearest(self.table().detach().double().cpu().numpy())
        return float((self.shares_of_regions() @ bins).mean())

    # Training

    def finish(self) -> None:
        """Trains to the end, and keeps notes of it."""
        method, noted, told = self.method, time.monotonic(), time.monotonic()
        while self.done < method.iterations and not self.settled():
            began = time.monotonic()
            self._step()
            self.done += 1
            progress()
            now = time.monotonic()
            self.history["seconds"].append(now - began)
            if now - noted > NOTE_SECONDS:
                noted = now
                self.save()
            if now - told > TELL_SECONDS or self.done == method.iterations:
                told = now
                self.lesson.say(self._told())
        if self.done < method.iterations:
            self.lesson.say(f"ratios and loss have settled after {self.done} steps")
        if missed := self.missed():
            self.lesson.say(missed)

    def settled(self) -> bool:
        """Whether training is to end before its iterations: ratios are at their target, and the loss falls no more."""
        if self.diffcr is None or self.diffcr.until != "settled" or self.done < 2 * SETTLED_STEPS:
            return False
        losses, off = self.history["loss"], self.history["ratio"][-1] - self.diffcr.ratio
        before, now = np.mean(losses[-2 * SETTLED_STEPS : -SETTLED_STEPS]), np.mean(losses[-SETTLED_STEPS:])
        return off**2 < SETTLED_RATIO and bool(now > (1 - STILL_FALLS) * before)

    def missed(self) -> str:
        """What is to be said where ratios have not come to their target; else nothing."""
        if self.diffcr is None or abs(self.deployed() - self.diffcr.ratio) <= MISSED:
            return ""
        return (
            f"the share of tokens that pass by is {self.deployed():.3f} on average, not the {self.diffcr.ratio:g} that "
            "was asked for: take more iterations, or a higher ratio_rate or coefficient, or compare it with arms of "
            "the same realised ratio"
        )

    def _step(self) -> None:
        """One step of the optimiser."""
        method = self.method
        self._set_rates()
        generator = self._generator()
        times = self.objective.times(method.batch, generator)
        clean, texts = self.pairs.batch(self.done, method.batch)
        noise = torch.randn(clean.shape, generator=generator)
        regions = self._regions(times)
        total = 0.0
        for region, places in self.team.share(list(self._parts(regions))):
            loss = self._losses(region, places, clean, texts, noise, times).sum() / method.batch
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        trained = self._summed()
        total = self.team.total(total)
        if self.diffcr is not None:
            self._draw_to_target(regions, total)
        assert isinstance(method, Clipped)
        if method.clip:
            nn.utils.clip_grad_norm_(trained, method.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self._after_step(total)

    def _set_rates(self) -> None:
        for group in self.optimiser.param_groups:
            rise = min(1.0, (self.done + 1) / max(self.method.warmup, 1)) if group["warms"] else 1.0
            group["lr"] = group["rate"] * rise

    def _generator(self) -> torch.Generator:
        """What this step's timesteps and noise are drawn from."""
        return torch.Generator().manual_seed((SEED + self.method.training_seed) * 1_000_003 + self.done)

    def _summed(self) -> list[nn.Parameter]:
        """All that is trained, its gradients summed over processes."""
        trained = [p for group in self.optimiser.param_groups for p in group["params"]]
        if self.team.size > 1:
            for parameter in trained:
                parameter.grad = self.team.sum(
                    torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                )
        return trained

    def _regions(self, times: Tensor) -> NDArray[np.int64]:
        if self.diffcr is None:
            return np.zeros(len(times), dtype=np.int64)
        return self.diffcr.regions_of(times.double().numpy())

    def _parts(self, regions: NDArray[np.int64]) -> Iterator[tuple[int, list[int]]]:
        """Pairs that go through the network together: of one region, not too many, and some for every process."""
        most = max(min(self.method.at_once, len(regions) // self.team.size), 1)
        for region in np.unique(regions):
            places = np.flatnonzero(regions == region).tolist()
            for first in range(0, len(places), most):
                yield int(region), places[first : first + most]

    def _losses(
        self,
        region: int,
        places: Sequence[int],
        clean: Tensor,
        texts: Mapping[str, Tensor],
        noise: Tensor,
        times: Tensor,
    ) -> Tensor:
        device = self.lesson.sampler.device
        some, its_noise, when = (tensor[list(places)].to(device) for tensor in (clean, noise, times))
        text = {name: tensor[list(places)].to(device) for name, tensor in texts.items()}
        inputs = self.world.training_inputs(
            self.lesson.sampler.handle, self.objective.noisy(some, its_noise, when), text, when
        )
        half = self.method.precision == "bfloat16"
        with torch.autocast(torch.device(device).type, torch.bfloat16) if half else nullcontext(), torch.enable_grad():
            answer = self.forward(inputs, self._mixes(region))
            return self.objective.losses(answer[0], some, its_noise, when)

    def _mixes(self, region: int) -> list[Mix] | None:
        """The bins of every block in a region of timesteps."""
        tokens = self.shape.tokens
        if self.diffcr is not None:
            ratios = self.table()[region]
            weighed = ratios.detach() + self.weighing[region] * (ratios - ratios.detach())
            return [mix_of(ratio, self.diffcr.shares, tokens) for ratio in weighed]
        if isinstance(self.method, Routed):
            counts = np.rint(self.method.kept(self.shape)[0] * tokens).astype(int)
            return [Mix(int(count), int(count), None) for count in counts]
        return None

    def _draw_to_target(self, regions: NDArray[np.int64], loss: float) -> None:
        """The gradient of the squared distance of the mean ratio from its target."""
        assert self.diffcr is not None
        weights = self.shares_of_regions()
        if self.diffcr.mean == "batch":
            weights = np.bincount(regions, minlength=len(weights)) / len(regions)
        if self.diffcr.adjusting == "dynamic":
            self._adjust(loss)
        with torch.enable_grad():
            off = self.coefficient * (self.mean(weights) - self.diffcr.ratio) ** 2
        off.backward()  # type: ignore[no-untyped-call]

    def _adjust(self, loss: float) -> None:
        """Raises the coefficient where the mean ratio stands still off its target, lowers it where the loss rises."""
        assert self.diffcr is not None
        if self.done == 0 or self.done % WINDOW or self.done < 2 * WINDOW:
            return
        off = [abs(ratio - self.diffcr.ratio) for ratio in self.history["ratio"]]
        losses = self.history["loss"]
        if float(np.mean(losses[-WINDOW:])) > float(np.mean(losses[-2 * WINDOW : -WINDOW])) * 1.05:
            self.coefficient *= LOWERED
        elif off[-1] >= off[-WINDOW] and off[-1] > 0.01:
            self.coefficient *= RAISED
        self.coefficient = min(max(self.coefficient, BOUNDS[0]), BOUNDS[1])

    def _after_step(self, loss: float) -> None:
        self.history["loss"].append(loss)
        if self.diffcr is not None and self.ratios is not None:
            # Past their range they would have no gradient to come back by.
            with torch.no_grad():
                self.ratios.clamp_(self.diffcr.shares[0], self.diffcr.shares[-1])
        self.average.update(self._kept())
        if self.diffcr is None:
            return
        mean = float(self.mean(self.shares_of_regions()).detach())
        for name, value in (("ratio", mean), ("deployed", self.deployed()), ("coefficient", self.coefficient)):
            self.history[name].append(value)
        if self.done % max(self.method.iterations // NOTED_RATIOS, 1) == 0:
            self.trajectory.append(self.table().detach().tolist())
        if self.done + 1 < self.method.iterations and mean >= ON_THE_WAY * (len(self.on_the_way) + 1):
            self._keep_on_the_way(mean)

    def _keep_on_the_way(self, mean: float) -> None:
        number = len(self.on_the_way)
        stage: dict[str, Any] = {"mean": mean, "deployed": self.deployed(), "iteration": self.done + 1}
        path = self.state_path.with_name(f"on-the-way-{number}.safetensors")
        stage |= {"ratios": self.table().detach().tolist(), **self._write(path)}
        self.on_the_way.append(stage)

    def _write(self, path: Path) -> dict[str, str]:
        if self.team.rank == 0:
            kept = {name: tensor.half().cpu() for name, tensor in self.average.tensors.items()}
            write_tensors(path, {**kept, **self._beside()})
        return {"file": path.name, "sha256": hash_file(path) if self.team.rank == 0 else ""}

    def _beside(self) -> dict[str, Tensor]:
        """What else a file of weights holds."""
        return {}

    def found(self, folder: Path) -> dict[str, Any]:
        """What was learned, as a record keeps it."""
        found: dict[str, Any] = {**self._write(folder / WEIGHTS), "history": self.history}
        found |= {"pairs": self.lesson.pairs or "the world's own", "pairs_seen": self.done * self.method.batch}
        if self.diffcr is not None:
            found |= {
                "ratios": self.table().detach().tolist(),
                "times": self.times.tolist(),
                "mean": float(self.mean(self.shares_of_regions()).detach()),
                "deployed": self.deployed(),
                "missed": self.missed(),
                "trajectory": self.trajectory,
                "on_the_way": self.on_the_way,
            }
        return found

    def _told(self) -> str:
        recent = self.history["loss"][-50:]
        seconds = self.history["seconds"][-50:]
        left = sum(seconds) / len(seconds) * (self.method.iterations - self.done)
        text = f"step {self.done} of {self.method.iterations}: loss {sum(recent) / len(recent):.4g}"
        if self.diffcr is not None:
            text += f", mean ratio {self.history['ratio'][-1]:.3f} ({self.history['deployed'][-1]:.3f} in bins)"
        return f"{text}, {left:.0f} s left"

    # What training goes on from

    def save(self) -> None:
        """Keeps all of it beside the record."""
        if self.team.rank:
            return
        state = {
            "of": self._identity(),
            "done": self.done,
            "kept": {name: tensor.detach() for name, tensor in self._kept().items()},
            "ratios": None if self.ratios is None else self.ratios.detach(),
            "average": self.average.tensors,
            "count": self.average.count,
            "optimiser": self.optimiser.state_dict(),
            "coefficient": self.coefficient,
            "history": self.history,
            "trajectory": self.trajectory,
            "on_the_way": self.on_the_way,
        }
        with replacing(self.state_path) as partial:
            torch.save(state, partial)

    def _identity(self) -> str:
        return self.lesson.stamp + repr((self.method, self.lesson.spec.get("weights"), self.lesson.pairs))

    def recall(self) -> None:
        """Goes on from what was kept, if it is of this very training."""
        if not self.state_path.exists():
            return
        state = read_state(self.state_path)
        if state["of"] != self._identity():
            return
        with torch.no_grad():
            for name, tensor in self._kept().items():
                tensor.copy_(state["kept"][name])
            if self.ratios is not None:
                self.ratios.copy_(state["ratios"])
            for name, tensor in self.average.tensors.items():
                tensor.copy_(state["average"][name])
        self.average.count = state["count"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.done, self.coefficient, self.history = state["done"], state["coefficient"], state["history"]
        self.trajectory, self.on_the_way = state["trajectory"], state["on_the_way"]


def sampling_times(scheduler: Any, steps: int) -> NDArray[np.float64]:
    """The timesteps that a sampler gives its network."""
    own = deepcopy(scheduler)
    own.set_timesteps(steps)
    return own.timesteps.double().cpu().numpy()
