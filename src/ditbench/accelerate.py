"""Accelerates anyone's diffusers pipeline: one line to apply a method, one to take it off again."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from ditbench.engine.plan import Plan
from ditbench.engine.run import Run
from ditbench.engine.trace import Trace
from ditbench.faults import Fault
from ditbench.methods import Method, get_method


class Accelerated:
    """A pipeline under a method; use it as a context manager, or call `restore` when done.

    Every call of the pipeline sets its sampler's timesteps first: that begins a fresh run, whatever the steps or the
    batch, and whatever became of the last one.
    """

    def __init__(self, pipeline: Any, method: Method | Plan) -> None:
        from ditbench.backbones.families import backbone_of

        self.pipeline, self.method = pipeline, method
        self.network, self.scheduler = pipeline.transformer, pipeline.scheduler
        if "forward" in vars(self.network):
            raise Fault("this pipeline is accelerated already; call restore() on what accelerate() gave you first")
        self.backbone = backbone_of(self.network)
        self._steps = 0
        self._run: Run | None = None
        self._set_timesteps = self.scheduler.set_timesteps
        self.scheduler.set_timesteps = self._begin
        self.network.forward = self._forward

    def _begin(self, num_inference_steps: int | None = None, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.method, Method) and num_inference_steps is not None:
            num_inference_steps = self.method.steps(num_inference_steps)
        answer = self._set_timesteps(num_inference_steps, *args, **kwargs)
        self._steps, self._run = len(self.scheduler.timesteps), None
        return answer

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        if self._run is None:
            if self._steps == 0:
                raise Fault(
                    "the pipeline's sampler has not been given its steps yet: call the pipeline, not its network"
                )
            self._run = self._make_run(*args, **kwargs)
        return self._run.forward(*args, **kwargs)

    def _make_run(self, *args: Any, **kwargs: Any) -> Run:
        import torch

        shape = self.backbone.shape(self._steps, *args, **kwargs)
        if isinstance(self.method, Plan):
            if self.method.steps != self._steps:
                raise Fault(f"the plan is for {self.method.steps} steps, the pipeline was asked for {self._steps}")
            from ditbench.engine.fills import Reuse

            return Run(self.backbone, self.method, shape.tokens, Reuse())
        generator = torch.Generator(self.network.device).manual_seed(0)
        selector = self.method.selector(shape, generator)
        return Run(self.backbone, self.method.plan(shape), shape.tokens, self.method.fill(shape), selector)

    @property
    def trace(self) -> Trace:
        """What the last call executed."""
        if self._run is None:
            raise Fault("nothing has run yet: call the pipeline first")
        return self._run.trace

    def report(self) -> str:
        """What ran in the last call, in a few lines for a person."""
        trace = self.trace
        whole = (trace.computed == trace.samples * trace.shape.tokens).mean()
        none = (trace.computed == 0).mean()
        lines = [
            f"{trace.shape.steps} steps x {trace.shape.blocks} blocks x {'/'.join(trace.shape.branches)}, "
            f"{trace.shape.tokens} tokens, {trace.samples} sample(s) in a batch",
            f"units computed whole {whole:.1%}, in part {1 - whole - none:.1%}, not {none:.1%}",
            f"token computations left out: {trace.realised_ratio:.1%}",
        ]
        return "\n".join(lines)

    def restore(self) -> None:
        """Takes the method off: the pipeline is as it was."""
        if vars(self.network).get("forward") == self._forward:
            del self.network.forward
            del self.scheduler.set_timesteps

    def __enter__(self) -> Accelerated:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()


def accelerate(pipeline: Any, method: str | Method | Plan, **knobs: Any) -> Accelerated:
    """Applies a method, by name with its knobs or as an object, or a plan, to a diffusers pipeline.

    >>> with ditbench.accelerate(pipeline, "fora", interval=2) as accelerated:  # doctest: +SKIP
    ...     image = pipeline("a large red circle in the centre on a plain gray background").images[0]
    ...     print(accelerated.report())
    """
    if isinstance(method, str):
        method = get_method(method, knobs)
    elif knobs:
        raise Fault("knobs go with a method's name; a method or a plan given as an object has its own")
    return Accelerated(pipeline, method)
