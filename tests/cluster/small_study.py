"""A small study that schedulers run, what it leaves, and jobs that wait until they are let go."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.workflow.conftest import Tree

STUDY = """title: small
world: scenes
rows:
  - {arm: full, method: full, label: full}
  - {arm: fora-n2, method: fora, knobs: {interval: 2}, label: fora}
columns: [{measure: speedup, label: speedup}]
baseline: full
"""
SMALL = ("studies=[small]", "images=2", "shard=2")
# Stands before the stand-in: while the file `hold` is there, what draws images waits.
HOLDING = """#!/bin/sh
if [ "$1" = generate ]; then
    echo "begun on ${CUDA_VISIBLE_DEVICES:-no device}" >> begun.log
    while [ -e hold ]; do sleep 0.2; done
fi
exec "$0-stand-in" "$@"
"""


@contextmanager
def holding(tree: Tree) -> Iterator[tuple[Path, Path]]:
    """What draws images waits while the first file is there; of each that begins the second has a line with its GPU."""
    stand_in = tree.root / "bin" / "ditbench"
    stand_in.rename(stand_in.with_name("ditbench-stand-in"))
    stand_in.write_text(HOLDING)
    stand_in.chmod(0o755)
    hold = tree.root / "hold"
    hold.touch()
    try:
        yield hold, tree.root / "begun.log"
    finally:
        hold.unlink(missing_ok=True)
        stand_in.with_name("ditbench-stand-in").rename(stand_in)


def start(tree: Tree, profile: Sequence[str], results: str, *targets: str) -> subprocess.Popen[str]:
    """Starts the small study through a profile, in a process that an interrupt reaches."""
    return subprocess.Popen(
        [sys.executable, "-m", "snakemake", *profile, *words(results), *(["--", *targets] if targets else [])],
        cwd=tree.root,
        env=tree.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=listens,
    )


def listens() -> None:
    """A shell's background jobs, and all that they start, are deaf to an interrupt; here they hear it, as one group."""
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for(path: Path, lines: int) -> None:
    """Waits until a file has so many lines."""
    began = time.monotonic()
    while not path.exists() or len(path.read_text().splitlines()) < lines:
        assert time.monotonic() - began < 400, "no job began"
        time.sleep(0.2)


def words(results: str) -> list[str]:
    return ["--config", *SMALL, f"results={results}"]


def made(tree: Tree, results: str) -> dict[str, str]:
    """What a run has made, by name; results of another name would say so in their text."""
    root = tree.root / results
    kept = [path for path in sorted(root.rglob("*")) if path.suffix in (".json", ".html", ".md", ".tex", ".csv")]
    apart = {"run.json", "failed-run.txt"}
    return {
        str(path.relative_to(root)): re.sub(
            r"configs/[0-9a-f]+", "configs/HASH", path.read_text().replace(results, "R")
        )
        for path in kept
        if path.name not in apart and "configs" not in path.parts
    }
