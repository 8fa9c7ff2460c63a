"""Several jobs on a machine of several devices: each has one of its own, and none is lost."""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest

from ditbench import leases
from ditbench.cli import main
from ditbench.faults import Fault
from ditbench.leases import VISIBLE, devices, lease_for, marks_of, take

JOB = """
import json, os, sys, time
from ditbench.leases import lease_for
held = lease_for("cuda")
began = time.time()
print(json.dumps(os.environ["CUDA_VISIBLE_DEVICES"]), flush=True)
time.sleep(float(sys.argv[1]))
print(json.dumps([began, time.time()]), flush=True)
"""


def start(seconds: float, folder: Path, visible: str = "GPU-a,GPU-b") -> subprocess.Popen[str]:
    environment = {**os.environ, VISIBLE: visible, "TMPDIR": str(folder)}
    return subprocess.Popen(
        [sys.executable, "-c", JOB, str(seconds)], env=environment, stdout=subprocess.PIPE, text=True
    )


def test_a_device_by_its_number_is_the_one_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drives(monkeypatch, tmp_path, "GPU-aa", "GPU-bb")
    held = take(["1"], tmp_path, marks=marks_of(["1"]))
    assert held.device == "1"
    with pytest.raises(Fault, match="have been at work"):
        take(["GPU-b"], tmp_path, wait=0.1, marks=marks_of(["GPU-b"]))
    assert take(["GPU-a"], tmp_path, wait=0.1, marks=marks_of(["GPU-a"])).device == "GPU-a"


def test_jobs_that_each_see_their_own_device_alone_do_not_wait_for_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drives(monkeypatch, tmp_path, "GPU-aa")
    one = take(["0"], tmp_path, marks=marks_of(["0"]))
    drives(monkeypatch, tmp_path, "GPU-bb")
    other = take(["0"], tmp_path, wait=0.1, marks=marks_of(["0"]))
    assert one.device == other.device == "0"
    (tmp_path / "nvidia-smi").unlink()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert marks_of(["0"]) == {"0": "7-0"}
    monkeypatch.delenv("SLURM_JOB_ID")
    assert marks_of(["0", "GPU-c"]) == {"0": "0", "GPU-c": "GPU-c"}


def test_locks_are_never_files_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    precious = tmp_path / "precious"
    precious.write_text("kept")
    folder = tmp_path / "locks"
    folder.mkdir()
    (folder / "0.lock").symlink_to(precious)
    with pytest.raises(OSError):
        take(["0"], folder)
    assert precious.read_text() == "kept"
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(Fault, match="is not a folder of yours; set TMPDIR"):
        take(["1"], folder)


def drives(monkeypatch: pytest.MonkeyPatch, folder: Path, *devices: str) -> None:
    """Has a driver's program that names some devices take the place of all programs."""
    program = folder / "nvidia-smi"
    program.write_text("#!/bin/sh\n" + "".join(f"echo {device}\n" for device in devices))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_no_two_jobs_share_a_device(tmp_path: Path) -> None:
    jobs = [start(0.6, tmp_path) for _ in range(5)]
    spans: dict[str, list[list[float]]] = {}
    for job in jobs:
        out, _ = job.communicate(timeout=60)
        device, span = (json.loads(line) for line in out.splitlines())
        spans.setdefault(device, []).append(span)
    assert sorted(spans) == ["GPU-a", "GPU-b"]
    for times in spans.values():
        times.sort()
        assert all(earlier[1] <= later[0] + 0.01 for earlier, later in itertools.pairwise(times))


def test_the_device_of_a_job_that_was_killed_is_free_again(tmp_path: Path) -> None:
    job = start(60, tmp_path, "GPU-a")
    assert job.stdout is not None
    assert json.loads(job.stdout.readline()) == "GPU-a"
    job.send_signal(signal.SIGKILL)
    job.wait()
    began = time.monotonic()
    other = start(0, tmp_path, "GPU-a")
    assert json.loads(other.communicate(timeout=60)[0].splitlines()[0]) == "GPU-a"
    assert time.monotonic() - began < 30


def test_a_lock_that_was_removed_meanwhile_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What cleans up temporary files takes the lock between our opening it and our locking it.
    path, locks, flock = tmp_path / "0.lock", [], fcntl.flock

    def removed_first(stream: IO[str], how: int) -> None:
        locks.append(how)
        if len(locks) == 1:
            path.unlink()
        flock(stream, how)

    monkeypatch.setattr("fcntl.flock", removed_first)
    held = take(["0"], tmp_path)
    assert os.path.samestat(os.fstat(held.file.fileno()), path.stat())
    with pytest.raises(Fault, match="have been at work"):
        take(["0"], tmp_path, wait=0.1)


def test_a_lock_is_as_new_as_its_last_lease(tmp_path: Path) -> None:
    take(["0"], tmp_path).end()
    os.utime(tmp_path / "0.lock", (0, 0))
    take(["0"], tmp_path)
    assert time.time() - (tmp_path / "0.lock").stat().st_mtime < 100


def test_waiting_has_an_end_and_says_how_to_share(tmp_path: Path) -> None:
    held = take(["0"], tmp_path)
    with pytest.raises(Fault, match=r"all 1 CUDA device\(s\) have been at work for 0\.1 s; name one \(cuda:0\)"):
        take(["0"], tmp_path, wait=0.1)
    held.end()
    assert take(["0"], tmp_path, wait=0.1).device == "0"


@pytest.mark.parametrize("device", ["cpu", "cuda:1", None])
def test_who_names_a_device_or_none_leases_none(device: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "0,1")
    assert lease_for(device) is None
    assert os.environ[VISIBLE] == "0,1"


def test_processes_of_one_training_are_handed_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VISIBLE, "0,1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert lease_for("cuda") is None


def test_a_machine_without_devices_leases_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(VISIBLE, raising=False)
    assert devices() == []
    assert lease_for("cuda") is None
    monkeypatch.setenv(VISIBLE, "")
    assert devices() == []


def test_devices_are_those_that_the_driver_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drives(monkeypatch, tmp_path, "GPU-1", "GPU-2")
    monkeypatch.delenv(VISIBLE, raising=False)
    assert devices() == ["GPU-1", "GPU-2"]


def test_a_command_sees_its_device_alone_and_gives_it_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(VISIBLE, "GPU-a,GPU-b")
    monkeypatch.setattr(leases, "lease_folder", lambda: tmp_path)
    first = take(["GPU-a"], tmp_path)
    seen: list[str] = []
    monkeypatch.setattr("ditbench.cli._routers", lambda options: seen.append(os.environ[VISIBLE]))
    words = ["routers", "record", "--caption", "a", "--out", "b.png", "--device", "cuda"]
    assert main(words) == 0
    assert seen == ["GPU-b"]
    assert os.environ[VISIBLE] == "GPU-a,GPU-b"
    first.end()
    assert main(words) == 0
    assert seen == ["GPU-b", "GPU-a"]
