"""diffusers' pipelines of the real worlds: loaded, given noise and encoded captions, and sampled by their own loops."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import torch
from torch import Tensor

from ditbench.faults import Fault
from ditbench.gradients import decoded, sampling_call
from ditbench.worlds.real.texts import TEXTS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ditbench.worlds.base import Part
    from ditbench.worlds.real.weights import Found
    from ditbench.worlds.real.worldfile import WorldFile

_TEXT_PARTS = ("text_encoder", "tokenizer")
_IMAGE_PARTS = ("transformer", "vae")


# Loading


def build_network(file: WorldFile, device: str) -> Any:
    """The network with random weights in the world's dtype, made where it is to be; without any on `meta`."""
    network_class = _of_diffusers("network.class", file.network.class_)
    before = torch.get_default_dtype()
    # Twelve billion weights in float32 first, or on the processor, would not fit, or take minutes.
    torch.set_default_dtype(getattr(torch, file.dtype))
    try:
        with torch.device(device):
            network = network_class.from_config(file.network.config)
    finally:
        torch.set_default_dtype(before)
    return cast_as_loaded(network, getattr(torch, file.dtype)).eval().requires_grad_(False)


def cast_as_loaded(network: Any, dtype: torch.dtype) -> Any:
    """The network in the dtypes that loading it in `dtype` gives: modules that its class keeps in float32 stay so."""
    kept = set(network._keep_in_fp32_modules or ())
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(torch.float32 if kept & set(name.split(".")) else dtype)
    return network


def random_pipeline(file: WorldFile, device: str) -> Any:
    """The pipeline around a network with random weights: no text encoder and no VAE."""
    pipeline_class = _of_diffusers("pipeline", file.pipeline)
    parameters = inspect.signature(pipeline_class.__init__).parameters.values()
    empty = {p.name: None for p in parameters if p.default is p.empty and p.name != "self"}
    pipeline = pipeline_class(
        **{**empty, "transformer": build_network(file, device), "scheduler": build_scheduler(file, {})}
    )
    # Without a VAE the pipeline takes it to shrink by 8.
    pipeline.vae_scale_factor = file.size[0] // file.latent[-2]
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_pipeline(world: str, file: WorldFile, found: Found, device: str, part: Part) -> Any:
    """The pipeline with its weights: whole, without what reads texts (`sampling`), or nothing but that (`text`)."""
    pipeline_class = _of_diffusers("pipeline", file.pipeline)
    index = pipeline_class.load_config(found.pipeline)
    if index["_class_name"] != file.pipeline:
        raise Fault(
            f"{found.pipeline} holds a {index['_class_name']}, world {world} needs a {file.pipeline}; "
            f"name another place as `weights: {{{world}: …}}`"
        )
    dtype = getattr(torch, file.dtype)
    left_out = {"all": (), "sampling": _TEXT_PARTS, "text": _IMAGE_PARTS}[part]
    parts: dict[str, Any] = {name: None for name in index if name.startswith(left_out)} if left_out else {}
    try:
        if part != "text":
            # By its own class: older index files call it Transformer2DModel, and it may lie elsewhere.
            parts["transformer"] = _of_diffusers("network.class", file.network.class_).from_pretrained(
                found.network, subfolder="transformer", dtype=dtype, local_files_only=True
            )
        pipeline = pipeline_class.from_pretrained(
            found.pipeline,
            dtype={"default": dtype, "vae": getattr(torch, file.vae_dtype or file.dtype)},
            local_files_only=True,
            **parts,
        )
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise Fault(
            f"the weights of world {world} in {found.pipeline} cannot be loaded: {' '.join(str(error).split())[:300]}; "
            f"{file.hub.pages} offers them whole"
        ) from error
    pipeline.scheduler = build_scheduler(file, pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def build_scheduler(file: WorldFile, published: Any) -> Any:
    """The world's sampler: the settings it was published with, and the world file's over them."""
    scheduler_class = _of_diffusers("sampler.class", file.sampler.class_)
    return scheduler_class.from_config(dict(published), **file.sampler.settings)


def _of_diffusers(key: str, name: str) -> Any:
    if not hasattr(diffusers, name):
        raise Fault(f"{key}: diffusers {diffusers.__version__} has no {name}")
    return getattr(diffusers, name)


# Sampling


@torch.no_grad()
def sample(
    file: WorldFile,
    pipeline: Any,
    texts: dict[str, Tensor],
    negative: dict[str, Tensor],
    noise: Tensor,
    steps: int,
    decode: bool,
) -> NDArray[np.uint8]:
    """Images [n, height, width, 3], or videos with their frames second.

    Without `decode` none: all that comes after the last step is left out.
    """
    answer = _called(file, pipeline, texts, negative, noise, steps, decode)
    if not decode:
        return np.zeros((len(noise), 0, 0, 3), np.uint8)
    pixels: NDArray[np.float32] = answer.images if file.frames is None else answer.frames
    if not np.isfinite(pixels).all():
        what = "images" if file.frames is None else "videos"
        raise Fault(f"the {what} hold values that are no numbers: {file.dtype} is too narrow for these weights")
    return (pixels * 255).round().astype(np.uint8)


def draw(
    file: WorldFile,
    pipeline: Any,
    texts: dict[str, Tensor],
    negative: dict[str, Tensor],
    noise: Tensor,
    steps: int,
) -> Tensor:
    """Images [n, 3, height, width] from -1 to 1, with gradients; the frames of videos one after the other."""
    with decoded(pipeline) as seen:
        _called(file, pipeline, texts, negative, noise, steps, decode=True)
    images = torch.cat(seen)
    if file.frames is not None:  # [n, 3, frames, height, width]
        images = images.movedim(2, 1).flatten(0, 1)
    return images.float().clamp(-1, 1)


def _called(
    file: WorldFile,
    pipeline: Any,
    texts: dict[str, Tensor],
    negative: dict[str, Tensor],
    noise: Tensor,
    steps: int,
    decode: bool,
) -> Any:
    """The pipeline's answer."""
    network, count = pipeline.transformer, len(noise)
    arguments: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": file.guidance.scale}
    start = noise.to(network.device, network.dtype)
    starting: Any = nullcontext()
    if file.pipeline == "DiTPipeline":
        arguments |= {"class_labels": texts["class_labels"].tolist(), "output_type": "np"}
        starting = _starting_from(pipeline, start, decode)
    else:
        arguments |= {name: _fit(tensor, network) for name, tensor in texts.items()}
        if file.guidance.branches in ("batched", "in-turn") and file.guidance.scale > 1:
            arguments |= {
                f"negative_{name}": _fit(tensor, network).expand(count, *tensor.shape[1:])
                for name, tensor in negative.items()
            }
        height, width = file.size
        arguments |= {"latents": start, "height": height, "width": width, **TEXTS[file.pipeline].call}
        arguments["output_type"] = "np" if decode else "latent"
        if file.frames is not None:
            # Wan's pipeline keeps its latents in float32 whatever its network computes in.
            arguments |= {"num_frames": file.frames, "latents": noise.to(network.device)}
    with starting:
        return sampling_call(pipeline)(**arguments)


def _fit(tensor: Tensor, network: Any) -> Tensor:
    """On the network's device, and in its dtype unless it counts."""
    return tensor.to(network.device, network.dtype if tensor.is_floating_point() else tensor.dtype)


@contextmanager
def _starting_from(pipeline: Any, noise: Tensor, decode: bool) -> Iterator[None]:
    """Makes DiT's pipeline, which draws its noise itself and always decodes, start from `noise` and obey `decode`."""
    scheduler, vae = pipeline.scheduler, pipeline.vae
    own, begun = scheduler.scale_model_input, False

    def scaled(latents: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        nonlocal begun
        if not begun:
            begun, latents = True, torch.cat([noise] * (len(latents) // len(noise)))
        given: Tensor = own(latents, *args, **kwargs)
        return given

    scheduler.scale_model_input = scaled
    if not decode:
        config = SimpleNamespace(scaling_factor=1.0)
        pipeline.vae = SimpleNamespace(config=config, decode=lambda latents: SimpleNamespace(sample=latents))
    try:
        yield
    finally:
        del scheduler.scale_model_input
        pipeline.vae = vae
