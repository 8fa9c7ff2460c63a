"""CLIP score: how well a picture fits its caption, by OpenCLIP's networks.

The cosine is given as it is and times a hundred, each under its own name: papers print both, and seldom say which.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ditbench.judges.base import Judge, Pictures, Result, batches, cosine_results
from ditbench.judges.weights import Weights, reading

if TYPE_CHECKING:
    from numpy.typing import NDArray


class _ClipScore(Judge):
    """The mean cosine of pictures and captions; captions are cut after CLIP's 77 tokens."""

    worlds: ClassVar[tuple[str, ...]] = ("*",)
    architecture: ClassVar[str]

    @cached_property
    def network(self) -> tuple[Any, Any, Any]:
        """The network, what makes a picture its input, and what makes captions its input."""
        import open_clip

        place = self.place(self.needs[0])
        with reading(self.name, self.needs[0], place):
            network, _, preprocess = open_clip.create_model_and_transforms(
                self.architecture, pretrained=str(place), device=self.device
            )
        return network.eval(), preprocess, open_clip.get_tokenizer(self.architecture)

    @classmethod
    def measures(cls) -> tuple[str, ...]:
        return (cls.name, f"{cls.name}-x100")

    def load(self) -> None:
        _ = self.network

    def measure(self, pictures: Pictures, references: Pictures, full: Pictures | None = None) -> list[Result]:
        cosines = self.cosines(pictures.images, pictures.captions)
        return cosine_results(self.name, cosines)

    def cosines(self, images: NDArray[np.uint8], captions: list[str]) -> NDArray[np.float64]:
        """The cosine of each picture [n, height, width, 3] and its caption."""
        import torch
        from PIL import Image

        network, preprocess, tokenize = self.network
        found = []
        with torch.no_grad():
            for number, part in enumerate(batches(images, 32)):
                texts = captions[32 * number : 32 * number + len(part)]
                pixels = torch.stack([preprocess(Image.fromarray(image)) for image in part]).to(self.device)
                seen = network.encode_image(pixels, normalize=True)
                read = network.encode_text(tokenize(texts).to(self.device), normalize=True)
                found.append((seen * read).sum(-1).double().cpu().numpy())
        return np.concatenate(found)


class ClipScoreL14(_ClipScore):
    """OpenAI's ViT-L/14, with the activation that its weights were trained with."""

    name: ClassVar[str] = "clip-l14"
    summary: ClassVar[str] = "CLIP score of OpenAI's ViT-L/14: cosine (clip-l14) and times 100 (clip-l14-x100)"
    # Plain "ViT-L-14" would read the same file and compute another activation, without a word.
    architecture: ClassVar[str] = "ViT-L-14-quickgelu"
    needs: ClassVar[tuple[Weights, ...]] = (
        Weights(
            "clip-vit-l-14",
            "OpenAI's CLIP ViT-L/14 (ViT-L-14.pt, or OpenCLIP's file of the same weights)",
            "https://huggingface.co/timm/vit_large_patch14_clip_224.openai",
            hub="timm/vit_large_patch14_clip_224.openai",
            file="open_clip_model.safetensors",
        ),
    )


class ClipScoreG14(_ClipScore):
    """LAION's ViT-g/14 (2B, 34 billion samples seen), DeepCache's and ToCa's choice."""

    name: ClassVar[str] = "clip-g14"
    summary: ClassVar[str] = "CLIP score of LAION's ViT-g/14: cosine (clip-g14) and times 100 (clip-g14-x100)"
    architecture: ClassVar[str] = "ViT-g-14"
    needs: ClassVar[tuple[Weights, ...]] = (
        Weights(
            "clip-vit-g-14",
            "LAION's CLIP ViT-g/14 (laion2b_s34b_b88k)",
            "https://huggingface.co/laion/CLIP-ViT-g-14-laion2B-s34B-b88K",
            hub="laion/CLIP-ViT-g-14-laion2B-s34B-b88K",
            file="open_clip_model.safetensors",
        ),
    )
