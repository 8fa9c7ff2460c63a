"""The caption-image dual encoder of CLIP/scenes: a picture and its caption point the same way.

Trained to pick a render's caption among others and among its own with one word changed, so that it hears colours,
shapes, sizes and relations and not only which words occur.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from ditbench.worlds.scenes.grammar import vocabulary
from ditbench.worlds.scenes.judges.reader import to_pixels
from ditbench.worlds.scenes.judges.trunk import COARSE, FINE, Maps, Trunk
from ditbench.worlds.scenes.judges.weights import load_weights

WIDTH = 128
SHARED = 128  # the space where pictures and captions meet
LENGTH = 20
PAD, UNKNOWN = 0, 1
_IDS = {word: i + 2 for i, word in enumerate(vocabulary())}


def tokenize(captions: Sequence[str]) -> torch.Tensor:
    """Word ids [n, LENGTH]; what is no word of the grammar becomes UNKNOWN, what is too long is cut."""
    ids = torch.full((len(captions), LENGTH), PAD)
    for row, caption in enumerate(captions):
        words = [_IDS.get(word, UNKNOWN) for word in caption.split()[:LENGTH]] or [UNKNOWN]
        ids[row, : len(words)] = torch.tensor(words)
    return ids


class ImageTower(nn.Module):
    """Pixels [n, 3, 64, 64] from 0 to 255 in, directions [n, SHARED] out; it keeps track of what is where."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.narrow = nn.Conv2d(FINE + COARSE, 40, 1)
        self.hidden = nn.Linear(40 * 16, 256)
        self.out = nn.Linear(256, SHARED)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        maps: Maps = self.trunk(pixels)
        grid = F.relu(self.narrow(torch.cat([F.avg_pool2d(maps.fine, 4), maps.coarse], 1)))
        return F.normalize(self.out(F.relu(self.hidden(grid.flatten(1)))).float(), dim=-1)


class TextTower(nn.Module):
    """Word ids [n, LENGTH] in, directions [n, SHARED] out."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(len(_IDS) + 2, WIDTH)
        # As large as the words' own vectors: with small ones the order of words, and so every relation, stays unheard.
        self.places = nn.Parameter(torch.randn(LENGTH, WIDTH))
        layer = nn.TransformerEncoderLayer(
            WIDTH, 4, 2 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(WIDTH)
        self.out = nn.Linear(WIDTH, SHARED)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        padding = ids == PAD
        states = self.norm(self.layers(self.words(ids) + self.places, src_key_padding_mask=padding))
        kept = (~padding).unsqueeze(-1).to(states.dtype)
        return F.normalize(self.out((states * kept).sum(1) / kept.sum(1)).float(), dim=-1)


class DualEncoder(nn.Module):
    """Both towers and the sharpness of their comparison."""

    def __init__(self) -> None:
        super().__init__()
        self.image = ImageTower()
        self.text = TextTower()
        self.log_scale = nn.Parameter(torch.tensor(math.log(14.0)))

    @property
    def scale(self) -> torch.Tensor:
        return self.log_scale.clamp(max=math.log(100.0)).exp()

    @torch.inference_mode()
    def similarity(self, images: NDArray[np.uint8], captions: Sequence[str], batch: int = 256) -> NDArray[np.float64]:
        """The cosine between each picture [n, height, width, 3] and its caption, [n], between -1 and 1."""
        if len(images) != len(captions):
            raise ValueError(f"{len(images)} pictures and {len(captions)} captions")
        device = self.log_scale.device
        cosines = [
            (
                self.image(to_pixels(images[start : start + batch], device))
                * self.text(tokenize(captions[start : start + batch]).to(device))
            ).sum(1)
            for start in range(0, len(images), batch)
        ]
        return torch.cat(cosines).double().cpu().numpy() if cosines else np.zeros(0)


def load_dual(path: Path, device: str = "cpu") -> DualEncoder:
    """The dual encoder with its shipped weights."""
    return load_weights(DualEncoder(), path, device)
