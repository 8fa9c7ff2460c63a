"""What kind of method an arm is, read from its plan and its bill."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from ditbench.faults import Fault
from ditbench.macs import count_macs, run_on_meta
from ditbench.methods import get_method
from ditbench.report.results import Results
from ditbench.report.tables import build_table, csv_text, latex, markdown
from ditbench.study import load_study
from ditbench.traits import TRAITS, place_of, trait, word_of

# As DiffCR's supplement has them in Table 1, where it names the method.
KINDS = [
    ("full", {}, "- - ✗ ✗ ✗"),
    ("fora", {}, "step|attention & MLP|✗|✗|✓"),
    ("deepcache", {}, "block|block|✗|✗|✓"),
    ("t-gate", {}, "layer|attention|✗|✗|✓"),
    ("toca", {}, "token|attention & MLP|✗|✗|✓"),
    ("mod", {"ratio": 0.2}, "token|attention & MLP|✓|✓|✗"),
    ("tomesd", {}, "token|attention|✗|✓|✗"),
]


@pytest.mark.parametrize(("method", "knobs", "says"), KINDS, ids=[name for name, _, _ in KINDS])
def test_traits_are_read_from_the_plan_and_the_bill(method: str, knobs: dict[str, Any], says: str) -> None:
    wanted = get_method(method, knobs)
    run, _, _ = run_on_meta("scenes", wanted)
    cost = count_macs("scenes", wanted)
    found = [trait(name, method, run.plan.to_json(), cost) for name in TRAITS]
    words = ["-" if value is None else word_of(name, value) for name, value in zip(TRAITS, found, strict=True)]
    assert words == (says.split("|") if "|" in says else says.split(" "))


def test_a_published_trait_is_a_word() -> None:
    study = load_study("diffcr-supplement-table1")
    printed = study.row("l2c").published
    assert {name: word_of(name, value.value) for name, value in printed.items()} == {
        "leaves-out": "attention & MLP",
        "granularity": "layer",
        "learnable": "✓",
        "token-pruning": "✗",
        "feature-cache": "✓",
    }


@pytest.mark.parametrize("word", ["tokens", "3", "[token]"])
def test_another_word_is_told_with_those_there_are(tmp_path: Path, word: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"title: t\nsource: s\nworld: scenes\nbaseline: null\nrows:\n"
        f"  - {{arm: fora, method: fora, label: FORA, published: {{granularity: {word}}}}}\n"
        f"columns:\n  - {{measure: granularity, label: g}}\n"
    )
    with pytest.raises(Fault, match=r"rows\.0\.published\.granularity: .* step, block, layer, token"):
        load_study(path)


def test_a_word_without_a_source_is_told(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "title: t\nworld: scenes\nbaseline: null\nrows:\n"
        "  - {arm: fora, method: fora, label: FORA, published: {granularity: step}}\n"
        "columns:\n  - {measure: granularity, label: g}\n"
    )
    with pytest.raises(Fault, match="has no source"):
        load_study(path)


def test_the_table_prints_words_in_every_form() -> None:
    study = load_study("diffcr-supplement-table1")
    table = build_table(study, Results(Path("results"), (), ()))
    assert "| attention & MLP | layer | ✓ | ✗ | ✓ |" in markdown(table).replace("\\&", "&").replace("&amp;", "&")
    assert r"attention \& MLP & layer & $\surd$ & $\times$ & $\surd$" in latex(table)
    rows = list(csv.DictReader(io.StringIO(csv_text(table, study.world))))
    assert {row["value"] for row in rows if row["measure"] == "granularity"} == {"", "block", "layer", "token"}


def test_yes_and_no_of_yaml_are_words() -> None:
    assert (place_of("learnable", True), place_of("learnable", False), place_of("granularity", True)) == (1, 0, None)
