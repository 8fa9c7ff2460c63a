"""`ditbench macs`: what a method costs, from a run of its plan without weights."""

from __future__ import annotations

import json

import pytest

from ditbench.cli import main
from ditbench.faults import Fault
from ditbench.macs import count_macs, parse_knobs, scaled, told
from ditbench.methods import get_method


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
    assert half["cache_bytes"] == 8 * 3 * 256 * 192 * 2  # bf16 outputs of 24 branches
    # The text is not projected where nobody reads it.
    text = 20 * (128 * 192 + 192**2)
    assert half["outside"] == full["outside"] - 5 * text


def test_fewer_steps_and_other_texts() -> None:
    assert count_macs("scenes", get_method("fewer-steps", {"share": 0.5}))["steps"] == 5
    longer = count_macs("scenes", get_method("full"), text_tokens=40)
    assert longer["text_tokens"] == 40
    assert count_macs("scenes", get_method("full"), steps=3)["steps"] == 3


def test_the_command_prints_json_and_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["macs", "scenes", "fora", "--set", "interval=2", "--set", "direction=down", "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
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
