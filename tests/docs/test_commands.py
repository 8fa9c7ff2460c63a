"""Every command that README and docs/ tell is one that ditbench understands, and every file it names is there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from ditbench.cells import cell_table
from ditbench.cli import parser
from ditbench.config import check_config, read_settings
from ditbench.faults import Fault
from ditbench.methods import get_method
from ditbench.study import study_path
from ditbench.worlds import world_names

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# Whatever a reader is to put in place of it.
OPEN = re.compile(r"[…<>]|\b[A-Z]{4,}\b|\.\.\.")


def commands(page: Path, program: str) -> Iterator[list[str]]:
    """The words of each command of a page's code, without `uv run` and the remark behind it."""
    text = re.sub(r"\\\n\s*", " ", page.read_text(encoding="utf-8"))
    for line in text.splitlines():
        told = re.fullmatch(
            rf"(?: {{4}}|\t)(?:[A-Z_]+=\S+ )*(?:for .*; do )?uv run (?:--\S+ (?:\w+ )?)?{program} (.*)", line
        )
        if told and not OPEN.search(told[1].partition(" #")[0]):
            yield shlex.split(re.sub(r"(?:; done|\$i)", "", told[1]), comments=True)


def cases(program: str) -> list[tuple[str, list[str]]]:
    found = [(page.name, words) for page in PAGES for words in commands(page, program)]
    return [each for number, each in enumerate(found) if each not in found[:number]]


def named(case: object) -> str | None:
    return " ".join(case) if isinstance(case, list) else None


def test_there_are_commands_to_look_at() -> None:
    assert len(cases("ditbench")) >= 25 and len(cases("snakemake")) >= 10


@pytest.mark.parametrize(("page", "words"), cases("ditbench"), ids=named)
def test_a_question_is_understood(page: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        options = parser().parse_args(words)
    except SystemExit as end:
        pytest.fail(f"{page}: {' '.join(words)}: {capsys.readouterr().err}" if end.code else "")
    if words[0] == "study":
        study_path(options.name)
    if words[0] == "macs":
        assert words[1] in world_names()
        knobs = (word.partition("=") for word in options.set or [])
        get_method(words[2], {name: yaml.safe_load(value) for name, _, value in knobs})


@pytest.mark.parametrize(("page", "words"), cases("snakemake"), ids=named)
def test_a_run_s_settings_are_right(page: str, words: list[str]) -> None:
    settings = read_settings(ROOT / "config.yaml")
    if "--configfile" in words:
        file = ROOT / words[words.index("--configfile") + 1]
        if not file.exists():
            pytest.skip(f"{file.name} is the reader's own")
        settings |= read_settings(file)
    if "--config" in words:
        for word in words[words.index("--config") + 1 :]:
            if not re.fullmatch(r"[a-z_]+=.*", word):
                break
            name, _, value = word.partition("=")
            settings[name] = yaml.safe_load(value)
    try:
        cell_table(check_config(settings, "config.yaml"))
    except Fault as fault:
        pytest.fail(f"{page}: {' '.join(words)}: {fault}")
