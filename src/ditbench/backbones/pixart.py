"""PixArt (alpha, Sigma): self-attention, cross-attention and MLP per block, modulated by one shared adaLN.

Operations, their order and their dtypes are those of diffusers' `PixArtTransformer2DModel`, so a full plan gives
its output to the last bit. Cross-attention has no gate and no norm of its own; text is projected only in steps
that attend to it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from ditbench.backbones import Backbone
from ditbench.backbones.linear import macs_per_token, norm_macs
from ditbench.backbones.stream import Output, Stream
from ditbench.engine.costs import Costs, UnitCost, Work
from ditbench.engine.layout import Layout

if TYPE_CHECKING:
    from diffusers import PixArtTransformer2DModel


def _as_bias(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A keep/discard mask [batch, keys] as what is added to attention scores [batch, 1, keys]."""
    if mask is None or mask.ndim != 2:
        return mask
    return ((1 - mask.to(dtype)) * -10000.0).unsqueeze(1)


class _Setting(NamedTuple):
    grid: tuple[int, int]
    return_dict: bool


class _Modulation(NamedTuple):
    """What one block's two modulated branches are shifted, scaled and gated by, [samples, 1, width] each."""

    shift_self: Tensor
    scale_self: Tensor
    gate_self: Tensor
    shift_mlp: Tensor
    scale_mlp: Tensor
    gate_mlp: Tensor


class PixArtBackbone(Backbone):
    """`PixArtTransformer2DModel` as units."""

    network_class: ClassVar[str] = "PixArtTransformer2DModel"

    def __init__(self, network: PixArtTransformer2DModel) -> None:
        self.network = network
        self.layout = Layout.regular(len(network.transformer_blocks), ("self", "cross", "mlp"))

    def tokens(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> int:
        patch = self.network.config.patch_size
        return (hidden_states.shape[-2] // patch) * (hidden_states.shape[-1] // patch)

    def text_tokens(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> int:
        return 0 if encoder_hidden_states is None else encoder_hidden_states.shape[1]

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
    ) -> Stream:
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
        return Stream(
            hidden,
            conditions={
                "modulation": modulation,
                "embedded_time": embedded_time,
                "text": encoder_hidden_states,
                "mask": _as_bias(attention_mask, dtype),
                "text_mask": _as_bias(encoder_attention_mask, dtype),
            },
            setting=_Setting(grid, return_dict),
        )

    def _text(self, stream: Stream) -> Tensor:
        raw = stream.condition("text")
        if self.network.caption_projection is None:
            return raw
        width = stream.given.shape[-1]
        return stream.once(
            "text", lambda: self.network.caption_projection(raw).view(stream.samples, -1, width), note="text"
        )

    def _modulation(self, stream: Stream, block: int) -> _Modulation:
        def make() -> _Modulation:
            table = self.network.transformer_blocks[block].scale_shift_table
            whole = table[None] + stream.condition("modulation").reshape(stream.samples, 6, -1)
            return _Modulation(*whole.chunk(6, dim=1))

        return stream.once(("modulation", block), make)

    def compute(self, stream: Stream, branch: int) -> Output:
        block, name = self.layout.branches[branch]
        layer = self.network.transformer_blocks[block]
        if name == "cross":
            text, mask = self._text(stream), stream.conditions["text_mask"]
            read = stream.merged(stream.hidden)
            return Output(stream.spread(layer.attn2(read, encoder_hidden_states=text, attention_mask=mask)))
        by = self._modulation(stream, block)
        if name == "self":
            read = stream.merged(layer.norm1(stream.hidden) * (1 + by.scale_self) + by.shift_self)
            return Output(stream.spread(layer.attn1(read, attention_mask=stream.conditions["mask"])))
        read = stream.merged(layer.norm2(stream.hidden) * (1 + by.scale_mlp) + by.shift_mlp)
        return Output(stream.spread(layer.ff(read)))

    def modulated_input(self, stream: Stream) -> Tensor:
        layer, by = self.network.transformer_blocks[0], self._modulation(stream, 0)
        modulated: Tensor = layer.norm1(stream.hidden) * (1 + by.scale_self) + by.shift_self
        return modulated

    def time_projection(self, stream: Stream) -> Tensor:
        return stream.condition("modulation")

    def inner(self, branch: int) -> tuple[nn.Module, ...]:
        block, name = self.layout.branches[branch]
        layer = self.network.transformer_blocks[block]
        return ({"self": layer.attn1, "cross": layer.attn2, "mlp": layer.ff}[name],)

    def time_embedding(self, times: Tensor) -> Tensor:
        embedder = self.network.adaln_single.emb
        embedded: Tensor = embedder.timestep_embedder(embedder.time_proj(times).to(self.network.dtype))
        return embedded

    def gates(self, stream: Stream, branch: int) -> tuple[Tensor | None, Tensor | None]:
        block, name = self.layout.branches[branch]
        if name == "cross":
            return None, None
        by = self._modulation(stream, block)
        return (by.gate_self if name == "self" else by.gate_mlp), None

    def add(self, stream: Stream, branch: int, output: Output) -> None:
        gate, _ = self.gates(stream, branch)
        gated = output.image if gate is None else gate * output.image
        stream.hidden = gated + stream.hidden

    def leave(self, stream: Stream) -> Any:
        network = self.network
        patch, channels = network.config.patch_size, network.out_channels
        table = network.scale_shift_table
        shift, scale = (table[None] + stream.condition("embedded_time")[:, None].to(table.device)).chunk(2, dim=1)
        hidden = network.norm_out(stream.hidden) * (1 + scale) + shift
        hidden = network.proj_out(hidden).squeeze(1)
        rows, columns = stream.setting.grid
        hidden = hidden.reshape(-1, rows, columns, patch, patch, channels)
        picture = torch.einsum("nhwpqc->nchpwq", hidden).reshape(-1, channels, rows * patch, columns * patch)
        return Transformer2DModelOutput(sample=picture) if stream.setting.return_dict else (picture,)

    def costs(self, tokens: int, text_tokens: int, as_published: bool = False) -> Costs:
        network = self.network
        branches = []
        for block, name in self.layout.branches:
            layer = network.transformer_blocks[block]
            if name == "self":
                width = layer.attn1.to_q.out_features
                cost = UnitCost(macs_per_token(layer.attn1), keys="computed", width=width, norm=norm_macs(layer.norm1))
            elif name == "cross":
                attention = layer.attn2
                keys_values = macs_per_token(attention.to_k, attention.to_v) * text_tokens
                per_token = macs_per_token(attention.to_q, attention.to_out)
                cost = UnitCost(per_token, once=keys_values, keys=text_tokens, width=attention.to_q.out_features)
            else:
                cost = UnitCost(macs_per_token(layer.ff), norm=norm_macs(layer.norm2))
            branches.append(cost)
        time = macs_per_token(network.adaln_single)
        if network.use_additional_conditions:
            # Height and width go through one embedder, each by itself.
            time += macs_per_token(network.adaln_single.emb.resolution_embedder)
        per_token = macs_per_token(network.pos_embed, network.proj_out)
        return Costs(
            branches=tuple(branches),
            step=Work(time + tokens * per_token, norm=tokens * norm_macs(network.norm_out)),
            noted={"text": Work(text_tokens * macs_per_token(network.caption_projection))},
        )

    def example_inputs(
        self,
        batch: int,
        size: tuple[int, ...],
        text_tokens: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> dict[str, Any]:
        network = self.network
        caption_width = network.config.caption_channels or network.config.cross_attention_dim
        conditions: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if network.use_additional_conditions:
            conditions = {
                "resolution": torch.full((batch, 2), 1024.0, dtype=dtype, device=device),
                "aspect_ratio": torch.ones(batch, 1, dtype=dtype, device=device),
            }
        return {
            "hidden_states": torch.randn(batch, network.config.in_channels, *size, dtype=dtype, device=device),
            "encoder_hidden_states": torch.randn(batch, text_tokens, caption_width, dtype=dtype, device=device),
            "timestep": torch.full((batch,), 500, device=device),
            "added_cond_kwargs": conditions,
            "encoder_attention_mask": torch.ones(batch, text_tokens, device=device),
            "return_dict": False,
        }
