"""The worked examples of docs/: each runs, and its page shows it as it is."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from ditbench.cli import main, parser
from ditbench.engine.ledger import bill
from ditbench.engine.run import attached
from ditbench.judges.base import Pictures
from ditbench.methods import get_method
from ditbench.sampling import run_of
from ditbench.study import load_study
from tests.backbones.networks import inputs, make

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
EXAMPLES = sorted(path for path in (DOCS / "examples").iterdir() if path.suffix in (".py", ".yaml"))


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_a_page_shows_its_example_as_it_is_and_it_is_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 60
    pages = [page for page in DOCS.glob("*.md") if f"\n{text}```" in page.read_text()]
    assert pages, f"no page of docs/ shows {path.name} as it is"


def test_the_method_runs_on_a_network() -> None:
    method = load("alternate_blocks").AlternateBlocks(full=1)
    backbone = make("pixart")  # two blocks
    run = run_of(method, backbone, backbone.shape(5, **inputs(backbone, "pixart", 0, 2)))
    with attached(run):
        for step in range(5):
            backbone.network(**inputs(backbone, "pixart", step, 2))
    assert run.trace.shares[:, ::3].tolist() == [[1, 1], [0, 1], [1, 0], [0, 1], [1, 0]]


def test_the_judge_tells_sharp_pictures_from_blurred_ones() -> None:
    judge = load("sharpness").Sharpness()
    sharp = np.random.default_rng(0).integers(0, 255, (4, 16, 16, 3), dtype=np.uint8)
    blurred = (sharp.astype(float) * 0.2 + 100).astype(np.uint8)
    found = [judge.measure(Pictures([*"abcd"], images), Pictures.none())[0] for images in (sharp, blurred)]
    assert found[0].estimate.value > 4 * found[1].estimate.value
    assert found[0].estimate.low < found[0].estimate.value < found[0].estimate.high
    difference = found[1].minus(found[0])
    assert difference.high < 0


def test_the_study_renders(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", str(DOCS / "examples" / "intervals.yaml")]) == 0
    said = capsys.readouterr().out
    rows = [line for line in said.splitlines() if line.startswith("| ")]
    assert sum("FORA" in row for row in rows) == 1 + 4  # its group's heading and four intervals
    assert "Ten steps" in said


class TinyTransformer(nn.Module):
    """What the example of a backbone takes apart."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(4, 8), nn.Linear(8, 4)
        self.blocks = nn.ModuleList(nn.ModuleDict({"mix": nn.Linear(8, 8), "mlp": nn.Linear(8, 8)}) for _ in range(3))
        for block in self.blocks:
            block.mix, block.mlp = block["mix"], block["mlp"]
        self.config = SimpleNamespace()

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    def forward(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor]:
        hidden = self.embed(hidden_states)
        for block in self.blocks:
            hidden = hidden + block.mix(hidden)
            hidden = hidden + block.mlp(hidden)
        return (self.head(hidden),)


def test_the_backbone_is_its_network_to_the_last_bit_and_takes_any_method() -> None:
    torch.manual_seed(0)
    backbone = load("tiny_backbone").TinyBackbone(TinyTransformer())
    given = [backbone.example_inputs(2, (3, 4), 0, torch.float32, "cpu") for _ in range(4)]
    run = run_of(get_method("full"), backbone, backbone.shape(4, **given[0]))
    with torch.no_grad():
        expected = [backbone.network(**each)[0] for each in given]
        with attached(run):
            found = [backbone.network(**each)[0] for each in given]
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))
    # 12 tokens, four steps: six branches of 64, embedding and head of 32 each.
    assert bill(run.trace, backbone.costs(12, 0)).linear == 4 * 12 * (6 * 64 + 2 * 32)
    fora = run_of(get_method("fora", {"interval": 2}), backbone, backbone.shape(4, **given[0]))
    with torch.no_grad(), attached(fora):
        for each in given:
            backbone.network(**each)
    assert fora.trace.realised_ratio == 0.5


# --- commands ---


def commands() -> list[Any]:
    """Every `ditbench …` in the README and the docs, with the page that has it."""
    found = []
    for page in [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]:
        blocks = re.findall(r"^(?:    |```(?:sh|bash|text)?\n)(.+)$", page.read_text(), re.MULTILINE)
        lines = [*blocks, *re.findall(r"`((?:uv run )?ditbench [^`]+)`", page.read_text())]
        for line in lines:
            words = re.sub(r"\s#.*$", "", line).replace("…", "").replace("\\", "").strip()
            match = re.match(r"(?:uv run )?ditbench ([a-z].*)$", words)
            if match:
                found.append(pytest.param(match[1], id=f"{page.name}: {match[1]}"[:90]))
    return found


@pytest.mark.parametrize("words", commands())
def test_commands_of_the_docs_exist(words: str) -> None:
    name, *options = shlex.split(words)
    choices = next(action.choices for action in parser()._actions if getattr(action, "choices", None))
    assert isinstance(choices, dict) and name in choices, f"ditbench has no command {name!r}"
    known = {flag for action in choices[name]._actions for flag in action.option_strings}
    asked = {option.partition("=")[0] for option in options if option.startswith("--")}
    nested = [a.choices for a in choices[name]._actions if isinstance(getattr(a, "choices", None), dict)]
    for sub in nested[:1]:
        known |= {flag for part in sub.values() for action in part._actions for flag in action.option_strings}
    assert asked <= known, f"ditbench {name} has no {', '.join(sorted(asked - known))}"


def test_beside_the_caching_family_only_the_full_model_and_ours_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ditbench.config import check_config
    from ditbench.forecast import forecast

    monkeypatch.chdir(ROOT)
    text = (DOCS / "add-a-method.md").read_text()
    (command,) = re.findall(r"uv run snakemake .*beside.*", text)
    settings = {name: yaml.safe_load(value) for name, _, value in (w.partition("=") for w in shlex.split(command)[6:])}
    config = check_config({**settings, "results": str(tmp_path)})
    outlook = forecast(config)
    rows = len(load_study("embedded_caching").rows)
    assert (outlook["cells"], outlook["cells_finished_elsewhere"]) == (rows + 1, rows)
    assert outlook["images_to_draw"] == 2 * config.images
