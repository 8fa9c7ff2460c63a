"""DINO similarity: how alike a picture and the full model's are in what they show (ViT-S/16, Caron et al. 2021)."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ditbench.judges.base import Judge, Pictures, Result, batches, mean_result
from ditbench.judges.weights import Weights, reading

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Dino(Judge):
    """The mean over pictures of the cosine of class tokens, of the picture and of the full arm's."""

    name: ClassVar[str] = "dino"
    summary: ClassVar[str] = "cosine in DINO's ViT-S/16 to the full arm's pictures (dino-to-full)"
    worlds: ClassVar[tuple[str, ...]] = ("*",)
    needs_full: ClassVar[bool] = True
    architecture: ClassVar[str] = "vit_small_patch16_224.dino"
    needs: ClassVar[tuple[Weights, ...]] = (
        Weights(
            "dino-vit-s-16",
            "timm's file of DINO's ViT-S/16 (model.safetensors)",
            "https://huggingface.co/timm/vit_small_patch16_224.dino",
            hub="timm/vit_small_patch16_224.dino",
            file="model.safetensors",
        ),
    )

    @cached_property
    def network(self) -> tuple[Any, Any]:
        """The network and what makes a picture its input."""
        import timm
        from timm.data.config import resolve_data_config
        from timm.data.transforms_factory import create_transform

        place = self.place(self.needs[0])
        with reading(self.name, self.needs[0], place):
            network = timm.create_model(self.architecture, pretrained=False, num_classes=0, checkpoint_path=str(place))
        settings = resolve_data_config({}, model=network)
        return network.to(self.device).eval(), create_transform(**settings)

    @classmethod
    def measures(cls) -> tuple[str, ...]:
        return ("dino-to-full",)

    def load(self) -> None:
        _ = self.network

    def measure(self, pictures: Pictures, references: Pictures, full: Pictures | None = None) -> list[Result]:
        if full is None:
            raise ValueError("dino-to-full needs the full arm's pictures")
        mine, theirs = self.tokens(pictures.images), self.tokens(full.images)
        lengths = np.linalg.norm(mine, axis=1) * np.linalg.norm(theirs, axis=1)
        return [mean_result("dino-to-full", "", "higher", (mine * theirs).sum(1) / lengths)]

    def tokens(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """The class token of each picture [n, height, width, 3]."""
        import torch
        from PIL import Image

        network, transform = self.network
        found = []
        with torch.no_grad():
            for part in batches(images, 32):
                pixels = torch.stack([transform(Image.fromarray(image)) for image in part]).to(self.device)
                found.append(network(pixels).double().cpu().numpy())
        return np.concatenate(found)
