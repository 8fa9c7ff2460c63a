"""DINOv2's ViT-L/14, the network of FD-DINOv2."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from ditbench.judges.networks.base import Network
from ditbench.judges.weights import Weights, reading

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

SIZE = 224


class Dinov2L14(Network):
    """Class tokens of 1,024 numbers."""

    name: ClassVar[str] = "dinov2-l14"
    preprocessing: ClassVar[str] = "PIL bicubic to 224 x 224, ImageNet's means and deviations"
    parts: ClassVar[dict[str, int]] = {"token": 1024}
    architecture: ClassVar[str] = "vit_large_patch14_dinov2.lvd142m"
    needs: ClassVar[Weights] = Weights(
        "dinov2-vit-l-14",
        "timm's file of DINOv2's ViT-L/14 (model.safetensors)",
        "https://huggingface.co/timm/vit_large_patch14_dinov2.lvd142m",
        hub="timm/vit_large_patch14_dinov2.lvd142m",
        file="model.safetensors",
    )

    def load(self) -> Any:
        import timm

        with reading(self.asker, self.needs, self.place):
            network = timm.create_model(
                self.architecture, pretrained=False, img_size=SIZE, num_classes=0, checkpoint_path=str(self.place)
            )
        return network.to(self.device).eval()

    @cached_property
    def transform(self) -> Any:
        from torchvision import transforms
        from torchvision.transforms import InterpolationMode

        return transforms.Compose(
            [
                transforms.Resize((SIZE, SIZE), interpolation=InterpolationMode.BICUBIC),
                transforms.ToTensor(),
                transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )

    def prepare(self, image: NDArray[np.uint8]) -> torch.Tensor:
        from PIL import Image

        made: torch.Tensor = self.transform(Image.fromarray(image))
        return made

    def parts_of(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"token": self.network(inputs)}
