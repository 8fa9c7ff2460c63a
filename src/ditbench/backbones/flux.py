"""FLUX.1 (schnell, dev): double-stream blocks that attend jointly to image and text, then single-stream blocks.

Operations, their order and their dtypes are those of diffusers' `FluxTransformer2DModel`, so a full plan gives its
output to the last bit. Every branch has an output for the image and one for the text. A single-stream block is one
branch: its attention and its MLP run side by side and share one output projection and one gate. Blocks are numbered
through, double-stream blocks first. In float16 sums are clipped as in the network where a unit is computed whole;
outputs that are reused or completed are added as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor
from torch.nn import functional

from ditbench.backbones import Backbone
from ditbench.backbones.linear import macs_per_token, norm_macs
from ditbench.backbones.stream import Output, Stream
from ditbench.engine.costs import Costs, UnitCost, Work
from ditbench.engine.layout import Branch, Layout
from ditbench.engine.merging import Site
from ditbench.faults import Fault

if TYPE_CHECKING:
    from diffusers import FluxTransformer2DModel

Tables = tuple[Tensor, Tensor]

# The pipeline makes one token of a square of this many latents each way, before the network sees them.
PACKED = 2
FLOAT16_MAX = 65504


@dataclass(frozen=True, eq=False)
class _Setting:
    rotary: Tables  # cosines and sines of the text's tokens and then the image's, [text + tokens, head width]
    return_dict: bool
    places: Tensor  # of the image's tokens: 0, row and column, [tokens, 3]
    grids: dict[int, tuple[int, int] | None]  # of so many tokens, as they last were

    @cached_property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of the image's tokens; None where their places have no values.

        It waits for the device. A graph that is recorded cannot, and takes what was found when it was tried before.
        """
        if self.places.is_meta:
            return None
        recording = self.places.is_cuda and torch.cuda.is_current_stream_capturing()
        if not recording:
            _, rows, columns = (int(last) + 1 for last in self.places.amax(0))
            self.grids[len(self.places)] = (rows, columns) if rows * columns == len(self.places) else None
        return self.grids.get(len(self.places))


class _Modulation(NamedTuple):
    """What one stream is shifted, scaled and gated by in one branch, [samples, 1, width] each."""

    shift: Tensor
    scale: Tensor
    gate: Tensor

    def __call__(self, normed: Tensor) -> Tensor:
        return normed * (1 + self.scale) + self.shift


class FluxBackbone(Backbone):
    """`FluxTransformer2DModel` as units."""

    network_class: ClassVar[str] = "FluxTransformer2DModel"
    text_leads: ClassVar[bool] = True

    def __init__(self, network: FluxTransformer2DModel) -> None:
        self.network = network
        self._doubles = len(network.transformer_blocks)
        self._grids: dict[int, tuple[int, int] | None] = {}
        double = [Branch(block, name) for block in range(self._doubles) for name in ("attn", "mlp")]
        single = [Branch(self._doubles + n, "single") for n in range(len(network.single_transformer_blocks))]
        self.layout = Layout((*double, *single))

    def _layer(self, block: int) -> Any:
        network = self.network
        if block < self._doubles:
            return network.transformer_blocks[block]
        return network.single_transformer_blocks[block - self._doubles]

    def tokens(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> int:
        return hidden_states.shape[1]

    def text_tokens(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None, *args: Any, **kwargs: Any
    ) -> int:
        return 0 if encoder_hidden_states is None else encoder_hidden_states.shape[1]

    def writes_text(self, branch: int) -> bool:
        return True

    def enter(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        pooled_projections: Tensor | None = None,
        timestep: Tensor | None = None,
        img_ids: Tensor | None = None,
        txt_ids: Tensor | None = None,
        guidance: Tensor | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
        controlnet_block_samples: Any = None,
        controlnet_single_block_samples: Any = None,
        return_dict: bool = True,
        controlnet_blocks_repeat: bool = False,
    ) -> Stream:
        network = self.network
        if controlnet_block_samples is not None or controlnet_single_block_samples is not None:
            raise Fault("FLUX with a ControlNet cannot be accelerated: call the pipeline without one")
        if joint_attention_kwargs:
            raise Fault(
                f"FLUX cannot be accelerated with joint_attention_kwargs ({', '.join(sorted(joint_attention_kwargs))}: "
                "IP-adapters and scaled LoRAs): call the pipeline without them"
            )
        if guidance is None and network.config.guidance_embeds:
            raise Fault("this FLUX network is distilled with guidance: give it a guidance scale")
        assert encoder_hidden_states is not None and timestep is not None, "FLUX needs a text and a timestep"
        assert img_ids is not None and txt_ids is not None, "FLUX needs the positions img_ids and txt_ids"
        hidden = network.x_embedder(hidden_states)
        scales = [scale.to(hidden.dtype) * 1000 for scale in (timestep, guidance) if scale is not None]
        embedded = network.time_text_embed(*scales, pooled_projections)
        text = network.context_embedder(encoder_hidden_states)
        # Older pipelines give positions for every sample, all the same.
        text_ids, image_ids = (table[0] if table.ndim == 3 else table for table in (txt_ids, img_ids))
        cosines, sines = network.pos_embed(torch.cat([text_ids, image_ids]))
        return Stream(
            hidden,
            text=text,
            conditions={"embedded": embedded},
            positions=(cosines[text.shape[1] :], sines[text.shape[1] :]),
            setting=_Setting((cosines, sines), return_dict, image_ids, self._grids),
        )

    def _modulation(self, stream: Stream, branch: int) -> tuple[_Modulation, _Modulation]:
        """For the image and for the text. Those of all branches of a block come from one projection each."""
        block, name = self.layout.branches[branch]
        layer = self._layer(block)

        def split(norm: Any, parts: int) -> list[_Modulation]:
            chunks = norm.linear(norm.silu(stream.condition("embedded")))[:, None].chunk(parts, dim=2)
            return [_Modulation(*chunks[first : first + 3]) for first in range(0, parts, 3)]

        def double() -> dict[str, tuple[_Modulation, _Modulation]]:
            attn, mlp = zip(split(layer.norm1, 6), split(layer.norm1_context, 6), strict=True)
            return {"attn": attn, "mlp": mlp}

        def single() -> dict[str, tuple[_Modulation, _Modulation]]:
            (both,) = split(layer.norm, 3)
            return {"single": (both, both)}

        kind, make = ("single", single) if name == "single" else ("double", double)
        return stream.once(("modulation", block), make, note=f"modulation.{kind}")[name]

    def compute(self, stream: Stream, branch: int) -> Output:
        block, name = self.layout.branches[branch]
        layer = self._layer(block)
        assert stream.text is not None
        by_image, by_text = self._modulation(stream, branch)
        if name == "attn":
            image = stream.merged(by_image(layer.norm1.norm(stream.hidden)))
            text = by_text(layer.norm1_context.norm(stream.text))
            attended, text = _attended(layer.attn, stream, image, text)
            return Output(stream.spread(attended), text)
        if name == "mlp":
            image = stream.spread(layer.ff(stream.merged(by_image(layer.norm2(stream.hidden)))))
            return Output(image, layer.ff_context(by_text(layer.norm2_context(stream.text))))
        text_tokens = stream.text.shape[1]
        both = by_image(layer.norm.norm(torch.cat([stream.text, stream.hidden], dim=1)))
        if isinstance(stream.site, Site) and stream.site.attends_whole:
            return _with_merged_mlp(layer, stream, both, text_tokens)
        if stream.site is not None:
            both = torch.cat([both[:, :text_tokens], stream.merged(both[:, text_tokens:])], dim=1)
        widened = layer.act_mlp(layer.proj_mlp(both))
        attended = stream.attended(branch, lambda: _attended(layer.attn, stream, both))
        output = layer.proj_out(torch.cat([attended, widened], dim=2))
        return Output(stream.spread(output[:, text_tokens:]), output[:, :text_tokens])

    def modulated_input(self, stream: Stream) -> Tensor:
        by_image, _ = self._modulation(stream, 0)
        return by_image(self.network.transformer_blocks[0].norm1.norm(stream.hidden))

    def gates(self, stream: Stream, branch: int) -> tuple[Tensor | None, Tensor | None]:
        by_image, by_text = self._modulation(stream, branch)
        return by_image.gate, by_text.gate

    def add(self, stream: Stream, branch: int, output: Output) -> None:
        name = self.layout.branches[branch].name
        by_image, by_text = self._modulation(stream, branch)
        assert stream.text is not None and output.text is not None
        hidden = stream.hidden + by_image.gate * output.image
        text = stream.text + by_text.gate * output.text
        # Where the network clips: text at the end of a block, the image in single-stream blocks.
        if name != "attn":
            text = _clipped(text)
        stream.hidden, stream.text = _clipped(hidden) if name == "single" else hidden, text

    def leave(self, stream: Stream) -> Any:
        network = self.network
        sample = network.proj_out(network.norm_out(stream.hidden, stream.condition("embedded")))
        return Transformer2DModelOutput(sample=sample) if stream.setting.return_dict else (sample,)

    def costs(self, tokens: int, text_tokens: int, as_published: bool = False) -> Costs:
        network = self.network
        noted: dict[str, Work] = {}
        branches = []
        for block, name in self.layout.branches:
            layer = self._layer(block)
            if name == "attn":
                attention = layer.attn
                # Not macs_per_token(attention): fused projections lie beside those they were made of.
                cost = UnitCost(
                    macs_per_token(attention.to_q, attention.to_k, attention.to_v, attention.to_out),
                    once=text_tokens
                    * macs_per_token(
                        attention.add_q_proj, attention.add_k_proj, attention.add_v_proj, attention.to_add_out
                    ),
                    keys="computed",
                    joined=text_tokens,
                    width=attention.inner_dim,
                    norm=norm_macs(layer.norm1),
                    norm_once=text_tokens * norm_macs(layer.norm1_context),
                )
                noted["modulation.double"] = Work(macs_per_token(layer.norm1.linear, layer.norm1_context.linear))
            elif name == "mlp":
                cost = UnitCost(
                    macs_per_token(layer.ff),
                    once=text_tokens * macs_per_token(layer.ff_context),
                    norm=norm_macs(layer.norm2),
                    norm_once=text_tokens * norm_macs(layer.norm2_context),
                )
            else:
                attention = layer.attn
                per_token = macs_per_token(
                    attention.to_q, attention.to_k, attention.to_v, layer.proj_mlp, layer.proj_out
                )
                cost = UnitCost(
                    per_token,
                    once=text_tokens * per_token,
                    keys="computed",
                    joined=text_tokens,
                    width=attention.inner_dim,
                    norm=norm_macs(layer.norm),
                    norm_once=text_tokens * norm_macs(layer.norm),
                    attending=macs_per_token(attention.to_q, attention.to_k, attention.to_v),
                    apart=macs_per_token(attention.to_q, attention.to_k, attention.to_v)
                    + attention.inner_dim * layer.proj_out.out_features,
                )
                noted["modulation.single"] = Work(macs_per_token(layer.norm.linear))
            branches.append(cost)
        per_token = macs_per_token(network.x_embedder, network.proj_out)
        text = text_tokens * macs_per_token(network.context_embedder)
        once = macs_per_token(network.time_text_embed, network.norm_out.linear)
        return Costs(
            branches=tuple(branches),
            step=Work(once + text + tokens * per_token, norm=tokens * norm_macs(network.norm_out)),
            noted=noted,
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
        rows, columns = (length // PACKED for length in size)
        place: dict[str, Any] = {"dtype": dtype, "device": device}
        axes = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
        grid = torch.stack([torch.zeros_like(axes[0]), *axes], dim=-1)
        return {
            "hidden_states": torch.randn(batch, rows * columns, config.in_channels, **place),
            "encoder_hidden_states": torch.randn(batch, text_tokens, config.joint_attention_dim, **place),
            "pooled_projections": torch.randn(batch, config.pooled_projection_dim, **place),
            # The pipeline's timesteps run from 1 to 0.
            "timestep": torch.full((batch,), 0.5, **place),
            "img_ids": grid.reshape(rows * columns, 3).to(dtype),
            "txt_ids": torch.zeros(text_tokens, 3, **place),
            "guidance": torch.full((batch,), 3.5, **place) if config.guidance_embeds else None,
            "return_dict": False,
        }


def _clipped(hidden: Tensor) -> Tensor:
    return hidden.clip(-FLOAT16_MAX, FLOAT16_MAX) if hidden.dtype == torch.float16 else hidden


def _with_merged_mlp(layer: Any, stream: Stream, both: Tensor, text_tokens: int) -> Output:
    """A single-stream block in which all tokens attend, and the image's are merged for the MLP alone.

    The output projection is linear: each of its two halves projects as many tokens as it is given.
    """
    if not _plain(layer.proj_out, both):
        raise Fault(
            "the MLP alone of FLUX's single-stream blocks can be merged where their output projection is a plain "
            f"linear layer on the device and in the type of what it reads, not a {_told(layer.proj_out)}: "
            "fuse adapters (pipe.fuse_lora(), then pipe.unload_lora_weights()), load it unquantised, and move the "
            "pipeline to the device as a whole"
        )
    attended = _attended(layer.attn, stream, both)
    fewer = torch.cat([both[:, :text_tokens], stream.merged(both[:, text_tokens:])], dim=1)
    widened = layer.act_mlp(layer.proj_mlp(fewer))
    weight, width = layer.proj_out.weight, attended.shape[-1]
    output = functional.linear(attended, weight[:, :width], layer.proj_out.bias)
    of_mlp = functional.linear(widened, weight[:, width:])
    image = output[:, text_tokens:] + stream.spread(of_mlp[:, text_tokens:])
    return Output(image, output[:, :text_tokens] + of_mlp[:, :text_tokens])


def _plain(layer: Any, read: Tensor) -> bool:
    """Whether a linear layer is its weight and bias and nothing else: parts of it can be used by themselves then."""
    if type(layer) is not torch.nn.Linear:
        return False
    hooked = layer._forward_hooks or layer._forward_pre_hooks or "_hf_hook" in vars(layer) or "forward" in vars(layer)
    fits = (layer.weight.device, layer.weight.dtype) == (read.device, read.dtype)
    return not hooked and fits


def _told(layer: Any) -> str:
    weight = getattr(layer, "weight", None)
    where = f" of {weight.dtype} on {weight.device}" if torch.is_tensor(weight) else ""
    return f"{type(layer).__module__}.{type(layer).__qualname__}{where}"


def _attended(attention: Any, stream: Stream, hidden: Tensor, text: Tensor | None = None) -> Any:
    """What an attention module answers: a pair for image and `text`, or one tensor where `hidden` holds both."""
    gathered = stream.positions[0].ndim == 3
    if not gathered:
        return attention(hidden_states=hidden, encoder_hidden_states=text, image_rotary_emb=stream.setting.rotary)
    processor = attention.processor
    if not isinstance(processor, attention._default_processor_cls):
        # It takes one table of positions for the whole batch; gathered tokens have a table for every sample.
        raise Fault(
            f"the attention processor {type(processor).__name__} cannot compute some tokens of an image: "
            "use the network's default processor, or a method that computes whole units"
        )
    queries, keys, values = _projections(attention, "to_qkv", ("to_q", "to_k", "to_v"), hidden)
    queries, keys = attention.norm_q(queries), attention.norm_k(keys)
    if text is not None:
        names = ("add_q_proj", "add_k_proj", "add_v_proj")
        text_queries, text_keys, text_values = _projections(attention, "to_added_qkv", names, text)
        queries = torch.cat([attention.norm_added_q(text_queries), queries], dim=1)
        keys = torch.cat([attention.norm_added_k(text_keys), keys], dim=1)
        values = torch.cat([text_values, values], dim=1)
    cosines, sines = _gathered_tables(stream)
    mixed = dispatch_attention_fn(
        _rotated(queries, cosines, sines),
        _rotated(keys, cosines, sines),
        values,
        backend=processor._attention_backend,
        parallel_config=processor._parallel_config,
    )
    mixed = mixed.flatten(2, 3).to(queries.dtype)
    if text is None:
        return mixed
    mixed_text, mixed_image = mixed[:, : text.shape[1]], mixed[:, text.shape[1] :]
    project, dropout = attention.to_out
    return dropout(project(mixed_image.contiguous())), attention.to_add_out(mixed_text.contiguous())


def _projections(attention: Any, fused: str, apart: tuple[str, ...], hidden: Tensor) -> list[Tensor]:
    """Queries, keys and values, [samples, tokens, heads, head width] each."""
    if attention.fused_projections:
        found = getattr(attention, fused)(hidden).chunk(3, dim=-1)
    else:
        found = [getattr(attention, name)(hidden) for name in apart]
    return [projected.unflatten(-1, (-1, attention.head_dim)) for projected in found]


def _gathered_tables(stream: Stream) -> Tables:
    """Cosines and sines for the text and every sample's own tokens, [samples, text + tokens, 1, head width].

    Not memoised: the memo belongs to the whole stream too, whose tokens have other positions.
    """
    text_tokens = stream.text.shape[1] if stream.text is not None else 0

    def joined(whole: Tensor, image: Tensor) -> Tensor:
        text = whole[:text_tokens].expand(image.shape[0], -1, -1)
        return torch.cat([text, image], dim=1)[:, :, None]

    (cosines, sines), (image_cosines, image_sines) = stream.setting.rotary, stream.positions
    return joined(cosines, image_cosines), joined(sines, image_sines)


def _rotated(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turns each pair of neighbouring numbers by its token's angle, in float32."""
    real, imaginary = heads.unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-imaginary, real], dim=-1).flatten(-2)
    return (heads.float() * cosines + turned.float() * sines).to(heads.dtype)
