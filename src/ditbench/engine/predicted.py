"""Tokens whose weights are predicted before a step begins: how much it is worth to compute each of them, in each block.

A predictor answers with the logit of every token in every block it knows. It reads nothing but block, time and place
(`OfPlaces`), or the tokens as they enter the network (`OfTokens`). Those of greatest weight are computed.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from ditbench.engine.routing import best
from ditbench.engine.rows import Rows
from ditbench.faults import Fault

if TYPE_CHECKING:
    from ditbench.backbones import Backbone, Stream
    from ditbench.engine.costs import Costs
    from ditbench.engine.keys import KeptKeys
    from ditbench.engine.layout import Layout, Unit

# Waves that a time is written in, and how wide the layers are that read them.
WAVES, WIDTH = 8, 128
# Of the lists of blocks that networks of all families have: the first block's, and those that come after it.
FIRST, LATER = ("transformer_blocks", "blocks"), ("single_transformer_blocks",)
# How the tensors of a predictor are called in a file of what was learned.
PREFIX = "predictor."


class OfPlaces(nn.Module):
    """Weights by block, time and place alone: the same for every image.

    The last layer starts at zero: all weights are alike then.
    """

    kind: ClassVar[str] = "places"

    def __init__(self, blocks: int, tokens: int, width: int = WIDTH) -> None:
        super().__init__()
        self.blocks = blocks
        self.time = nn.Linear(2 * WAVES, width)
        self.block = nn.Embedding(blocks, width)
        self.inner = nn.Linear(width, width)
        self.outer = nn.Linear(width, tokens)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, share: float) -> Tensor:
        like = self.outer.weight
        angles = share * math.pi * 2.0 ** torch.arange(WAVES, dtype=like.dtype, device=like.device)
        waves = torch.cat([angles.sin(), angles.cos()])
        hidden = functional.silu(self.time(waves) + self.block.weight)
        table: Tensor = self.outer(functional.silu(self.inner(hidden)))
        return table

    def logits(self, share: float, stream: Stream, backbone: Backbone) -> Tensor:
        """Of all samples, [1, blocks, tokens]; `share` is the share of the sampling steps that are done."""
        places = self.outer.out_features
        if places != stream.tokens:
            raise Fault(f"the predictor is of images of {places} tokens, this one has {stream.tokens}")
        table: Tensor = self(share)
        return table[None]

    def macs(self, stream: Stream, costs: Costs) -> int:
        """Once for all samples."""
        layers = (self.inner, self.outer)
        once = self.time.in_features * self.time.out_features
        return once + self.blocks * sum(layer.in_features * layer.out_features for layer in layers)


class OfTokens(nn.Module):
    """Weights by what enters the network: a copy of its first block reads the tokens, and one linear layer weighs them.

    The copy reads whatever the first block does (time, class or text); the linear layer starts at zero. Tokens are
    normalised before it, whose size differs from network to network.
    """

    kind: ClassVar[str] = "tokens"

    def __init__(self, block: nn.Module, blocks: int, width: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.block = block
        self.head = nn.Linear(width, blocks)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self._twin: Backbone | None = None
        self._trained = False

    @classmethod
    def of(cls, backbone: Backbone, blocks: int) -> OfTokens:
        """A predictor that starts as the first block of a network is."""
        with backbone.network.device, torch.random.fork_rng(devices=[]):
            return cls(copy.deepcopy(first_block(backbone.network)), blocks, _width(backbone))

    def to_train(self) -> OfTokens:
        """The same in float32, whatever the network computes in: in half precision small steps of learning are lost."""
        self._trained = True
        return self.float().requires_grad_(True)

    def logits(self, share: float, stream: Stream, backbone: Backbone) -> Tensor:
        """Of every sample, [samples, blocks, tokens]; `stream` is as it enters the first unit."""
        twin = self._on(backbone)
        # What was embedded for the network as a whole serves the copy too; what belongs to a block does not.
        shared = {key: value for key, value in stream.memo.items() if isinstance(key, str)}
        own = replace(stream, given=stream.hidden, pending=[], fed={}, memo=shared, notes=Counter())
        with self._mixed_precision(own):
            for branch in range(len(twin.layout)):
                twin.add(own, branch, twin.compute(own, branch))
        stream.memo.update({key: value for key, value in own.memo.items() if isinstance(key, str)})
        stream.notes.update(own.notes)
        # At least in float32, whatever the network computes in.
        read = own.hidden.to(torch.promote_types(own.hidden.dtype, torch.float32))
        read = functional.layer_norm(read, read.shape[-1:])
        weighed = functional.linear(read, self.head.weight.to(read.dtype), self.head.bias.to(read.dtype))
        return weighed.transpose(1, 2)

    def macs(self, stream: Stream, costs: Costs) -> int:
        """The first block's, and those of the linear layer; modulations are noted on the stream."""
        assert self._twin is not None
        block = sum(cost.macs(stream.tokens) for cost in costs.branches[: len(self._twin.layout)])
        return stream.samples * (block + stream.tokens * self.head.in_features * self.blocks)

    def _on(self, backbone: Backbone) -> Backbone:
        """The network of which nothing is left but its embeddings, with the copy as its only block."""
        if self._twin is None or self._twin.network.device != backbone.network.device:
            self._twin = _with_one_block(backbone, self.block)
        return self._twin

    def _mixed_precision(self, stream: Stream) -> AbstractContextManager[Any]:
        half = self._trained and stream.given.dtype in (torch.float16, torch.bfloat16)
        return torch.autocast(stream.device.type, stream.given.dtype) if half else nullcontext()


def first_block(network: Any) -> nn.Module:
    """The first block of a network of any family."""
    for name in FIRST:
        if hasattr(network, name):
            return cast(nn.Module, getattr(network, name)[0])
    raise Fault(f"no blocks are known of {type(network).__name__}: it has none of {', '.join(FIRST)}")


def _with_one_block(backbone: Backbone, block: nn.Module) -> Backbone:
    """A network that shares everything with another but its blocks, of which it has one."""
    network: Any = copy.copy(backbone.network)
    modules = dict(network._modules)
    modules[next(name for name in FIRST if name in modules)] = nn.ModuleList([block])
    modules |= {name: nn.ModuleList() for name in LATER if name in modules}
    network.__dict__["_modules"] = modules
    made: Any = type(backbone)
    twin: Backbone = made(network)
    return twin


def _width(backbone: Backbone) -> int:
    return backbone.costs(1, 1).branches[0].width


def tensors_of(predictor: nn.Module) -> dict[str, Tensor]:
    """A predictor's tensors by the names they have in a file: its copied block in half precision, all else as it is."""
    return {
        PREFIX + name: (tensor.half() if name.startswith("block.") and predictor.kind == "tokens" else tensor).cpu()
        for name, tensor in predictor.state_dict().items()
    }


# Of each network the last predictor that was read for it: making a copy of a block takes longer than a step may.
_MADE: WeakKeyDictionary[nn.Module, tuple[Mapping[str, Tensor], OfPlaces | OfTokens]] = WeakKeyDictionary()


def predictor_of(tensors: Mapping[str, Tensor], backbone: Backbone) -> OfPlaces | OfTokens:
    """The predictor that a file holds, on a network's device and in its precision."""
    made = _MADE.get(backbone.network)
    if made is None or made[0] is not tensors:
        made = _MADE[backbone.network] = (tensors, _read(tensors, backbone))
    return made[1]


def _read(tensors: Mapping[str, Tensor], backbone: Backbone) -> OfPlaces | OfTokens:
    own = {name[len(PREFIX) :]: tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
    predictor: OfPlaces | OfTokens
    if "head.weight" in own:
        predictor = OfTokens.of(backbone, own["head.weight"].shape[0])
    else:
        outer, block = (tensors[f"{PREFIX}{name}.weight"] for name in ("outer", "block"))
        (tokens, width), blocks = outer.shape, block.shape[0]
        with torch.random.fork_rng(devices=[]):
            predictor = OfPlaces(blocks, tokens, width).to(backbone.network.device)
    try:
        if backbone.network.device.type != "meta":  # what has no values is told the sizes, to count what it costs
            predictor.load_state_dict(own)
    except RuntimeError as error:
        said = str(error).splitlines()[-1].strip()
        raise Fault(f"what was learned is of another network than this one ({said})") from error
    return predictor.requires_grad_(False).eval()


class PredictedTokens:
    """Chooses the tokens of greatest weight, in all branches of a block the same ones.

    `tensors` hold the predictor; None: an untrained one, which is enough to count what it costs. `choosing` says for
    every step whether any tokens are chosen in it. `sharing` says by which weights both branches of guidance choose:
    each by its own (`separate`), or by the greater (`max`) or the mean of the two (`mean`). With `keys` tokens attend
    to those that are left out, too.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor] | None,
        untrained: str,
        blocks: int,
        layout: Layout,
        choosing: Sequence[bool],
        sharing: str,
        keys: KeptKeys | None,
    ) -> None:
        self._tensors, self._untrained, self._blocks = tensors, untrained, blocks
        self._block_of: list[int] = layout.block_of.tolist()
        self._choosing, self._sharing, self.kept_keys = list(choosing), sharing, keys
        self._predictor: OfPlaces | OfTokens | None = None
        self._logits: Tensor | None = None  # of this step
        self._last: tuple[tuple[int, int], Rows] | None = None

    def foresee(self, step: int, stream: Stream, backbone: Backbone, costs: Costs) -> int:
        """Weighs the tokens of a step that computes some of them."""
        self._logits = self._last = None
        if not self._choosing[step]:
            return 0
        if self._predictor is None:
            self._predictor = self._made(stream, backbone)
        logits = self._predictor.logits(step / len(self._choosing), stream, backbone)
        if self._sharing != "separate" and stream.halves == 2 and len(logits) > 1:
            first, second = logits.chunk(2)
            both = torch.maximum(first, second) if self._sharing == "max" else (first + second) / 2
            logits = torch.cat([both, both])
        self._logits = logits
        return self._predictor.macs(stream, costs)

    def _made(self, stream: Stream, backbone: Backbone) -> OfPlaces | OfTokens:
        if self._tensors is not None:
            return predictor_of(self._tensors, backbone)
        if not stream.hidden.is_meta:  # what has no values is run without a predictor's, to count what it costs
            raise Fault("the predictor must be trained before tokens are chosen by it: `ditbench learn` does it")
        if self._untrained == OfPlaces.kind:
            return OfPlaces(self._blocks, stream.tokens).to("meta")
        return OfTokens.of(backbone, self._blocks)

    def choose(self, unit: Unit, step: int, stream: Stream, count: int) -> Rows:
        """The tokens of a block that are computed."""
        key = (self._block_of[unit.start], count)
        if self._last is None or self._last[0] != key:
            assert self._logits is not None, "steps that choose are foreseen"
            index = best(self._logits[:, key[0]], count)
            self._last = (key, Rows(index.expand(stream.samples, -1), stream.tokens))
        return self._last[1]

    def nbytes(self) -> int:
        """The keys that are kept; weights are of one step."""
        return 0 if self.kept_keys is None else self.kept_keys.nbytes()
