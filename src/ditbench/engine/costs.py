"""What a network costs, in multiply-accumulate operations (MACs): its branches, and what belongs to none of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Work:
    """MACs of linear layers, and what thop counts for LayerNorms."""

    linear: int
    norm: int = 0


@dataclass(frozen=True)
class UnitCost:
    """One branch of one block, for one sample.

    `per_token`: linear MACs for each computed image token. `once`: linear MACs as soon as any token is computed (keys
    and values of a text, or all that a text's own tokens cost). `keys`: how many keys an image token attends to;
    "computed" = the computed tokens and `joined` text tokens, which attend to the same keys. `width`: of queries and
    values. `norm` and `norm_once`: thop's term for LayerNorms, per computed token and once. `attending`: what of
    `per_token` a token of image or text does without where attention is kept from another step. `apart`: what of it a
    token costs that attends, but has its MLP computed with others'.
    """

    per_token: int
    once: int = 0
    keys: int | Literal["computed"] = 0
    joined: int = 0
    width: int = 0
    norm: int = 0
    norm_once: int = 0
    attending: int = 0
    apart: int = 0

    def macs(self, tokens: int) -> int:
        """Linear layers and products of attention for so many computed tokens of one sample."""
        if tokens == 0:
            return 0
        attending = tokens + self.joined
        pairs = attending**2 if self.keys == "computed" else tokens * self.keys
        return self.linear_macs(tokens) + 2 * self.width * pairs

    def linear_macs(self, tokens: int) -> int:
        """Linear layers alone."""
        return tokens * self.per_token + self.once if tokens else 0


@dataclass(frozen=True)
class Costs:
    """A network's costs: of its branches in their order, of entering and leaving it once, and of what is noted."""

    branches: tuple[UnitCost, ...]
    step: Work
    noted: Mapping[str, Work] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Costs:
        branches = tuple(UnitCost(**cost) for cost in body["branches"])
        noted = {name: Work(**work) for name, work in body["noted"].items()}
        return cls(branches, Work(**body["step"]), noted)
