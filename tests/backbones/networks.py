"""Small random networks of every block family, with gates far from zero so that every unit matters to the output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    WanTransformer3DModel,
)
from torch import nn

from ditbench.backbones import Backbone
from ditbench.backbones.families import backbone_of


def _pixart(**changes: Any) -> nn.Module:
    return PixArtTransformer2DModel(
        **{
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "cross_attention_dim": 16,
            "num_layers": 2,
            "in_channels": 3,
            "out_channels": 6,
            "sample_size": 8,
            "patch_size": 2,
            "caption_channels": 12,
            "use_additional_conditions": False,
            **changes,
        }
    )


def _dit() -> nn.Module:
    return DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=3,
        out_channels=6,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=10,
    )


def _sd3(**changes: Any) -> nn.Module:
    return SD3Transformer2DModel(
        **{
            "sample_size": 8,
            "in_channels": 3,
            "out_channels": 3,
            "num_layers": 3,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": 12,
            "caption_projection_dim": 16,
            "pooled_projection_dim": 10,
            "pos_embed_max_size": 6,
            **changes,
        }
    )


def _flux(guidance: bool) -> nn.Module:
    return FluxTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        axes_dims_rope=(2, 4, 6),
        num_layers=2,
        num_single_layers=2,
        in_channels=4,
        joint_attention_dim=10,
        pooled_projection_dim=14,
        guidance_embeds=guidance,
    )


def _wan() -> nn.Module:
    return WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        in_channels=3,
        out_channels=3,
        text_dim=10,
        freq_dim=16,
        ffn_dim=40,
    )


# Name -> how to build it. Names say what is peculiar.
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "pixart": _pixart,
    # Its conditions take a third of the width each.
    "pixart-1024": lambda: _pixart(use_additional_conditions=True, num_attention_heads=3, cross_attention_dim=24),
    "dit": _dit,
    "sd3": _sd3,
    "sd3.5-large": lambda: _sd3(qk_norm="rms_norm"),
    # Blocks with a second attention, to the image alone.
    "sd3.5-medium": lambda: _sd3(qk_norm="rms_norm", dual_attention_layers=(0, 1)),
    "flux-schnell": lambda: _flux(guidance=False),
    "flux-dev": lambda: _flux(guidance=True),
    "wan": _wan,
}
# The latent's [frames,] height and width, where it is not 8 x 6 (not square: rows and columns must not be mixed up).
SIZES: dict[str, tuple[int, ...]] = {"dit": (8, 8), "wan": (3, 4, 8)}
TEXT = 5


def make(name: str, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Backbone:
    """A network as units, in evaluation mode, the same weights each time."""
    torch.manual_seed(0)
    with torch.device(device):
        network = NETWORKS[name]()
    for parameter_name, parameter in network.named_parameters():
        if "scale_shift_table" in parameter_name:
            nn.init.normal_(parameter)
        elif parameter.ndim > 1:
            nn.init.normal_(parameter, std=1.5 / parameter.shape[-1] ** 0.5)
        elif parameter_name.endswith("bias"):
            nn.init.normal_(parameter, std=0.5)
    return backbone_of(_as_loaded(network.eval().requires_grad_(False), dtype))


def _as_loaded(network: Any, dtype: torch.dtype) -> Any:
    """A network in `dtype`, but for what diffusers keeps in float32 when it loads one."""
    kept = set(network._keep_in_fp32_modules or ())
    if not kept:
        return network.to(dtype)
    for name, parameter in network.named_parameters():
        if not kept & set(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    return network


def inputs(backbone: Backbone, name: str, step: int, batch: int, masked: bool = False) -> dict[str, Any]:
    """The inputs of one step of a sampling run; the text's last tokens are padding if `masked`."""
    torch.manual_seed(100 + step)
    network: Any = backbone.network
    given = backbone.example_inputs(batch, SIZES.get(name, (8, 6)), TEXT, network.dtype, network.device)
    given["timestep"] = torch.full_like(given["timestep"], 900 - 150 * step)
    mask = given.get("encoder_attention_mask")
    if mask is not None and masked:
        mask[:, TEXT // 2 :] = 0
    elif mask is not None:
        given["encoder_attention_mask"] = None
    return given
