"""BLIP with a reward on top: ImageReward's network (Xu et al. 2023), out of transformers' own parts of BLIP.

The package image-reward has a copy of BLIP that current transformers breaks, so that only its file of weights is read
here. Every size is the file's; what no tensor says is as published: heads of 64 values, and no activation between the
linear layers of the reward.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from typing import Any

from torch import Tensor, nn
from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

_HEAD = 64
_EYES, _TEXT, _REWARD = "blip.visual_encoder.", "blip.text_encoder.", "mlp.layers."
# The file's names of the picture's encoder, and transformers': those of the text's are the same.
_NAMES = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.norm([12])\.", r".layer_norm\1."),
    (r"\.attn\.qkv\.", ".self_attn.qkv."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
)


class BlipReward(nn.Module):
    """The reward of pictures for captions, as the network gives it."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        """`state` is what ImageReward.pt holds; an error says what of it is missing or is of another shape."""
        super().__init__()
        eyes, text = _of(state, _EYES), _of(state, _TEXT)
        self.eyes: Any = BlipVisionModel(_eyes_config(eyes))
        self.eyes.load_state_dict({_renamed(name): value for name, value in eyes.items()})
        self.text: Any = BlipTextModel(_text_config(text), add_pooling_layer=False)
        # Places of tokens are counted, not learned: older files hold them, transformers does not.
        self.text.load_state_dict({n: value for n, value in text.items() if n != "embeddings.position_ids"})
        self.reward = _linear_layers(_of(state, _REWARD))

    @property
    def size(self) -> int:
        """Pixels on a side of the pictures that it reads."""
        return int(self.eyes.config.image_size)

    @property
    def words(self) -> int:
        """How many tokens it knows."""
        return int(self.text.config.vocab_size)

    def forward(self, pixels: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """The reward of each picture [n, 3, size, size] for its caption, tokens and mask [n, length]."""
        seen = self.eyes(pixel_values=pixels).last_hidden_state
        read = self.text(input_ids=tokens, attention_mask=mask, encoder_hidden_states=seen).last_hidden_state
        rewards: Tensor = self.reward(read[:, 0]).squeeze(1)
        return rewards


def _of(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    found = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if not found:
        raise KeyError(f"it has no {prefix}*")
    return found


def _renamed(name: str) -> str:
    for pattern, to in _NAMES:
        name = re.sub(pattern, to, name)
    return name


def _count(state: Mapping[str, Tensor], layers: str) -> int:
    """How many layers there are, numbered from 0 behind a prefix."""
    return 1 + max(int(name.removeprefix(layers).split(".")[0]) for name in state if name.startswith(layers))


def _eyes_config(state: Mapping[str, Tensor]) -> Any:
    places, patch = state["pos_embed"], state["patch_embed.proj.weight"].shape[-1]
    width = places.shape[-1]
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=state["blocks.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=_count(state, "blocks."),
        num_attention_heads=width // _HEAD,
        image_size=patch * isqrt(places.shape[1] - 1),
        patch_size=patch,
        layer_norm_eps=1e-6,
    )


def _text_config(state: Mapping[str, Tensor]) -> Any:
    words, width = state["embeddings.word_embeddings.weight"].shape
    first = "encoder.layer.0."
    return BlipTextConfig(
        vocab_size=words,
        hidden_size=width,
        encoder_hidden_size=state[f"{first}crossattention.self.key.weight"].shape[1],
        intermediate_size=state[f"{first}intermediate.dense.weight"].shape[0],
        num_hidden_layers=_count(state, "encoder.layer."),
        num_attention_heads=width // _HEAD,
        max_position_embeddings=state["embeddings.position_embeddings.weight"].shape[0],
        layer_norm_eps=1e-12,
        bos_token_id=None,
        eos_token_id=None,
        sep_token_id=None,
        # The decoder's kind has cross-attention; it is not asked to look at earlier tokens only.
        is_decoder=True,
    )


def _linear_layers(state: Mapping[str, Tensor]) -> nn.Sequential:
    """The layers in the order of their numbers; the numbers between are of dropout, which only learning has."""
    numbers = sorted({int(name.split(".")[0]) for name in state})
    layers = nn.Sequential()
    for number in numbers:
        weight, bias = state[f"{number}.weight"], state[f"{number}.bias"]
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.load_state_dict({"weight": weight, "bias": bias})
        layers.append(layer)
    return layers
