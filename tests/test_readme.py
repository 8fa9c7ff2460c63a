"""README's example does what it says, on a small random pipeline in place of the one it would download."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def example() -> str:
    (code,) = re.findall(r"```python\n(import ditbench\n.*?)```", README, re.DOTALL)
    return str(code)


def test_the_example_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import diffusers

    from tests.tiny_pipelines import build, one_thread

    pipeline = build("flux-schnell")
    pipeline.set_progress_bar_config(disable=True)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", lambda name: pipeline)
    names: dict[str, object] = {}
    with one_thread():
        exec(example(), names)
    assert names["image"].size == (256, 256)  # type: ignore[attr-defined]
    said = capsys.readouterr().out
    assert "4 steps x 4 blocks of attn/mlp/single" in said
    assert "token computations left out: 50.0%" in said
    assert "forward" not in vars(pipeline.transformer)
