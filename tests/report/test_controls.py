"""A control arm must rank last wherever quality is judged; where it does not, every form of the table says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from ditbench.report.build import write_studies
from ditbench.report.page import build_page
from ditbench.report.tables import build_table, html, latex, markdown
from ditbench.study import Study

GOOD = "broken (control) ranks last in all 7 columns of quality, as it must."


def set_measure(tree: Any, arm: str, measure: str, value: float, seed: int = 0) -> None:
    """Changes one number of an arm's scores."""
    path = tree.folder(arm, seed) / "scores.json"
    body = json.loads(path.read_text())
    for found in body["measures"]:
        if found["name"] == measure:
            found.update(value=value, low=value, high=value)
    path.write_text(json.dumps(body))


def test_a_control_that_ranks_last_everywhere_is_told_in_one_sentence(tree: Any, embedded: Study) -> None:
    table = build_table(embedded, tree.read())
    assert GOOD in table.notes and table.warnings == ()
    page = build_page([embedded], tree.read())
    assert GOOD in page and "Do not trust" not in page


@pytest.mark.parametrize(("measure", "value", "shown"), [("fid/scenes", 2.9, "2.90"), ("clip/scenes", 0.303, "0.303")])
def test_a_judge_that_does_not_rank_it_last_is_named_loudly_in_every_form(
    tree: Any, embedded: Study, capsys: pytest.CaptureFixture[str], measure: str, value: float, shown: str
) -> None:
    set_measure(tree, "broken", measure, value)
    results = tree.read()
    table = build_table(embedded, results)
    label = embedded.column(measure).label
    (warning,) = table.warnings
    # FORA is worse in the one case, and as good as the control in the other: neither is last.
    other = {"fid/scenes": "3.08", "clip/scenes": "0.303"}[measure]
    assert warning == (
        f"Do not trust {label} here: the control broken must rank last and does not "
        f"({shown}; not better: FORA, N = 2 {other})"
    )
    assert not any("as it must" in note for note in table.notes)
    assert f"> **WARNING: Do not trust {label}" in markdown(table)
    assert r"\textbf{WARNING: Do not trust" in latex(table)
    for text in (html(table), build_page([embedded], results)):
        assert f'role="alert"><p>Do not trust {label}' in text
    write_studies([embedded], results)
    assert f"WARNING: embedded: Do not trust {label}" in capsys.readouterr().err


def test_the_cost_of_a_control_is_nobodys_quality(tree: Any, embedded: Study) -> None:
    # The control is the fastest and the cheapest of all.
    assert build_table(embedded, tree.read()).warnings == ()


def test_what_has_no_numbers_is_not_called_checked(tree: Any, embedded: Study) -> None:
    tree.remove("broken")
    assert (
        "broken (control) has no numbers yet: nothing shows that the judges see harm."
        in build_table(embedded, tree.read()).notes
    )
    for arm in ("full", "fewer-steps-50", "fora-n2"):
        tree.remove(arm)
    assert build_table(embedded, tree.read()).notes == ("Nothing has been run yet.",)


def test_a_column_that_others_lack_is_told(tree: Any, embedded: Study) -> None:
    for arm in ("fewer-steps-50", "fora-n2"):
        tree.remove(arm, "scores.json")
    # Drift to the full arm is compared among the other arms, which have no numbers.
    notes = build_table(embedded, tree.read()).notes
    assert (
        "broken (control) ranks last in 6 of the 7 columns of quality, as it must; "
        "the others have no numbers to compare." in notes
    )


def test_each_seed_is_held_against_its_own(fabricate: Callable[..., Any], embedded: Study) -> None:
    tree = fabricate(seeds=(0, 1))
    for arm in ("full", "fewer-steps-50", "fora-n2"):
        set_measure(tree, arm, "fid/scenes", 60.0, seed=1)
    set_measure(tree, "broken", "fid/scenes", 70.0, seed=1)
    assert build_table(embedded, tree.read()).warnings == ()
    set_measure(tree, "broken", "fid/scenes", 50.0, seed=1)
    (warning,) = build_table(embedded, tree.read()).warnings
    assert "the control broken, seed 1 must rank last" in warning


def test_a_study_without_controls_claims_nothing(tree: Any, embedded: Study) -> None:
    table = build_table(embedded.model_copy(update={"controls": []}), tree.read())
    assert not any("control)" in note for note in table.notes) and table.warnings == ()
