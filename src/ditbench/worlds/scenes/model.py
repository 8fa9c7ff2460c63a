"""The networks of the scenes world: a PixArt transformer, a T5 text encoder and a word tokenizer.

All three are diffusers' and transformers' own classes, so what accelerates them accelerates PixArt-alpha.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import PixArtTransformer2DModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from ditbench.worlds.scenes.grammar import vocabulary
from ditbench.worlds.scenes.settings import (
    BLOCKS,
    CHANNELS,
    HEADS,
    IMAGE_SIZE,
    PATCH,
    TEXT_LENGTH,
    TEXT_WIDTH,
    WIDTH,
)

PAD, END, UNKNOWN = "<pad>", "</s>", "<unk>"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One id per word of the grammar; an unknown word becomes <unk>."""
    words = [PAD, END, UNKNOWN, *vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END, unk_token=UNKNOWN)


def build_text_encoder() -> T5EncoderModel:
    """A two-layer T5 encoder with fresh weights, whose heads look at different distances from the start.

    With T5's own small initial biases it stays blind to word order for very long.
    """
    config = T5Config(
        vocab_size=64,
        d_model=TEXT_WIDTH,
        d_kv=32,
        d_ff=2 * TEXT_WIDTH,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
    )
    encoder = T5EncoderModel(config)
    torch.nn.init.normal_(encoder.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight, std=3.0)
    return encoder


def build_transformer() -> PixArtTransformer2DModel:
    """A PixArt transformer of 5 M parameters and 256 image tokens with fresh weights; its output starts at zero."""
    transformer = PixArtTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        cross_attention_dim=WIDTH,
        num_layers=BLOCKS,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        sample_size=IMAGE_SIZE,
        patch_size=PATCH,
        caption_channels=TEXT_WIDTH,
        use_additional_conditions=False,
    )
    torch.nn.init.zeros_(transformer.adaln_single.linear.weight)
    torch.nn.init.zeros_(transformer.proj_out.weight)
    torch.nn.init.zeros_(transformer.proj_out.bias)
    return transformer


def tokenize(tokenizer: PreTrainedTokenizerFast, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, [captions, TEXT_LENGTH] each."""
    batch = tokenizer(
        list(captions), padding="max_length", truncation=True, max_length=TEXT_LENGTH, return_tensors="pt"
    )
    return batch.input_ids, batch.attention_mask
