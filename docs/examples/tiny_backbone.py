"""A block family of one's own: a network of blocks with two residual branches, taken apart for the engine."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from ditbench.backbones import Backbone
from ditbench.backbones.linear import macs_per_token
from ditbench.backbones.stream import Output, Stream
from ditbench.engine.costs import Costs, UnitCost, Work
from ditbench.engine.layout import Layout


class TinyBackbone(Backbone):
    """`TinyTransformer`: x + mix(x), then x + mlp(x), in each block; no text, no gates."""

    network_class: ClassVar[str] = "TinyTransformer"

    def __init__(self, network: Any) -> None:
        self.network = network
        self.layout = Layout.regular(len(network.blocks), ("mix", "mlp"))

    def tokens(self, hidden_states: Tensor) -> int:
        return hidden_states.shape[1]

    def text_tokens(self, hidden_states: Tensor) -> int:
        return 0

    def enter(self, hidden_states: Tensor) -> Stream:
        return Stream(self.network.embed(hidden_states))

    def compute(self, stream: Stream, branch: int) -> Output:
        block, name = self.layout.branches[branch]
        return Output(getattr(self.network.blocks[block], name)(stream.hidden))

    def gates(self, stream: Stream, branch: int) -> tuple[None, None]:
        return None, None

    def add(self, stream: Stream, branch: int, output: Output) -> None:
        stream.hidden = stream.hidden + output.image  # as the network itself does it, to the last bit

    def modulated_input(self, stream: Stream) -> Tensor:
        return stream.hidden.clone()

    def leave(self, stream: Stream) -> tuple[Tensor]:
        return (self.network.head(stream.hidden),)

    def costs(self, tokens: int, text_tokens: int, as_published: bool = False) -> Costs:
        parts = (getattr(self.network.blocks[block], name) for block, name in self.layout.branches)
        step = tokens * macs_per_token(self.network.embed, self.network.head)
        return Costs(tuple(UnitCost(macs_per_token(part)) for part in parts), Work(step))

    def example_inputs(self, batch: int, size: tuple[int, ...], text_tokens: int, dtype: Any, device: Any) -> Any:
        return {"hidden_states": torch.randn(batch, size[0] * size[1], 4, dtype=dtype, device=device)}
