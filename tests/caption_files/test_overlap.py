"""Evaluation captions that were trained with are found, told, and refused unless one says otherwise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ditbench.caption_files.options import CaptionFile, Selection
from ditbench.caption_files.overlap import overlaps
from ditbench.caption_sets import write_captions
from ditbench.cli import main
from ditbench.records import read_record
from ditbench.worlds import get_world


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    (tmp_path / "c.txt").write_text("a cat\na red bus.\na dog\n")
    out = tmp_path / "captions.json"
    write_captions(get_world("pixart-alpha-256"), "some", 3, 0, out, Selection(CaptionFile(tmp_path / "c.txt")))
    return out


def compare(captions: Path, training: str, *words: str) -> int:
    file = captions.with_name("trained.txt")
    file.write_text(training)
    out = str(captions.with_name("overlap.json"))
    return main(("overlap", "--captions", str(captions), "--train", str(file), "--out", out, *words))


def test_capitals_spaces_and_points_make_no_difference() -> None:
    assert overlaps(["a cat", "two cats"], ["A  CAT.", "a dog", "a cat"]) == [("a cat", "A  CAT.")]
    assert overlaps(["a cat"], ["", "a catfish"]) == []


def test_an_overlap_is_refused_with_its_count_and_its_first(captions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(captions, "A Red Bus\na cow\na dog\n") == 2
    told = capsys.readouterr().err
    assert "2 of 3 captions are among the training captions of trained.txt" in told
    assert "(the first: 'a red bus.' as 'A Red Bus'; 'a dog')" in told
    assert not captions.with_name("overlap.json").exists()


def test_an_overlap_may_be_reported(captions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(captions, "A Red Bus\na cow\n", "--rule", "report") == 0
    assert "1 of 3 captions" in capsys.readouterr().err
    record = read_record(captions.with_name("overlap.json"), "overlap")
    assert (record["overlaps"], record["training"]["count"], record["captions"]["name"]) == (1, 2, "some")
    assert record["first"] == [{"caption": "a red bus.", "training": "A Red Bus"}]


def test_disjoint_sets_are_told_too(captions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(captions, "a cow\n") == 0
    assert "0 of 3 captions are among the training captions of trained.txt\n" in capsys.readouterr().err
    assert read_record(captions.with_name("overlap.json"), "overlap")["overlaps"] == 0


def test_a_look_at_a_file(captions: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = captions.with_name("c.txt")
    file.write_text("a cat\n\na cat\na dog\n")
    assert main(("captions-of", str(file), "--train", str(file))) == 0
    told = capsys.readouterr().out
    assert f"{file}: 3 captions, format text (found out)" in told
    assert "1 repeat an earlier one" in told and "2 times: a cat" in told
    assert "empty   1 passed over" in told
    assert "3 of 3 captions are among the training captions" in told


def test_a_run_is_refused_before_it_starts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenes = get_world("scenes").draw_captions(4, 0)
    (tmp_path / "own.txt").write_text("\n".join(scenes))
    (tmp_path / "trained.txt").write_text(scenes[3].upper())
    train = {"file": str(tmp_path / "trained.txt")}

    def plan(images: int, **captions: object) -> int:
        config = {"images": images, "results": str(tmp_path / "results"), "captions": {"train": train, **captions}}
        (tmp_path / "config.yaml").write_text(json.dumps(config))
        return main(("plan", "--config", str(tmp_path / "config.yaml")))

    for captions in ({}, {"file": str(tmp_path / "own.txt")}):
        assert plan(4, **captions) == 2
        assert "1 of 4 captions are among the training captions of trained.txt" in capsys.readouterr().err
        assert plan(3, **captions) == 0  # the one that overlaps is not asked for
        assert plan(4, overlap="report", **captions) == 0
    assert plan(3, file=str(tmp_path / "own.txt"), overlap="drop") == 0
