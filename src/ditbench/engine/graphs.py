"""CUDA graphs of a static plan: every call of the network captured once, then replayed without Python.

A static plan launches the same kernels on the same memory in every sampling run, so a run can be recorded. At small
batches, where a GPU waits for Python between kernels, that is most of the time; the kernels are the same, and so is
every bit of the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from ditbench.engine.trace import Trace
from ditbench.faults import Fault

if TYPE_CHECKING:
    from torch import Generator

    from ditbench.engine.costs import Costs
    from ditbench.engine.run import Parts, Run


def why_not(run: Run) -> str | None:
    """Why a run cannot be recorded; None if it can."""
    network = run.backbone.network
    if network.device.type != "cuda":
        return f"CUDA graphs need a network on a CUDA device, this one is on {network.device}"
    if run.plan.online:
        return "this plan makes decisions while sampling: only static plans can be recorded as CUDA graphs"
    if "_hf_hook" in vars(network):
        return "accelerate moves this network's weights during sampling: it cannot be recorded as CUDA graphs"
    return None


class _Inputs:
    """The network's arguments: tensors at fixed places of memory, and the rest, which never changes."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        leaves, self._form = tree_flatten((args, kwargs))
        self._kind = _kind(leaves, self._form)
        self._leaves = [leaf.clone() if torch.is_tensor(leaf) else leaf for leaf in leaves]

    def fits(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether such arguments differ from these in the values of tensors only."""
        return _kind(*tree_flatten((args, kwargs))) == self._kind

    def take(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Copies the values of arguments that fit."""
        for own, given in zip(self._leaves, tree_flatten((args, kwargs))[0], strict=True):
            if torch.is_tensor(own):
                own.copy_(given)

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        args, kwargs = tree_unflatten(self._leaves, self._form)
        return args, kwargs


def _kind(leaves: list[Any], form: TreeSpec) -> tuple[Any, ...]:
    """All of some arguments but the values of their tensors."""
    return form, [(leaf.shape, leaf.dtype, leaf.device) if torch.is_tensor(leaf) else leaf for leaf in leaves]


@dataclass(frozen=True)
class _Call:
    """One call of the network, recorded: where its arguments go, its answer, and what it executes."""

    inputs: _Inputs
    graph: Any
    answer: Any
    trace: Trace


class Recording:
    """The calls of one sampling run. The caches of that run live in the memory of the graphs.

    Replayed in their order from the first, which computes all that later calls reuse, they leave nothing of one
    sampling run to the next.
    """

    def __init__(self, run: Run) -> None:
        if problem := why_not(run):
            raise Fault(problem)
        self.run = run
        self.calls: list[_Call] = []
        self._pool = torch.cuda.graph_pool_handle()
        self._samples = 0

    def record(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Records the next call. It is not executed: its kernels have to be loaded by an earlier one like it."""
        if torch.is_grad_enabled():
            raise Fault("CUDA graphs hold no gradients: sample under torch.no_grad()")
        if any(torch.is_tensor(leaf) and not leaf.is_cuda for leaf in tree_flatten((args, kwargs))[0]):
            raise Fault("the network is given a tensor that is not on its CUDA device: it cannot be recorded")
        # One set of places for all calls that fit: a text's embedding is large, and the same at every step.
        inputs = next((call.inputs for call in self.calls if call.inputs.fits(args, kwargs)), None)
        inputs = inputs or _Inputs(args, kwargs)
        graph = torch.cuda.CUDAGraph()
        self.run.ready()  # a generator that is made while a graph is captured would not be its own
        for generator in generators_of(self.run):
            graph.register_generator_state(generator)
        self.run.trace = trace = Trace.empty(self.run.trace.shape)
        step = self.run.step
        own_args, own_kwargs = inputs.arguments
        try:
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                answer = self.run.forward(*own_args, **own_kwargs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise Fault(
                f"step {step + 1} cannot be recorded as a CUDA graph ({str(error).splitlines()[0]}): "
                "a selector or fill that makes the processor wait for the GPU?"
            ) from error
        self._samples += trace.samples
        trace.cache_bytes = self.run.kept_bytes / max(self._samples, 1)
        self.calls.append(_Call(inputs, graph, answer, trace))


class RecordedRun:
    """One sampling run by a recording; stands in for a `Run`.

    What the recording has is replayed. What it has not (all, the first time) is computed by `fresh`, an ordinary run,
    as far as that has come by itself, and recorded beside it.
    """

    def __init__(self, fresh: Run, recording: Recording) -> None:
        self.backbone = fresh.backbone
        self._recording = recording
        self._eager = fresh if not recording.calls else None
        self._trace = fresh.trace
        self._next = 0
        while len(fresh.branches) < len(recording.run.branches):
            fresh.branches.append(fresh.new_parts())
        recording.run.reseed(fresh)
        for own, given in zip(generators_of(recording.run), generators_of(fresh), strict=True):
            own.set_state(given.get_state())

    @property
    def trace(self) -> Trace:
        """What was executed so far."""
        return self._trace

    @property
    def costs(self) -> Costs:
        """As `Run.costs`."""
        return self._recording.run.costs

    def settle(self, halves: int) -> None:
        """As `Run.settle`; what is recorded already holds one or two branches of guidance and no other."""
        recorded = self._recording.run
        if len(self._recording.calls) > self._next and recorded.halves != halves:
            raise Fault(
                f"a sampling run with {recorded.halves} branch(es) of guidance is recorded, and this one has {halves}: "
                "restore, and accelerate the pipeline anew"
            )
        recorded.settle(halves)
        if self._eager is not None:
            self._eager.settle(halves)

    def advance(self) -> None:
        """As `Run.advance`."""
        if self._next == len(self._recording.calls):
            self._recording.run.advance()
        if self._eager is not None:
            self._eager.advance()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Stands in for the network's own forward."""
        recording, number = self._recording, self._next
        if self._eager is not None:
            # Before it is recorded, for that loads the kernels; its own memory is not the graphs'.
            answer = self._eager.forward(*args, **kwargs)
            recording.record(args, kwargs)
            self._next += 1
            return answer
        if number == len(recording.calls):
            recording.record(args, kwargs)
        call = recording.calls[number]
        if not call.inputs.fits(args, kwargs):
            raise Fault(f"call {number + 1} of the network has other arguments than when it was recorded")
        call.inputs.take(args, kwargs)
        call.graph.replay()
        self._next += 1
        self._trace.add(call.trace)
        # The next call writes to the same memory, and samplers keep answers.
        return tree_map(lambda leaf: leaf.clone() if torch.is_tensor(leaf) else leaf, call.answer)


class Recorder:
    """Keeps the recording of the last kind of sampling run, and makes the runs that use it."""

    def __init__(self) -> None:
        self._recording: Recording | None = None
        self._kind: tuple[Any, ...] | None = None

    def run(self, make: Callable[[], Run], args: tuple[Any, ...], kwargs: dict[str, Any], key: Any) -> RecordedRun:
        """A run like those that `make` makes. Runs of equal `key` are of the same method at the same steps."""
        kind = (key, *_kind(*tree_flatten((args, kwargs))))
        if self._recording is None or kind != self._kind:
            self.forget()
            self._recording, self._kind = Recording(make()), kind
        return RecordedRun(make(), self._recording)

    def forget(self) -> None:
        """Gives the memory of the graphs back."""
        self._recording = self._kind = None


def generators_of(run: Run) -> list[Generator]:
    """What the parts of a run draw random numbers from, each once."""
    found: dict[int, Generator] = {}
    for parts in run.branches:
        for generator in _generators(parts):
            found[id(generator)] = generator
    return list(found.values())


def _generators(parts: Parts) -> list[Generator]:
    held = [vars(part) for part in (parts.fill, parts.selector, parts.decider) if hasattr(part, "__dict__")]
    return [value for attributes in held for value in attributes.values() if isinstance(value, torch.Generator)]
