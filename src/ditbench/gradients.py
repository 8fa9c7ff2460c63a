"""Gradients through a pipeline's own sampling loop, whose call and postprocessing would cut them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def sampling_call(pipeline: Any) -> Callable[..., Any]:
    """The pipeline's call; where gradients are asked for, the one within its `torch.no_grad`."""
    if not torch.is_grad_enabled():
        return pipeline  # type: ignore[no-any-return]
    inner: Callable[..., Any] = vars(_calling(type(pipeline)))["__wrapped__"]
    return lambda **arguments: inner(pipeline, **arguments)


def _calling(pipeline_class: type) -> Callable[..., Any]:
    call: Callable[..., Any] = pipeline_class.__call__
    return call


@contextmanager
def decoded(pipeline: Any) -> Iterator[list[Tensor]]:
    """Within the context what the VAE decodes is noted with its gradients, and the pipeline goes on without them.

    Some pipelines make arrays of their images, which no gradient survives.
    """
    vae, own = pipeline.vae, pipeline.vae.decode
    seen: list[Tensor] = []

    def decode(*args: Any, **kwargs: Any) -> Any:
        answer = own(*args, **kwargs)
        if isinstance(answer, tuple):
            seen.append(answer[0])
            return (answer[0].detach(), *answer[1:])
        seen.append(answer.sample)
        return type(answer)(sample=answer.sample.detach())

    vae.decode = decode
    try:
        yield seen
    finally:
        del vae.decode
