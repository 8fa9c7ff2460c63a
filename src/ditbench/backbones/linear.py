"""What modules cost: the multiply-accumulate operations of their linear layers, read off their weights."""

from __future__ import annotations

import math

from torch import nn


def macs_per_token(*modules: nn.Module | None) -> int:
    """Linear MACs for each token that goes through these modules, every linear layer in them once."""
    total = 0
    for module in modules:
        for part in module.modules() if module is not None else ():
            if isinstance(part, nn.Linear):
                total += part.in_features * part.out_features
            elif isinstance(part, nn.Conv2d | nn.Conv3d):
                # As a patch embedding: one output position is one token.
                total += part.in_channels // part.groups * part.out_channels * math.prod(part.kernel_size)
    return total


def norm_macs(*modules: nn.Module | None) -> int:
    """What the thop tool counts for each token: 2 x width for a LayerNorm, twice that where it has weights.

    It knows the class nn.LayerNorm alone, not its subclasses and not RMSNorm.
    """
    total = 0
    for module in modules:
        for part in module.modules() if module is not None else ():
            if type(part) is nn.LayerNorm:
                total += 2 * math.prod(part.normalized_shape) * (2 if part.elementwise_affine else 1)
    return total
