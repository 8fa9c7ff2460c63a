"""The code and the weights of an earlier commit: by which records say that they were made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What a stage runs, for a world and a method.
Asked = tuple[str, str, str | None]

_PROGRAM = """
import hashlib, json, sys
from ditbench.codehash import code_hash
from ditbench.worlds import get_world
asked = json.loads(sys.argv[1])
weights = {}
for world in sorted({world for _, world, _ in asked}):
    files = {path for stage in ("generate", "score") for path in get_world(world).sources(stage)}
    there = [path for path in sorted(files) if path.suffix == ".safetensors" and path.is_file()]
    weights[world] = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in there}
print(json.dumps({"codes": [code_hash(*words) for words in asked], "weights": weights}))
"""


@dataclass(frozen=True)
class Known:
    """The hashes of what stages ran at a commit, and of the weights that shipped with its worlds."""

    codes: dict[Asked, str]
    weights: dict[str, dict[str, str]]


def known_at(commit: str, asked: Iterable[Asked]) -> Known | None:
    """What is known of a commit of this checkout; None where it has no such commit, or nothing can be asked of it."""
    return _known_at(commit, tuple(sorted(asked, key=str)))


@lru_cache(maxsize=16)
def _known_at(commit: str, asked: tuple[Asked, ...]) -> Known | None:
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "tree.tar"
        try:
            words = ["git", "archive", "--format=tar", f"--output={packed}", commit, "src", "assets", "pyproject.toml"]
            subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
            with tarfile.open(packed) as archive:
                archive.extractall(folder, filter="data")
            there = {"PYTHONPATH": f"{folder}/src", "DITBENCH_SCENES_ASSETS": f"{folder}/assets/scenes"}
            program = [sys.executable, "-c", _PROGRAM, json.dumps(asked)]
            said = subprocess.run(program, cwd=folder, env=os.environ | there, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError, tarfile.TarError):
            return None
    found = json.loads(said.stdout)
    return Known(dict(zip(asked, found["codes"], strict=True)), found["weights"])
