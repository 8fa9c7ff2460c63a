"""A job that hangs ends with a sentence and leaves its reason; one that gets on is let alone."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from ditbench.failures import NOTE, noted
from ditbench.faults import Fault
from ditbench.patience import VARIABLE, limited, progress


def test_what_hangs_ends_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGALRM)
    monkeypatch.setenv(VARIABLE, "0.2")
    hung = r"no progress for 0\.2 s and counts as hung"
    with pytest.raises(Fault, match=hung), noted(tmp_path / "a.json", "images", tmp_path):
        time.sleep(60)
    assert "counts as hung" in json.loads((tmp_path / NOTE).read_text())["reason"]
    assert signal.getsignal(signal.SIGALRM) is before


def test_what_makes_progress_may_take_as_long_as_it_likes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "0.5")
    with limited("images of a"):
        for _ in range(8):
            time.sleep(0.1)
            progress()


@pytest.mark.parametrize("given", ["", "0", "soon"])
def test_without_a_limit_nothing_is_watched(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, given)
    before = signal.getsignal(signal.SIGALRM)
    with limited("images of a"):
        progress()
        assert signal.getsignal(signal.SIGALRM) is before
