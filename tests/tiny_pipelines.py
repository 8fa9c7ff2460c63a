"""Complete diffusers pipelines of every family in miniature, made from scratch: random weights, no download.

Each has all that the real folder has (networks, tokenizers, scheduler, `model_index.json`), with the classes and the
settings of the published model wherever size does not matter. `saved` writes one to disk, so that a test can take the
road a user takes: `DiffusionPipeline.from_pretrained(folder)`.

The weights are drawn so that every part shows in the picture. A freshly built network would hide mistakes: final
projections and gates of adaLN start at or near zero, biases at zero and norms at one, so that a block that is skipped,
a shift that is dropped or a norm that is forgotten would change nothing that a test could see.
"""

from __future__ import annotations

import re
import string
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DDIMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.models.autoencoders.vae import DecoderOutput
from tokenizers import pre_tokenizers
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    UMT5Config,
    UMT5EncoderModel,
)

PROMPTS = ("a red square above a blue circle", "two green stars left of a small triangle", "nothing but white")
LABELS = (7, 207, 980)
NEGATIVE = "blurry"
# Rows and columns differ: who swaps them is found out. With VAEs that shrink by 4 and patches of 2: 6 x 8 tokens.
SIZE = (48, 64)
FRAMES = 5
HEADS, HEAD_WIDTH = 2, 16
WIDTH = HEADS * HEAD_WIDTH
TEXT_WIDTH = 48
TEXT_LENGTH = 16
CLASSES = 1000  # DiTPipeline names the class "none" 1000 in its code, so there have to be that many


# --- Weights ---------------------------------------------------------------------------------------------------------

# What makes shifts, scales and gates, by family: AdaLayerNorm*.linear and adaln_single.linear, Wan's time_proj, and
# DiT's proj_out_1.
_MODULATION = re.compile(r"(^|\.)(norm\w*|adaln_single)\.linear\.|\.time_proj\.|(^|\.)proj_out_1\.")

_OF_ATTENTION = re.compile(r"\.norm_(added_)?[qk]\.")


@torch.no_grad()
def randomise(network: nn.Module, generator: torch.Generator) -> None:
    """Draws every parameter anew, each at a size at which it matters and nothing overflows in bfloat16."""
    for name, parameter in network.named_parameters():
        owner = network.get_submodule(name.rpartition(".")[0])
        modulates = _MODULATION.search(name) is not None
        mean = 0.0
        if name.endswith("scale_shift_table"):
            spread = 0.8
        elif isinstance(owner, nn.Embedding):
            spread = 1.0
        elif name.endswith("bias"):
            spread = 0.8 if modulates else 0.4
        elif parameter.ndim == 1 or name.endswith("gamma"):  # the scale of a norm; Wan's VAE has them as [n, 1, 1, 1]
            # Normed queries and keys are scaled up, for attention that chooses: among a hundred nearly equal tokens it
            # would hardly matter which.
            mean, spread = (1.6 if _OF_ATTENTION.search(name) else 1.0), 0.4
        else:
            spread = parameter[0].numel() ** -0.5
            if modulates:  # SiLU of an embedding is small: without this, what time and text do to gates would be too
                spread *= 2.0
            elif name.endswith("SelfAttention.q.weight"):  # T5 does not divide its scores by the root of the width
                spread *= 0.3
            elif name.endswith("decoder.conv_out.weight"):  # pictures are cut to [-1, 1]: most pixels stay within
                spread *= 0.5
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread + mean)


# --- Tokenizers and text encoders ------------------------------------------------------------------------------------


def t5_tokenizer() -> T5Tokenizer:
    """Pieces for the words of the prompts, single characters for all others; <pad> is 0 and </s> is 1."""
    words = sorted({word for prompt in (*PROMPTS, NEGATIVE) for word in prompt.split()})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(f"▁{word}", -2.0) for word in words if len(word) > 1]
    pieces += [(character, -6.0) for character in string.ascii_letters + string.digits + string.punctuation]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def clip_tokenizer(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """CLIP's vocabulary before any merge: bytes, bytes that end a word, start and end; the end has the highest id."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], pad_token=pad, model_max_length=77
    )


def _t5_sizes(tokenizer: T5Tokenizer) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "d_model": TEXT_WIDTH,
        "d_kv": 12,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
    }


def t5_encoder(tokenizer: T5Tokenizer) -> T5EncoderModel:
    """A two-layer T5 encoder."""
    return T5EncoderModel(T5Config(**_t5_sizes(tokenizer)))


def clip_config(tokenizer: CLIPTokenizer, width: int) -> CLIPTextConfig:
    """A two-layer CLIP text encoder."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=0,
        pad_token_id=1,
        # As the published encoders have it: 2 stands for "pool where the id is highest". CLIPTextConfig's own default
        # is an id that a small vocabulary lacks; pooling would then fall on the first token, which sees no prompt.
        eos_token_id=2,
    )


# --- VAEs ------------------------------------------------------------------------------------------------------------


def vae(channels: int, scaling: float, shift: float | None = None, quant: bool = True) -> AutoencoderKL:
    """An image VAE that shrinks by 4."""
    widths = (8, 16, 16)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=64,
        scaling_factor=scaling,
        shift_factor=shift,
        use_quant_conv=quant,
        use_post_quant_conv=quant,
    )


def video_vae() -> AutoencoderKLWan:
    """A video VAE that shrinks by 4 in space and time; the latents' mean and spread are Wan2.1's."""
    return AutoencoderKLWan(
        base_dim=4, dim_mult=[1, 2, 4], num_res_blocks=1, temperal_downsample=[True, True], scale_factor_spatial=4
    )


# --- Schedules of the noise ------------------------------------------------------------------------------------------

# The published models that predict the noise end at 0.02, where a 157th of the picture is left. A random network does
# not see the noise, so that its first error would come back 157-fold: in all later steps the latents would drown what
# the blocks add to them, and with it every mistake made there.
_LAST_BETA = 0.002


# --- Pipelines -------------------------------------------------------------------------------------------------------


def _pixart_transformer(sample_size: int, conditions: bool, interpolation: float | None) -> PixArtTransformer2DModel:
    return PixArtTransformer2DModel(
        num_attention_heads=3,  # the conditions on resolution are three thirds of the width: it must divide by 3
        attention_head_dim=HEAD_WIDTH,
        cross_attention_dim=3 * HEAD_WIDTH,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=sample_size,
        caption_channels=TEXT_WIDTH,
        interpolation_scale=interpolation,
        use_additional_conditions=conditions,
    )


def _pixart_alpha(*, conditions: bool = False) -> PixArtAlphaPipeline:
    tokenizer = t5_tokenizer()
    # The pipeline gives the resolution to a network whose sample_size is 128 and to no other, whatever the network
    # says it wants. Positions follow from the latents' own size, so pictures can be small all the same.
    return PixArtAlphaPipeline(
        tokenizer=tokenizer,
        text_encoder=t5_encoder(tokenizer),
        vae=vae(4, 0.18215),
        transformer=_pixart_transformer(128 if conditions else 16, conditions, None),
        scheduler=DPMSolverMultistepScheduler(beta_end=_LAST_BETA),
    )


def _pixart_sigma() -> PixArtSigmaPipeline:
    tokenizer = t5_tokenizer()
    return PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=t5_encoder(tokenizer),
        vae=vae(4, 0.13025),
        transformer=_pixart_transformer(16, False, 2),
        scheduler=DPMSolverMultistepScheduler(beta_end=_LAST_BETA),
    )


def _dit() -> DiTPipeline:
    id2label = {str(i): f"thing {i}" for i in range(CLASSES)}
    pipeline = DiTPipeline(
        # Every block embeds time and class by itself. In the published weights these tables are copies of one; here
        # they differ, so that it shows which block's is used.
        transformer=DiTTransformer2DModel(
            num_attention_heads=HEADS,
            attention_head_dim=HEAD_WIDTH,
            in_channels=4,
            out_channels=8,
            num_layers=2,
            sample_size=16,
            num_embeds_ada_norm=CLASSES,
        ),
        vae=vae(4, 0.18215),
        scheduler=DDIMScheduler(clip_sample=False, beta_end=_LAST_BETA),
        id2label=id2label,
    )
    # The pipeline does not write its labels to its config; model_index.json of the published model has them. Read from
    # JSON their keys are texts, of which from_pretrained warns; the pipeline makes numbers of them.
    pipeline.register_to_config(id2label=id2label)
    return pipeline


def _sd3(*, qk_norm: str | None = None, dual: tuple[int, ...] = (), positions: int = 24) -> StableDiffusion3Pipeline:
    tokenizer, tokenizer_2, tokenizer_3 = clip_tokenizer(), clip_tokenizer(pad="!"), t5_tokenizer()
    clip_widths = (16, 24)  # side by side they fit into T5's width, to which they are padded
    return StableDiffusion3Pipeline(
        tokenizer=tokenizer,
        text_encoder=CLIPTextModelWithProjection(clip_config(tokenizer, clip_widths[0])),
        tokenizer_2=tokenizer_2,
        text_encoder_2=CLIPTextModelWithProjection(clip_config(tokenizer_2, clip_widths[1])),
        tokenizer_3=tokenizer_3,
        text_encoder_3=t5_encoder(tokenizer_3),
        vae=vae(16, 1.5305, 0.0609, quant=False),
        transformer=SD3Transformer2DModel(
            sample_size=16,
            num_layers=2,  # the last block gives no text
            attention_head_dim=HEAD_WIDTH,
            num_attention_heads=HEADS,
            joint_attention_dim=TEXT_WIDTH,
            caption_projection_dim=WIDTH,
            pooled_projection_dim=sum(clip_widths),
            pos_embed_max_size=positions,
            dual_attention_layers=dual,
            qk_norm=qk_norm,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def _flux(*, dev: bool) -> FluxPipeline:
    tokenizer, tokenizer_2 = clip_tokenizer(), t5_tokenizer()
    # dev moves its steps with the number of tokens and embeds the guidance; schnell does neither.
    shift = {"shift": 3.0, "use_dynamic_shifting": True, "max_shift": 1.15} if dev else {"shift": 1.0}
    return FluxPipeline(
        tokenizer=tokenizer,
        text_encoder=CLIPTextModel(clip_config(tokenizer, 24)),
        tokenizer_2=tokenizer_2,
        text_encoder_2=t5_encoder(tokenizer_2),
        vae=vae(16, 0.3611, 0.1159, quant=False),
        transformer=FluxTransformer2DModel(
            in_channels=64,  # 2 x 2 patches of 16 channels
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=HEAD_WIDTH,
            num_attention_heads=HEADS,
            joint_attention_dim=TEXT_WIDTH,
            pooled_projection_dim=24,
            guidance_embeds=dev,
            axes_dims_rope=(4, 6, 6),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(**shift),
    )


def _wan() -> WanPipeline:
    tokenizer = t5_tokenizer()
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=UMT5EncoderModel(UMT5Config(**_t5_sizes(tokenizer))),
        vae=video_vae(),
        transformer=WanTransformer3DModel(
            num_attention_heads=HEADS,
            attention_head_dim=HEAD_WIDTH,
            text_dim=TEXT_WIDTH,
            ffn_dim=64,
            num_layers=2,
            rope_max_seq_len=64,
        ),
        scheduler=UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )


@dataclass(frozen=True)
class Recipe:
    """How to assemble a pipeline of a family, and how to call it."""

    assemble: Callable[[], DiffusionPipeline]
    guidance: float
    arguments: dict[str, Any] = field(default_factory=lambda: {"max_sequence_length": TEXT_LENGTH})
    guides_by_negative: bool = True  # by a second prediction from a negative prompt


_PIXART_CALL = {"max_sequence_length": TEXT_LENGTH, "use_resolution_binning": False, "clean_caption": False}

RECIPES: dict[str, Recipe] = {
    "pixart-alpha": Recipe(_pixart_alpha, 4.5, _PIXART_CALL),
    "pixart-alpha-1024": Recipe(partial(_pixart_alpha, conditions=True), 4.5, _PIXART_CALL),
    "pixart-sigma": Recipe(_pixart_sigma, 4.5, _PIXART_CALL),
    "dit": Recipe(_dit, 4.0, {}),
    "sd3": Recipe(_sd3, 7.0),
    "sd3.5-medium": Recipe(partial(_sd3, qk_norm="rms_norm", dual=(0,), positions=48), 4.5),
    "sd3.5-large": Recipe(partial(_sd3, qk_norm="rms_norm"), 4.5),
    "flux-schnell": Recipe(partial(_flux, dev=False), 0.0, guides_by_negative=False),
    "flux-dev": Recipe(partial(_flux, dev=True), 3.5, guides_by_negative=False),
    "wan": Recipe(_wan, 5.0, {"max_sequence_length": TEXT_LENGTH, "num_frames": FRAMES}),
}


def build(name: str) -> DiffusionPipeline:
    """The pipeline `name` in float32, the same weights each time."""
    with torch.random.fork_rng(devices=[]):  # the classes' own initialisation draws numbers too; none are kept
        pipeline = RECIPES[name].assemble()
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    for _, component in sorted(pipeline.components.items()):
        if isinstance(component, nn.Module):
            randomise(component, generator)
            # from_pretrained does this; in training T5 drops features out and DiT one class in ten.
            component.eval()
    return pipeline


PIPELINES: dict[str, Callable[[], DiffusionPipeline]] = {name: partial(build, name) for name in RECIPES}


def saved(name: str, folder: Path) -> Path:
    """Writes the pipeline `name` into `folder`, where `DiffusionPipeline.from_pretrained` finds all it needs."""
    build(name).save_pretrained(folder)
    return Path(folder)


def loaded(name: str, folder: Path, dtype: torch.dtype = torch.float32) -> DiffusionPipeline:
    """The folder that `saved` wrote, in evaluation mode, as anybody would load it."""
    return DiffusionPipeline.from_pretrained(folder, dtype=dtype)


# --- Drawing ---------------------------------------------------------------------------------------------------------


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for what is within: too little work to share, and on a busy machine threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def has_text(name: str) -> bool:
    """Whether the family draws from texts, not from classes."""
    return name != "dit"


def _dit_latents(pipeline: DiTPipeline, arguments: dict[str, Any]) -> Tensor:
    """The latents DiTPipeline draws: it knows no output_type "latent", so they are taken on their way to the VAE."""
    kept: list[Tensor] = []

    def decode(latents: Tensor) -> DecoderOutput:
        kept.append(latents * pipeline.vae.config.scaling_factor)
        return DecoderOutput(sample=latents)

    with mock.patch.object(pipeline.vae, "decode", decode):
        pipeline(**arguments, output_type="pt")
    return kept[0]


@one_thread()
def draw(
    pipeline: DiffusionPipeline,
    name: str,
    *,
    steps: int = 4,
    batch: int = 1,
    guidance: float | None = None,
    seed: int = 0,
    output: str = "latent",
    size: tuple[int, int] | None = None,
    prompts: Sequence[str] | Sequence[int] | None = None,
) -> Tensor | np.ndarray:
    """Draws `batch` small pictures and gives latents (`output="latent"`) or pixels ("np").

    `guidance` is the published model's unless given; `size` is (height, width) in pixels, `SIZE` unless given, and of
    no use to DiT, which draws squares of one size; `prompts` are texts, or classes for DiT, and go round if fewer than
    the pictures. Each picture has a generator of its own, so the first of two is the picture of one. PixArt-alpha
    takes two steps at least: for one, its pipeline asks the scheduler for what only a consistency model's gives.

    Pixels are [batch, height, width, 3] (Wan: [batch, frames, height, width, 3]). Latents come as the pipeline gives
    them: [batch, channels, height, width], Flux's as packed tokens [batch, tokens, 64], Wan's with frames before
    height.
    """
    recipe = RECIPES[name]
    scale = recipe.guidance if guidance is None else guidance
    given = list(islice(cycle(prompts if prompts is not None else PROMPTS if has_text(name) else LABELS), batch))
    arguments: dict[str, Any] = {
        **recipe.arguments,
        "num_inference_steps": steps,
        "guidance_scale": scale,
        "generator": [torch.Generator().manual_seed(seed * 1000 + i) for i in range(batch)],
    }
    pipeline.set_progress_bar_config(disable=True)
    if name == "dit":
        if size is not None:
            raise ValueError("DiT draws squares of one size")
        arguments["class_labels"] = given
        if output == "latent":
            return _dit_latents(pipeline, arguments)
        return pipeline(**arguments, output_type=output).images
    height, width = SIZE if size is None else size
    arguments |= {"prompt": given, "height": height, "width": width}
    if recipe.guides_by_negative and scale > 1:
        arguments["negative_prompt"] = [NEGATIVE] * batch  # a list: SD3 and Wan want the prompt's own type
    drawn = pipeline(**arguments, output_type=output)
    return drawn.frames if name == "wan" else drawn.images
