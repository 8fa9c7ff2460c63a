"""The judges' weight files: small, checked on reading, matrices in half precision."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from ditbench.faults import Fault
from ditbench.storage import replacing

Network = TypeVar("Network", bound=nn.Module)


def save_weights(network: nn.Module, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Writes a network's weights; vectors (norms, biases) keep single precision, they cost little and matter."""
    tensors = {
        name: (tensor.half() if tensor.ndim > 1 else tensor).cpu().contiguous()
        for name, tensor in network.state_dict().items()
    }
    with replacing(path) as partial:
        partial.write_bytes(save(tensors, metadata=metadata))


def load_weights(network: Network, path: Path, device: str = "cpu") -> Network:
    """Fills a network from its file and makes it ready to judge; raises a Fault where the file cannot serve."""
    remedy = "restore it from the repository, or train it anew with `ditbench assets train-judges`"
    if not path.exists():
        raise Fault(f"a judge's weights are missing: {path}; {remedy}")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise Fault(f"a judge's weights cannot be read: {path} ({error}); {remedy}") from error
    wanted = network.state_dict()
    if tensors.keys() != wanted.keys() or any(tensors[name].shape != wanted[name].shape for name in wanted):
        raise Fault(f"the weights in {path} are of another network than this version of ditbench has; {remedy}")
    network.load_state_dict({name: tensor.to(wanted[name].dtype) for name, tensor in tensors.items()})
    if not all(torch.isfinite(p).all() for p in network.parameters()):
        raise Fault(f"the weights in {path} hold values that are not finite; {remedy}")
    return network.requires_grad_(False).eval().to(device)
