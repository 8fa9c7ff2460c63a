"""DiT: class-conditional; self-attention and MLP per block, each block modulated by an adaLN of its own.

Operations, their order and their dtypes are those of diffusers' `DiTTransformer2DModel`, so a full plan gives its
output to the last bit. There every block has its own embedder of timestep and class, and the head embeds once more
with the first block's; the original network has one embedder for all. `DiTBackbone.costs` bills either way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn
from torch.nn import functional

from ditbench.backbones import Backbone
from ditbench.backbones.linear import macs_per_token, norm_macs
from ditbench.backbones.stream import Output, Stream
from ditbench.engine.costs import Costs, UnitCost, Work
from ditbench.engine.layout import Layout
from ditbench.faults import Fault

if TYPE_CHECKING:
    from diffusers import DiTTransformer2DModel


class _Modulation(NamedTuple):
    """What one block's two branches are shifted, scaled and gated by, [samples, 1, width] each."""

    shift_self: Tensor
    scale_self: Tensor
    gate_self: Tensor
    shift_mlp: Tensor
    scale_mlp: Tensor
    gate_mlp: Tensor


class DiTBackbone(Backbone):
    """`DiTTransformer2DModel` as units."""

    network_class: ClassVar[str] = "DiTTransformer2DModel"
    conditional_second: ClassVar[bool] = False
    merges_answers: ClassVar[bool] = False

    def __init__(self, network: DiTTransformer2DModel) -> None:
        self.network = network
        self.layout = Layout.regular(len(network.transformer_blocks), ("self", "mlp"))

    def tokens(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> int:
        patch = self.network.config.patch_size
        return (hidden_states.shape[-2] // patch) * (hidden_states.shape[-1] // patch)

    def text_tokens(self, *args: Any, **kwargs: Any) -> int:
        return 0

    def may_guide(
        self, hidden_states: Tensor, timestep: Tensor | None = None, class_labels: Tensor | None = None, **kwargs: Any
    ) -> bool:
        """The other branch is of the class that stands for none."""
        if class_labels is None:
            return False
        return bool((class_labels.chunk(2)[-1] == self.network.config.num_embeds_ada_norm).all())

    def enter(
        self,
        hidden_states: Tensor,
        timestep: Tensor | None = None,
        class_labels: Tensor | None = None,
        cross_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
    ) -> Stream:
        if timestep is None or class_labels is None:
            raise Fault("DiT is conditioned on time and class: give it both timestep and class_labels")
        if cross_attention_kwargs:
            raise Fault(f"cross_attention_kwargs are not supported here, leave out {', '.join(cross_attention_kwargs)}")
        height, width = hidden_states.shape[-2:]
        if height != width:
            # The network puts its tokens back on a square grid, whatever grid they came from.
            raise Fault(f"DiT makes square images only, it was given a latent of {height} x {width}")
        return Stream(
            self.network.pos_embed(hidden_states),
            conditions={"timestep": timestep.expand(hidden_states.shape[0]), "labels": class_labels},
            setting=return_dict,
        )

    def _embedded(self, stream: Stream, block: int) -> Tensor:
        embedder = self.network.transformer_blocks[block].norm1.emb
        time, labels = stream.condition("timestep"), stream.condition("labels")
        embedded: Tensor = embedder(time, labels, hidden_dtype=stream.given.dtype)
        return embedded

    def _modulation(self, stream: Stream, block: int) -> _Modulation:
        def make() -> _Modulation:
            adaln = self.network.transformer_blocks[block].norm1
            embedded = stream.once(("embedder", block), lambda: self._embedded(stream, block), note="embedder")
            return _Modulation(*adaln.linear(adaln.silu(embedded))[:, None].chunk(6, dim=2))

        return stream.once(("modulation", block), make, note="modulation")

    def compute(self, stream: Stream, branch: int) -> Output:
        block, name = self.layout.branches[branch]
        layer, by = self.network.transformer_blocks[block], self._modulation(stream, block)
        if name == "self":
            read = stream.merged(layer.norm1.norm(stream.hidden) * (1 + by.scale_self) + by.shift_self)
            return Output(stream.spread(layer.attn1(read)))
        read = stream.merged(layer.norm3(stream.hidden) * (1 + by.scale_mlp) + by.shift_mlp)
        return Output(stream.spread(layer.ff(read)))

    def modulated_input(self, stream: Stream) -> Tensor:
        layer, by = self.network.transformer_blocks[0], self._modulation(stream, 0)
        modulated: Tensor = layer.norm1.norm(stream.hidden) * (1 + by.scale_self) + by.shift_self
        return modulated

    def inner(self, branch: int) -> tuple[nn.Module, ...]:
        block, name = self.layout.branches[branch]
        layer = self.network.transformer_blocks[block]
        return (layer.attn1 if name == "self" else layer.ff,)

    def time_embedding(self, times: Tensor) -> Tensor:
        embedder = self.network.transformer_blocks[0].norm1.emb
        embedded: Tensor = embedder.timestep_embedder(embedder.time_proj(times).to(self.network.dtype))
        return embedded

    def gates(self, stream: Stream, branch: int) -> tuple[Tensor | None, Tensor | None]:
        block, name = self.layout.branches[branch]
        by = self._modulation(stream, block)
        return (by.gate_self if name == "self" else by.gate_mlp), None

    def add(self, stream: Stream, branch: int, output: Output) -> None:
        gate, _ = self.gates(stream, branch)
        assert gate is not None
        stream.hidden = gate * output.image + stream.hidden

    def leave(self, stream: Stream) -> Any:
        network = self.network
        patch, channels = network.config.patch_size, network.out_channels
        # Embedded anew, as the network does: what a step costs must not hang on whether block 0 was computed.
        embedded = self._embedded(stream, 0)
        shift, scale = network.proj_out_1(functional.silu(embedded)).chunk(2, dim=1)
        hidden = network.proj_out_2(network.norm_out(stream.hidden) * (1 + scale[:, None]) + shift[:, None])
        side = int(stream.tokens**0.5)
        hidden = hidden.reshape(-1, side, side, patch, patch, channels)
        picture = torch.einsum("nhwpqc->nchpwq", hidden).reshape(-1, channels, side * patch, side * patch)
        return Transformer2DModelOutput(sample=picture) if stream.setting else (picture,)

    def costs(self, tokens: int, text_tokens: int, as_published: bool = False) -> Costs:
        """With `as_published`, timestep and class are billed as embedded once a step, as in the original DiT.

        Published figures of DiT come from there: 114.394 G MACs of linear layers for DiT-XL/2 at 256 pixels, where
        diffusers' network computes 114.439 G.
        """
        network = self.network
        branches = []
        for block, name in self.layout.branches:
            layer = network.transformer_blocks[block]
            if name == "self":
                width, norm = layer.attn1.to_q.out_features, norm_macs(layer.norm1.norm)
                cost = UnitCost(macs_per_token(layer.attn1), keys="computed", width=width, norm=norm)
            else:
                cost = UnitCost(macs_per_token(layer.ff), norm=norm_macs(layer.norm3))
            branches.append(cost)
        adaln = network.transformer_blocks[0].norm1
        embedder = macs_per_token(adaln.emb)
        per_token = macs_per_token(network.pos_embed, network.proj_out_2)
        head = embedder + macs_per_token(network.proj_out_1)
        return Costs(
            branches=tuple(branches),
            step=Work(head + tokens * per_token, norm=tokens * norm_macs(network.norm_out)),
            noted={
                "embedder": Work(0 if as_published else embedder),
                "modulation": Work(macs_per_token(adaln.linear)),
            },
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
            "class_labels": torch.arange(batch, device=device) % config.num_embeds_ada_norm,
            "return_dict": False,
        }
