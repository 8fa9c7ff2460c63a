"""The scenes world as a diffusers pipeline: PixArt-alpha's own, drawing pixels instead of latents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import (
    ConfigMixin,
    DPMSolverMultistepScheduler,
    ModelMixin,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
)
from diffusers.configuration_utils import register_to_config
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import T5EncoderModel

from ditbench.faults import Fault
from ditbench.gradients import sampling_call
from ditbench.worlds.scenes import model as networks
from ditbench.worlds.scenes import settings

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Pixels(ModelMixin, ConfigMixin):
    """Stands where a VAE does: this world's network draws pixels, there is nothing to decode."""

    @register_to_config
    def __init__(
        self, block_out_channels: tuple[int, ...] = (1,), scaling_factor: float = 1.0, shift_factor: float = 0.0
    ) -> None:
        super().__init__()
        # The pipeline asks its parts for their device and dtype.
        self.anchor = nn.Parameter(torch.zeros(()), requires_grad=False)

    def decode(self, latents: Tensor, return_dict: bool = True) -> Any:
        return SimpleNamespace(sample=latents) if return_dict else (latents,)


def build_scheduler() -> DPMSolverMultistepScheduler:
    """DPM-Solver++ of second order over flow levels shifted towards the noisy end."""
    return DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++",
        solver_order=2,
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=settings.FLOW_SHIFT,
        final_sigmas_type="zero",
    )


# What the networks read in their own dtype; times stay floats.
_READ = ("hidden_states", "encoder_hidden_states", "pooled_projections")


def _to_network(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    dtype = next(module.parameters()).dtype
    read = {name: kwargs[name].to(dtype) for name in _READ if name in kwargs}
    return tuple(value.to(dtype) if place == 0 else value for place, value in enumerate(args)), kwargs | read


def _from_network(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
    return (output[0].float(),) if isinstance(output, tuple) else output


def load_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a shipped file; a missing or damaged one is one sentence."""
    if not path.exists():
        raise Fault(
            f"{path} is missing: it ships with the repository (`git checkout -- assets/scenes`), "
            "and `snakemake assets` trains it anew"
        )
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise Fault(
            f"{path} cannot be read as weights ({error}); restore it with `git checkout -- assets/scenes`"
        ) from error


def load_into(module: nn.Module, path: Path) -> None:
    weights = {name: tensor.float() for name, tensor in load_weights(path).items()}
    expected = module.state_dict()
    wrong = sorted(name for name in set(weights) | set(expected) if name not in weights or name not in expected)
    if wrong:
        raise Fault(
            f"{path} does not fit this version's network: {', '.join(wrong[:3])} …; retrain with `snakemake assets`"
        )
    module.load_state_dict(weights)


def as_sampled(transformer: nn.Module, device: str) -> None:
    """Puts a network where it draws, in the world's dtype, between latents that stay in fp32."""
    # torch's own `to`: diffusers' warns of fp32 modules that these networks do not have.
    nn.Module.to(transformer.eval().requires_grad_(False), device, getattr(torch, settings.DTYPE))
    transformer.register_forward_pre_hook(_to_network, with_kwargs=True)
    transformer.register_forward_hook(_from_network, with_kwargs=True)


def build_pipeline(
    transformer: PixArtTransformer2DModel, text_encoder: T5EncoderModel, device: str
) -> PixArtAlphaPipeline:
    """The pipeline of given networks; latents stay in fp32, the transformer computes in the world's dtype."""
    as_sampled(transformer, device)
    pipeline = PixArtAlphaPipeline(
        tokenizer=networks.build_tokenizer(),
        text_encoder=text_encoder.eval().requires_grad_(False).to(device),
        vae=Pixels().to(device),
        transformer=transformer,
        scheduler=build_scheduler(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_pipeline(assets: Path, device: str = "cpu") -> PixArtAlphaPipeline:
    """The pipeline with the shipped weights."""
    transformer = networks.build_transformer()
    load_into(transformer, assets / "transformer.safetensors")
    return build_pipeline(transformer, load_text_encoder(assets), device)


def load_text_encoder(assets: Path) -> T5EncoderModel:
    """The shipped text encoder."""
    text_encoder = networks.build_text_encoder()
    load_into(text_encoder, assets / "text_encoder.safetensors")
    return text_encoder


def embed(pipeline: PixArtAlphaPipeline, captions: Sequence[str]) -> dict[str, Tensor]:
    """Text embeddings [captions, length, width] and masks [captions, length]."""
    return read(pipeline.tokenizer, pipeline.text_encoder, captions)


@torch.no_grad()
def read(tokenizer: Any, text_encoder: T5EncoderModel, captions: Sequence[str]) -> dict[str, Tensor]:
    """What the text encoder makes of captions: embeddings [captions, length, width] and masks [captions, length]."""
    ids, mask = networks.tokenize(tokenizer, captions)
    device = text_encoder.device
    text = text_encoder(input_ids=ids.to(device), attention_mask=mask.to(device)).last_hidden_state
    return {"text": text.float().cpu(), "mask": mask}


def as_bytes(images: Tensor) -> NDArray[np.uint8]:
    """Images [n, 3, height, width] from -1 to 1 as bytes [n, height, width, 3]."""
    if not torch.isfinite(images).all():  # as bytes they would be black pictures like any others
        raise Fault("the images hold values that are no numbers")
    pixels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def draw(
    pipeline: PixArtAlphaPipeline,
    texts: dict[str, Tensor],
    negative: dict[str, Tensor],
    noise: Tensor,
    steps: int,
    guidance: float,
) -> Tensor:
    """Images of a batch as the sampler leaves them, [n, 3, 64, 64] from about -1 to 1, with gradients if any."""
    device, dtype, count = pipeline.transformer.device, pipeline.transformer.dtype, len(noise)
    latents: Tensor = sampling_call(pipeline)(
        prompt=None,
        negative_prompt=None,
        prompt_embeds=texts["text"].to(device, dtype),
        prompt_attention_mask=texts["mask"].to(device),
        negative_prompt_embeds=negative["text"].to(device, dtype).expand(count, -1, -1),
        negative_prompt_attention_mask=negative["mask"].to(device).expand(count, -1),
        latents=noise.to(device),
        num_inference_steps=steps,
        guidance_scale=guidance,
        height=settings.IMAGE_SIZE,
        width=settings.IMAGE_SIZE,
        use_resolution_binning=False,
        output_type="latent",
    ).images
    return latents
