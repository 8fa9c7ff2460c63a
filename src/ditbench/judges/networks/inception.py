"""Inception-v3 as clean-fid has it: NVIDIA's TorchScript of the TensorFlow network of 2015, "clean" resizing."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, ClassVar

from ditbench.judges.networks.base import Network
from ditbench.judges.weights import Weights, reading

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray


class Inception(Network):
    """Pooled features of 2,048 numbers."""

    name: ClassVar[str] = "inception"
    preprocessing: ClassVar[str] = "clean-fid's: PIL bicubic in float32 to 299 x 299, each channel by itself"
    parts: ClassVar[dict[str, int]] = {"pool": 2048}
    needs: ClassVar[Weights] = Weights(
        "inception",
        "clean-fid's Inception (inception-2015-12-05.pt)",
        "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
    )

    def load(self) -> Any:
        import torch

        with reading(self.asker, self.needs, self.place), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated, and the weights are in its format
            # The file may have any name: clean-fid's own class takes a folder, and one name in it.
            return torch.jit.load(str(self.place), map_location=self.device).eval().layers

    def prepare(self, image: NDArray[np.uint8]) -> torch.Tensor:
        import torch
        from cleanfid.resize import build_resizer

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of the way clean-fid makes its images
            return torch.from_numpy(build_resizer("clean")(image)).permute(2, 0, 1)

    def parts_of(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pool": self.network((inputs - 128) / 128).view(len(inputs), 2048)}
