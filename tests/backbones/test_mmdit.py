"""What is peculiar to MMDiT: the second attention reads what the first read, and the text has a stream of its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ditbench.backbones import Backbone, Stream
from ditbench.engine.fills import Fill, Pass, Reuse
from ditbench.engine.layout import Unit
from ditbench.engine.plan import Plan
from ditbench.engine.rows import Rows
from ditbench.faults import Fault
from tests.backbones.networks import inputs, make
from tests.backbones.test_contract import Same, answers, plan, run_of

NAME = "sd3.5-medium"
DUAL = 1  # a block with two attentions, neither the first nor the last
SHARES = {"attn": 0.0, "attn2": 1.0, "mlp": 1.0}


class Spied:
    """Notes what block DUAL's second attention is given, and what entered the block."""

    def __init__(self, backbone: Backbone) -> None:
        self.layer = backbone.network.transformer_blocks[DUAL]
        self.given: list[Tensor] = []
        self.layer.attn2.register_forward_pre_hook(
            lambda module, args, kwargs: self.given.append(kwargs["hidden_states"].clone()), with_kwargs=True
        )

    def expected(self, entered: Tensor, embedded: Tensor) -> Tensor:
        """By the network's own norm."""
        read: Tensor = self.layer.norm1(entered, emb=embedded)[5]
        return read


class Ends:
    """The first tokens for some branches, the last for the others; a fresh object each time."""

    def __init__(self, last: set[str], backbone: Backbone) -> None:
        self.last, self.backbone = last, backbone

    def choose(self, unit: Unit, step: int, stream: Stream, count: int) -> Rows:
        first = stream.tokens - count if self.backbone.layout.branches[unit.start].name in self.last else 0
        return Rows(torch.arange(first, first + count).expand(stream.samples, -1), stream.tokens)


def changed(backbone: Backbone, shares: dict[str, float]) -> Plan:
    """Everything at the first step, then block DUAL by `shares` and the other blocks whole."""
    second = [shares[b.name] if b.block == DUAL else 1.0 for b in backbone.layout.branches]
    return plan(backbone, [1.0, torch.tensor(second).double().numpy()])


def entry(backbone: Backbone, step: int) -> tuple[Tensor, Tensor]:
    """The image as it enters block DUAL under a full plan, and the step's embedding."""
    stream = backbone.enter(**inputs(backbone, NAME, step, 2))
    for number, branch in enumerate(backbone.layout.branches):
        if branch.block == DUAL:
            break
        backbone.add(stream, number, backbone.compute(stream, number))
    return stream.hidden, stream.condition("embedded")


@pytest.mark.parametrize("fill", [Reuse, Pass])
@pytest.mark.parametrize("attn", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("attn2", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("chosen", ["the same object", "the same tokens", "other tokens"])
def test_the_second_attention_reads_the_blocks_input(fill: type[Fill], attn: float, attn2: float, chosen: str) -> None:
    backbone = make(NAME)
    selector = Same() if chosen == "the same object" else Ends({"attn2"} if "other" in chosen else set(), backbone)
    run = run_of(backbone, NAME, changed(backbone, {"attn": attn, "attn2": attn2, "mlp": 1.0}), fill, selector)
    spied = Spied(backbone)
    answers(backbone, NAME, run, 2)
    expected = spied.expected(*entry(backbone, 1))
    count = int(attn2 * run.tokens)
    first = run.tokens - count if chosen == "other tokens" else 0
    assert torch.allclose(spied.given[1], expected[:, first : first + count], atol=1e-4)


@pytest.mark.parametrize("samples", [[0], [1], []])
def test_samples_whose_first_attention_was_reused_read_it_too(samples: list[int]) -> None:
    """Online, each sample by itself: the first attention for `samples`, the second for the second sample."""
    backbone = make(NAME)

    class Chosen:
        def decide(self, unit: Unit, step: int, stream: Stream, backbone: Backbone) -> Tensor:
            name = backbone.layout.branches[unit.start].name
            wanted = samples if name == "attn" else [1]
            return torch.tensor([sample in wanted for sample in range(stream.samples)])

    run = run_of(backbone, NAME, changed(backbone, {"attn": -1.0, "attn2": -1.0, "mlp": 1.0}), decider=Chosen())
    spied = Spied(backbone)
    answers(backbone, NAME, run, 2)
    assert torch.allclose(spied.given[1], spied.expected(*entry(backbone, 1))[1:], atol=1e-4)


def test_a_whole_step_by_hand_with_the_first_attention_reused() -> None:
    backbone = make(NAME)
    run = run_of(backbone, NAME, changed(backbone, SHARES))
    actual = answers(backbone, NAME, run, 2)[1]
    first, second = (backbone.enter(**inputs(backbone, NAME, step, 2)) for step in (0, 1))
    for number, branch in enumerate(backbone.layout.branches):
        output = backbone.compute(first, number)
        backbone.add(first, number, output)
        own = backbone.compute(second, number)
        backbone.add(second, number, output if branch == (DUAL, "attn") else own)
    assert torch.allclose(actual, backbone.leave(second)[0], atol=1e-4 * float(actual.abs().max()))


def test_nothing_is_kept_for_a_second_attention_that_is_not_computed() -> None:
    """A step of reuse must not force the additions it defers, nor norm what nobody reads."""
    backbone = make(NAME)
    run = run_of(backbone, NAME, plan(backbone, [1.0, 0.0]))
    answers(backbone, NAME, run, 2)
    asked: list[int] = []
    backbone.keep_input = lambda stream, branch: asked.append(branch)  # type: ignore[method-assign]
    again = run_of(backbone, NAME, plan(backbone, [0.0]), Pass)
    answers(backbone, NAME, again, 2)
    assert asked == []


def test_a_unit_that_would_lose_the_second_attentions_input_is_refused() -> None:
    backbone = make(NAME)
    layout = backbone.layout
    first = next(n for n, branch in enumerate(layout.branches) if branch == (DUAL, "attn"))
    made = Plan(layout, (Unit(0, first + 1), Unit(first + 1, len(layout))), torch.ones(1, 2).double().numpy())
    with pytest.raises(Fault, match="its attn2 reads what its attn reads"):
        run_of(backbone, NAME, made)


def test_modulations_are_billed_as_far_as_gates_need_them() -> None:
    """The last block's text is only read: where nothing reads it, it is not modulated."""
    backbone = make(NAME)
    run = run_of(backbone, NAME, plan(backbone, [1.0, 0.0]))
    answers(backbone, NAME, run, 2)
    assert run.trace.noted_in_all == {
        "modulation of image, two attentions": 2 * 2 * 2,
        "modulation of image": 2 * 2,
        "modulation of text": 2 * 2 * 2,
        "modulation of text, last block": 2,
    }


def test_the_last_block_writes_no_text() -> None:
    backbone = make("sd3")
    wrote = {branch.block for n, branch in enumerate(backbone.layout.branches) if backbone.writes_text(n)}
    assert wrote == {0, 1}
    run = run_of(backbone, "sd3", plan(backbone, [1.0, 0.0]))
    answers(backbone, "sd3", run, 1)
    texts = [key for key in run.branches[0].fill._last if key.stream == "text"]  # type: ignore[attr-defined]
    assert len(texts) == 4


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"joint_attention_kwargs": {"scale": 0.5}}, "scale.*fuse_lora"),
        ({"block_controlnet_hidden_states": [torch.zeros(1)]}, "ControlNets"),
        ({"skip_layers": [1]}, "skip_guidance_layers"),
        ({"pooled_projections": None}, "pooled_projections"),
    ],
)
def test_what_it_cannot_do_is_said(change: dict[str, object], said: str) -> None:
    backbone = make("sd3")
    given = inputs(backbone, "sd3", 0, 1)
    backbone.enter(**{**given, "joint_attention_kwargs": {}})
    with pytest.raises(Fault, match=said):
        backbone.enter(**{**given, **change})
