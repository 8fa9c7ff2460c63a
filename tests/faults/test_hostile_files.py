"""Files that nobody writes by accident: each gets a sentence, soon, and stops nothing else."""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ditbench.caption_files.options import CaptionFile, Selection
from ditbench.cells import cell_table
from ditbench.cli import main
from ditbench.config import Config, check_config, load_config, retyped
from ditbench.faults import Fault
from ditbench.macs import parse_knobs
from ditbench.methods import get_method
from ditbench.records import read_record
from ditbench.study import load_study, study_names
from ditbench.sweeps import run_studies

LAUGHS = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9 if i else ['x'] * 9)}]\n" for i in range(9))
YAML = {
    "nested too deeply": "[" * 5000,
    "a value contains itself": "world: &a [*a]\n",
    "stands for more than 1,000,000 values": LAUGHS,
    "month must be in 1..12": "images: 2026-13-45\n",
    "Exceeds the limit": f"images: {'9' * 5000}\n",
    "special characters are not allowed": "world: a\0b\n",
    r"world: holds the character U\+0000": 'world: "a\\0b"\n',
    r"rows.0.label: holds the character U\+001B": 'rows: [{label: "\\e[31m"}]\n',
    r"title: holds the character U\+D800": 'title: "\\ud800"\n',
}


@pytest.mark.parametrize("read", [load_config, load_study])
@pytest.mark.parametrize("said", YAML)
def test_yaml_of_others(said: str, read: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(YAML[said], encoding="utf-8")
    with pytest.raises(Fault, match=said):
        read(path)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"images": 10**30}, "images: 1000000000000000000000000000000 must be <= 1000000000"),
        ({"images": 10**9, "shard": 1}, "shard: 1,000,000,000 images in shards of 1 are more than 10,000 jobs an arm"),
        ({"seeds": [2**63]}, "seeds.0: 9223372036854775808 must be <= 9223372036854775807"),
        (
            {"sweeps": {"a": {"method": "toca", "knobs": {"fresh": {"from": 0, "to": 10**400, "by": 1}}}}},
            "must be a finite number",
        ),
        (
            {"sweeps": {"a": {"method": "toca", "steps": list(range(1, 5000)), "knobs": {"fresh": [0.1, 0.2, 0.3]}}}},
            "sweeps.a: makes 14,997 arms; 10,000 are the most",
        ),
        ({"studies": ["a" * 5000 + ".yaml"]}, "studies.0: no study"),
    ],
)
def test_numbers_and_names_past_all_bounds(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(Fault) as told:
        check_config(settings)
    assert said in str(told.value)


# Commands of the workflow are made of it.
@pytest.mark.parametrize(
    "word", ["a;id", "`id`", "$HOME/a", "a|b", "a&b", "a*", "~/a", "-a", "a\\b", "a<b", "a b", "a'b"]
)
def test_the_results_folder_is_no_word_that_a_shell_reads(word: str) -> None:
    with pytest.raises(Fault, match=r"results: .* must be a path of letters, digits and"):
        check_config({"results": word})


def test_runs_are_published_to_what_keeps_them() -> None:
    for uri in ("mlruns", "file:./mlruns", "sqlite://", "sqlite:///", "sqlite:///:memory:", "s3://bucket", ""):
        with pytest.raises(Fault, match=r"mlflow\.uri: .* is no store of runs; possible: sqlite:///FILE"):
            check_config({"mlflow": {"uri": uri}})
    for uri in ("sqlite:///a.db", "sqlite:////data/a.db", "http://host:5000", "postgresql+psycopg2://a@c:5432/d"):
        assert check_config({"mlflow": {"uri": uri}}).mlflow.uri == uri


@pytest.mark.parametrize(
    "uri",
    [
        "https://me:s3cret@host:5000",
        "https://me:a@s3cret@host",
        "http://me:a/s3cret@host",
        "postgresql+psycopg2://me:s3cret@db/runs",
    ],
)
def test_a_password_is_not_kept_with_the_results_and_not_told(uri: str) -> None:
    with pytest.raises(Fault, match=r"mlflow\.uri: .* has a password, .* MLFLOW_TRACKING_PASSWORD") as told:
        check_config({"mlflow": {"uri": uri}})
    assert "s3cret" not in str(told.value)


@pytest.mark.parametrize("place", ["results", "/data/my.results/run_1-a", "../other+more@2", "résultats", ".a=b"])
def test_usual_folders_may_hold_results(place: str) -> None:
    assert check_config({"results": place}).results == place


def test_what_is_no_file_among_studies_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "studies" / "folder.yaml").mkdir(parents=True)
    os.symlink("nowhere", tmp_path / "studies" / "gone.yaml")
    os.symlink("loop.yaml", tmp_path / "studies" / "loop.yaml")
    monkeypatch.chdir(tmp_path)
    assert study_names() == []


def test_records_of_others(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text("[" * 100_000)
    with pytest.raises(Fault, match=r"spec\.json cannot be read \(it is nested too deeply\); delete it and run again"):
        read_record(path, "spec")
    path.write_text('{"schema": "ditbench/spec@1", "world": "scenes"}')
    record = read_record(path, "spec")
    assert record["world"] == "scenes" and record.get("arm") is None
    with pytest.raises(Fault, match=r"spec\.json is no whole spec record: it has no `arm`; delete it and run again"):
        record["arm"]


def test_captions_with_what_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    path.write_text(r'["a \u0000red\u001b[31m \ttea\u200fpot", "b\nc"]')
    taken = Selection(CaptionFile(path)).take(None)
    assert [entry.text for entry in taken.entries] == ["a red[31m \ttea\u200fpot", "b c"]
    path.write_text(r'["a", "b \ud800"]')
    with pytest.raises(Fault, match=r"captions\.json holds half of a character \(a lone surrogate\) in caption 2, 'b "):
        Selection(CaptionFile(path)).take(None)


def test_what_is_wrong_with_a_file_of_captions_names_it_once(tmp_path: Path) -> None:
    path = tmp_path / "captions.json"
    path.write_text("[1]")
    with pytest.raises(Fault) as told:
        Selection(CaptionFile(path)).take(1)
    assert str(told.value).count(str(path)) == 1
    with pytest.raises(Fault, match="cannot be read"):
        Selection(CaptionFile(Path("a" * 5000))).take(1)


STUDY = """title: small
world: scenes
rows: [{arm: full, method: full, label: full}]
columns: [{measure: speedup, label: speedup}]
baseline: full
"""


def test_what_a_study_is_called_can_be_a_folder_of_results(tmp_path: Path) -> None:
    for name in ("it's {d}", "a b", "$x", "-a", "a;id", "a" * 101):
        path = tmp_path / f"{name}.yaml"
        path.write_text(STUDY)
        with pytest.raises(Fault, match="a study is called like its file"):
            load_study(path)
    (tmp_path / "embedded.yaml").write_text(STUDY)
    config = Config(studies=["embedded", str(tmp_path / "embedded.yaml")])
    with pytest.raises(Fault, match=r"two are called embedded, the second is '.*embedded\.yaml'; rename its file"):
        run_studies(config)
    with pytest.raises(Fault, match="two are called diffsparse-table1"):
        run_studies(Config(studies=["diffsparse-table1", "diffsparse/table1"]))


def test_what_stands_in_braces_is_the_workflows(tmp_path: Path) -> None:
    arms = {"a": {"method": "diffsparse", "knobs": {"plan_file": str(tmp_path / "{world}" / "learned.json")}}}
    with pytest.raises(Fault, match="what stands in braces is the workflow's own; rename the file or its folder"):
        cell_table(check_config({"arms": arms}))


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES])
def test_a_place_that_cannot_be_written_is_a_sentence(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(options: object) -> None:
        raise OSError(number, os.strerror(number), "somewhere/studies")

    monkeypatch.setattr("ditbench.cli._report", fails)
    assert main(["report"]) == 2
    said = f"report: somewhere/studies: {os.strerror(number).lower()}; name another place, or mend that one"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("word", ["{a", "2020-13-45", "9" * 5000, "[" * 5000, "&a [*a]", "!!python/name:os.system x"])
def test_words_of_a_command_line_that_are_no_values(word: str) -> None:
    assert retyped({"a": [word]}) == {"a": [word]}
    with pytest.raises(Fault, match="interval"):
        parse_knobs("fora", [f"interval={word}"])


@pytest.mark.parametrize(
    ("method", "knob", "value"),
    [("fora", "interval", 10**30), ("sito", "similarity", math.nan), ("l2c", "rate", 1e999)],
)
def test_knobs_are_numbers_that_records_can_hold(method: str, knob: str, value: float) -> None:
    said = f"{knob}: {value} must be a finite number"
    with pytest.raises(Fault, match=re.escape(said)):
        get_method(method, {knob: value})
    with pytest.raises(Fault) as told:
        check_config({"images": 0, "arms": {"a": {"method": method, "knobs": {knob: value}}}})
    assert f"arms.a.knobs.{said}" in str(told.value) and "images: 0" in str(told.value)
    with pytest.raises(Fault, match=re.escape(f"sweeps.a.knobs.{said}")):
        check_config({"sweeps": {"a": {"method": method, "knobs": {knob: [value]}}}})
