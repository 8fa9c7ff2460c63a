"""Weights of a method's own that a network wears while it samples, and takes off afterwards.

A method that fine-tunes its network leaves the network that others use as it was: its weights lie in a file, are put
in place of the network's for a sampling run, and are taken away again. What is put on is as large as what was tuned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ditbench.faults import Fault

# Names in such a file: of whole tensors, of the two halves of additions of low rank, and of what is no weight.
WHOLE, DOWN, UP, ROUTERS = "weight.", "down.", "up.", "routers"


class _Tensors(dict[str, Tensor]):
    """The tensors of a file; one that it lacks is a sentence: a record may name any file."""

    def __init__(self, path: str, tensors: Mapping[str, Tensor]) -> None:
        super().__init__(tensors)
        self._path = path

    def __missing__(self, name: str) -> Tensor:
        raise Fault(f"{self._path} holds no `{name}`: it is not the file of weights that its record should name")


@lru_cache(maxsize=4)
def tuned_tensors(path: str, sha256: str) -> Mapping[str, Tensor]:
    """The tensors of a file of tuned weights; another file of that name is refused."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from ditbench.storage import hash_file

    file = Path(path)
    if not file.is_file():
        raise Fault(f"{path} is missing: it holds weights that were learned; delete its record and run again")
    if hash_file(file) != sha256:
        raise Fault(f"{path} is not the file that was learned (another hash); delete its record and run again")
    try:
        return _Tensors(path, load_file(file))
    except (SafetensorError, OSError) as error:
        raise Fault(f"{path} cannot be read as weights ({error}); delete its record and run again") from error


_MADE: WeakKeyDictionary[nn.Module, dict[str, list[tuple[nn.Parameter, Tensor]]]] = WeakKeyDictionary()


def _worn(network: nn.Module, path: str, sha256: str) -> list[tuple[nn.Parameter, Tensor]]:
    """Parameters of a network, and what each is to be; made once for a network and a file."""
    if "_hf_hook" in vars(network):
        raise Fault("the network's weights are moved by a hook (offloading): tuned ones cannot be put in their place")
    made = _MADE.setdefault(network, {})
    if sha256 not in made:
        tensors = tuned_tensors(path, sha256)
        parameters = dict(network.named_parameters())
        named = {name[len(WHOLE) :] for name in tensors if name.startswith(WHOLE)}
        named |= {f"{name[len(DOWN) :]}.weight" for name in tensors if name.startswith(DOWN)}
        unknown = sorted(named - set(parameters))
        if unknown:
            raise Fault(f"{path} holds weights of another network: this one has no {unknown[0]}")
        made.clear()  # one at a time: each is as large as what was tuned
        made[sha256] = [(parameters[name], _value(parameters[name], name, tensors, path)) for name in sorted(named)]
    return made[sha256]


def _value(parameter: nn.Parameter, name: str, tensors: Mapping[str, Tensor], path: str) -> Tensor:
    if parameter.is_meta:
        raise Fault("the network's weights are not in memory (offloaded): tuned ones cannot be put in their place")
    whole, module = tensors.get(WHOLE + name), name.removesuffix(".weight")
    with torch.no_grad():
        if whole is None:
            down, up = (tensors[half + module].to(parameter.device, torch.float32) for half in (DOWN, UP))
            try:
                whole = parameter.float() + (up @ down).view(parameter.shape)
            except RuntimeError:
                raise Fault(f"{path} holds weights of another network: the additions to {name} do not fit it") from None
        if whole.shape != parameter.shape:
            raise Fault(f"{path} holds weights of another network: {name} is {tuple(whole.shape)} there")
        return whole.to(parameter.device, parameter.dtype)


def put_on(network: Any, found: Mapping[str, Any] | None) -> list[tuple[nn.Parameter, Tensor]]:
    """Puts the weights that were learned in place of a network's own; answers with what `take_off` takes."""
    if not found or "file" not in found:
        return []
    before = []
    for parameter, value in _worn(network, found["file"], found["sha256"]):
        before.append((parameter, parameter.data))
        parameter.data = value
    return before


def take_off(before: list[tuple[nn.Parameter, Tensor]]) -> None:
    """Gives a network its own weights back."""
    for parameter, value in before:
        parameter.data = value


@contextmanager
def wearing(network: Any, found: Mapping[str, Any] | None) -> Iterator[None]:
    """Within the context a network has the weights that were learned, if any were."""
    before = put_on(network, found)
    try:
        yield
    finally:
        take_off(before)
