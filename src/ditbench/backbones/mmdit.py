"""MMDiT as in Stable Diffusion 3 and 3.5: image and text have streams of their own and attend jointly.

Operations, their order and their dtypes are those of diffusers' `SD3Transformer2DModel`, so a full plan gives its
output to the last bit. A block's branches are `attn` (joint attention) and `mlp` (both feed-forwards), each with an
output for the image and one for the text; the last block writes no text.

Some blocks of SD3.5-Medium have a third branch, `attn2`, in which the image attends to itself. It does not read what
`attn` left behind but what `attn` read: the image as it entered the block. That holds whatever became of `attn`:
`attn2` computes the tokens it is asked for from those tokens as they entered the block, no matter whether `attn` was
computed, filled, left out, or computed for other tokens.
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
from ditbench.engine.layout import Branch, Layout
from ditbench.faults import Fault

if TYPE_CHECKING:
    from diffusers import SD3Transformer2DModel
    from diffusers.models.attention import JointTransformerBlock


class _Setting(NamedTuple):
    grid: tuple[int, int]
    return_dict: bool


class _Modulation(NamedTuple):
    """What the image or the text of one block is shifted, scaled and gated by, [samples, 1, width] each."""

    shift_attn: Tensor
    scale_attn: Tensor
    # None: the text of the last block, which is read and then dropped.
    gate_attn: Tensor | None = None
    shift_mlp: Tensor | None = None
    scale_mlp: Tensor | None = None
    gate_mlp: Tensor | None = None
    # None: a block without a second attention.
    shift_attn2: Tensor | None = None
    scale_attn2: Tensor | None = None
    gate_attn2: Tensor | None = None


def _shifted(normed: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    assert scale is not None and shift is not None
    return normed * (1 + scale) + shift


class MMDiTBackbone(Backbone):
    """`SD3Transformer2DModel` as units."""

    network_class: ClassVar[str] = "SD3Transformer2DModel"

    def __init__(self, network: SD3Transformer2DModel) -> None:
        self.network = network
        self.layout = Layout(
            tuple(
                Branch(block, name)
                for block, layer in enumerate(network.transformer_blocks)
                for name in (("attn", "attn2", "mlp") if layer.use_dual_attention else ("attn", "mlp"))
            )
        )

    def tokens(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> int:
        rows, columns = self._grid(hidden_states)
        return rows * columns

    def _grid(self, latent: Tensor) -> tuple[int, int]:
        patch = self.network.config.patch_size
        return latent.shape[-2] // patch, latent.shape[-1] // patch

    def text_tokens(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> int:
        return 0 if encoder_hidden_states is None else encoder_hidden_states.shape[1]

    def enter(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        pooled_projections: Tensor | None = None,
        timestep: Tensor | None = None,
        block_controlnet_hidden_states: list[Tensor] | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
        return_dict: bool = True,
        skip_layers: list[int] | None = None,
    ) -> Stream:
        if encoder_hidden_states is None or pooled_projections is None or timestep is None:
            raise Fault("SD3 needs encoder_hidden_states, pooled_projections and timestep beside its latent")
        if joint_attention_kwargs:
            raise Fault(
                f"joint_attention_kwargs ({', '.join(joint_attention_kwargs)}) are not supported here: leave them out, "
                "and fuse LoRA weights at their scale beforehand (fuse_lora(lora_scale=...))"
            )
        if block_controlnet_hidden_states is not None:
            raise Fault("ControlNets are not supported here: leave out block_controlnet_hidden_states")
        if skip_layers is not None:
            raise Fault("skip_layers is not supported here: sample without skip_guidance_layers")
        network = self.network
        return Stream(
            # As the network makes it: later operations may differ in the last bit between memory layouts.
            network.pos_embed(hidden_states).contiguous(),
            text=network.context_embedder(encoder_hidden_states),
            conditions={"embedded": network.time_text_embed(timestep, pooled_projections)},
            setting=_Setting(self._grid(hidden_states), return_dict),
        )

    def _layer(self, branch: int) -> tuple[JointTransformerBlock, int, str]:
        block, name = self.layout.branches[branch]
        return self.network.transformer_blocks[block], block, name

    def _image_modulation(self, stream: Stream, block: int) -> _Modulation:
        def make() -> _Modulation:
            adaln = layer.norm1
            chunks = adaln.linear(adaln.silu(stream.condition("embedded")))[:, None]
            return _Modulation(*chunks.chunk(9 if layer.use_dual_attention else 6, dim=2))

        layer = self.network.transformer_blocks[block]
        return stream.once(("image modulation", block), make, note=_image_note(layer))

    def _text_modulation(self, stream: Stream, block: int) -> _Modulation:
        def make() -> _Modulation:
            adaln = layer.norm1_context
            chunks = adaln.linear(adaln.silu(stream.condition("embedded")))[:, None]
            if layer.context_pre_only:
                scale, shift = chunks.chunk(2, dim=2)
                return _Modulation(shift, scale)
            return _Modulation(*chunks.chunk(6, dim=2))

        layer = self.network.transformer_blocks[block]
        return stream.once(("text modulation", block), make, note=_text_note(layer))

    def compute(self, stream: Stream, branch: int) -> Output:
        layer, block, name = self._layer(branch)
        if name == "attn":
            return self._attend(stream, branch)
        if name == "mlp":
            return self._feed_forward(stream, block)
        image = self._image_modulation(stream, block)
        read = stream.merged(_shifted(stream.fed_to(self.reads(branch)), image.scale_attn2, image.shift_attn2))
        return Output(stream.spread(layer.attn2(hidden_states=read)))

    def _attend(self, stream: Stream, branch: int) -> Output:
        layer, block, _ = self._layer(branch)
        image, text = self._image_modulation(stream, block), self._text_modulation(stream, block)
        self.keep_input(stream, branch)
        normed = stream.fed_to(branch) if layer.use_dual_attention else layer.norm1.norm(stream.hidden)
        assert stream.text is not None
        attended, text_attended = layer.attn(
            hidden_states=stream.merged(_shifted(normed, image.scale_attn, image.shift_attn)),
            encoder_hidden_states=_shifted(layer.norm1_context.norm(stream.text), text.scale_attn, text.shift_attn),
        )
        return Output(stream.spread(attended), None if layer.context_pre_only else text_attended)

    def _feed_forward(self, stream: Stream, block: int) -> Output:
        layer, image = self.network.transformer_blocks[block], self._image_modulation(stream, block)
        read = stream.merged(_shifted(layer.norm2(stream.hidden), image.scale_mlp, image.shift_mlp))
        output = stream.spread(layer.ff(read))
        if layer.context_pre_only:
            return Output(output)
        assert stream.text is not None
        text = self._text_modulation(stream, block)
        read = _shifted(layer.norm2_context(stream.text), text.scale_mlp, text.shift_mlp)
        return Output(output, layer.ff_context(read))

    def writes_text(self, branch: int) -> bool:
        layer, _, name = self._layer(branch)
        return name != "attn2" and not layer.context_pre_only

    def reads(self, branch: int) -> int:
        return branch - 1 if self.layout.branches[branch].name == "attn2" else branch

    def keep_input(self, stream: Stream, branch: int) -> None:
        layer, _, name = self._layer(branch)
        if name == "attn" and layer.use_dual_attention and branch not in stream.fed:
            # Normed, as both attentions read it: they share the norm. Earlier blocks' is no longer needed.
            stream.fed = {branch: layer.norm1.norm(stream.hidden)}

    def modulated_input(self, stream: Stream) -> Tensor:
        by = self._image_modulation(stream, 0)
        return _shifted(self.network.transformer_blocks[0].norm1.norm(stream.hidden), by.scale_attn, by.shift_attn)

    def inner(self, branch: int) -> tuple[nn.Module, ...]:
        layer, _, name = self._layer(branch)
        if name != "mlp":
            return (getattr(layer, name),)
        return (layer.ff,) if layer.context_pre_only else (layer.ff, layer.ff_context)

    def time_embedding(self, times: Tensor) -> Tensor:
        embedder = self.network.time_text_embed
        embedded: Tensor = embedder.timestep_embedder(embedder.time_proj(times).to(self.network.dtype))
        return embedded

    def gates(self, stream: Stream, branch: int) -> tuple[Tensor | None, Tensor | None]:
        _, block, name = self._layer(branch)
        image = self._image_modulation(stream, block)
        text = self._text_modulation(stream, block) if self.writes_text(branch) else None
        if name == "attn":
            return image.gate_attn, None if text is None else text.gate_attn
        if name == "attn2":
            return image.gate_attn2, None
        return image.gate_mlp, None if text is None else text.gate_mlp

    def add(self, stream: Stream, branch: int, output: Output) -> None:
        gate, text_gate = self.gates(stream, branch)
        assert gate is not None
        stream.hidden = stream.hidden + gate * output.image
        if output.text is not None:
            assert stream.text is not None and text_gate is not None
            stream.text = stream.text + text_gate * output.text

    def leave(self, stream: Stream) -> Any:
        network = self.network
        patch, channels = network.config.patch_size, network.out_channels
        rows, columns = stream.setting.grid
        hidden = network.proj_out(network.norm_out(stream.hidden, stream.condition("embedded")))
        hidden = hidden.reshape(-1, rows, columns, patch, patch, channels)
        picture = torch.einsum("nhwpqc->nchpwq", hidden).reshape(-1, channels, rows * patch, columns * patch)
        return Transformer2DModelOutput(sample=picture) if stream.setting.return_dict else (picture,)

    def costs(self, tokens: int, text_tokens: int, as_published: bool = False) -> Costs:
        network = self.network
        noted = {}
        for layer in network.transformer_blocks:
            noted[_image_note(layer)] = Work(macs_per_token(layer.norm1.linear))
            noted[_text_note(layer)] = Work(macs_per_token(layer.norm1_context.linear))
        per_token = macs_per_token(network.pos_embed, network.proj_out)
        once = macs_per_token(network.time_text_embed, network.norm_out)
        once += text_tokens * macs_per_token(network.context_embedder)
        return Costs(
            branches=tuple(self._cost(branch, text_tokens) for branch in range(len(self.layout))),
            step=Work(once + tokens * per_token, norm=tokens * norm_macs(network.norm_out)),
            noted=noted,
        )

    def _cost(self, branch: int, text_tokens: int) -> UnitCost:
        layer, _, name = self._layer(branch)
        if name == "mlp":
            return UnitCost(
                macs_per_token(layer.ff),
                once=text_tokens * macs_per_token(layer.ff_context),
                norm=norm_macs(layer.norm2),
                norm_once=text_tokens * norm_macs(layer.norm2_context),
            )
        attention = getattr(layer, name)
        per_token = macs_per_token(attention.to_q, attention.to_k, attention.to_v, attention.to_out)
        width = attention.to_q.out_features
        if name == "attn2":
            # Its norm is attn's own, and billed there.
            return UnitCost(per_token, keys="computed", width=width)
        of_text = macs_per_token(attention.add_q_proj, attention.add_k_proj, attention.add_v_proj, attention.to_add_out)
        return UnitCost(
            per_token,
            once=text_tokens * of_text,
            keys="computed",
            joined=text_tokens,
            width=width,
            norm=norm_macs(layer.norm1),
            norm_once=text_tokens * norm_macs(layer.norm1_context),
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
            "encoder_hidden_states": torch.randn(
                batch, text_tokens, config.joint_attention_dim, dtype=dtype, device=device
            ),
            "pooled_projections": torch.randn(batch, config.pooled_projection_dim, dtype=dtype, device=device),
            # The sampler's times are floats, whatever the network computes in.
            "timestep": torch.full((batch,), 500.0, device=device),
            "return_dict": False,
        }


def _image_note(layer: JointTransformerBlock) -> str:
    """Under which name the ledger counts a block's modulation of the image: blocks differ in what it costs."""
    return "modulation of image, two attentions" if layer.use_dual_attention else "modulation of image"


def _text_note(layer: JointTransformerBlock) -> str:
    return "modulation of text, last block" if layer.context_pre_only else "modulation of text"
