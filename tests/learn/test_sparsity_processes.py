"""DiffSparse on two processes learns what it does on one, and one goes on from where two were stopped."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from ditbench.learn.sparsity import STATE
from tests.learn.launched import found, start

CAPTIONS = 4
KNOBS = {"batch": 2, "at_once": 1, "ratio": 0.4}


@pytest.mark.timeout(400)
def test_two_processes_learn_what_one_does_and_one_goes_on_from_two(captions: Path, tmp_path: Path) -> None:
    alone, together = (found("diffsparse", KNOBS, captions, tmp_path / str(count), count) for count in (1, 2))
    out = tmp_path / "stopped" / "learned.json"
    process, notes = start("diffsparse", KNOBS, captions, out, 2), out.with_suffix(".notes.json")
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if notes.exists() and STATE in json.loads(notes.read_text())["kept"]:
            break
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert notes.exists() and not out.exists(), "two were to be stopped on their way"
    continued = found("diffsparse", KNOBS, captions, out.parent, 1)
    for other in (together, continued):
        assert other["history"]["part"] == alone["history"]["part"]
        assert other["history"]["loss"] == pytest.approx(alone["history"]["loss"], rel=1e-5)
        assert np.array_equal(other["shares"], alone["shares"])
