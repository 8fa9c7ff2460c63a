"""The loss that a diffusion transformer was trained by: what is drawn, what is asked of the network, how far it is off.

Timesteps run from 0 (clean) to 1000 (noise), as the network reads them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ditbench.faults import Fault

TIMESTEPS = 1000
# Of the variance's term beside the simple loss (Nichol and Dhariwal, 2021).
VARIANCE_WEIGHT = 0.001


class Objective(Protocol):
    """What training asks of a network."""

    def times(self, count: int, generator: torch.Generator, strata: int = 0) -> Tensor:
        """Timesteps for `count` images, from equal strata of their distribution, as many as images where it is 0."""

    def noisy(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Images with the noise of their timesteps."""

    def losses(self, answer: Tensor, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """How far the network's answer is off, one number for each image."""


def stratified(count: int, generator: torch.Generator, strata: int = 0) -> Tensor:
    """Numbers from 0 to 1, from equal strata in turn, in random order: they vary less than free draws.

    There are as many strata as numbers where `strata` is 0.
    """
    order = torch.randperm(count, generator=generator) % (strata or count)
    return (order + torch.rand(count, generator=generator)) / (strata or count)


@dataclass(frozen=True)
class Flow:
    """Straight paths from noise to image; the network gives their direction. Levels are shifted towards noise.

    They lie evenly, or as the sigmoid of a normal variable, most in the middle (Stable Diffusion 3).
    """

    shift: float = 1.0
    levels: str = "even"

    def times(self, count: int, generator: torch.Generator, strata: int = 0) -> Tensor:
        level = stratified(count, generator, strata)
        if self.levels == "logit-normal":
            level = torch.special.ndtri(level.clamp(1e-6, 1 - 1e-6)).sigmoid()
        return TIMESTEPS * self.shift * level / (1 + (self.shift - 1) * level)

    def noisy(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        level = _wide(times / TIMESTEPS, clean)
        return (1 - level) * clean + level * noise

    def losses(self, answer: Tensor, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        return (answer.float() - (noise - clean)).square().flatten(1).mean(1)


class Noise:
    """The network gives the noise, and where it has as many channels again, the variance by the hybrid loss.

    `alphas` are the cumulative products of the schedule's timesteps.
    """

    def __init__(self, alphas: Tensor) -> None:
        self.alphas = alphas.double()
        before = torch.cat([torch.ones(1, dtype=torch.float64), self.alphas[:-1]])
        betas = 1 - self.alphas / before
        variance = betas * (1 - before) / (1 - self.alphas)
        # The first posterior variance is 0; its logarithm is the second's.
        self._log_least = torch.cat([variance[1:2], variance[1:]]).log()
        self._log_most = betas.log()
        self._of_clean = betas * before.sqrt() / (1 - self.alphas)
        self._of_noisy = (1 - before) * (1 - betas).sqrt() / (1 - self.alphas)

    def times(self, count: int, generator: torch.Generator, strata: int = 0) -> Tensor:
        return (stratified(count, generator, strata) * len(self.alphas)).floor()

    def noisy(self, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        alpha = self._at(self.alphas, times, clean)
        return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise

    def losses(self, answer: Tensor, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        channels = clean.shape[1]
        found = answer[:, :channels].float()
        simple = (found - noise).square().flatten(1).mean(1)
        if answer.shape[1] == channels:
            return simple
        share = (answer[:, channels:].float() + 1) / 2
        bound = self._bound(found.detach(), share, clean, noise, times)
        return simple + VARIANCE_WEIGHT * len(self.alphas) * bound

    def _at(self, table: Tensor, times: Tensor, like: Tensor) -> Tensor:
        return _wide(table[times.long().cpu()].to(like.device, torch.float32), like)

    def _bound(self, found: Tensor, share: Tensor, clean: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """The term of the variational bound at these timesteps, in bits: it teaches the variance alone."""
        noisy = self.noisy(clean, noise, times)
        alpha = self._at(self.alphas, times, clean)
        # As it is: latents go beyond the -1 to 1 that images would be cut to.
        guess = (noisy - (1 - alpha).sqrt() * found) / alpha.sqrt()
        of_clean, of_noisy = self._at(self._of_clean, times, clean), self._at(self._of_noisy, times, clean)
        true_mean, mean = of_clean * clean + of_noisy * noisy, of_clean * guess + of_noisy * noisy
        least, most = self._at(self._log_least, times, clean), self._at(self._log_most, times, clean)
        log_variance = share * most + (1 - share) * least
        divergence = 0.5 * (
            log_variance - least - 1 + (least - log_variance).exp() + (true_mean - mean) ** 2 * (-log_variance).exp()
        )
        decoded = -_log_likelihood(clean, mean, 0.5 * log_variance)
        first = _wide(times == 0, clean)
        return torch.where(first, decoded, divergence).flatten(1).mean(1) / math.log(2)


def _log_likelihood(clean: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Of images of 256 levels from -1 to 1, under a normal distribution of such a mean and scale."""
    off, inverse = clean - mean, (-log_scale).exp()
    upper = torch.special.ndtr(inverse * (off + 1 / 255))
    lower = torch.special.ndtr(inverse * (off - 1 / 255))
    within = torch.where(clean > 0.999, 1 - lower, upper - lower)
    return torch.where(clean < -0.999, upper, within).clamp(min=1e-12).log()


def _wide(values: Tensor, like: Tensor) -> Tensor:
    return values.to(like.device).view(-1, *[1] * (like.ndim - 1))


def objective_of(scheduler: Any, shift: float, levels: str = "even") -> Objective:
    """What the network of a sampler was trained by; `shift` and `levels` are its training's, where it learned flows."""
    config = scheduler.config
    if config.get("use_flow_sigmas") or "Flow" in type(scheduler).__name__:
        return Flow(shift, levels)
    kind = config.get("prediction_type", "epsilon")
    if kind != "epsilon":
        raise Fault(f"networks that predict {kind!r} cannot be fine-tuned here: only those of noise or of flow can")
    return Noise(scheduler.alphas_cumprod)
