"""Inception-v3 as clean-fid has it: NVIDIA's TorchScript of the TensorFlow network of 2015, "clean" resizing."""

from __future__ import annotations

import re
import warnings
import zipfile
from typing import TYPE_CHECKING, Any, ClassVar

from ditbench.judges.networks.base import Network
from ditbench.judges.weights import Weights, reading

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from numpy.typing import NDArray


# What a network's code may not call: files are read and written by these, and by operators that are no part of torch.
_OUTSIDE = rb"torch\.(save|load|from_file)\b|\bops\.(?!(aten|prim)\.)\w+|\bops\.aten\.(save|from_file)\b"
_LARGEST_CODE = 1 << 24


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
            _check_code(self.place)
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


def _check_code(path: Path) -> None:
    """A ValueError where a TorchScript's code does more than compute: it runs as soon as it is read."""
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if "/code/" not in entry.filename or not entry.filename.endswith(".py"):
                continue
            if entry.file_size > _LARGEST_CODE:
                raise ValueError(f"its {entry.filename} has {entry.file_size:,} bytes of code")
            if found := re.search(_OUTSIDE, archive.read(entry)):
                raise ValueError(f"its code calls {found[0].decode()}, which a network has no need of")
