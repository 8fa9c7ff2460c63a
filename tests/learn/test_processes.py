"""How several processes talk to each other while they learn one thing."""

from __future__ import annotations

import pytest
import torch
from torch import distributed

from ditbench.learn.processes import Team


def backends_of(monkeypatch: pytest.MonkeyPatch, device: str, has_gpu: bool) -> dict[str, str]:
    """What the tensors of each kind of device are summed by, in a team of two."""
    asked: list[str] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(distributed, "is_initialized", lambda: False)
    monkeypatch.setattr(distributed, "init_process_group", asked.append)
    Team(device)
    config: dict[str, str] = distributed.BackendConfig(distributed.Backend(asked[0])).get_device_backend_map()
    return config


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_on_gpus_numbers_of_the_host_can_be_summed_too(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    # Losses and mean ratios are numbers of the host, gradients lie on the GPUs; NCCL knows of GPUs alone.
    backends = backends_of(monkeypatch, device, has_gpu=True)
    assert (backends["cpu"], backends["cuda"]) == ("gloo", "nccl")


@pytest.mark.parametrize(("device", "has_gpu"), [("cpu", True), ("cpu", False), ("cuda", False)])
def test_without_gpus_none_is_asked_for(monkeypatch: pytest.MonkeyPatch, device: str, has_gpu: bool) -> None:
    assert set(backends_of(monkeypatch, device, has_gpu).values()) == {"gloo"}
