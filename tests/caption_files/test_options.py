"""The name of a caption set follows its captions; settings, words and parsed words mean the same selection."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from ditbench.caption_files.options import selection_from, selection_of, training_from, training_words, words_of
from ditbench.caption_files.words import add_training, add_words
from ditbench.cells import caption_set, training_captions
from ditbench.config import check_config
from ditbench.faults import Fault

FORMER = "captions-2-6743fb52"  # as runs were called that knew text files only


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("captions.txt").write_text("a cat\na dog\na cat\na cow\n")
    Path("trained.txt").write_text("A dog.\n")
    annotations = [{"image_id": n // 2, "caption": f"caption {n}"} for n in range(8)]
    Path("coco.json").write_text(json.dumps({"annotations": annotations}))
    return tmp_path


def name(**captions: Any) -> str:
    return caption_set(check_config({"images": 2, "captions": captions}))[0]


def test_a_text_file_keeps_the_name_it_had(files: Path) -> None:
    assert name(file="captions.txt") == FORMER
    for same in (
        {"format": "text"},
        {"sample": "first", "duplicates": "keep"},
        {"seed": 9},  # nothing is drawn
        {"train": {"file": "trained.txt"}},  # a comparison changes no caption
        {"train": {"file": "trained.txt"}, "overlap": "report"},
    ):
        assert name(file="captions.txt", **same) == FORMER, same
    assert name() == "evaluation-2-seed0"


def test_whatever_changes_the_captions_changes_the_name(files: Path) -> None:
    drop = {"train": {"file": "trained.txt"}, "overlap": "drop"}
    changes: list[dict[str, Any]] = [
        {},
        {"duplicates": "drop"},
        {"sample": "random"},
        {"sample": "random", "seed": 1},
        {"sample": "random", "duplicates": "drop"},
        drop,
        drop | {"duplicates": "drop"},
    ]
    names = [name(file="captions.txt", **change) for change in changes]
    Path("trained.txt").write_text("A cow.\n")
    names.append(name(file="captions.txt", **drop))
    assert len(set(names)) == len(names)
    per_image = [name(file="coco.json", per_image=which) for which in ("first", "longest", "random", "all")]
    assert len(set(per_image)) == 4
    assert name(file="coco.json") == name(file="coco.json", format="coco") == per_image[0]
    assert name(file="coco.json", format="text") != per_image[0]
    assert name(file="coco.json", per_image="random", seed=1) != per_image[2]


@pytest.mark.parametrize(
    "captions",
    [
        {"file": "captions.txt"},
        {"file": "my captions.txt", "sample": "random", "seed": 4, "duplicates": "drop"},
        {"file": "coco.json", "format": "coco", "per_image": "random", "seed": 2},
        {"file": "a.parquet", "column": "text", "train": {"file": "b", "format": "coco"}, "overlap": "drop"},
        {"file": "captions.txt", "train": {"file": "b.parquet", "column": "text"}},
        {"seed": 3},
    ],
)
def test_settings_and_the_words_of_a_command_mean_the_same(captions: dict[str, Any]) -> None:
    config = check_config({"captions": captions}).captions
    command = argparse.ArgumentParser()
    command.add_argument("--seed", type=int, default=0)
    add_words(command)
    assert selection_from(command.parse_args(words_of(config))) == selection_of(config)
    if config.train:
        command = argparse.ArgumentParser()
        add_training(command)
        read = training_from(command.parse_args(training_words(config)))
        assert (str(read.path), read.format, read.column) == (
            config.train.file,
            config.train.format,
            config.train.column,
        )


def test_the_words_of_former_settings_are_the_former_words() -> None:
    assert words_of(check_config({}).captions) == ["--seed", "0"]
    assert words_of(check_config({"captions": {"file": "c.txt", "seed": 7}}).captions) == ["--file", "c.txt"]


@pytest.mark.parametrize(
    ("captions", "says"),
    [
        ({"file": "c.txt", "format": "coca"}, "captions.format: no format of captions 'coca'; did you mean 'coco'"),
        ({"sample": "random"}, "captions.sample: 'random' needs captions.file"),
        ({"file": "c.txt", "sample": "last"}, "captions.sample: 'last' must be 'first' or 'random'"),
        ({"file": "c.txt", "overlap": "report"}, "captions.overlap: 'report' needs captions.train"),
        ({"train": {"file": "c.txt"}, "overlap": "drop"}, "captions.overlap: 'drop' needs captions.file"),
        ({"train": {"file": "c.txt", "format": "x"}}, "captions.train.format: no format of captions 'x'"),
        ({"train": {}}, "captions.train.file: missing"),
    ],
)
def test_wrong_settings_are_told_with_their_key(captions: dict[str, Any], says: str) -> None:
    with pytest.raises(Fault, match=says):
        check_config({"captions": captions})


@pytest.mark.parametrize(
    ("captions", "says"),
    [
        ({"column": "text"}, "captions.column: 'text' has no meaning for captions.txt, whose format is text"),
        ({"per_image": "longest"}, "captions.per_image: 'longest' has no meaning for captions.txt"),
        ({"train": {"file": "none.txt"}, "overlap": "drop"}, "captions.train: none.txt cannot be read"),
    ],
)
def test_knobs_without_meaning_are_told_before_anything_runs(files: Path, captions: dict[str, Any], says: str) -> None:
    config = check_config({"images": 2, "captions": {"file": "captions.txt", **captions}})
    with pytest.raises(Fault, match=says):
        training_captions(config)
        caption_set(config)


def test_dropping_what_was_trained_with(files: Path) -> None:
    settings = {"file": "captions.txt", "train": {"file": "trained.txt"}, "overlap": "drop"}
    selection = selection_of(check_config({"captions": settings}).captions)
    assert selection is not None
    chosen = selection.take(3)
    assert [entry.text for entry in chosen.entries] == ["a cat", "a cat", "a cow"]
    source = selection.source(chosen)
    assert source["dropped"] == {"in the training captions": 1}
    assert source["without"]["name"] == "trained.txt"
    with pytest.raises(Fault, match=r"captions.txt holds 4 captions, 3 of them usable \(1 in the training captions\)"):
        selection.take(4)
