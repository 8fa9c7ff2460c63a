"""The tutorial, word for word: its commands in their order, on a run that is small.

What is not run: fetching the repository and `uv sync`, which the tests stand on. What is smaller than on the page:
eight images in place of 64, one round of the stopwatch, four training captions. Its first run is the one that
tests/workflow/test_run.py looks at, so that it is drawn once; the pipeline of its last example is a random one.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
import yaml

from ditbench.cells import cell_table
from ditbench.cli import main
from ditbench.config import check_config, read_settings
from ditbench.worlds.scenes.world import assets_folder
from tests.workflow.small_run import ARMS, CELLS, COMMAND, RESULTS, smaller

if TYPE_CHECKING:
    from tests.workflow.small_run import SmallRun

pytestmark = pytest.mark.timeout(1500)
ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
NOT_RUN = ("git clone <this repository> ditbench && cd ditbench", "uv sync")


class Step(NamedTuple):
    """A command of the page, or a block that it says to add to config.yaml or to run as Python."""

    kind: str
    text: str


def steps() -> list[Step]:
    """What the page tells its reader to do, in its order."""
    command, block = r"^    (?P<command>\S[^\n]*)$", r"^```(?P<kind>\w+)\n(?P<block>.*?)^```$"
    found = re.finditer(f"{command}|{block}", PAGE, re.MULTILINE | re.DOTALL)
    return [Step(m["kind"], m["block"]) if m["kind"] else Step("command", m["command"]) for m in found]


class Told(NamedTuple):
    """A command with its exit status and what it said."""

    command: str
    status: int
    said: str


@pytest.fixture(scope="module")
def tutorial(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository of someone who has just made the tutorial's first run: a copy of the one that all tests share."""
    root = tmp_path_factory.mktemp("tutorial") / "ditbench"
    shutil.copytree(small_run.tree.root, root, symlinks=True)
    return root


@pytest.fixture(scope="module")
def told(tutorial: Path, small_run: SmallRun) -> list[Told]:
    """Every command of the page with what it said, config.yaml growing as the page says."""
    first, *others = [step for step in steps() if step.text not in NOT_RUN]
    assert first.text == f"uv run {shlex.join(COMMAND)}", "the run that the tests share is the page's first one"
    environment = {
        **small_run.tree.environment,
        "PYTHONPATH": str(tutorial / "src"),
        "DITBENCH_SCENES_ASSETS": str(assets_folder()),
    }
    found = []
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tutorial)
        for step in others:
            if step.kind == "yaml":
                with Path("config.yaml").open("a") as config:
                    config.write(step.text)
            elif step.kind == "command":
                found.append(_told(step.text, environment))
    return found


def _told(command: str, environment: dict[str, str]) -> Told:
    """Runs a command: Snakemake in a process of its own, made small, and ditbench in this one."""
    program, *words = shlex.split(command.removeprefix("uv run "))
    if program == "snakemake":
        made = subprocess.run(
            smaller((program, *words)),
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
        )
        return Told(command, made.returncode, made.stdout)
    assert program == "ditbench", command
    words_said = io.StringIO()
    with contextlib.redirect_stdout(words_said), contextlib.redirect_stderr(words_said):
        status = main(words)
    return Told(command, status, words_said.getvalue())


def said(told: list[Told], command: str) -> str:
    """What the last command that begins so said; it went well."""
    found = [each for each in told if each.command.startswith(command)]
    assert found, f"the tutorial has no {command!r} any more: {[each.command for each in told]}"
    assert found[-1].status == 0, found[-1].said
    return found[-1].said


def test_every_command_of_the_page_goes_well(told: list[Told]) -> None:
    assert [each for each in told if each.status] == []
    asked = [each.command.split()[3] for each in told if each.command.startswith("uv run ditbench")]
    assert asked == ["cells", "show", "diff", "recommend", "methods", "macs", "macs"], "what they say is asked below"


def test_the_questions_are_answered_from_the_run(told: list[Told]) -> None:
    lines = said(told, "uv run ditbench cells").splitlines()
    states = {words[0].split("/")[1]: words[-1] for line in lines if (words := line.split()) and "/seed0" in line}
    assert states == dict.fromkeys(ARMS, "done")
    shown = said(told, "uv run ditbench show fora-n2")
    assert re.search(r"scenes/fora-n2/seed0  [0-9a-f]{12}  done", shown) and "fora (interval = 2" in shown
    assert re.search(r"^fid/scenes +[\d.]+ +\[", shown, re.MULTILINE)
    apart = said(told, "uv run ditbench diff full fora-n2")
    assert "method: full -> fora" in apart and re.search(r"^  clip/scenes .*n = 8", apart, re.MULTILINE)
    advice = said(told, "uv run ditbench recommend")
    assert advice.startswith("scenes, a speed-up of 1.5 or more") and "ditbench.accelerate(pipe, " in advice


def test_only_the_new_arms_are_computed(told: list[Told], small_run: SmallRun, tutorial: Path) -> None:
    words = said(told, "uv run snakemake")
    drawn = re.findall(r"ditbench generate --spec \S+/scenes/([^/]+)/seed0", words)
    assert {*drawn} == {"taylorseer-n3", "teacache-1.7"}
    for arm in ("full", "taylorseer-n3", "teacache-1.7"):
        assert (tutorial / CELLS / arm / "seed0/scores.json").is_file()
    assert not (small_run.tree.root / CELLS / "taylorseer-n3").exists(), "the shared run was to be left as it is"
    learned = json.loads((tutorial / RESULTS / "learned/scenes/teacache-1.7/learned.json").read_text())
    assert learned["found"]["reached"] == pytest.approx(1.7, rel=0.2)


def test_the_methods_and_what_they_would_cost_are_told(told: list[Told]) -> None:
    methods = said(told, "uv run ditbench methods")
    assert all(re.search(rf"^{name} ", methods, re.MULTILINE) for name in ("taylorseer", "teacache", "toca"))
    assert "fora (interval 3, direction up) in flux-dev-1024: " in said(told, "uv run ditbench macs flux")
    toca = said(told, "uv run ditbench macs pixart")
    assert "toca (interval 3, fresh 0.3" in toca and "all 2 branches" in toca


def test_the_sweep_of_the_page_makes_its_arms() -> None:
    blocks = [yaml.safe_load(step.text) for step in steps() if step.kind == "yaml"]
    settings = read_settings(ROOT / "config.yaml")
    for block in blocks:
        settings |= block
    arms = {spec.arm for spec in cell_table(check_config(settings, "config.yaml"))}
    assert {f"caching.interval-{n}" for n in (3, 4, 5)} < arms
    assert "caching.interval-2" not in arms, "that is the study's fora-n2"
    assert {"taylorseer-n3", "teacache-1.7"} < arms


def test_the_pipeline_of_the_page_is_as_it_was_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusers

    from tests.tiny_pipelines import build, one_thread

    pipeline = build("flux-schnell")
    pipeline.set_progress_bar_config(disable=True)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", lambda name: pipeline)
    (code,) = [step.text for step in steps() if step.kind == "python"]
    names: dict[str, object] = {}
    with one_thread():
        exec(code, names)
    assert names["image"].size[0] > 0  # type: ignore[attr-defined]
    assert "forward" not in vars(pipeline.transformer)
