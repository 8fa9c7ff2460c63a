"""Inception-v3 as pytorch-fid has it: the same weights with layers one can look into."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any, ClassVar

from ditbench.judges.networks.base import Network
from ditbench.judges.weights import Weights, reading

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

# TensorFlow's mixed_6/conv:0 is the 1 x 1 convolution at the head of this block; 7 of its channels, 17 x 17 pixels.
CHANNELS = 7


class InceptionPt(Network):
    """Seven channels of a middle layer, pixel by pixel: sFID's 2,023 numbers, which know where things are."""

    name: ClassVar[str] = "inception-pt"
    preprocessing: ClassVar[str] = "clean-fid's: PIL bicubic in float32 to 299 x 299, each channel by itself"
    parts: ClassVar[dict[str, int]] = {"spatial": CHANNELS * 17 * 17}
    needs: ClassVar[Weights] = Weights(
        "inception-pt",
        "pytorch-fid's Inception (pt_inception-2015-12-05-6726825d.pth)",
        "https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights",
        torch_hub="pt_inception-2015-12-05-6726825d.pth",
    )

    def load(self) -> Any:
        import torch
        from cleanfid import inception_pytorch

        with reading(self.asker, self.needs, self.place):
            weights = torch.load(self.place, map_location="cpu", weights_only=True)
            own = inception_pytorch.load_state_dict_from_url
            # Its constructor downloads weights; these are here already.
            inception_pytorch.load_state_dict_from_url = lambda *args, **kwargs: weights
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    network = inception_pytorch.fid_inception_v3()
            finally:
                inception_pytorch.load_state_dict_from_url = own
        return network.to(self.device).eval()

    def prepare(self, image: NDArray[np.uint8]) -> torch.Tensor:
        import torch
        from cleanfid.resize import build_resizer

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.from_numpy(build_resizer("clean")(image)).permute(2, 0, 1)

    def parts_of(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        from torch.nn import functional

        network, x = self.network, inputs / 255 * 2 - 1
        for name in ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3"):
            x = getattr(network, name)(x)
        x = functional.max_pool2d(x, kernel_size=3, stride=2)
        for name in ("Conv2d_3b_1x1", "Conv2d_4a_3x3"):
            x = getattr(network, name)(x)
        x = functional.max_pool2d(x, kernel_size=3, stride=2)
        for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c"):
            x = getattr(network, name)(x)
        return {"spatial": network.Mixed_6d.branch1x1(x)[:, :CHANNELS].flatten(1)}
