"""Accelerates anyone's diffusers pipeline: one line to apply a method, one to take it off again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from ditbench.engine.plan import Plan
from ditbench.faults import Fault
from ditbench.methods import Method, get_method

if TYPE_CHECKING:  # `import ditbench` loads no torch: a workflow is planned without it
    from torch import Tensor

    from ditbench.backbones import Backbone
    from ditbench.engine.graphs import RecordedRun
    from ditbench.engine.ledger import Bill
    from ditbench.engine.run import Run
    from ditbench.engine.trace import Trace


class Accelerated:
    """A pipeline under a method; use it as a context manager, or call `restore` when done.

    Every call of the pipeline sets its sampler's timesteps first: that begins a fresh run, whatever the steps or the
    batch, and whatever became of the last one. A step of the sampler is a step of the plan, however often the
    pipeline calls its network in it.
    """

    def __init__(
        self, pipeline: Any, method: Method | Plan, parts: Mapping[str, Callable[[], Any]], graphs: bool = False
    ) -> None:
        from ditbench.backbones.families import backbone_of
        from ditbench.engine.graphs import Recorder
        from ditbench.engine.outfit import put_on
        from ditbench.engine.run import take_place

        self.pipeline, self.method, self._parts = pipeline, method, parts
        for part in ("transformer", "scheduler"):
            if not hasattr(pipeline, part):
                raise Fault(
                    f"this {type(pipeline).__name__} has no {part}: only diffusion transformers can be accelerated"
                )
        self.network, self.scheduler = pipeline.transformer, pipeline.scheduler
        self.backbone = backbone_of(self.network)
        self._steps = 0
        # Of the run: how many samples the network is given, where it is not sure yet that they are two branches.
        self._unsettled: int | None = None
        self._run: Run | RecordedRun | None = None
        self._recorder = Recorder() if graphs else None
        self._give_back: Callable[[], None] | None = take_place(self.network, self._forward)
        try:
            if getattr(vars(self.scheduler).get("step"), "of_accelerated", False):
                raise Fault(
                    "another accelerated pipeline uses this very scheduler: restore that, or give this one its own, "
                    "type(pipeline.scheduler).from_config(pipeline.scheduler.config)"
                )
            self._own_weights = put_on(self.network, method.worn if isinstance(method, Method) else None)
        except Fault:
            self._give_back()
            raise
        self._set_timesteps, self._step = self.scheduler.set_timesteps, self.scheduler.step
        # Pipelines read from the signatures what their sampler takes (sigmas, eta, a generator).
        self.scheduler.set_timesteps = _with_signature(self._begin, self._set_timesteps)
        self.scheduler.step = _with_signature(self._advance, self._step)

    def _begin(self, num_inference_steps: int | None = None, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.method, Method):
            if num_inference_steps is not None:
                num_inference_steps = self.method.steps(num_inference_steps)
            elif kwargs.get("sigmas") is not None:
                kwargs["sigmas"] = _resampled(kwargs["sigmas"], self.method)
            elif kwargs.get("timesteps") is not None and (count := len(kwargs["timesteps"])) != self.method.steps(
                count
            ):
                raise Fault(f"{self.method.name} changes the number of steps, but this call names its own timesteps")
        answer = self._set_timesteps(num_inference_steps, *args, **kwargs)
        self._steps, self._run = len(self.scheduler.timesteps), None
        return answer

    def _advance(self, *args: Any, **kwargs: Any) -> Any:
        if self._run is not None:
            if self._unsettled is not None:
                self._settle(args[0] if args else kwargs["model_output"])
            self._run.advance()
        return self._step(*args, **kwargs)

    def _settle(self, answer: Any) -> None:
        """After the first step it shows whether a batch holds two branches of guidance: the pipeline has made one
        answer of both. Where it has not, two images started from the same noise.
        """
        assert self._run is not None and self._unsettled is not None
        self._run.settle(1 if len(answer) == self._unsettled else 2)
        self._unsettled = None

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        from ditbench.engine.guidance import batch_of

        if self.pipeline.scheduler is not self.scheduler:
            raise Fault(
                "the pipeline was given another scheduler after it was accelerated: restore, and accelerate it anew"
            )
        if self._run is None:
            if self._steps == 0:
                raise Fault(
                    "the pipeline's sampler has not been given its steps yet: call the pipeline, not its network"
                )
            halves = _halves(self.backbone, args, kwargs)
            merged = self.backbone.merges_answers and isinstance(self.method, Method)
            self._unsettled = batch_of(args, kwargs) if halves == 2 and merged else None

            method = self._timed()

            def make() -> Run:
                return self._make_run(method, halves, *args, **kwargs)

            if self._recorder is None:
                self._run = make()
            else:
                # Where its plan follows timesteps, other ones are another run.
                times = None if method is self.method else tuple(self._times())
                self._run = self._recorder.run(make, args, kwargs, (self._taken, halves, times))
        return self._run.forward(*args, **kwargs)

    def _timed(self) -> Method | Plan:
        """The method as it is at the timesteps of this run, which hang on the pipeline's sampler."""
        return self.method if isinstance(self.method, Plan) else self.method.at_times(self._times())

    def _times(self) -> list[float]:
        return [float(time) for time in self.scheduler.timesteps.tolist()[-self._taken :]]

    def _make_run(self, method: Method | Plan, halves: int, *args: Any, **kwargs: Any) -> Run:
        from ditbench.engine.fills import Reuse
        from ditbench.engine.run import Parts, Run
        from ditbench.sampling import run_of

        steps = self._taken
        shape = self.backbone.shape(steps, *args, **kwargs)
        if isinstance(method, Plan):
            if method.steps != steps:
                raise Fault(f"the plan is for {method.steps} steps, the pipeline takes {steps}")
            made = {"fill": Reuse, **self._parts}
            return Run(
                self.backbone,
                method,
                shape.tokens,
                lambda: Parts(**{name: make() for name, make in made.items()}),
                by_itself=False,
            )
        seeds = _seeds(args[0] if args else kwargs["hidden_states"], halves)
        return run_of(method, self.backbone, shape, by_itself=False, halves=halves, seeds=seeds)

    @property
    def _taken(self) -> int:
        """The sampler's steps, without those that a pipeline leaves out which starts from a picture."""
        return self._steps - (getattr(self.scheduler, "begin_index", None) or 0)

    @property
    def trace(self) -> Trace:
        """What the last call executed."""
        if self._run is None or not self._run.trace.samples:
            raise Fault("nothing has run yet: call the pipeline first")
        return self._run.trace

    @property
    def bill(self) -> Bill:
        """What the last call cost in MACs, for one image and one branch of guidance."""
        from ditbench.engine.ledger import bill

        trace = self.trace
        assert self._run is not None
        return bill(trace, self._run.costs)

    def report(self) -> str:
        """What ran in the last call, in a few lines for a person."""
        trace, cost = self.trace, self.bill
        layout, ran = trace.shape.layout, trace.steps_run
        steps = f"{ran}" if ran == trace.shape.steps else f"{ran} of {trace.shape.steps}"
        rows = trace.samples * ran * len(layout)
        whole, some = trace.whole.sum() / rows, (trace.ran - trace.whole).sum() / rows
        lines = [
            f"{steps} steps x {layout.blocks} blocks of {'/'.join(layout.names)}, "
            f"{trace.shape.tokens} tokens, {trace.samples} sample(s) in a batch",
            f"units computed whole {whole:.1%}, in part {some:.1%}, not {1 - whole - some:.1%}",
            f"token computations left out: {trace.realised_ratio:.1%}",
            f"MACs of one image and CFG branch: {_scaled(cost.linear)} in linear layers, "
            f"{_scaled(cost.attention)} in products of attention",
            f"kept between steps: {_scaled(trace.cache_bytes)}B for one sample",
        ]
        return "\n".join(lines)

    def restore(self) -> None:
        """Takes the method off: the pipeline is as it was."""
        from ditbench.engine.outfit import take_off

        if self._give_back is not None:
            self._give_back()
            self._give_back = None
            take_off(self._own_weights)
            if self._recorder is not None:
                self._recorder.forget()
            del self.scheduler.set_timesteps
            del self.scheduler.step

    def __enter__(self) -> Accelerated:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()


def _halves(backbone: Backbone, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """How many branches of guidance a batch may hold: two where its second half starts from the noise of its first.

    Pipelines do not say whether they guide; at the first step their batch does, but for images of equal noise.
    """
    import torch

    latent = args[0] if args else kwargs.get("hidden_states")
    if latent is None or not torch.is_tensor(latent) or latent.is_meta or len(latent) % 2:
        return 1
    first, second = latent.chunk(2)
    return 2 if torch.equal(first, second) and backbone.may_guide(*args, **kwargs) else 1


def _seeds(latent: Tensor, halves: int) -> list[int] | None:
    """A number for each image, from its noise alone, so that chance does not hang on the batch that it is drawn in."""
    import torch

    if latent.is_meta:
        return None
    bits = latent[: len(latent) // halves].float().flatten(1).view(torch.int32).long()
    # Odd factors, each value its own; sums of 64 bits wrap around.
    factors = torch.arange(bits.shape[1], device=bits.device) * 2 + 1
    seeds: list[int] = (bits * factors).sum(1).tolist()
    return seeds


def _resampled(sigmas: Any, method: Method) -> Any:
    """The noise levels a pipeline gave its sampler, for as many steps as the method takes."""
    count = len(sigmas)
    wanted = method.steps(count)
    if wanted == count:
        return sigmas
    # FLUX gives evenly spaced levels from 1 to 1/n; anything else was somebody's own choice.
    if not np.allclose(np.asarray(sigmas), np.linspace(1.0, 1 / count, count)):
        raise Fault(f"{method.name} changes the number of steps, but this call names its own noise levels (sigmas)")
    return np.linspace(1.0, 1 / wanted, wanted)


def _scaled(value: float) -> str:
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} "


def _with_signature(method: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """A method that says of itself what `original` says."""

    @wraps(original)
    def called(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    called.of_accelerated = True  # type: ignore[attr-defined]
    return called


def accelerate(
    pipeline: Any,
    method: str | Method | Plan | None = None,
    *,
    learned: str | Path | None = None,
    weights_of: str | Path | None = None,
    graphs: bool = False,
    **knobs: Any,
) -> Accelerated:
    """Applies a method, by name with its knobs or as an object, or a plan, to a diffusers pipeline.

    >>> with ditbench.accelerate(pipeline, "fora", interval=2) as accelerated:  # doctest: +SKIP
    ...     image = pipeline("a large red circle in the centre on a plain gray background").images[0]
    ...     print(accelerated.report())

    `learned`, instead of a method, is a record of `ditbench learn` (results/learned/): the method with what it learned.
    `weights_of` is such a record of a fine-tuned network, on whose weights a method runs that needs none of its own.

    With a plan, `fill`, `selector` and `decider` are what makes one, with fresh state, for each call of the pipeline (a
    class, for instance); without a fill, what is not computed is reused.

    With `graphs`, on a GPU and for plans that decide nothing while sampling, the first call of the pipeline is recorded
    as CUDA graphs and later ones with as many samples, steps and tokens replay them: the same images to the last bit,
    without waiting for Python between kernels. It takes the memory of one more run, until `restore`.
    """
    if learned is not None:
        from ditbench.learn.job import learned_method

        if method is not None or knobs:
            raise Fault("a record of learning names its method and its knobs: give no other")
        method = learned_method(learned)
    if weights_of is not None:
        from ditbench.learn.job import tuned_weights

        if method is None or learned is not None or isinstance(method, Plan):
            raise Fault("weights_of goes with a method by its name or as an object, which then runs on these weights")
        method = (get_method(method, knobs) if isinstance(method, str) else method).on(tuned_weights(Path(weights_of)))
        knobs = {}
    if method is None:
        raise Fault("accelerate needs a method, by its name or as an object, a plan, or `learned`")
    if isinstance(method, str):
        method = get_method(method, knobs)
    elif isinstance(method, Plan):
        unknown = sorted(set(knobs) - {"fill", "selector", "decider"})
        if unknown:
            raise Fault(f"a plan has no knob {unknown[0]!r}; with a plan go fill, selector and decider")
        return Accelerated(pipeline, method, knobs, graphs)
    elif knobs:
        raise Fault("knobs go with a method's name; a method given as an object has its own")
    return Accelerated(pipeline, method, {}, graphs)
