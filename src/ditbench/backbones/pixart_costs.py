"""What a token costs in a PixArt network, from its dimensions alone."""

from __future__ import annotations

from ditbench.engine.ledger import Costs, UnitCost

TIME_FEATURES = 256  # sinusoidal features of the timestep


def pixart_costs(
    *,
    width: int,
    tokens: int,
    text_tokens: int,
    text_width: int,
    patch_values: int,
    out_values: int,
    mlp_ratio: int = 4,
) -> Costs:
    """Costs by unit; `patch_values` and `out_values` are the numbers that one token reads and writes."""
    square = width * width
    time = TIME_FEATURES * width + square + 6 * square
    return Costs(
        units={
            "self": UnitCost(per_token=4 * square, keys="computed", width=width),
            "cross": UnitCost(per_token=2 * square, once=2 * text_tokens * square, keys=text_tokens, width=width),
            "mlp": UnitCost(per_token=2 * mlp_ratio * square),
        },
        per_step=time + tokens * width * (patch_values + out_values),
        text=text_tokens * (text_width * width + square),
        text_branches=("cross",),
    )
