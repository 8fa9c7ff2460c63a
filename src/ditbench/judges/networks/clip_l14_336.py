"""CLIP's ViT-L/14 at 336 pixels, CMMD's network."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from ditbench.judges.networks.base import Network
from ditbench.judges.weights import Weights, reading

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


class ClipL14At336(Network):
    """Embeddings of pictures, of length 1."""

    name: ClassVar[str] = "clip-l14-336"
    preprocessing: ClassVar[str] = "bicubic to 336 pixels on the shorter side, the square in the middle, CLIP's means"
    parts: ClassVar[dict[str, int]] = {"embedding": 768}
    architecture: ClassVar[str] = "ViT-L-14-336-quickgelu"
    needs: ClassVar[Weights] = Weights(
        "clip-vit-l-14-336",
        "OpenAI's CLIP ViT-L/14 at 336 pixels (ViT-L-14-336px.pt, or OpenCLIP's file of the same weights)",
        "https://huggingface.co/timm/vit_large_patch14_clip_336.openai",
        hub="timm/vit_large_patch14_clip_336.openai",
        file="open_clip_model.safetensors",
    )

    @cached_property
    def both(self) -> tuple[Any, Any]:
        """The network, and what makes a picture its input."""
        import open_clip

        with reading(self.asker, self.needs, self.place):
            network, _, preprocess = open_clip.create_model_and_transforms(
                self.architecture, pretrained=str(self.place), device=self.device
            )
        return network.eval(), preprocess

    def load(self) -> Any:
        return self.both[0]

    def prepare(self, image: NDArray[np.uint8]) -> torch.Tensor:
        from PIL import Image

        made: torch.Tensor = self.both[1](Image.fromarray(image))
        return made

    def parts_of(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"embedding": self.network.encode_image(inputs, normalize=True)}
