"""Training of dynamic widths and tokens (DyDiT): routers and the network learn together, within a budget of MACs.

In training nothing is sliced or gathered: each sample has a timestep, and so widths, of its own, and a token that is
skipped must be computed for its router to learn what that costs. Heads, channels and tokens are multiplied by gates of
0 and 1, which comes to the same. Widths are written down for every timestep when training ends.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ditbench.engine.dynamic import ORDERS, SHARE, TABLES, TokenRouters, kinds_of
from ditbench.engine.widths import inner_of, order_of
from ditbench.faults import Fault
from ditbench.learn.diffusion import TIMESTEPS
from ditbench.learn.tuning import WEIGHTS, Training, fine_tuned, sampling_times
from ditbench.methods.dydit import DyDiT
from ditbench.storage import hash_file, write_tensors

if TYPE_CHECKING:
    from ditbench.backbones import Backbone, Stream
    from ditbench.engine.costs import UnitCost
    from ditbench.engine.layout import Layout
    from ditbench.learn.lesson import Lesson

# Names of width routers among what is trained.
WIDTHS = "widths."
KINDS = ("heads", "channels")


def learn(lesson: Lesson) -> dict[str, Any]:
    """Trains, and answers with the file of weights and widths that lies beside the record, and how training went."""
    return fine_tuned(lesson, DynamicTraining, untrained)


# Gates


def gate(logits: Tensor, noise: Tensor, temperature: float, hard: bool = True) -> Tensor:
    """Gumbel gates: 1 where logit and noise are above 0, with the gradient of the sigmoid at a temperature.

    `noise` is the difference of two Gumbel variables, a logistic one. Without `hard` the sigmoid itself.
    """
    soft = torch.sigmoid((logits + noise) / temperature)
    if not hard:
        return soft
    return (logits + noise > 0).to(soft.dtype) + (soft - soft.detach())


def logistic(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Differences of two Gumbel variables."""
    level = torch.rand(*shape, generator=generator).clamp(1e-7, 1 - 1e-7)
    return level.log() - (-level).log1p()


class Noises(NamedTuple):
    """What gates of one batch are shaken by: of heads and channels but the first, [samples, blocks, groups - 1]."""

    heads: Tensor
    channels: Tensor
    tokens: Tensor  # [samples, blocks, tokens]

    def at(self, places: Sequence[int], device: torch.device | str) -> Noises:
        """Those of some samples."""
        return Noises(*(noise[list(places)].to(device) for noise in self))


class Gates(NamedTuple):
    """What heads and channels are multiplied by, [samples, blocks, groups], and what shakes those of tokens."""

    heads: Tensor
    channels: Tensor
    noise: Tensor  # [samples, blocks, tokens]


def width_gates(
    embedded: Tensor, routers: Mapping[str, Tensor], noises: Noises, temperature: float, hard: bool = True
) -> Gates:
    """The gates of timesteps, from what the network makes of them, [samples, width]."""
    found = []
    for kind, noise in zip(KINDS, noises, strict=False):
        own = gate(width_logits(embedded, routers, kind), noise, temperature, hard)
        found.append(torch.cat([own.new_ones(*own.shape[:2], 1), own], dim=2))
    return Gates(found[0], found[1], noises.tokens)


def width_logits(embedded: Tensor, routers: Mapping[str, Tensor], kind: str) -> Tensor:
    """What width routers give for timesteps, [samples, blocks, groups - 1]."""
    weight, bias = routers[f"{WIDTHS}{kind}"], routers[f"{WIDTHS}{kind}_bias"]
    return torch.einsum("sw,bgw->sbg", embedded.to(weight.dtype), weight) + bias


def fresh_routers(method: DyDiT, blocks: int, width: int, groups: Sequence[int]) -> dict[str, Tensor]:
    """Routers as they start: with their biases, so that all is computed."""
    generator = torch.Generator().manual_seed(method.training_seed)

    def linear(*shape: int, zero: bool) -> Tensor:
        drawn = (2 * torch.rand(*shape, generator=generator) - 1) * shape[-1] ** -0.5
        return 0 * drawn if zero else drawn

    zero, hidden = method.start == "zero", max(width // SHARE, 1)
    found: dict[str, Tensor] = {}
    if method.routes_widths:
        for kind, count in zip(KINDS, groups, strict=True):
            found[f"{WIDTHS}{kind}"] = linear(blocks, count - 1, width, zero=zero)
            found[f"{WIDTHS}{kind}_bias"] = torch.full((blocks, count - 1), method.width_bias)
    if method.routes_tokens:
        routers = TokenRouters(
            linear(blocks, hidden, width, zero=False),
            torch.zeros(blocks, hidden),
            linear(blocks, hidden, zero=zero),
            torch.full((blocks,), method.token_bias),
        )
        found |= routers.named()
    return found


# What is narrowed


def narrowable(backbone: Backbone, cross: str) -> list[str | None]:
    """What of every branch width routers narrow; a Fault where the block family has branches that cannot be."""
    kinds = kinds_of(backbone.layout, cross)
    for branch, name in enumerate(backbone.layout.name_of.tolist()):
        if not backbone.inner(branch) or name not in ("self", "cross", "attn", "attn2", "mlp"):
            raise Fault(
                f"dydit narrows attentions and MLPs of PixArt, DiT and SD3: {type(backbone.network).__name__} has "
                f"{name!r} branches that it cannot"
            )
    return kinds


def group_counts(backbone: Backbone, method: DyDiT) -> tuple[int, int]:
    """How many heads an attention has, and how many groups of channels an MLP."""
    heads = {inner_of(module).heads for branch in range(len(backbone.layout)) for module in backbone.inner(branch)}
    heads.discard(None)
    if len(heads) != 1:
        raise Fault(f"dydit needs attentions of one number of heads, here are {sorted(map(str, heads))}")
    count = int(heads.pop() or 1)
    return count, method.groups or count


def orders_of(backbone: Backbone, kinds: Sequence[str | None], groups: Sequence[int], order: str) -> list[list[Tensor]]:
    """The order of the channels of every branch's modules; none where nothing is narrowed."""
    counts = dict(zip(KINDS, groups, strict=True))
    return [
        [order_of(inner_of(module), counts[kind], order == "magnitude") for module in backbone.inner(branch)]
        if kind
        else []
        for branch, kind in enumerate(kinds)
    ]


class Shares:
    """What share of the blocks' MACs is computed, by the shares of their heads, channels and tokens.

    For DiT-XL/2 at 256 pixels that weighs a block's attention 1.5099 and its MLP 2.7179 (G MACs), as published.
    """

    def __init__(self, costs: Sequence[UnitCost], layout: Layout, kinds: Sequence[str | None], tokens: int) -> None:
        # By block: MACs that hang on heads, on channels and tokens, on channels alone (a text's MLP), and on nothing.
        self._macs = np.zeros((4, layout.blocks))
        for branch, (cost, kind) in enumerate(zip(costs, kinds, strict=True)):
            block, name = layout.branches[branch]
            if name == "mlp":
                self._macs[1, block] += cost.per_token * tokens
                self._macs[2, block] += cost.once
            else:
                self._macs[0 if kind else 3, block] += cost.macs(tokens)
        self._macs /= self._macs.sum()

    def of(self, heads: Tensor, channels: Tensor, tokens: Tensor) -> Tensor:
        """Of every sample, from shares [samples, blocks]."""
        by_heads, by_tokens, by_channels, rest = torch.as_tensor(self._macs).to(heads.device, heads.dtype)
        block = by_heads * heads + (by_tokens * tokens + by_channels) * channels + rest
        return block.sum(1)


def off_target(mean: float, target: float, coefficient: float) -> tuple[float, float]:
    """What a mean share off its target adds to the loss, and how that changes with the mean."""
    return coefficient * (mean - target) ** 2, 2 * coefficient * (mean - target)


# The forward


class DynamicForward:
    """A network's forward in training: with gates, or complete."""

    def __init__(
        self,
        backbone: Backbone,
        kinds: Sequence[str | None],
        orders: Sequence[Sequence[Tensor]],
        groups: Sequence[int],
        temperature: float,
        checkpointing: bool = False,
        hard: bool = True,
    ) -> None:
        self.backbone, self._kinds, self._temperature = backbone, kinds, temperature
        self.checkpointing, self._hard = checkpointing, hard
        counts = dict(zip(KINDS, groups, strict=True))
        self._groups_of = [
            [_group_of(order, counts[kind]) for order in own] if kind else []
            for kind, own in zip(kinds, orders, strict=True)
        ]

    def __call__(
        self, inputs: Mapping[str, Any], gates: Gates | None, routers: TokenRouters | None
    ) -> tuple[Any, Tensor]:
        """The network's answer, and the share of tokens that every block's MLP has computed, [samples, blocks]."""
        stream = self.backbone.enter(**inputs)
        shares: list[Tensor] = []
        for block in range(self.backbone.layout.blocks):
            given = (block, stream, dict(stream.memo) if self.checkpointing else stream.memo)
            if self.checkpointing:
                # What a block computes once for all must not outlive it: it is computed again with the block.
                found = checkpoint(self._block, *given, stream.hidden, stream.text, gates, routers, use_reentrant=False)
            else:
                found = self._block(*given, stream.hidden, stream.text, gates, routers)
            stream.hidden, stream.text, share = found
            shares.append(share)
        return self.backbone.leave(stream), torch.stack(shares, dim=1)

    def _block(
        self,
        block: int,
        stream: Stream,
        memo: dict[Any, Any],
        hidden: Tensor,
        text: Tensor | None,
        gates: Gates | None,
        routers: TokenRouters | None,
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """What leaves a block: image and text tokens; and the share of tokens that its MLP computed."""
        from ditbench.backbones.stream import Output

        memo = dict(memo) if self.checkpointing else memo
        part = replace(stream, given=hidden, text=text, pending=[], fed={}, memo=memo)
        share = torch.ones(part.samples, device=part.device)
        unit = self.backbone.layout.by_block[block]
        for branch in range(unit.start, unit.stop):
            tokens: Tensor | None = None
            if gates is not None and routers is not None and self.backbone.layout.branches[branch].name == "mlp":
                logits = routers.logits(part.hidden, block)
                tokens = gate(logits, gates.noise[:, block], self._temperature, self._hard)
                share = tokens.mean(1)
            with self._masked(branch, block, gates):
                output = self.backbone.compute(part, branch)
            if tokens is not None:
                output = Output(output.image * tokens[..., None].to(output.image.dtype), output.text)
            self.backbone.add(part, branch, output)
        return part.hidden, part.text, share

    @contextmanager
    def _masked(self, branch: int, block: int, gates: Gates | None) -> Iterator[None]:
        """Within the context the inner channels of a branch's modules are multiplied by the gates of their groups."""
        kind = self._kinds[branch]
        if gates is None or kind is None:
            yield
            return
        own = (gates.heads if kind == "heads" else gates.channels)[:, block]
        with ExitStack() as stack:
            for module, group_of in zip(self.backbone.inner(branch), self._groups_of[branch], strict=True):
                mask = own[:, group_of.to(own.device)][:, None]
                for layer in inner_of(module).reads:
                    stack.callback(layer.register_forward_pre_hook(_times(mask)).remove)
            yield


def _times(mask: Tensor) -> Any:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0] * mask.to(args[0].dtype), *args[1:])

    return hook


def _group_of(order: Tensor, groups: int) -> Tensor:
    """The group of every inner channel."""
    found = torch.empty_like(order)
    found[order] = torch.arange(len(order)) // (len(order) // groups)
    return found


# Training


class DynamicTraining(Training):
    """What is trained, and how far its training has come."""

    method: DyDiT

    def __init__(self, lesson: Lesson, method: DyDiT, weights: dict[str, nn.Parameter], state: Path) -> None:
        backbone, device = lesson.sampler.handle.backbone, lesson.sampler.device
        assert backbone is not None
        self.kinds = narrowable(backbone, method.cross)
        self.groups = group_counts(backbone, method)
        self.orders = orders_of(backbone, self.kinds, self.groups, method.order)
        width = backbone.costs(1, 1).branches[0].width
        routers = fresh_routers(method, backbone.layout.blocks, width, self.groups)
        # Before the rest: the average that is kept is of routers as well.
        self.router = {name: nn.Parameter(tensor.to(device)) for name, tensor in routers.items()}
        super().__init__(lesson, method, weights, state)
        self.optimiser.add_param_group(
            {
                "params": list(self.router.values()),
                "lr": 1.0,
                "rate": method.router_rate,
                "weight_decay": 0.0,
                "warms": True,
            }
        )
        self.dynamic = DynamicForward(
            self.backbone, self.kinds, self.orders, self.groups, method.temperature, method.checkpointing == "on"
        )
        self.history |= {name: [] for name in ("ratio", "target", "budget", "norm", "skipped")}

    def _kept(self) -> dict[str, Tensor]:
        return {**self.weights, **self.router}

    def _step(self) -> None:
        """One step of the optimiser."""
        method = self.method
        self._set_rates()
        generator = self._generator()
        times = self.objective.times(method.batch, generator, method.strata)
        clean, texts = self.pairs.batch(self.done, method.batch)
        noise = torch.randn(clean.shape, generator=generator)
        noises = self._noises(method.batch, generator)
        drawn = (clean, texts, noise, times)
        parts = [places for _, places in self._parts(np.zeros(method.batch, dtype=np.int64))]
        mine, target = self.team.share(parts), method.target_at(self.done)
        mean: float | None = None
        if len(parts) > 1 or self.team.size > 1:
            # The gradient of the squared distance hangs on the mean over all parts: they are looked at beforehand.
            # Of fewer pairs than processes some have none, and their part of the sums is nothing.
            with torch.no_grad():
                shares = [self._passed(places, drawn, noises, grad=False)[1].sum() for places in mine]
            mean = self.team.total(float(sum(shares)) / method.batch)
        total = 0.0
        for places in mine:
            losses, shares_of = self._passed(places, drawn, noises)
            loss = losses.sum() / method.batch
            mean = float(shares_of.detach().mean()) if mean is None else mean
            _, slope = off_target(mean, target, method.coefficient)
            (loss + slope * shares_of.sum() / method.batch).backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
            if self.done < method.complete * method.iterations:
                (self._passed(places, drawn, None)[0].sum() / method.batch).backward()  # type: ignore[no-untyped-call]
        trained, total = self._summed(), self.team.total(total)
        assert mean is not None, "a step has at least one part"
        norm = float(nn.utils.clip_grad_norm_(trained, method.clipping or float("inf")))
        skips = not np.isfinite(norm) or bool(method.skipped and norm >= method.skipped)
        if not skips:
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        drawn_by, _ = off_target(mean, target, method.coefficient)
        noted = {"ratio": mean, "target": target, "budget": drawn_by, "norm": norm, "skipped": float(skips)}
        for name, value in noted.items():
            self.history[name].append(value)
        self._after_step(total, skips)

    def _after_step(self, loss: float, skipped: bool = False) -> None:
        if skipped:  # nothing has changed that an average could take in
            self.history["loss"].append(loss)
        else:
            super()._after_step(loss)

    def _noises(self, batch: int, generator: torch.Generator) -> Noises:
        blocks, (heads, channels) = self.shape.layout.blocks, self.groups
        shapes = ((heads - 1,), (channels - 1,), (self.shape.tokens,))
        return Noises(*(logistic((batch, blocks, *shape), generator) for shape in shapes))

    def _passed(
        self,
        places: Sequence[int],
        drawn: tuple[Tensor, Mapping[str, Tensor], Tensor, Tensor],
        noises: Noises | None,
        grad: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """The losses of some pairs and the shares of MACs they took; of the complete network without `noises`."""
        device = self.lesson.sampler.device
        clean, texts, noise, times = drawn
        some, its_noise, when = (tensor[list(places)].to(device) for tensor in (clean, noise, times))
        text = {name: tensor[list(places)].to(device) for name, tensor in texts.items()}
        noisy = self.objective.noisy(some, its_noise, when)
        inputs = self.world.training_inputs(self.lesson.sampler.handle, noisy, text, when)
        half = self.method.precision == "bfloat16"
        kind = torch.device(device).type
        with torch.set_grad_enabled(grad):
            gates = routers = None
            if noises is not None:
                gates, routers = self._gates(when, noises.at(places, device)), self._token_routers()
            with torch.autocast(kind, torch.bfloat16) if half else nullcontext():
                answer, tokens = self.dynamic(inputs, gates, routers)
                losses = self.objective.losses(answer[0], some, its_noise, when)
            if gates is None:
                return losses, torch.ones_like(losses)
            text_tokens = self.backbone.text_tokens(**inputs)
            costs = self.backbone.costs(self.shape.tokens, text_tokens).branches
            shares = Shares(costs, self.shape.layout, self.kinds, self.shape.tokens)
            return losses, shares.of(gates.heads.mean(2), gates.channels.mean(2), tokens)

    def _gates(self, times: Tensor, noises: Noises) -> Gates:
        """Widths of timesteps; the whole where tokens alone are routed."""
        if self.method.routes_widths:
            embedded = self.backbone.time_embedding(times)
            return width_gates(embedded, self.router, noises, self.method.temperature)
        ones = [torch.ones(len(times), self.shape.layout.blocks, count, device=times.device) for count in self.groups]
        return Gates(ones[0], ones[1], noises.tokens)

    def _token_routers(self) -> TokenRouters | None:
        return TokenRouters.of(self.router) if self.method.routes_tokens else None

    # What is kept

    def tables(self) -> dict[str, Tensor]:
        """Which heads and channels are kept at every timestep, by the averaged weights, [timesteps, blocks, groups]."""
        if not self.method.routes_widths:
            return {}
        average, device = self.average.tensors, self.lesson.sampler.device
        before = {name: parameter.data for name, parameter in self.weights.items()}
        try:
            for name, parameter in self.weights.items():
                parameter.data = average[name]
            with torch.no_grad():
                embedded = self.backbone.time_embedding(torch.arange(TIMESTEPS + 1.0, device=device))
                logits = {kind: width_logits(embedded, average, kind) for kind in KINDS}
        finally:
            for name, parameter in self.weights.items():
                parameter.data = before[name]
        return {kind: tables_of(found > 0) for kind, found in logits.items()}

    def _beside(self) -> dict[str, Tensor]:
        return beside(self.tables(), self.orders)

    def found(self, folder: Path) -> dict[str, Any]:
        found = {**super().found(folder), "times": self.times.tolist()}
        places = np.rint(self.times).astype(int).clip(0, TIMESTEPS)
        # Means over the steps of sampling, and of the last steps of training.
        found |= {kind: float(table[places].float().mean()) for kind, table in self.tables().items()}
        found["share"] = float(np.mean(self.history["ratio"][-50:]))
        found["left_out_steps"] = int(sum(self.history["skipped"]))
        return found

    def _told(self) -> str:
        return f"{super()._told()}, {self.history['ratio'][-1]:.3f} of the blocks' MACs"


def tables_of(kept: Tensor) -> Tensor:
    """A table of which groups are kept, as a file has it; the first of each always is."""
    return torch.cat([kept.new_ones(*kept.shape[:2], 1), kept], dim=2).to(torch.uint8).cpu()


def beside(tables: Mapping[str, Tensor], orders: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
    """Tables of widths and orders of channels, as a file has them."""
    if not tables:
        return {}
    named = {f"{ORDERS}{branch}.{n}": o.int() for branch, own in enumerate(orders) for n, o in enumerate(own)}
    return {**{TABLES + kind: table for kind, table in tables.items()}, **named}


# Where weights are random


def untrained(lesson: Lesson, method: DyDiT, folder: Path) -> dict[str, Any]:
    """What stands in for training where weights are random: widths and tokens of even shares that come to the target.

    Speed, memory and MACs of such a network are about those of a trained one; it draws no images.
    """
    sampler, backbone = lesson.sampler, lesson.sampler.handle.backbone
    assert backbone is not None
    kinds, groups = narrowable(backbone, method.cross), group_counts(backbone, method)
    steps = method.steps(lesson.spec["steps"] or sampler.world.default_steps)
    shape = sampler.world.shape(steps)
    costs = backbone.costs(shape.tokens, sampler.world.text_tokens).branches
    shares = Shares(costs, shape.layout, kinds, shape.tokens)
    counts, tokens = even_shares(shares, groups, shape.layout.blocks, method)
    width = backbone.costs(1, 1).branches[0].width
    tensors = fresh_routers(method, shape.layout.blocks, width, groups)
    tables = {}
    if method.routes_widths:
        for kind, kept, count in zip(KINDS, counts, groups, strict=True):
            tables[kind] = (
                (torch.arange(count) < kept).expand(TIMESTEPS + 1, shape.layout.blocks, count).to(torch.uint8)
            )
    if method.routes_tokens:
        tensors |= _calibrated(backbone, lesson, shape.tokens, tokens, method.training_seed)
    orders = orders_of(backbone, kinds, groups, "given")
    whole = {name: tensor.contiguous().cpu() for name, tensor in {**tensors, **beside(tables, orders)}.items()}
    write_tensors(folder / WEIGHTS, whole)
    found: dict[str, Any] = {"file": WEIGHTS, "sha256": hash_file(folder / WEIGHTS), "untrained": "weights are random"}
    times = sampling_times(sampler.handle.pipeline.scheduler, steps)
    return {**found, "times": times.tolist()}


def even_shares(shares: Shares, groups: Sequence[int], blocks: int, method: DyDiT) -> tuple[tuple[int, int], float]:
    """How many heads and groups of channels, and what share of tokens, alike in all blocks, come to the target.

    All have about the same share; groups are counted, so that of tokens makes up for what counting rounds.
    """

    def spent(heads: float, channels: float, tokens: float) -> float:
        each = (torch.full((1, blocks), share, dtype=torch.float64) for share in (heads, channels, tokens))
        return float(shares.of(*each))

    def at(share: float) -> tuple[float, float, float]:
        width, tokens = share if method.routes_widths else 1.0, share if method.routes_tokens else 1.0
        return width, width, tokens

    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(*at(middle)) < method.ratio else (low, middle)
    width, _, tokens = at(high)
    heads, channels = (max(round(width * count), 1) for count in groups)
    if method.routes_tokens:
        none, all_ = (spent(heads / groups[0], channels / groups[1], share) for share in (0.0, 1.0))
        tokens = min(max((method.ratio - none) / (all_ - none), 0.0), 1.0)
    return (heads, channels), tokens


def _calibrated(backbone: Backbone, lesson: Lesson, tokens: int, share: float, seed: int) -> dict[str, Tensor]:
    """Token routers at random, each with the bias by which it sends a share of random inputs' tokens through."""
    layout, device = backbone.layout, backbone.network.device
    width = backbone.costs(1, 1).branches[0].width
    generator = torch.Generator().manual_seed(seed)
    hidden = max(width // SHARE, 1)
    drawn = [
        torch.randn(*shape, generator=generator) for shape in ((layout.blocks, hidden, width), (layout.blocks, hidden))
    ]
    zeros = torch.zeros(layout.blocks, hidden, device=device)
    routers = TokenRouters(
        drawn[0].to(device) * width**-0.5, zeros, drawn[1].to(device), torch.zeros(layout.blocks, device=device)
    )
    world, network = lesson.sampler.world, backbone.network
    size = world.noise_shape()[1:]
    inputs = backbone.example_inputs(2, size, world.text_tokens, network.dtype, network.device)
    with torch.no_grad():
        stream = backbone.enter(**inputs)
        for branch, (block, name) in enumerate(layout.branches):
            if name == "mlp":
                logits = routers.logits(stream.hidden, block).flatten()
                routers.up_bias[block] = -torch.quantile(logits.float(), 1 - share)
            backbone.add(stream, branch, backbone.compute(stream, branch))
    return routers.named()
