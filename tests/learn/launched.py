"""Learning in processes of its own, one or several that torch's launcher starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ditbench.cells import Spec
from ditbench.methods import get_method
from ditbench.records import read_record


def start(
    name: str, given: Mapping[str, Any], captions: Path, out: Path, processes: int, batch: int = 16
) -> subprocess.Popen[bytes]:
    """Starts learning, in a process group of its own."""
    method = get_method(name, given)
    knobs = {knob: getattr(method, knob) for knob in method.knobs()}
    spec = Spec("scenes", "arm", name, knobs, 3, 0, 4, "some", None, "float32", learning="training")
    out.parent.mkdir(exist_ok=True)
    words = ["-m", "ditbench", "learn", "--spec", json.dumps(asdict(spec)), "--out", str(out), "--code", "of now"]
    words += ["--captions", str(captions / "captions.json"), "--embeddings", str(captions / "embeddings.json")]
    words += ["--batch", str(batch)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.Popen(
        [sys.executable, *(launcher if processes > 1 else []), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def found(
    name: str, given: Mapping[str, Any], captions: Path, folder: Path, processes: int, batch: int = 16
) -> dict[str, Any]:
    """What so many processes find, however far others were in that folder."""
    out = folder / "learned.json"
    process = start(name, given, captions, out, processes, batch)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said.decode()
    learned: dict[str, Any] = read_record(out, "learned")["found"]
    return learned
