"""PixArt (alpha, Sigma): self-attention, cross-attention and MLP per block, modulated by one shared adaLN.

Operations, their order and their dtypes are those of diffusers' `PixArtTransformer2DModel`, so a full plan gives
its output to the last bit. Cross-attention has no gate and no norm of its own; text is projected only in steps
that attend to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from ditbench.engine.plan import Shape

if TYPE_CHECKING:
    from diffusers import PixArtTransformer2DModel


def _as_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A keep/discard mask [batch, keys] as what is added to attention scores [batch, 1, keys]."""
    if mask is None or mask.ndim != 2:
        return mask
    return ((1 - mask.to(dtype)) * -10000.0).unsqueeze(1)


def gather(tokens: Tensor, index: Tensor) -> Tensor:
    """The tokens at `index` [batch, k] of [batch, tokens, width]."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


@dataclass
class PixArtStream:
    """One forward of a PixArt network."""

    network: PixArtTransformer2DModel
    hidden: Tensor
    modulation: Tensor  # [batch, 6 x width], shared by all blocks
    embedded_time: Tensor
    raw_text: Tensor
    mask: Tensor | None
    text_mask: Tensor | None
    grid: tuple[int, int]
    return_dict: bool
    per_block: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)

    @cached_property
    def text(self) -> Tensor:
        if self.network.caption_projection is None:
            return self.raw_text
        text = self.network.caption_projection(self.raw_text)
        return text.view(self.hidden.shape[0], -1, self.hidden.shape[-1])

    def modulations(self, block: int) -> tuple[Tensor, ...]:
        """Shift, scale and gate of self-attention, then of the MLP, [batch, 1, width] each."""
        if block not in self.per_block:
            table = self.network.transformer_blocks[block].scale_shift_table
            whole = table[None] + self.modulation.reshape(self.hidden.shape[0], 6, -1)
            self.per_block = {block: whole.chunk(6, dim=1)}
        return self.per_block[block]


class PixArtBackbone:
    """`PixArtTransformer2DModel` as units."""

    network_class = "PixArtTransformer2DModel"
    branches: tuple[str, ...] = ("self", "cross", "mlp")

    def __init__(self, network: PixArtTransformer2DModel) -> None:
        self.network = network
        self.blocks = len(network.transformer_blocks)

    def shape(self, steps: int, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Shape:
        """The sites of a run of `steps` steps on such inputs."""
        patch = self.network.config.patch_size
        tokens = (hidden_states.shape[-2] // patch) * (hidden_states.shape[-1] // patch)
        return Shape(steps, self.blocks, self.branches, tokens)

    def enter(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        timestep: Tensor | None = None,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        attention_mask: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> PixArtStream:
        network = self.network
        if network.use_additional_conditions and added_cond_kwargs is None:
            raise ValueError("this PixArt network is conditioned on resolution: added_cond_kwargs is needed")
        assert encoder_hidden_states is not None, "PixArt attends to text: encoder_hidden_states is needed"
        dtype, batch, patch = hidden_states.dtype, hidden_states.shape[0], network.config.patch_size
        grid = (hidden_states.shape[-2] // patch, hidden_states.shape[-1] // patch)
        hidden = network.pos_embed(hidden_states)
        modulation, embedded_time = network.adaln_single(
            timestep, added_cond_kwargs, batch_size=batch, hidden_dtype=hidden.dtype
        )
        return PixArtStream(
            network=network,
            hidden=hidden,
            modulation=modulation,
            embedded_time=embedded_time,
            raw_text=encoder_hidden_states,
            mask=_as_bias(attention_mask, dtype),
            text_mask=_as_bias(encoder_attention_mask, dtype),
            grid=grid,
            return_dict=return_dict,
        )

    def compute(self, stream: PixArtStream, block: int, branch: str, index: Tensor | None = None) -> Tensor:
        layer = self.network.transformer_blocks[block]
        hidden = stream.hidden if index is None else gather(stream.hidden, index)
        if branch == "cross":
            return layer.attn2(hidden, encoder_hidden_states=stream.text, attention_mask=stream.text_mask)
        shift_self, scale_self, _, shift_mlp, scale_mlp, _ = stream.modulations(block)
        if branch == "self":
            # Some tokens attend among themselves.
            return layer.attn1(layer.norm1(hidden) * (1 + scale_self) + shift_self, attention_mask=stream.mask)
        return layer.ff(layer.norm2(hidden) * (1 + scale_mlp) + shift_mlp)

    def add(self, stream: PixArtStream, block: int, branch: str, output: Tensor) -> None:
        if branch != "cross":
            _, _, gate_self, _, _, gate_mlp = stream.modulations(block)
            output = (gate_self if branch == "self" else gate_mlp) * output
        stream.hidden = output + stream.hidden

    def leave(self, stream: PixArtStream) -> Any:
        network = self.network
        patch, channels = network.config.patch_size, network.out_channels
        table = network.scale_shift_table[None] + stream.embedded_time[:, None].to(network.scale_shift_table.device)
        shift, scale = table.chunk(2, dim=1)
        hidden = network.norm_out(stream.hidden) * (1 + scale) + shift
        hidden = network.proj_out(hidden).squeeze(1)
        rows, columns = stream.grid
        hidden = hidden.reshape(-1, rows, columns, patch, patch, channels)
        picture = torch.einsum("nhwpqc->nchpwq", hidden).reshape(-1, channels, rows * patch, columns * patch)
        return Transformer2DModelOutput(sample=picture) if stream.return_dict else (picture,)
