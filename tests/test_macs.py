"""`ditbench macs`: what a method costs, from a run of its plan without weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from ditbench.cli import main
from ditbench.engine.fills import Pass, Reuse
from ditbench.engine.plan import Plan
from ditbench.engine.run import Parts, Run, attached
from ditbench.engine.selectors import RandomTokens
from ditbench.faults import Fault
from ditbench.macs import count_macs, parse_knobs, run_every_kind, scaled, told
from ditbench.methods import get_method
from tests.backbones.networks import inputs, make


def test_full_is_what_every_token_costs() -> None:
    counted = count_macs("scenes", get_method("full"))
    width, tokens, text, blocks, steps = 192, 256, 20, 8, 10
    per_block = (4 + 2 + 8) * width**2 * tokens + 2 * width**2 * text
    outside = 256 * width + width**2 + 6 * width**2 + tokens * width * 2 * 48 + text * (128 * width + width**2)
    assert counted["linear"] == steps * (blocks * per_block + outside)
    assert counted["attention"] == steps * blocks * 2 * width * (tokens * tokens + tokens * text)
    assert counted["total"] == counted["linear"] + counted["attention"]
    # thop: two LayerNorms a block and one in the head, 2 x width for each token.
    assert counted["thop"] - counted["linear"] == steps * (2 * blocks + 1) * 2 * width * tokens
    assert (counted["cfg_branches"], counted["steps"], counted["realised_ratio"]) == (2, 10, 0)


def test_a_reused_step_costs_only_what_is_outside_the_blocks() -> None:
    full, half = (count_macs("scenes", get_method(*arm)) for arm in (("full", {}), ("fora", {"interval": 2})))
    assert half["whole"] == full["whole"] / 2
    assert half["realised_ratio"] == half["sites_left_out"] == 0.5
    assert half["cache_bytes"] == 8 * 3 * 256 * 192 * 4  # float32 outputs of 24 branches
    # The text is not projected where nobody reads it.
    text = 20 * (128 * 192 + 192**2)
    assert half["outside"] == full["outside"] - 5 * text


def test_fewer_steps_and_other_texts() -> None:
    assert count_macs("scenes", get_method("fewer-steps", {"share": 0.5}))["steps"] == 5
    longer = count_macs("scenes", get_method("full"), text_tokens=40)
    assert longer["text_tokens"] == 40
    assert count_macs("scenes", get_method("full"), steps=3)["steps"] == 3


def test_the_command_prints_json_and_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["macs", "scenes", "fora", "--set", "interval=2", "direction=down", "--json"]) == 0
    said = capsys.readouterr()
    assert said.err == "macs: loading torch and diffusers\n"  # a sign of life, apart from what programs read
    body = json.loads(said.out)
    assert body["knobs"] == {"interval": 2, "direction": "down"}
    assert {"linear", "attention", "thop", "total", "cfg_branches", "steps", "realised_ratio"} <= set(body)
    text = told(body)
    assert "linear layers" in text and "all 2 branches" in text
    assert main(["macs", "scenes", "fora", "--set", "interva=2"]) == 2
    assert "no knob 'interva'" in capsys.readouterr().err


def test_words_that_are_no_setting_are_refused() -> None:
    with pytest.raises(Fault, match="knob=value"):
        parse_knobs("fora", ["interval"])
    assert [scaled(v) for v in (2.857e12, 1.5e9, 12.0)] == ["2.857 T", "1.500 G", "12"]


@pytest.mark.parametrize("fill", [Reuse, Pass])
def test_steps_of_one_kind_are_run_once_and_billed_as_often_as_they_come(fill: type) -> None:
    backbone = make("sd3.5-medium", device="meta")
    given = inputs(backbone, "sd3.5-medium", 0, 1)
    layout, tokens = backbone.layout, backbone.tokens(**given)
    rng = np.random.default_rng(0)
    kinds = np.stack([np.ones(len(layout)), np.zeros(len(layout)), *rng.choice([0, 0.3, 1], size=(2, len(layout)))])
    plan = Plan(layout, layout.by_branch, kinds[[0, 1, 0, 2, 2, 3, 0, 1, 1, 3]])
    calls = []
    runs = []
    for short in (True, False):
        run = Run(backbone, plan, tokens, lambda: Parts(fill(), RandomTokens(torch.Generator().manual_seed(0))))
        forward = run.forward
        run.forward = lambda *a, forward=forward, short=short, **k: (calls.append(short), forward(*a, **k))[1]  # type: ignore[method-assign]
        if short:
            run_every_kind(run, given)
        else:
            with attached(run):
                for _ in range(plan.steps):
                    backbone.network(**given)
        runs.append(run)
    assert calls.count(True) < calls.count(False) == plan.steps
    assert runs[0].trace.summary() == runs[1].trace.summary()
    with pytest.raises(Fault, match="not of the kind"):
        again = Run(backbone, plan, tokens, lambda: Parts(Reuse(), RandomTokens(torch.Generator())))
        again.step = 1
        again.repeat(0)


def test_mixture_of_depths_costs_what_diffcr_s_table_prints() -> None:
    """DiffCR, Table 1: GFLOPs of one call for 16 images, by a tool that counts LayerNorms, and the routers."""
    found = {
        name: count_macs("pixart-sigma-512", get_method(name, knobs), steps=1, text_tokens=120)
        for name, knobs in (("full", {}), ("mod", {"ratio": 0.2}))
    }
    printed = {name: (body["thop"] + body["selecting"]) * 2 * 16 / 1e9 for name, body in found.items()}
    assert printed == {"full": pytest.approx(17361.7, abs=0.06), "mod": pytest.approx(13949.3, abs=0.06)}
    assert found["full"]["selecting"] == 0
    assert found["mod"]["selecting"] == 28 * 1024 * 1152
    assert found["mod"]["realised_ratio"] == pytest.approx(205 / 1024)


@pytest.mark.parametrize(
    ("world", "method", "knobs"),
    [
        ("scenes", "toca", {}),
        ("sd3-medium-512", "sdtm", {}),
        ("pixart-alpha-256", "fora", {"interval": 3}),
        ("scenes", "t-gate", {}),
    ],
)
def test_steps_and_branches_add_up_to_the_whole(world: str, method: str, knobs: dict[str, int]) -> None:
    body = count_macs(world, get_method(method, knobs), steps=6)
    assert sum(body["by_step"]) == pytest.approx(body["total"])
    assert sum(body["by_branch"].values()) + body["outside"] == pytest.approx(body["total"])


def test_feed_forward_is_two_thirds_only_where_products_are_left_out() -> None:
    """SDTM's supplement, Figure S1: an MLP of SD3 takes two thirds of a block's linear MACs, at every size."""
    shares = {}
    for world in ("sd3-medium-512", "sd3-medium-1024"):
        body = count_macs(world, get_method("full"), steps=1)
        linear = body["linear"] - body["outside"]
        shares[world] = (
            body["by_branch"]["mlp"] / linear,
            body["by_branch"]["mlp"] / (body["total"] - body["outside"]),
        )
    assert shares["sd3-medium-512"][0] == pytest.approx(2 / 3, abs=0.01)
    assert shares["sd3-medium-1024"] == (pytest.approx(2 / 3, abs=0.01), pytest.approx(0.45, abs=0.02))


def test_what_steps_cost_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["macs", "scenes", "fora", "--set", "interval=2", "--by", "step"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[-10:]] == [["step", str(n)] for n in range(1, 11)]
    assert main(["macs", "scenes", "full", "--by", "branch"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[-4:]] == [
        "self",
        "cross",
        "mlp",
        "embeddings",
    ]
