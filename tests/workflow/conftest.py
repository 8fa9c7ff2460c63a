"""A copy of the workflow in a temporary folder, where stages are answered by a stand-in that only writes their files.

The rules, the configuration, the cells and the code hashes are the real ones; only the computing is left out, so that
a whole run takes seconds.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("Snakefile", "config.yaml", "configs", "profiles", "workflow", "studies", "src")

# Answers any stage: notes its words, fails where FAIL says so, else writes what the rule expects.
STAND_IN = """\
#!{python} -IS
import json, os, sys
from pathlib import Path

ASSETS = (
    ("train-backbone", ("transformer.safetensors", "text_encoder.safetensors", "backbone.json")),
    ("train-mmdit", ("mmdit.safetensors", "mmdit.json")),
    ("train-judges", ("reader.safetensors", "dual.safetensors", "preference.safetensors", "judges.json")),
    ("model-card", ("README.md", "quality.json", "samples.png", "quality-mmdit.json", "samples-mmdit.png")),
)
words = sys.argv[1:]
if words[0] == "warm":  # nothing heavy is stood in for
    sys.exit()
with open("calls.log", "a") as log:
    log.write(" ".join(words) + "\\n")
value = lambda name: words[words.index(name) + 1]
fail = os.environ.get("FAIL", "")
if fail and all(part in " ".join(words) for part in fail.split()):
    print("ditbench: told to fail", file=sys.stderr)
    sys.exit(2)
if words[0] == "report":
    config = json.loads(Path(value("--config")).read_text())
    results = Path(config["results"])
    made = [results / "report" / "index.html"]
    made += [results / "studies" / s / f"table.{{f}}" for s in config["studies"] for f in ("md", "tex", "csv", "html")]
elif words[0] == "assets":
    made = [Path(value("--folder")) / name for name in dict(ASSETS)[words[1]]]
else:
    made = [Path(value("--out"))] if "--out" in words else []
    if words[0] == "publish":
        made.append(Path(json.loads(Path(value("--config")).read_text())["results"]) / "mlflow.db")
for path in made:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(" ".join(words))
"""

# Answers the run within a run that measures new weights.
STAND_IN_RUN = """\
#!/bin/sh
echo "snakemake $*" >>calls.log
echo "weights $DITBENCH_SCENES_ASSETS" >>calls.log
"""


@dataclass(frozen=True)
class Tree:
    """A copy of the repository's workflow."""

    root: Path
    environment: dict[str, str]

    def snakemake(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Runs Snakemake there, on two cores."""
        return subprocess.run(
            [sys.executable, "-m", "snakemake", "--cores", "2", *words],
            cwd=self.root,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=200,
        )

    def planned(self, *words: str) -> Counter[str]:
        """How many jobs of each rule a dry run names; nothing where all is made."""
        done = self.snakemake("-n", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        table = (done.stdout + done.stderr).partition("Job stats:")[2].partition("total")[0]
        return Counter({name: int(count) for name, count in re.findall(r"^(\w+)\s+(\d+)$", table, re.MULTILINE)})

    def calls(self) -> list[str]:
        """The commands that were run, oldest first."""
        return (self.root / "calls.log").read_text().splitlines()


def copy_tree(root: Path) -> Tree:
    """Copies what a run needs to `root`."""
    root.mkdir(parents=True, exist_ok=True)
    for name in PARTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, root / name)
    # One of the default studies: jobs are counted here, and four arms have every kind of them.
    config = root / "config.yaml"
    config.write_text(re.sub(r"(?m)^studies: .*$", "studies: [embedded]", config.read_text()))
    scripts = Path(sys.executable).parent
    environment = {
        **os.environ,
        "PATH": f"{root / 'bin'}:{scripts}:{os.environ['PATH']}",
        "PYTHONPATH": str(root / "src"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "XDG_CACHE_HOME": str(root / "cache"),
        "DITBENCH_SCENES_ASSETS": str(root / "assets"),
        "OMP_NUM_THREADS": "1",
    }
    return Tree(root, environment)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Tree:
    """A fresh copy in which `ditbench` is the stand-in."""
    made = copy_tree(tmp_path_factory.mktemp("tree"))
    folder = made.root / "bin"
    folder.mkdir()
    for name, text in (("ditbench", STAND_IN.format(python=sys.executable)), ("snakemake", STAND_IN_RUN)):
        (folder / name).write_text(text)
        (folder / name).chmod((folder / name).stat().st_mode | stat.S_IXUSR)
    return made
