"""Captions as each pipeline takes them: encoded by its own encoders, or noise in their place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ditbench.noise import starting_noise

if TYPE_CHECKING:
    from ditbench.worlds.real.worldfile import WorldFile

# Captions that the text encoders are given at a time.
TEXT_BATCH = 16


@dataclass(frozen=True)
class Texts:
    """How a pipeline takes captions: what its `encode_prompt` answers, by the names its `__call__` knows it under.

    `answers`: the place of each in the answer. `widths`: the setting of the network that says how wide it is, None for
    a mask. `beside`: tokens that other encoders than the one with the longest texts add to a caption.
    """

    answers: dict[str, int]
    widths: dict[str, str | None]
    beside: int = 0
    encode: dict[str, Any] = field(default_factory=dict)
    call: dict[str, Any] = field(default_factory=dict)


# `clean_caption` would lower, strip and rewrite captions or not, by whether beautifulsoup is installed.
_PIXART = Texts(
    {"prompt_embeds": 0, "prompt_attention_mask": 1},
    {"prompt_embeds": "caption_channels", "prompt_attention_mask": None},
    encode={"do_classifier_free_guidance": False, "clean_caption": False},
    # Without binning the image has the size that was asked for.
    call={"negative_prompt": None, "use_resolution_binning": False},
)
_POOLED = {"prompt_embeds": "joint_attention_dim", "pooled_prompt_embeds": "pooled_projection_dim"}
TEXTS: dict[str, Texts] = {
    "PixArtAlphaPipeline": _PIXART,
    "PixArtSigmaPipeline": _PIXART,
    "StableDiffusion3Pipeline": Texts(
        {"prompt_embeds": 0, "pooled_prompt_embeds": 2},
        dict(_POOLED),
        beside=77,
        encode={"prompt_2": None, "prompt_3": None, "do_classifier_free_guidance": False},
    ),
    "FluxPipeline": Texts({"prompt_embeds": 0, "pooled_prompt_embeds": 1}, dict(_POOLED)),
    "WanPipeline": Texts(
        {"prompt_embeds": 0}, {"prompt_embeds": "text_dim"}, encode={"do_classifier_free_guidance": False}
    ),
}


@torch.no_grad()
def encode(file: WorldFile, pipeline: Any, captions: Sequence[str]) -> dict[str, Tensor]:
    """Captions as the pipeline's own encoders give them, on the processor."""
    texts = TEXTS[file.pipeline]
    found: dict[str, list[Tensor]] = {name: [] for name in texts.answers}
    for first in range(0, len(captions), TEXT_BATCH):
        answer = pipeline.encode_prompt(
            list(captions[first : first + TEXT_BATCH]),
            max_sequence_length=file.text_tokens - texts.beside,
            **texts.encode,
        )
        for name, place in texts.answers.items():
            found[name].append(answer[place].cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


def random_texts(file: WorldFile, captions: Sequence[str]) -> dict[str, Tensor]:
    """What stands in for encoded captions where weights are random: noise of the right shape, no token masked."""
    given: dict[str, Tensor] = {}
    for name, setting in TEXTS[file.pipeline].widths.items():
        if setting is None:
            given[name] = torch.ones(len(captions), file.text_tokens, dtype=torch.int64)
            continue
        width = int(file.network.config[setting])
        shape = (width,) if name.startswith("pooled") else (file.text_tokens, width)
        drawn = np.stack([starting_noise(0, f"{name} of {caption}", shape) for caption in captions])
        given[name] = torch.from_numpy(drawn).to(getattr(torch, file.dtype))
    return given


def class_tensor(classes: Sequence[int]) -> dict[str, Tensor]:
    """Classes where they stand in for captions."""
    return {"class_labels": torch.tensor(classes)}
