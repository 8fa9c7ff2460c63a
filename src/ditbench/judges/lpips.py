"""LPIPS: the perceptual distance to the full model's pictures (Zhang et al. 2018), by the lpips package.

Its small heads come with the package; the trunks are torchvision's and have to be there. The alex variant is the one
that its authors advise for comparing pictures, and that most papers print.
"""

from __future__ import annotations

import importlib
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ditbench.faults import Fault
from ditbench.judges.base import Judge, Pictures, Result, batches, drift_names, drift_results
from ditbench.judges.weights import Weights, reading

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SMALLEST = 32  # the trunks' last layers have nothing to see in smaller pictures


class _Lpips(Judge):
    """The mean over pictures of the distance to the full arm's picture; 0 where they are equal."""

    worlds: ClassVar[tuple[str, ...]] = ("*",)
    needs_full: ClassVar[bool] = True
    trunk: ClassVar[str]
    measure_name: ClassVar[str]

    @cached_property
    def network(self) -> Any:
        import torch

        place = self.place(self.needs[0])
        # The package draws at random what it would download, and prints what it does.
        network = importlib.import_module("lpips").LPIPS(net=self.trunk, pnet_rand=True, verbose=False).eval()
        with reading(self.name, self.needs[0], place):
            given = torch.load(place, map_location="cpu", weights_only=True)
            # slice2.3.weight of the package is features.3.weight of torchvision's network.
            own = {name: given[f"features.{name.split('.', 1)[1]}"] for name in network.net.state_dict()}
            network.net.load_state_dict(own)
        return network.to(self.device)

    @classmethod
    def measures(cls) -> tuple[str, ...]:
        return drift_names(cls.measure_name)

    def load(self) -> None:
        _ = self.network

    def measure(self, pictures: Pictures, references: Pictures, full: Pictures | None = None) -> list[Result]:
        if full is None:
            raise ValueError(f"{self.measure_name} needs the full arm's pictures")
        if min(pictures.images.shape[1:3]) < _SMALLEST:
            raise Fault(
                f"{self.measure_name} needs pictures of {_SMALLEST} pixels a side or more; leave {self.name} out"
            )
        return drift_results(self.measure_name, "", "lower", self.distances(pictures.images, full.images))

    def distances(self, images: NDArray[np.uint8], originals: NDArray[np.uint8]) -> NDArray[np.float64]:
        """The distance of each image [n, height, width, 3] to its original."""
        import torch

        def pixels(part: NDArray[np.uint8]) -> torch.Tensor:
            return torch.from_numpy(part).to(self.device).float().movedim(-1, 1) / 127.5 - 1

        with torch.no_grad():
            found = [
                self.network(pixels(a), pixels(b)).flatten().double().cpu().numpy()
                for a, b in zip(batches(images, 32), batches(originals, 32), strict=True)
            ]
        return np.concatenate(found)


class LpipsAlex(_Lpips):
    """AlexNet as the trunk."""

    name: ClassVar[str] = "lpips"
    summary: ClassVar[str] = "LPIPS (AlexNet) to the full arm's pictures (lpips-to-full)"
    trunk: ClassVar[str] = "alex"
    measure_name: ClassVar[str] = "lpips-to-full"
    needs: ClassVar[tuple[Weights, ...]] = (
        Weights(
            "alexnet",
            "torchvision's AlexNet (alexnet-owt-7be5be79.pth)",
            "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
            torch_hub="alexnet-owt-7be5be79.pth",
        ),
    )


class LpipsVgg(_Lpips):
    """VGG-16 as the trunk."""

    name: ClassVar[str] = "lpips-vgg"
    summary: ClassVar[str] = "LPIPS (VGG-16) to the full arm's pictures (lpips-vgg-to-full)"
    trunk: ClassVar[str] = "vgg"
    measure_name: ClassVar[str] = "lpips-vgg-to-full"
    needs: ClassVar[tuple[Weights, ...]] = (
        Weights(
            "vgg16",
            "torchvision's VGG-16 (vgg16-397923af.pth)",
            "https://download.pytorch.org/models/vgg16-397923af.pth",
            torch_hub="vgg16-397923af.pth",
        ),
    )
