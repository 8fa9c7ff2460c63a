"""Wan (2.1, text to video): self-attention, cross-attention and MLP per block, for tokens of all frames together.

Operations, their order and their dtypes are those of diffusers' `WanTransformer3DModel`, so a full plan gives its
output to the last bit. Norms, modulation and gated sums are in float32 whatever the weights' dtype. Text is projected
on entering, in every step; its keys and values are computed where cross-attention runs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor

from ditbench.backbones import Backbone
from ditbench.backbones.linear import macs_per_token, norm_macs
from ditbench.backbones.stream import Output, Stream
from ditbench.engine.costs import Costs, UnitCost, Work
from ditbench.engine.layout import Layout
from ditbench.faults import Fault

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel


class _Setting(NamedTuple):
    grid: tuple[int, int, int]  # tokens along frames, rows and columns
    return_dict: bool


class _Modulation(NamedTuple):
    """What one block's two modulated branches are shifted, scaled and gated by, [samples, 1, width] in float32."""

    shift_self: Tensor
    scale_self: Tensor
    gate_self: Tensor
    shift_mlp: Tensor
    scale_mlp: Tensor
    gate_mlp: Tensor


class WanBackbone(Backbone):
    """`WanTransformer3DModel` as units."""

    network_class: ClassVar[str] = "WanTransformer3DModel"

    def __init__(self, network: WanTransformer3DModel) -> None:
        if network.config.image_dim is not None or network.config.added_kv_proj_dim is not None:
            raise Fault("Wan networks that attend to an image are not supported: take one that reads text only")
        self.network = network
        self.layout = Layout.regular(len(network.blocks), ("self", "cross", "mlp"))

    def _grid(self, latent: Tensor) -> tuple[int, int, int]:
        frames, rows, columns = (
            length // patch for length, patch in zip(latent.shape[2:], self.network.config.patch_size, strict=True)
        )
        return frames, rows, columns

    def tokens(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> int:
        return math.prod(self._grid(hidden_states))

    def text_tokens(
        self,
        hidden_states: Tensor,
        timestep: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> int:
        return 0 if encoder_hidden_states is None else encoder_hidden_states.shape[1]

    def enter(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        encoder_hidden_states_image: Tensor | None = None,
        return_dict: bool = True,
        attention_kwargs: dict[str, Any] | None = None,
    ) -> Stream:
        network = self.network
        if timestep.ndim == 2:
            raise Fault("Wan with a timestep for every token is not supported: take a network with one for all")
        if encoder_hidden_states_image is not None:
            raise Fault("Wan with an image to attend to is not supported: call a text-to-video pipeline")
        if attention_kwargs:
            raise Fault(
                f"Wan cannot be accelerated with attention_kwargs ({', '.join(sorted(attention_kwargs))}): "
                "call the pipeline without them"
            )
        # For all samples the same: [tokens, 1, head width], so that a gather gives [samples, k, 1, head width].
        positions = tuple(table[0] for table in network.rope(hidden_states))
        hidden = network.patch_embedding(hidden_states).flatten(2).transpose(1, 2).contiguous()
        embedded_time, modulation, text, _ = network.condition_embedder(timestep, encoder_hidden_states)
        return Stream(
            hidden,
            conditions={"embedded_time": embedded_time, "modulation": modulation.unflatten(1, (6, -1)), "text": text},
            positions=positions,
            setting=_Setting(self._grid(hidden_states), return_dict),
        )

    def _modulation(self, stream: Stream, block: int) -> _Modulation:
        def make() -> _Modulation:
            table = self.network.blocks[block].scale_shift_table
            return _Modulation(*(table + stream.condition("modulation").float()).chunk(6, dim=1))

        return stream.once(("modulation", block), make)

    def compute(self, stream: Stream, branch: int) -> Output:
        block, name = self.layout.branches[branch]
        layer = self.network.blocks[block]
        hidden = stream.hidden
        if name == "cross":
            read = stream.merged(layer.norm2(hidden.float()).type_as(hidden))
            return Output(stream.spread(layer.attn2(read, stream.condition("text"), None, None)))
        by = self._modulation(stream, block)
        if name == "self":
            read = stream.merged((layer.norm1(hidden.float()) * (1 + by.scale_self) + by.shift_self).type_as(hidden))
            # The network's own processor broadcasts a table for all samples as well as one for each.
            cosines, sines = (table if table.ndim == 4 else table[None] for table in stream.positions)
            return Output(stream.spread(layer.attn1(read, None, None, (cosines, sines))))
        read = stream.merged((layer.norm3(hidden.float()) * (1 + by.scale_mlp) + by.shift_mlp).type_as(hidden))
        return Output(stream.spread(layer.ffn(read)))

    def modulated_input(self, stream: Stream) -> Tensor:
        return stream.condition("embedded_time")

    def time_projection(self, stream: Stream) -> Tensor:
        return stream.condition("modulation")

    def gates(self, stream: Stream, branch: int) -> tuple[Tensor | None, Tensor | None]:
        block, name = self.layout.branches[branch]
        if name == "cross":
            return None, None
        by = self._modulation(stream, block)
        return (by.gate_self if name == "self" else by.gate_mlp), None

    def add(self, stream: Stream, branch: int, output: Output) -> None:
        gate, _ = self.gates(stream, branch)
        hidden = stream.hidden
        if gate is None:
            stream.hidden = hidden + output.image
        else:
            stream.hidden = (hidden.float() + output.image.float() * gate).type_as(hidden)

    def leave(self, stream: Stream) -> Any:
        network = self.network
        hidden = stream.hidden
        embedded = stream.condition("embedded_time")[:, None]
        shift, scale = (network.scale_shift_table.to(embedded.device) + embedded).chunk(2, dim=1)
        shift, scale = shift.to(hidden.device), scale.to(hidden.device)
        normed = (network.norm_out(hidden.float()) * (1 + scale) + shift).type_as(hidden)
        patches = network.proj_out(normed).unflatten(2, (*network.config.patch_size, -1))
        patches = patches.unflatten(1, stream.setting.grid)
        # [samples, frames, rows, columns, their patches, channels]: every axis next to its patch's.
        video = patches.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)
        return Transformer2DModelOutput(sample=video) if stream.setting.return_dict else (video,)

    def costs(self, tokens: int, text_tokens: int, as_published: bool = False) -> Costs:
        network = self.network
        branches = []
        for block, name in self.layout.branches:
            layer = network.blocks[block]
            # Not macs_per_token(attention): fused projections lie beside those they were made of.
            if name == "self":
                attention = layer.attn1
                cost = UnitCost(
                    macs_per_token(attention.to_q, attention.to_k, attention.to_v, attention.to_out),
                    keys="computed",
                    width=attention.inner_dim,
                    norm=norm_macs(layer.norm1),
                )
            elif name == "cross":
                attention = layer.attn2
                cost = UnitCost(
                    macs_per_token(attention.to_q, attention.to_out),
                    once=text_tokens * macs_per_token(attention.to_k, attention.to_v),
                    keys=text_tokens,
                    width=attention.inner_dim,
                    norm=norm_macs(layer.norm2),
                )
            else:
                cost = UnitCost(macs_per_token(layer.ffn), norm=norm_macs(layer.norm3))
            branches.append(cost)
        embedder = network.condition_embedder
        once = macs_per_token(embedder.time_embedder, embedder.time_proj)
        text = text_tokens * macs_per_token(embedder.text_embedder)
        per_token = macs_per_token(network.patch_embedding, network.proj_out)
        return Costs(
            branches=tuple(branches),
            step=Work(once + text + tokens * per_token, norm=tokens * norm_macs(network.norm_out)),
        )

    def example_inputs(
        self,
        batch: int,
        size: tuple[int, ...],
        text_tokens: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> dict[str, Any]:
        config = self.network.config
        return {
            "hidden_states": torch.randn(batch, config.in_channels, *size, dtype=dtype, device=device),
            "timestep": torch.full((batch,), 500, device=device),
            "encoder_hidden_states": torch.randn(batch, text_tokens, config.text_dim, dtype=dtype, device=device),
            "return_dict": False,
        }
