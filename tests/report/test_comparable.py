"""Distances of sets in one table: those against other references, or of other counts, are marked and not ranked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ditbench.faults import Fault
from ditbench.report.tables import Table, build_table, csv_text, html, latex, markdown
from ditbench.study import Study, load_study

OURS, THEIRS = "a" * 64, "b" * 64


def scored(tree: Any, arm: str, references: str = OURS, count: int | None = None) -> None:
    """Makes an arm's distance one of a set: with the interval of sets, against some references."""
    path = tree.folder(arm) / "scores.json"
    body = json.loads(path.read_text())
    body["reference_set"] = {"sha256": references}
    for measure in body["measures"]:
        if measure["name"].startswith("fid"):
            measure["method_of_interval"] = "jackknife over 20 groups of features"
            measure["n"] = measure["n"] if count is None else count
    path.write_text(json.dumps(body))


@pytest.fixture
def sets(tree: Any) -> Any:
    for arm in ("full", "fewer-steps-50", "fora-n2", "broken"):
        scored(tree, arm)
    return tree


def entry(table: Table, arm: str, measure: str = "fid/scenes") -> Any:
    position = [heading.measure for heading in table.headings].index(measure)
    return next(line for line in table.lines if line.arm == arm).entries[position]


def test_values_against_the_same_references_compare(sets: Any, embedded: Study) -> None:
    table = build_table(embedded, sets.read())
    assert not any(e.apart for line in table.lines for e in line.entries)
    assert entry(table, "fewer-steps-50").rank == "best"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"references": THEIRS}, "against references bbbbbbbbbbbb, the others against aaaaaaaaaaaa"),
        ({"count": 7}, "a distance of 7 images, the others of 8"),
    ],
)
def test_what_does_not_compare_is_marked_and_not_ranked(
    sets: Any, embedded: Study, change: dict[str, Any], says: str
) -> None:
    scored(sets, "fewer-steps-50", **change)
    table = build_table(embedded, sets.read())
    odd = entry(table, "fewer-steps-50")
    assert odd.apart.startswith(says) and odd.rank == "" and odd.difference is None and odd.value is not None
    assert entry(table, "fora-n2").rank == "", "one rival is no ranking"
    # Means over single pictures compare all the same.
    assert entry(table, "fewer-steps-50", "clip/scenes").rank == "best"
    assert any(note.startswith("† fewer steps, 50 %: " + says) for note in table.notes)
    assert "2.71† " in markdown(table)
    assert r"2.71\textsuperscript{\dag}" in latex(table)
    assert f'aria-label="does not compare: {says}' in html(table)


def test_a_study_that_names_its_references_shows_no_others(sets: Any, embedded: Study) -> None:
    named = embedded.model_copy(update={"references": OURS[:12]})
    scored(sets, "fora-n2", THEIRS)
    table = build_table(named, sets.read())
    withheld = entry(table, "fora-n2")
    assert withheld.value is None and withheld.text == "–"
    assert "measured against references bbbbbbbbbbbb, and the study names aaaaaaaaaaaa" in " ".join(table.notes)
    assert entry(table, "fewer-steps-50").value is not None
    assert ",fora-n2," in csv_text(table, "scenes") and "3.08" not in csv_text(table, "scenes")


@pytest.mark.parametrize("wrong", ["abc", "x" * 12, "A" * 12])
def test_references_are_named_by_the_beginning_of_their_hash(tmp_path: Any, wrong: str) -> None:
    from ditbench.study import studies_folder

    text = (studies_folder() / "embedded.yaml").read_text()
    path = tmp_path / "named.yaml"
    path.write_text(text + f"references: {wrong}\n")
    with pytest.raises(Fault, match="references"):
        load_study(path)
