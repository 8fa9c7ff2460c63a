"""DiffSparse on two processes learns what it does on one, and one goes on from where two were stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ditbench.cells import Spec
from ditbench.learn.sparsity import STATE
from ditbench.methods import get_method
from ditbench.records import read_record

CAPTIONS = 4


def start(captions: Path, out: Path, processes: int) -> subprocess.Popen[bytes]:
    """Starts learning, in a process group of its own."""
    method = get_method("diffsparse", {"batch": 2, "at_once": 1, "ratio": 0.4})
    knobs = {knob: getattr(method, knob) for knob in method.knobs()}
    spec = Spec("scenes", "arm", "diffsparse", knobs, 3, 0, 4, "some", None, "float32", learning="training")
    out.parent.mkdir(exist_ok=True)
    words = ["-m", "ditbench", "learn", "--spec", json.dumps(asdict(spec)), "--out", str(out), "--code", "of now"]
    words += ["--captions", str(captions / "captions.json"), "--embeddings", str(captions / "embeddings.json")]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.Popen(
        [sys.executable, *(launcher if processes > 1 else []), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def found(captions: Path, folder: Path, processes: int) -> dict[str, Any]:
    """What so many processes find, however far others were in that folder."""
    out = folder / "learned.json"
    assert start(captions, out, processes).wait(300) == 0
    learned: dict[str, Any] = read_record(out, "learned")["found"]
    return learned


@pytest.mark.timeout(400)
def test_two_processes_learn_what_one_does_and_one_goes_on_from_two(captions: Path, tmp_path: Path) -> None:
    alone, together = (found(captions, tmp_path / str(count), count) for count in (1, 2))
    out = tmp_path / "stopped" / "learned.json"
    process, notes = start(captions, out, 2), out.with_suffix(".notes.json")
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if notes.exists() and STATE in json.loads(notes.read_text())["kept"]:
            break
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert notes.exists() and not out.exists(), "two were to be stopped on their way"
    continued = found(captions, out.parent, 1)
    for other in (together, continued):
        assert other["history"]["part"] == alone["history"]["part"]
        assert other["history"]["loss"] == pytest.approx(alone["history"]["loss"], rel=1e-5)
        assert np.array_equal(other["shares"], alone["shares"])
