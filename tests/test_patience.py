"""A job that hangs ends with a sentence and leaves its reason; one that gets on is let alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from ditbench.config import Config
from ditbench.failures import NOTE, noted
from ditbench.faults import Fault
from ditbench.patience import GRACE, VARIABLE, limited, progress
from ditbench.watchdog import end

ROOT = Path(__file__).resolve().parents[1]


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


STUCK = """
import itertools, sys, time
from pathlib import Path
from ditbench import patience
from ditbench.failures import noted
patience.GRACE = 0.5
cell = Path(sys.argv[1])
with noted(cell / "a.json", "images", cell):
    for _ in range(6):
        time.sleep(0.7)
        patience.progress()
    print("alive", flush=True)
    sum(itertools.repeat(0))
"""


def test_what_hangs_inside_a_library_ends_with_its_reason_too(tmp_path: Path) -> None:
    # A job that gets on for longer than the limit, and then goes into a loop in C that keeps Python's lock.
    words, environment = [sys.executable, "-c", STUCK, str(tmp_path)], {**os.environ, VARIABLE: "3"}
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, "alive\n")
    assert "a.json made no progress for 3 s and counts as hung, inside a library" in ended.stderr
    note = json.loads((tmp_path / NOTE).read_text())
    assert (note["stage"], note["job"]) == ("images", "a.json")
    assert ended.stderr == f"ditbench: {note['reason']}\n"
    assert [path.name for path in tmp_path.iterdir()] == [NOTE]


def test_what_another_has_finished_is_not_noted_as_hung(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    record = tmp_path / "a.json"
    for made in (True, False):
        record.touch() if made else record.unlink()
        job = subprocess.Popen(["sleep", "60"])
        end(job.pid, "it hung", {"path": str(tmp_path / NOTE), "record": str(record), "body": {"stage": "images"}})
        assert job.wait() == -signal.SIGKILL
        assert capfd.readouterr().err == "ditbench: it hung\n"
        assert (tmp_path / NOTE).exists() is not made


def test_a_job_is_killed_though_its_note_cannot_be_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    note = {"path": str(tmp_path / "file" / NOTE), "record": str(tmp_path / "a.json"), "body": {}}
    job = subprocess.Popen(["sleep", "60"])
    end(job.pid, "it hung", note)
    assert job.wait() == -signal.SIGKILL
    assert "it hung; " in (said := capfd.readouterr().err) and "could not be written: " in said


def test_whoever_watches_goes_with_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Kept(subprocess.Popen[bytes]):
        def __init__(self, *words: object, **more: object) -> None:
            super().__init__(*words, **more)  # type: ignore[call-overload]
            started.append(self)

    monkeypatch.setattr("subprocess.Popen", Kept)
    monkeypatch.setenv(VARIABLE, "60")
    with limited("images of a"):
        assert started[0].poll() is None
    assert started[0].returncode == -signal.SIGKILL


@pytest.mark.parametrize("profile", ["slurm", "cluster-generic", "kubernetes"])
def test_a_scheduler_waits_longer_than_we_do(profile: str) -> None:
    # Else it kills a job that hangs before the job can say so, even one that has worked for an hour.
    settings = yaml.safe_load((ROOT / "profiles" / profile / "config.yaml").read_text())
    (minutes,) = [text for text in settings["default-resources"] if text.startswith("runtime=")]
    patience = Config.model_fields["patience"].default
    assert 60 * int(minutes.partition("=")[2].split()[0]) > patience + GRACE + 3600
