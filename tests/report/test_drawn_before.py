"""Figures of the report are used again as long as they are of the same study, cells and code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ditbench.report import build, drawn_before
from ditbench.report.tracking import study_runs
from ditbench.study import Study


@pytest.fixture
def drawings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The studies whose figures are drawn from now on."""
    seen: list[str] = []

    def draws(study: Study, *_: Any) -> list[tuple[str, bytes | None]]:
        seen.append(study.name)
        return [("pareto.svg", b"<svg/>"), ("multiples.svg", None)]

    monkeypatch.setattr(build, "study_figures", draws)
    monkeypatch.setattr(study_runs, "study_figures", draws)
    monkeypatch.setattr(build, "study_grid", lambda *_: None)
    monkeypatch.setattr(build, "build_page", lambda *_: "")
    return seen


def test_what_the_report_has_drawn_is_not_drawn_again(tree: Any, embedded: Study, drawings: list[str]) -> None:
    build.write_studies([embedded], tree.read())
    assert study_runs.figures_kept(embedded, tree.read()) == {"pareto.svg": b"<svg/>"}
    assert drawings == ["embedded"]


@pytest.mark.parametrize("change", ["scores", "study", "looked", "mark", "figure", "code"])
def test_figures_of_anything_else_are_drawn_again(
    tree: Any, embedded: Study, drawings: list[str], monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    build.write_studies([embedded], tree.read())
    folder, study = tree.root / "studies" / "embedded", embedded
    if change == "scores":
        path = tree.folder("fora-n2") / "scores.json"
        body = json.loads(path.read_text())
        body["measures"][0]["value"] += 1
        write_sealed(path, body)
    if change == "study":
        study = embedded.model_copy(update={"title": "another"})
    if change == "looked":
        (tree.root / "looked" / "scenes").mkdir(parents=True)
        (tree.root / "looked" / "scenes" / "redundancy.npz").write_bytes(b"seen")
    if change == "mark":
        drawn_before.mark_of(tree.root, "embedded").write_text("{")
    if change == "figure":
        (folder / "pareto.svg").unlink()
    if change == "code":
        monkeypatch.setattr(drawn_before, "code_hash", lambda stage: "of tomorrow")
    study_runs.figures_kept(study, tree.read())
    assert drawings == ["embedded", "embedded"]


def test_a_report_that_is_stopped_leaves_no_mark(
    tree: Any, embedded: Study, drawings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    build.write_studies([embedded], tree.read())
    monkeypatch.setattr(build, "write_file", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        build.write_studies([embedded], tree.read())
    assert not drawn_before.mark_of(tree.root, "embedded").exists()


def write_sealed(path: Path, body: dict[str, Any]) -> None:
    from ditbench.records import SEAL, seal

    body.pop(SEAL, None)
    path.write_text(json.dumps({**body, SEAL: seal(body)}))
