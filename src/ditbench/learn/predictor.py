"""The predictor of TokenCache: what it is worth to compute a token, learned while the full network samples captions.

Each step but the first is run once more with every token mixed of what it is given now and what it was given one step
before. The gradient of how far that answer is from the full one's, and the price of weights, move the predictor. In
the end it weighs the tokens of training captions, from which the plan is made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ditbench.engine.outfit import tuned_tensors
from ditbench.engine.predicted import FIRST, LATER, OfPlaces, OfTokens, predictor_of, tensors_of
from ditbench.faults import Fault
from ditbench.learn.adapters import additions, widened, without_additions
from ditbench.learn.lesson import SEED
from ditbench.learn.mixed import Given, MixedForward
from ditbench.learn.processes import Team
from ditbench.learn.sources import place_of
from ditbench.learn.states import read_state
from ditbench.methods import get_method
from ditbench.methods.tokencache import TokenCache
from ditbench.storage import hash_file, replacing, write_tensors
from ditbench.worlds import RANDOM

if TYPE_CHECKING:
    from ditbench.backbones import Backbone, Stream
    from ditbench.engine.costs import Costs
    from ditbench.engine.run import Run
    from ditbench.learn.lesson import Lesson

WEIGHTS, STATE = "weights.safetensors", "training.pt"
NOTE_SECONDS = 20.0
# As many captions the plan is made from, as published.
CALIBRATED = 256


def learn(lesson: Lesson) -> dict[str, Any]:
    """The plan, the file of the predictor that lies beside the record, and how training went."""
    method, folder = lesson.method, lesson.notebook.path.parent
    assert isinstance(method, TokenCache)
    school = School(lesson, method)
    if lesson.sampler.handle.weights == RANDOM:
        return untrained(school, folder)
    if method.weights_file:
        found = taken_over(place_of(method.weights_file, folder), method, folder)
    else:
        found = trained(school, folder)
        if Team().rank:
            return found  # the plan is made by the one that writes the record
    read = predictor_of(tuned_tensors(str(folder / WEIGHTS), found["sha256"]), school.backbone)
    return {**found, **planned(school, read)}


class School:
    """The network that is taught on, and the captions."""

    def __init__(self, lesson: Lesson, method: TokenCache) -> None:
        self.lesson, self.method = lesson, method
        sampler = lesson.sampler
        assert sampler.handle.backbone is not None
        self.backbone: Backbone = sampler.handle.backbone
        self.steps = method.steps(lesson.spec["steps"] or sampler.world.default_steps)
        self.shape = sampler.world.shape(self.steps)
        self.blocks = method.blocks(self.shape)

    def new_predictor(self) -> OfPlaces | OfTokens:
        """An untrained one, in float32."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.method.training_seed)
            if self.method.told_by == OfPlaces.kind:
                return OfPlaces(self.blocks, self.shape.tokens).to(self.lesson.sampler.device)
            return OfTokens.of(self.backbone, self.blocks).to_train()

    @contextmanager
    def additions(self) -> Iterator[dict[str, nn.Parameter]]:
        """What is trained of the network's last blocks, if any of it is."""
        if not self.method.rank:
            yield {}
            return
        network = self.backbone.network
        names = [name for name in FIRST if hasattr(network, name)]
        if any(hasattr(network, name) for name in LATER) or not names:
            raise Fault(
                f"rank: networks of class {type(network).__name__} have no additions here; leave `rank` at 0 for them"
            )
        last = list(getattr(network, names[0]))[-self.method.kept_last :]
        with widened(network), additions(network, self.method.rank, self.method.training_seed, last) as found:
            yield found

    def sample(self, epoch: int, texts: Any, tutor: Callable[[Run], Any]) -> None:
        """The full network samples some captions, under a tutor's eyes."""
        steps, seed = self.lesson.spec["steps"], SEED + self.method.training_seed + epoch
        self.lesson.sampler.run(get_method("full"), steps, seed, texts, lambda make: tutor(make()))


def untrained(school: School, folder: Path) -> dict[str, Any]:
    """What stands in for training where weights are random: a predictor at random, and blocks that are all alike.

    Speed, memory and MACs of such a network are those of a trained one; it draws no images.
    """
    predictor, shape = school.new_predictor(), school.shape
    generator = torch.Generator().manual_seed(school.method.training_seed)
    last = predictor.outer if isinstance(predictor, OfPlaces) else predictor.head
    with torch.no_grad():
        last.weight.copy_(torch.randn(last.weight.shape, generator=generator) * last.in_features**-0.5)
    write_tensors(folder / WEIGHTS, tensors_of(predictor))
    alike = np.ones((shape.steps, school.blocks))
    return {
        "file": WEIGHTS,
        "sha256": hash_file(folder / WEIGHTS),
        "untrained": "weights are random",
        "shares": school.method.shares(shape, alike, alike).tolist(),
    }


def taken_over(path: Path, method: TokenCache, folder: Path) -> dict[str, Any]:
    """Another training's predictor, copied beside this arm's record."""
    from ditbench.learn.record import read_learned

    record = read_learned(path)
    if record["method"] != method.name:
        raise Fault(f"weights_file: {path} is of {record['method']}, which trains no predictor of {method.name}")
    source = TokenCache(**record["knobs"])
    for name, own, other in (
        ("variant", method.variant, source.variant),
        ("predictor", method.told_by, source.told_by),
        ("last", method.kept_last, source.kept_last),
        ("rank", method.rank, source.rank),
    ):
        if own != other:
            raise Fault(
                f"weights_file: {path} was trained with {name} {other!r}, this arm has {own!r}; give it the same"
            )
    tensors = path.parent / record["found"]["file"]
    if not tensors.is_file() or hash_file(tensors) != record["found"]["sha256"]:
        raise Fault(f"{tensors} is missing or not the file that was learned; {path} names its hash")
    with replacing(folder / WEIGHTS) as partial:
        partial.write_bytes(tensors.read_bytes())
    names = ("world", "method", "knobs", "arm", "arm_hash", "training", "provenance")
    kept = {name: record["found"][name] for name in ("rank", "history") if name in record["found"]}
    return {**kept, "file": WEIGHTS, "sha256": record["found"]["sha256"], "from": {n: record[n] for n in names}}


def trained(school: School, folder: Path) -> dict[str, Any]:
    """Trains, and writes what was trained."""
    with school.additions() as extra:
        training = Training(school, extra, folder / STATE)
        training.recall()
        training.finish()
        tensors = tensors_of(training.predictor)
        tensors |= {name: tensor.detach().half().cpu() for name, tensor in extra.items()}
    if training.team.rank:
        return {"history": training.history}
    write_tensors(folder / WEIGHTS, tensors)
    (folder / STATE).unlink(missing_ok=True)
    found: dict[str, Any] = {"file": WEIGHTS, "sha256": hash_file(folder / WEIGHTS), "history": training.history}
    return found | ({"rank": school.method.rank} if school.method.rank else {})


class Training:
    """What is trained, and how far its training has come; a step of it is the sampling of one batch of captions."""

    def __init__(self, school: School, extra: Mapping[str, nn.Parameter], state: Path) -> None:
        self.school, self.method, self.state_path = school, school.method, state
        self.predictor = school.new_predictor()
        self.extra = dict(extra)
        self.forward = MixedForward(school.backbone, school.method.variant == "v2", school.method.checkpointing == "on")
        slow = [*self.extra.values()]
        fast = list(self.predictor.parameters())
        if isinstance(self.predictor, OfTokens):
            slow += self.predictor.block.parameters()
            fast = list(self.predictor.head.parameters())
        groups: list[dict[str, Any]] = [{"params": fast, "lr": self.method.rate}]
        groups += [{"params": slow, "lr": self.method.block_rate}] if slow else []
        self.optimiser = torch.optim.AdamW(groups, weight_decay=0.0)
        self.done = 0
        # Means over the steps of a batch: how far the answer is off, and the weight of a token.
        self.history: dict[str, list[float]] = {"off": [], "weight": [], "seconds": []}
        self._of_batch: list[tuple[float, float]] = []
        self.team, self._weight = Team(), 1.0

    def finish(self) -> None:
        """Trains what is left, and keeps notes of it."""
        noted, batches = time.monotonic(), self.school.lesson.batches()
        count = self.method.epochs * len(batches)
        while self.done < count:
            epoch, part = divmod(self.done, len(batches))
            began = time.monotonic()
            mine, self._weight = self.team.portion(len(batches[part].ids))
            self.school.sample(epoch, batches[part].at(mine), lambda run: Tutor(run, self))
            self.end_batch(time.monotonic() - began)
            if time.monotonic() - noted > NOTE_SECONDS:
                noted = time.monotonic()
                self.save()
            self.school.lesson.say(
                f"batch {self.done} of {count}: off by {self.history['off'][-1]:.3g} ({self.history['off'][0]:.3g} at "
                f"first), mean weight {self.history['weight'][-1]:.3f}"
            )

    def learn_from(
        self, step: int, before: Given, answer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """One step of the optimiser, by one step of sampling."""
        off, mean = self.loss(step, before, answer, args, kwargs)
        self.optimiser.zero_grad(set_to_none=True)
        (self._weight * (off + self.method.penalty * mean)).backward()  # type: ignore[no-untyped-call]
        self.team.add_gradients(parameter for group in self.optimiser.param_groups for parameter in group["params"])
        self.optimiser.step()
        self._of_batch.append(
            (self.team.total(self._weight * float(off.detach())), self.team.total(self._weight * float(mean.detach())))
        )

    def loss(
        self, step: int, before: Given, answer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """How far the mixed answer is off the full one's, and the mean weight."""
        seen: list[Tensor] = []

        def weigh(stream: Stream) -> Tensor:
            logits = self.predictor.logits(step / self.school.steps, stream, self.school.backbone)
            seen.append(torch.sigmoid(logits))
            return seen[0]

        mixed = self.forward.mixed(args, kwargs, before, weigh)
        pairs = zip(_tensors(mixed), _tensors(answer), strict=True)
        off = torch.stack([((_wide(own) - _wide(full)) ** 2).mean() for own, full in pairs]).sum()
        return off, seen[0].mean()

    def end_batch(self, seconds: float) -> None:
        """Closes the books of a batch."""
        off, weight = np.mean(self._of_batch, axis=0) if self._of_batch else (0.0, 0.0)
        for name, value in (("off", off), ("weight", weight), ("seconds", seconds)):
            self.history[name].append(float(value))
        self._of_batch, self.done = [], self.done + 1

    # What training goes on from

    def save(self) -> None:
        """Keeps all of it beside the record; of several processes one does."""
        if self.team.rank:
            return
        state = {
            "of": self._identity(),
            "done": self.done,
            "predictor": self.predictor.state_dict(),
            "extra": {name: tensor.detach() for name, tensor in self.extra.items()},
            "optimiser": self.optimiser.state_dict(),
            "history": self.history,
        }
        with replacing(self.state_path) as partial:
            torch.save(state, partial)

    def recall(self) -> None:
        """Goes on from what was kept, if it is of this very training."""
        if not self.state_path.exists():
            return
        state = read_state(self.state_path)
        if state["of"] != self._identity():
            return
        self.predictor.load_state_dict(state["predictor"])
        with torch.no_grad():
            for name, tensor in self.extra.items():
                tensor.copy_(state["extra"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        self.done, self.history = state["done"], state["history"]

    def _identity(self) -> str:
        lesson = self.school.lesson
        return lesson.stamp + repr((self.method, lesson.spec.get("weights"), self.school.steps, lesson.batch))


class Looker:
    """The full network in a run's place, under the eyes of whoever looks on."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.backbone, self.trace = run.backbone, run.trace
        self._step = self._call = self._text_tokens = 0

    @property
    def costs(self) -> Costs:
        """As `Run.costs`."""
        return self.backbone.costs(self._run.tokens, self._text_tokens)

    def advance(self) -> None:
        """The next call of the network belongs to the next step."""
        self._step, self._call = self._step + 1, 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The full network's answer."""
        self._text_tokens = self.backbone.text_tokens(*args, **kwargs)
        answer = self.look(args, kwargs)
        self._call += 1
        return answer

    def look(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The full network's answer to one call."""
        raise NotImplementedError


class Tutor(Looker):
    """Beside the full network's steps the predictor learns."""

    def __init__(self, run: Run, training: Training) -> None:
        super().__init__(run)
        self._training = training
        # Of each call of the network in a step (one for each branch of guidance, or one for both): what its units gave
        # out when it was last made.
        self._given: list[Given] = []

    def look(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        training = self._training
        alone = without_additions(self.backbone.network) if training.extra else nullcontext()
        with torch.no_grad(), alone:
            answer, given = training.forward.plain(args, kwargs)
        if self._step > 0:
            with torch.enable_grad():
                training.learn_from(self._step, self._given[self._call], answer, args, kwargs)
        if self._call == len(self._given):
            self._given.append(given)
        self._given[self._call] = given
        return answer


class Census(Looker):
    """Beside the full network's steps the weights of all tokens are added up."""

    def __init__(self, run: Run, books: Books) -> None:
        super().__init__(run)
        self._books = books

    def look(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        with torch.no_grad():
            return self._books.forward.plain(args, kwargs, lambda stream: self._books.enter(self._step, stream))[0]


class Books:
    """Of every step and block: the mean weight, and how many of its tokens are among those of greatest weight."""

    def __init__(self, school: School, predictor: OfPlaces | OfTokens) -> None:
        self.school, self.predictor = school, predictor
        self.forward = MixedForward(school.backbone, by_block=True)
        self._importance, self._wanted = np.zeros((2, school.steps, school.blocks))
        self._samples = np.zeros(school.steps)

    def enter(self, step: int, stream: Stream) -> None:
        """Takes in a step of some samples."""
        logits = self.predictor.logits(step / self.school.steps, stream, self.school.backbone).detach()
        total = round((1 - self.school.method.ratio) * logits[0].numel())
        kept = torch.zeros_like(logits).flatten(1)
        kept.scatter_(1, logits.flatten(1).topk(total, dim=1).indices, 1.0)
        self._importance[step] += torch.sigmoid(logits).mean(2).sum(0).double().cpu().numpy()
        self._wanted[step] += kept.view_as(logits).sum((0, 2)).double().cpu().numpy()
        self._samples[step] += len(logits)

    def means(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean weights and counts, [step, block] each."""
        samples = np.maximum(self._samples, 1)[:, None]
        return self._importance / samples, self._wanted / samples


def planned(school: School, predictor: OfPlaces | OfTokens) -> dict[str, Any]:
    """The plan that a predictor makes of training captions; one that reads no image needs the first batch only."""
    lesson, books = school.lesson, Books(school, predictor)
    batches = lesson.batches()
    if isinstance(predictor, OfPlaces):
        batches = [lesson.texts.part(0, 1)]
    seen = 0
    for part in batches:
        if seen >= CALIBRATED:
            break
        school.sample(school.method.epochs, part, lambda run: Census(run, books))
        seen += len(part.ids)
    importance, wanted = books.means()
    return {
        "shares": school.method.shares(school.shape, importance, wanted).tolist(),
        "importance": importance.tolist(),
        "full": np.flatnonzero(school.method.full(school.steps, importance.mean(1))).tolist(),
        "planned_on": seen,
    }


def _wide(tensor: Tensor) -> Tensor:
    """At least in float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _tensors(answer: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(answer) if torch.is_tensor(leaf)]
