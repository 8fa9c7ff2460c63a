"""What networks are fine-tuned by: flow matching, and noise with its learned variance."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from torch.distributions import Normal, kl_divergence

from ditbench.faults import Fault
from ditbench.learn.diffusion import VARIANCE_WEIGHT, Flow, Noise, objective_of


def noise_objective() -> Noise:
    found = objective_of(DDPMScheduler(beta_schedule="linear"), 1.0)
    assert isinstance(found, Noise)
    return found


def test_a_sampler_says_what_its_network_learned() -> None:
    flows = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    assert objective_of(flows, 4.0) == Flow(4.0)
    assert objective_of(FlowMatchEulerDiscreteScheduler(), 3.0) == Flow(3.0)
    noise_objective()
    with pytest.raises(Fault, match="'v_prediction' cannot be fine-tuned"):
        objective_of(DDPMScheduler(prediction_type="v_prediction"), 1.0)


def test_timesteps_fill_their_distribution_evenly() -> None:
    generator = torch.Generator().manual_seed(0)
    plain = Flow().times(10, generator).sort().values
    assert ((plain / 100).floor() == torch.arange(10)).all()
    # Half of the levels lie above shift / (1 + shift).
    shifted = Flow(4.0).times(10, generator)
    assert (shifted > 800).sum() == 5
    assert shifted.max() < 1000
    whole = noise_objective().times(100, generator)
    assert ((whole.sort().values / 10).floor() == torch.arange(100)).all()


def test_flow_is_from_image_to_noise() -> None:
    clean, noise, times = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.tensor([0.0, 250.0, 1000.0])
    noisy = Flow().noisy(clean, noise, times)
    assert torch.equal(noisy[0], clean[0])
    assert torch.allclose(noisy[1], 0.75 * clean[1] + 0.25 * noise[1])
    assert torch.equal(noisy[2], noise[2])
    assert (Flow().losses(noise - clean, clean, noise, times) == 0).all()
    assert torch.allclose(Flow().losses(noise - clean + 2, clean, noise, times), torch.full((3,), 4.0))


def test_noise_is_added_as_its_scheduler_adds_it() -> None:
    scheduler = DDPMScheduler(beta_schedule="linear")
    clean, noise, times = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 4, 4), torch.tensor([0, 400, 999])
    ours = noise_objective().noisy(clean, noise, times)
    assert torch.allclose(ours, scheduler.add_noise(clean, noise, times), atol=1e-6)
    assert (noise_objective().losses(noise, clean, noise, times) == 0).all()


def test_the_variance_s_term_is_a_divergence_of_normal_distributions_in_bits() -> None:
    objective, when = noise_objective(), 2
    clean = torch.rand(1, 2, 4, 4) * 2 - 1
    noise, share = torch.randn(1, 2, 4, 4), 0.9
    times = torch.tensor([when])
    # The right noise: means agree, and only the variance is off.
    answer = torch.cat([noise, torch.full_like(noise, 2 * share - 1)], dim=1)
    alpha, before = objective.alphas[when], objective.alphas[when - 1]
    beta = 1 - alpha / before
    least = beta * (1 - before) / (1 - alpha)
    guessed = torch.exp(share * beta.log() + (1 - share) * least.log())
    divergence = kl_divergence(Normal(0.0, float(least.sqrt())), Normal(0.0, float(guessed.sqrt())))
    found = objective.losses(answer, clean, noise, times)
    assert float(found) == pytest.approx(VARIANCE_WEIGHT * 1000 * float(divergence) / math.log(2), rel=1e-3)
    assert found > 0
    # The least variance is the true one: nothing is off.
    right = torch.cat([noise, torch.full_like(noise, -1.0)], dim=1)
    assert float(objective.losses(right, clean, noise, times)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("when", [1, 2, 400, 999])
def test_latents_beyond_one_are_no_fault_of_the_network(when: int) -> None:
    # Latents have a standard deviation of about 1; images alone end at 1.
    objective, generator = noise_objective(), torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(2, 2, 4, 4, generator=generator) for _ in range(2))
    right = torch.cat([noise, torch.full_like(noise, -1.0)], dim=1)
    losses = objective.losses(right, 3 * clean, noise, torch.tensor([when, when]))
    assert losses.tolist() == pytest.approx([0, 0], abs=1e-6)


def test_the_variance_s_term_teaches_the_variance_alone() -> None:
    objective = noise_objective()
    clean, noise = torch.rand(2, 1, 4, 4) * 2 - 1, torch.randn(2, 1, 4, 4)
    answer = torch.randn(2, 2, 4, 4, requires_grad=True)
    times = torch.tensor([0, 700])
    whole = objective.losses(answer, clean, noise, times).sum()
    gradient = torch.autograd.grad(whole, answer)[0]
    simple = answer.detach()[:, :1] - noise
    assert torch.allclose(gradient[:, :1], 2 * simple / 16, atol=1e-7)
    assert (gradient[:, 1:] != 0).any(dim=(1, 2, 3)).all()
