"""Trains the MMDiT of the scenes world: the backbone's recipe, with the shipped text encoder as it is.

That encoder has had its lesson in reading (lesson.py), so nothing of it is trained here. The modulation matrices of
the blocks, which PixArt keeps outside of them, are AdamW's as they are there.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ditbench.worlds.scenes import mmdit
from ditbench.worlds.scenes.pipeline import load_text_encoder
from ditbench.worlds.scenes.recipe.backbone import Recipe, Stage, Training
from ditbench.worlds.scenes.settings import IMAGE_SIZE

# Fewer pictures than the PixArt saw: this network reads from the start.
RECIPE = Recipe(stages=(Stage(32, 140_800, 64, 2.5), Stage(64, 25_600, 32, 4.0, 0.995)), lesson_at=0)
ALL_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
TABLE = "transformer.pos_embed.pos_embed"


class Pair(nn.Module):
    """The MMDiT, which learns, and the shipped text encoder, which does not."""

    def __init__(self, text_encoder: nn.Module) -> None:
        super().__init__()
        self.transformer: SD3Transformer2DModel = mmdit.build_transformer()
        self.text_encoder = text_encoder.eval().requires_grad_(False)

    def forward(self, noisy: Tensor, sigma: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        text = self.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return self.transformer(
            noisy,
            encoder_hidden_states=text.to(noisy.dtype),
            pooled_projections=mmdit.pooled(text, mask).to(noisy.dtype),
            timestep=sigma * 1000,
            return_dict=False,
        )[0]


def coarser(table: Tensor, times: int) -> Tensor:
    """Positions of a picture `times` smaller: its tokens stand where the larger picture's stand on the mean.

    The network cuts a small picture's positions out of the middle of its table, so they are put there.
    """
    side = round(table.shape[1] ** 0.5)
    few = side // times
    width = table.shape[2]
    square = table.reshape(few, times, few, times, width).mean(dim=(1, 3))
    found = torch.zeros_like(table).reshape(side, side, width)
    first = (side - few) // 2
    found[first : first + few, first : first + few] = square
    return found.reshape(table.shape)


class MMDiTTraining(Training):
    """A resumable training run of the MMDiT in `folder`; `assets` holds the text encoder."""

    def __init__(self, recipe: Recipe, folder: Path, assets: Path, device: str = "cpu") -> None:
        self.assets = assets
        super().__init__(recipe, folder, device)
        # The encoder comes taught.
        self.progress.taught = True

    def make_pair(self) -> nn.Module:
        return Pair(load_text_encoder(self.assets))

    def split_parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        matrices, _ = super().split_parameters()
        modulation = {
            id(norm.linear.weight)
            for block in self.pair.transformer.transformer_blocks
            for norm in (block.norm1, block.norm1_context)
        }
        matrices = [p for p in matrices if id(p) not in modulation]
        chosen = {id(p) for p in matrices}
        return matrices, [p for p in self.pair.parameters() if p.requires_grad and id(p) not in chosen]

    def computing(self, stage: Stage) -> dict[str, Tensor]:
        found = super().computing(stage)
        times = IMAGE_SIZE // stage.size
        return found if times == 1 else found | {TABLE: coarser(found[TABLE], times)}

    def loss(self, stage: Stage) -> Tensor:
        # On CPUs torch's fused attention is slower than plain products while there are few tokens.
        few = self.device == "cpu" and stage.size < IMAGE_SIZE
        with sdpa_kernel([SDPBackend.MATH] if few else ALL_KERNELS):
            return super().loss(stage)
