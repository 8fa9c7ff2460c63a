"""Where a campaign runs: a copy of the workflow, a process that does its commands, and states to begin from.

The Snakefile, the rules, the stages and the embedded world are the real ones; they are forked from one process that has
loaded them (see server.py), which is all that makes a run take seconds. The world is asked for little: three arms of
two steps, eight images of each.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.faults.server import JOBS
from tests.workflow.conftest import ROOT, Tree, copy_tree

HERE = Path(__file__).parent
PATIENCE = 1800.0  # seconds after which a run of the campaign counts as hung itself
ARMS = ("full", "troubled", "tuned")
CELLS = "results/cells/scenes"
LEARNED = "results/learned/scenes/tuned"

CONFIG = """\
world: scenes
images: 8
shard: 4
batch: 4
references: 32
stopwatch: {rounds: 1, batch: 2, contended: report}
studies: [campaign]
"""
# No column is a time: the tables of any two runs are the same.
STUDY = """\
title: What a campaign of faults runs
world: scenes
rows:
  - {arm: full, method: full, steps: 2, label: full}
  - {arm: troubled, method: troubled, steps: 2, label: troubled}
  - {arm: tuned, method: full-finetuned, steps: 2, knobs: {rank: 2, iterations: 6, batch: 2, rate: 0.001}, label: tuned}
columns:
  - {measure: fid/scenes, label: FID/scenes, digits: 4}
  - {measure: clip/scenes, label: CLIP/scenes, digits: 5}
  - {measure: psnr-to-full, label: PSNR to full, digits: 3}
  - {measure: macs-linear, label: MACs, digits: 4}
figure: {x: macs-linear, y: fid/scenes}
baseline: full
"""
# Hands its words to the server; the process that loads libraries for one run is not needed.
CLIENT = """\
#!{python} -IS
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("warm", {warm!r})
warm = importlib.util.module_from_spec(spec)
spec.loader.exec_module(warm)
words = sys.argv[1:]
if words[0] == "warm":
    sys.exit()
os.environ["DITBENCH_WARM"] = {socket!r}
warm.HEAVY = (words[0],)
warm.PATIENCE = 600.0  # everything is still being loaded
status = warm.ask(words)
sys.exit(70 if status is None else status)
"""


@dataclass(frozen=True)
class Said:
    """How a run ended, and what it said."""

    status: int
    text: str

    @property
    def sentences(self) -> list[str]:
        """What was told to the user, each once."""
        found = re.findall(r"^(?:ditbench|WorkflowError|MLflow|report): ?.*$", self.text, re.MULTILINE)
        return list(dict.fromkeys(line.strip() for line in found))


class Station:
    """A copy of the repository's workflow in `root`, and its states."""

    def __init__(self, root: Path) -> None:
        self.root = root / "run"
        self.states = root / "states"
        self.states.mkdir(parents=True)
        self.tree: Tree = copy_tree(self.root)
        shutil.copytree(ROOT / "assets/scenes", self.root / "assets")
        shutil.copy(HERE / "troubled.py", self.root / "src/ditbench/methods/troubled.py")
        (self.root / "campaign.yaml").write_text(CONFIG)
        (self.root / "studies/campaign.yaml").write_text(STUDY)
        (self.root / JOBS).mkdir()
        socket = root / "socket"
        client = self.root / "bin/ditbench"
        client.parent.mkdir()
        warm = str(self.root / "src/ditbench/warm.py")
        client.write_text(CLIENT.format(python=sys.executable, warm=warm, socket=str(socket)))
        client.chmod(0o755)
        self.client = client
        self.environment = {**self.tree.environment, "FAULTS_STATION": str(self.root), "MPLBACKEND": "Agg"}
        self.environment["PYTHONPATH"] = f"{self.root / 'src'}:{ROOT}"
        self.log = root / "server.log"
        with self.log.open("w") as log:
            self.server = subprocess.Popen(
                [sys.executable, str(HERE / "server.py"), str(socket), str(os.getpid())],
                cwd=self.root,
                env=self.environment,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 60
        while not socket.exists():
            if time.monotonic() > deadline or self.server.poll() is not None:
                raise RuntimeError(f"the campaign's server did not start:\n{self.log.read_text()}")
            time.sleep(0.1)

    def close(self) -> None:
        """Ends what is at work."""
        self.kill_all()
        self.server.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.server.wait(10)

    # Runs

    def start(self, *words: str, config: tuple[str, ...] = (), **environment: str) -> subprocess.Popen[str]:
        """Starts a run of the workflow."""
        more = ["--config", *config] if config else []
        command = ["snakemake", *words, "--cores", "2", "--set-threads", "latency=1"]
        return subprocess.Popen(
            [str(self.client), *command, "--configfile", "campaign.yaml", *more],
            cwd=self.root,
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: str, config: tuple[str, ...] = (), **environment: str) -> Said:
        """A run of the workflow, to its end."""
        process = self.start(*words, config=config, **environment)
        return self.wait(process)

    def wait(self, process: subprocess.Popen[str]) -> Said:
        """What a run that was started says by its end."""
        try:
            text, _ = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill_all()
            text, _ = process.communicate()
            return Said(-1, text + "\nthe run did not end")
        return Said(process.returncode, text)

    def workers(self, command: str = "") -> dict[int, str]:
        """The words of those who are at work, by their processes; of one command, or of all."""
        found = {}
        for note in (self.root / JOBS).iterdir():
            with suppress(OSError, ValueError):
                if self._is_ours(int(note.name)):
                    found[int(note.name)] = note.read_text()
                else:
                    note.unlink()
        return {pid: words for pid, words in found.items() if words.partition(" ")[0] == command or not command}

    def _is_ours(self, pid: int) -> bool:
        """Whether a process is a worker of this server's: a note may outlive it, and its number be another's."""
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            return process.ppid() == self.server.pid and process.status() != psutil.STATUS_ZOMBIE
        return False

    def await_(
        self, condition: Callable[[], object], seconds: float = 60, process: subprocess.Popen[str] | None = None
    ) -> bool:
        """Whether something comes true before a time is over, or the run is."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and (process is None or process.poll() is None):
            if condition():
                return True
            time.sleep(0.02)
        return bool(condition())

    def kill_workflow(self, alone: bool) -> None:
        """SIGKILL to Snakemake; not `alone`, to everything that it started too."""
        for pid in self.workers("snakemake"):
            with suppress(ProcessLookupError):
                (os.kill if alone else os.killpg)(pid, signal.SIGKILL)

    def kill_all(self) -> None:
        """Ends every worker."""
        for pid in self.workers():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.await_(lambda: not self.workers(), 10)

    # States

    def make_states(self) -> None:
        """Runs without a fault, and keeps what is there before images, before judges, and at the end."""
        early = ["captions", "embeddings", "references", "spec", "learn"]
        shards = [f"{CELLS}/{arm}/seed0/shards/{name}.json" for arm in ARMS for name in ("00000-00003", "00004-00007")]
        for name, words in (("prepared", ["--until", *early[:3]]), ("drawn", shards), ("finished", [])):
            said = self.run(*words)
            if said.status:
                raise RuntimeError(f"a run without a fault failed:\n{said.text}")
            self.keep(name)

    def keep(self, name: str) -> None:
        """Keeps what is there under a name."""
        for part in ("results", ".snakemake"):
            subprocess.run(["cp", "-a", str(self.root / part), str(self._state(name) / part)], check=True)

    def _state(self, name: str) -> Path:
        place = self.states / name
        place.mkdir(exist_ok=True)
        return place

    def restore(self, name: str) -> None:
        """Goes back to a state."""
        self.kill_all()
        for part in ("results", ".snakemake"):
            shutil.rmtree(self.root / part, ignore_errors=True)
            subprocess.run(["cp", "-a", str(self._state(name) / part), str(self.root / part)], check=True)
        (self.root / "trouble.txt").unlink(missing_ok=True)

    @property
    def results(self) -> Path:
        """The results folder of the runs."""
        return self.root / "results"

    @property
    def undisturbed(self) -> Path:
        """The results of the run without a fault."""
        return self.states / "finished/results"


@contextmanager
def station(root: Path) -> Iterator[Station]:
    """A station with its states made."""
    made = Station(root)
    try:
        made.make_states()
        yield made
    finally:
        made.close()
