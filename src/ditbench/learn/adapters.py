"""What of a network is trained: additions of low rank to its blocks' linear layers (LoRA, by peft), or all of it.

Within the context the network trains in place; afterwards it is as it was, and what was trained is a set of tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from ditbench.engine.outfit import DOWN, UP, WHOLE

ADAPTER = "default"  # peft's own name for an adapter that was given none


@contextmanager
def additions(
    network: nn.Module, rank: int, seed: int, blocks: Sequence[nn.Module] | None = None
) -> Iterator[dict[str, nn.Parameter]]:
    """Additions to every linear layer of the network's blocks, by the names that files of weights have for them.

    With `blocks`, to those of these blocks alone.
    """
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    within = None if blocks is None else {id(module) for block in blocks for module in block.modules()}
    targets = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and _in_block(name) and (within is None or id(module) in within)
    ]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), network)
    found: dict[str, nn.Parameter] = {}
    try:
        for name, module in network.named_modules():
            if isinstance(module, LoraLayer):
                found[DOWN + name] = cast(nn.Parameter, module.lora_A[ADAPTER].weight)
                found[UP + name] = cast(nn.Parameter, module.lora_B[ADAPTER].weight)
        yield found
    finally:
        for name in targets:
            parent = network.get_submodule(name.rpartition(".")[0])
            layer: Any = network.get_submodule(name)
            setattr(parent, name.rpartition(".")[2], layer.base_layer)
        if hasattr(network, "peft_config"):
            del network.peft_config


@contextmanager
def without_additions(network: nn.Module) -> Iterator[None]:
    """Within the context a network computes as if it had none of its additions."""
    from peft.tuners.lora import LoraLayer

    layers = [module for module in network.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@contextmanager
def widened(network: nn.Module) -> Iterator[None]:
    """Within the context the network's weights are float32: in half precision small steps of learning are lost."""
    before = [(tensor, tensor.dtype) for tensor in (*network.parameters(), *network.buffers())]
    for tensor, _ in before:
        if tensor.is_floating_point():
            tensor.data = tensor.data.float()
    try:
        yield
    finally:
        for tensor, dtype in before:
            tensor.data = tensor.data.to(dtype)


def _in_block(name: str) -> bool:
    """Whether a module belongs to a block: such have their block's number in their names."""
    return any(part.isdigit() for part in name.split(".")[:3])


@contextmanager
def everything(network: nn.Module) -> Iterator[dict[str, nn.Parameter]]:
    """All weights of the network, by the names that files of weights have for them."""
    before = {name: parameter.data.clone() for name, parameter in network.named_parameters()}
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    try:
        yield {WHOLE + name: parameter for name, parameter in network.named_parameters()}
    finally:
        for name, parameter in network.named_parameters():
            parameter.data = before[name]
            parameter.requires_grad_(False)
            parameter.grad = None


class Average:
    """The running average of what is trained, which forgets its beginning: early on it is of few steps."""

    def __init__(self, parameters: dict[str, Tensor], decay: float) -> None:
        self.decay, self.count = decay, 0
        self.tensors = {name: parameter.detach().clone() for name, parameter in parameters.items()}

    @torch.no_grad()
    def update(self, parameters: dict[str, Tensor]) -> None:
        """Takes in the parameters after one more step."""
        self.count += 1
        decay = min(self.decay, (1 + self.count) / (10 + self.count)) if self.decay else 0.0
        for name, parameter in parameters.items():
            self.tensors[name].lerp_(parameter.detach(), 1 - decay)
