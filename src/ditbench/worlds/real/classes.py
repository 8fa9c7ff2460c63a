"""Captions of worlds that draw classes: `class 207: golden retriever`."""

from __future__ import annotations

import re
from functools import cache

from ditbench.faults import Fault

_CAPTION = re.compile(r"(?:class\s+)?(\d+)(?::.*)?", re.IGNORECASE)


def draw_classes(count: int, seed: int, split: str, classes: int) -> list[str]:
    """Captions that name every class equally often, up to one; what comes again is told apart by a number."""
    import numpy as np

    captions: list[str] = []
    for turn in range(-(-count // classes)):
        order = np.random.default_rng([seed, turn, *split.encode()]).permutation(classes)
        again = f", image {turn + 1}" if turn else ""
        captions += [f"class {number}{_name(int(number), classes)}{again}" for number in order]
    return captions[:count]


def class_of(caption: str, classes: int) -> int:
    """The class that a caption names: by its number, or as ImageNet calls it; the empty caption names none."""
    if not caption:
        return classes
    match = _CAPTION.fullmatch(caption.strip())
    number = int(match[1]) if match else _numbers().get(caption.strip().lower(), classes)
    if number >= classes:
        raise Fault(
            f"caption {caption!r} names no class; write its number, 0 to {classes - 1} (as in `class 207`), "
            "or the name that ImageNet gives it"
        )
    return number


def _name(number: int, classes: int) -> str:
    return f": {_names()[number]}" if classes == len(_names()) else ""


@cache
def _names() -> list[str]:
    """ImageNet's classes in their order."""
    from torchvision.models import ResNet50_Weights

    return list(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])


@cache
def _numbers() -> dict[str, int]:
    names = [name.lower() for name in _names()]
    # A breed of dogs and a garment are both called Cardigan: those need their numbers.
    return {name: i for i, name in enumerate(names) if names.count(name) == 1}
