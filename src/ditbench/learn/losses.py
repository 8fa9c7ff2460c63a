"""How far an image is from the full network's, as a loss: one number for each pair of images from -1 to 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from ditbench.faults import Fault

if TYPE_CHECKING:
    from ditbench.worlds import World

Loss = Callable[[Tensor, Tensor], Tensor]

# SSIM's window and constants, for a range of 2 (Wang et al. 2004).
WINDOW, DEVIATION = 11, 1.5
FIRST, SECOND = (0.01 * 2) ** 2, (0.03 * 2) ** 2


def loss_of(name: str, world: World, device: str, places: Mapping[str, str]) -> Loss:
    """A loss by its name; `lpips` is the world's own perceptual distance where LPIPS is not made for its images."""
    if name == "l2":
        return squared
    if name == "ssim":
        return dissimilarity
    own = world.perceptual(device)
    if own is not None:
        if name != "lpips":
            raise Fault(f"loss: {name} is not for world {world.name}; its own perceptual distance is called lpips")
        return own
    return _lpips(name, device, places)


def squared(images: Tensor, originals: Tensor) -> Tensor:
    """The mean squared difference."""
    return (images.float() - originals.float()).square().flatten(1).mean(1)


def dissimilarity(images: Tensor, originals: Tensor) -> Tensor:
    """1 - SSIM, over pixels and colours."""
    a, b = images.float() + 1, originals.float() + 1  # its term of light is of values from black on
    mean_a, mean_b = _blurred(a), _blurred(b)
    variance_a, variance_b = _blurred(a * a) - mean_a**2, _blurred(b * b) - mean_b**2
    covariance = _blurred(a * b) - mean_a * mean_b
    light = (2 * mean_a * mean_b + FIRST) / (mean_a**2 + mean_b**2 + FIRST)
    shape = (2 * covariance + SECOND) / (variance_a + variance_b + SECOND)
    return 1 - (light * shape).flatten(1).mean(1)


def _blurred(values: Tensor) -> Tensor:
    places = torch.arange(WINDOW, dtype=values.dtype, device=values.device) - WINDOW // 2
    bell = torch.exp(-(places**2) / (2 * DEVIATION**2))
    bell = bell / bell.sum()
    each = values.flatten(0, 1)[:, None]
    down = functional.conv2d(each, bell[None, None, :, None])
    return functional.conv2d(down, bell[None, None, None, :]).unflatten(0, values.shape[:2])


def _lpips(name: str, device: str, places: Mapping[str, str]) -> Loss:
    from ditbench.judges.lpips import LpipsAlex, LpipsVgg

    network = {"lpips": LpipsAlex, "lpips-vgg": LpipsVgg}[name](device, places).network.requires_grad_(False)
    return lambda images, originals: network(images.float(), originals.float()).flatten()
