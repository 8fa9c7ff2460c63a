"""FLOPs as the calculator of ToCa's published code has them, for DiT: the figures of it and of the papers that use it.

It counts two operations for each MAC of linear layers and of attention's products, five for each number of a softmax,
six for each of a GELU, and LayerNorms by their width; the modulation's linear layer once, not twice; embedders and head
not at all. What it does for LayerNorms (three operations a number in whole blocks, two where some tokens of an MLP are
computed, even none) and for the modulation (its width besides) is read off two printed figures, which it gives to the
last digit: 10.232809588736 and 103.549585270784 T.
"""

from __future__ import annotations

from typing import Any

from ditbench.engine.fills import Finishing
from ditbench.engine.run import Run
from ditbench.faults import Fault

PER_MAC, PER_SOFTMAX, PER_GELU = 2, 5, 6
NORM_WHOLE, NORM_SOME = 3, 2


def toca_flops(run: Run) -> int:
    """FLOPs of one image, all branches that ran, of a run of a static plan on a DiT."""
    network: Any = run.backbone.network
    layout, trace = run.plan.layout, run.trace
    if layout.names != ("self", "mlp") or not hasattr(network.transformer_blocks[0], "norm1"):
        raise Fault("ToCa's calculator is known for DiT alone: leave out --as-toca-counts")
    tokens, width = run.tokens, network.inner_dim
    heads, hidden = network.config.num_attention_heads, network.transformer_blocks[0].ff.net[0].proj.out_features
    attends, feeds = layout.name_of == "self", layout.name_of == "mlp"
    attended, fed = int(trace.ran[:, attends].sum()), int(trace.computed[:, feeds].sum())
    blocks = int(trace.entered.sum()) * layout.blocks
    flops = PER_MAC * attended * (4 * tokens * width**2 + 2 * tokens**2 * width)
    flops += attended * PER_SOFTMAX * heads * tokens**2
    flops += fed * (PER_MAC * 2 * width * hidden + PER_GELU * hidden)
    flops += NORM_WHOLE * attended * tokens * width + NORM_SOME * _some(run) * tokens * width
    flops += blocks * (6 * width**2 + width)
    return flops


def _some(run: Run) -> int:
    """How many MLPs were visited to compute some of their tokens, or none of those that might have been chosen."""
    parts, plan = run.branches[0], run.plan
    if parts.selector is None:
        return 0
    visited = 0
    for step, shares in enumerate(plan.shares):
        passed = parts.fill.passes(step) if isinstance(parts.fill, Finishing) else [False] * len(plan.units)
        for unit, share, skip in zip(plan.units, shares, passed, strict=True):
            visited += plan.layout.name_of[unit.start] == "mlp" and share < 1 and not skip
    return visited * run.trace.samples
