"""diffusers' pipelines of the real worlds: loaded, given captions and noise, and sampled by their own loops."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import diffusers
import numpy as np
import torch
from torch import Tensor

from ditbench.faults import Fault
from ditbench.noise import starting_noise

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ditbench.worlds.base import Part
    from ditbench.worlds.real.weights import Found
    from ditbench.worlds.real.worldfile import WorldFile

# Captions that the text encoders are given at a time.
TEXT_BATCH = 16
_TEXT_PARTS = ("text_encoder", "tokenizer")
_IMAGE_PARTS = ("transformer", "vae")


@dataclass(frozen=True)
class Texts:
    """How a pipeline takes captions: what its `encode_prompt` answers, by the names its `__call__` knows it under.

    `answers`: the place of each in the answer. `widths`: the setting of the network that says how wide it is, None for
    a mask. `beside`: tokens that other encoders than the one with the longest texts add to a caption.
    """

    answers: dict[str, int]
    widths: dict[str, str | None]
    beside: int = 0
    encode: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)


# `clean_caption` would lower, strip and rewrite captions or not, by whether beautifulsoup is installed.
_PIXART = Texts(
    {"prompt_embeds": 0, "prompt_attention_mask": 1},
    {"prompt_embeds": "caption_channels", "prompt_attention_mask": None},
    encode={"do_classifier_free_guidance": False, "clean_caption": False},
    # Without binning the image has the size that was asked for.
    call={"negative_prompt": None, "use_resolution_binning": False},
)
_POOLED = {"prompt_embeds": "joint_attention_dim", "pooled_prompt_embeds": "pooled_projection_dim"}
TEXTS: dict[str, Texts] = {
    "PixArtAlphaPipeline": _PIXART,
    "PixArtSigmaPipeline": _PIXART,
    "StableDiffusion3Pipeline": Texts(
        {"prompt_embeds": 0, "pooled_prompt_embeds": 2},
        dict(_POOLED),
        beside=77,
        encode={"prompt_2": None, "prompt_3": None, "do_classifier_free_guidance": False},
    ),
    "FluxPipeline": Texts({"prompt_embeds": 0, "pooled_prompt_embeds": 1}, dict(_POOLED)),
    "WanPipeline": Texts(
        {"prompt_embeds": 0}, {"prompt_embeds": "text_dim"}, encode={"do_classifier_free_guidance": False}
    ),
}


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
    kept = set(network_class._keep_in_fp32_modules or ())
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if kept & set(name.split(".")) and tensor.is_floating_point():
            tensor.data = tensor.data.float()
    return network.eval().requires_grad_(False)


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


# Captions


@torch.no_grad()
def encode(file: WorldFile, pipeline: Any, captions: Sequence[str]) -> dict[str, Tensor]:
    """Captions as the pipeline's own encoders give them, on the processor."""
    texts = TEXTS[file.pipeline]
    found: dict[str, list[Tensor]] = {name: [] for name in texts.answers}
    for first in range(0, len(captions), TEXT_BATCH):
        answer = pipeline.encode_prompt(
            list(captions[first : first + TEXT_BATCH]),
            max_sequence_length=file.text_tokens - texts.beside,
            **texts.encode,
        )
        for name, place in texts.answers.items():
            found[name].append(answer[place].cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


def random_texts(file: WorldFile, captions: Sequence[str]) -> dict[str, Tensor]:
    """What stands in for encoded captions where weights are random: noise of the right shape, no token masked."""
    given: dict[str, Tensor] = {}
    for name, setting in TEXTS[file.pipeline].widths.items():
        if setting is None:
            given[name] = torch.ones(len(captions), file.text_tokens, dtype=torch.int64)
            continue
        width = int(file.network.config[setting])
        shape = (width,) if name.startswith("pooled") else (file.text_tokens, width)
        drawn = np.stack([starting_noise(0, f"{name} of {caption}", shape) for caption in captions])
        given[name] = torch.from_numpy(drawn).to(getattr(torch, file.dtype))
    return given


def class_tensor(classes: Sequence[int]) -> dict[str, Tensor]:
    """Classes where they stand in for captions."""
    return {"class_labels": torch.tensor(classes)}


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
    """Images [n, height, width, 3]; without `decode` none, all that comes after the last step is left out."""
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
        answer = pipeline(**arguments)
    if not decode:
        return np.zeros((count, 0, 0, 3), np.uint8)
    pixels: NDArray[np.float32] = answer.images
    if not np.isfinite(pixels).all():
        raise Fault(f"the images hold values that are no numbers: {file.dtype} is too narrow for these weights")
    return (pixels * 255).round().astype(np.uint8)


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
