"""The second network of the scenes world: an MMDiT as in Stable Diffusion 3.5, beside the shipped text encoder.

Diffusers' own class again, so what accelerates it accelerates Stable Diffusion 3. It is narrower than the PixArt: every
block has weights for the image and as many for the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from torch import Tensor

from ditbench.gradients import sampling_call
from ditbench.worlds.scenes import pipeline as pixart
from ditbench.worlds.scenes.model import build_tokenizer
from ditbench.worlds.scenes.settings import (
    CHANNELS,
    IMAGE_SIZE,
    MMDIT_BLOCKS,
    MMDIT_HEADS,
    MMDIT_WIDTH,
    PATCH,
    TEXT_WIDTH,
)

WEIGHTS = "mmdit.safetensors"


def build_transformer() -> SD3Transformer2DModel:
    """An MMDiT of 5.9 M parameters and 256 image tokens with fresh weights; its output starts at zero."""
    transformer = SD3Transformer2DModel(
        num_attention_heads=MMDIT_HEADS,
        attention_head_dim=MMDIT_WIDTH // MMDIT_HEADS,
        num_layers=MMDIT_BLOCKS,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        sample_size=IMAGE_SIZE,
        patch_size=PATCH,
        pos_embed_max_size=IMAGE_SIZE // PATCH,
        caption_projection_dim=MMDIT_WIDTH,
        joint_attention_dim=TEXT_WIDTH,
        pooled_projection_dim=TEXT_WIDTH,
        qk_norm="rms_norm",
    )
    for block in transformer.transformer_blocks:
        for norm in (block.norm1, block.norm1_context):
            torch.nn.init.zeros_(norm.linear.weight)
            torch.nn.init.zeros_(norm.linear.bias)
    torch.nn.init.zeros_(transformer.proj_out.weight)
    torch.nn.init.zeros_(transformer.proj_out.bias)
    return transformer


def pooled(text: Tensor, mask: Tensor) -> Tensor:
    """One vector per caption, [captions, width]: the mean of its words' embeddings."""
    weights = mask.to(text.dtype)[:, :, None]
    return (text * weights).sum(1) / weights.sum(1)


def load_pipeline(assets: Path, device: str = "cpu") -> StableDiffusion3Pipeline:
    """Stable Diffusion 3's pipeline around the shipped weights: it draws pixels and reads by this world's encoder."""
    transformer = build_transformer()
    pixart.load_into(transformer, assets / WEIGHTS)
    return build_pipeline(transformer, pixart.load_text_encoder(assets), device)


def build_pipeline(transformer: SD3Transformer2DModel, text_encoder: Any, device: str) -> StableDiffusion3Pipeline:
    """The pipeline of given networks."""
    pixart.as_sampled(transformer, device)
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=pixart.build_scheduler(),
        vae=pixart.Pixels().to(device),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=text_encoder.eval().requires_grad_(False).to(device),
        tokenizer_3=build_tokenizer(),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def embed(pipeline: StableDiffusion3Pipeline, captions: Sequence[str]) -> dict[str, Tensor]:
    """Text embeddings [captions, length, width] and one vector per caption."""
    found = pixart.read(pipeline.tokenizer_3, pipeline.text_encoder_3, captions)
    return {"text": found["text"], "pooled": pooled(found["text"], found["mask"])}


def draw(
    pipeline: StableDiffusion3Pipeline,
    texts: dict[str, Tensor],
    negative: dict[str, Tensor],
    noise: Tensor,
    steps: int,
    guidance: float,
) -> Tensor:
    """Images of a batch as the sampler leaves them, [n, 3, 64, 64] from about -1 to 1, with gradients if any."""
    device, dtype, count = pipeline.transformer.device, pipeline.transformer.dtype, len(noise)
    latents: Tensor = sampling_call(pipeline)(
        prompt_embeds=texts["text"].to(device, dtype),
        pooled_prompt_embeds=texts["pooled"].to(device, dtype),
        negative_prompt_embeds=negative["text"].to(device, dtype).expand(count, -1, -1),
        negative_pooled_prompt_embeds=negative["pooled"].to(device, dtype).expand(count, -1),
        latents=noise.to(device),
        num_inference_steps=steps,
        guidance_scale=guidance,
        height=IMAGE_SIZE,
        width=IMAGE_SIZE,
        output_type="latent",
    ).images
    return latents
