"""What others took of the processor that a process may use, and of its GPU."""

from __future__ import annotations

import os
import stat
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ditbench import neighbours
from ditbench.neighbours import Neighbours, Quota, bound_cores, find_quota, gpu_load, share_lost


def put(folder: Path, **files: str) -> Path:
    """Files of a control group; two underscores stand for a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")
    return folder


def member(folder: Path, *lines: str) -> Path:
    path = folder / "self-cgroup"
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_a_unified_group_is_limited_by_the_tightest_above_it(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    put(root / "pod", cpu__max="150000 100000", cpu__stat="usage_usec 2500000\nuser_usec 1")
    put(root / "pod" / "box", cpu__max="max 100000", cpu__stat="usage_usec 1")
    found = find_quota(root, member(tmp_path, "0::/pod/box"))
    assert found is not None and found.cores == 1.5 and found.seconds() == 2.5
    # In a container, the group's own folder is often what is mounted.
    put(root, cpu__max="50000 100000", cpu__stat="usage_usec 0")
    inside = find_quota(root, member(tmp_path, "0::/not/seen/here"))
    assert inside is not None and inside.cores == 0.5


def test_a_legacy_group_has_its_use_counted_beside_or_in_another_controller(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    put(root / "cpu" / "box", cpu__cfs_quota_us="200000", cpu__cfs_period_us="100000")
    put(root / "cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    put(root / "cpuacct" / "box", cpuacct__usage="3000000000")
    found = find_quota(root, member(tmp_path, "3:cpuset:/", "1:cpu:/box", "0::/"))
    assert found is not None and found.cores == 2 and found.seconds() == 3
    put(root / "cpu,cpuacct", cpu__cfs_quota_us="300000", cpu__cfs_period_us="100000", cpuacct__usage="5000000000")
    found = find_quota(root, member(tmp_path, "4:cpu,cpuacct:/"))
    assert found is not None and found.cores == 3 and found.seconds() == 5


@pytest.mark.parametrize("text", ["max 100000", "", "100000", "1 0"])
def test_no_limit_and_no_sense_are_no_quota(tmp_path: Path, text: str) -> None:
    put(tmp_path / "cgroup", cpu__max=text)
    assert find_quota(tmp_path / "cgroup", member(tmp_path, "0::/", "odd line")) is None
    assert find_quota(tmp_path / "cgroup", tmp_path / "none") is None


def test_what_is_lost_is_a_share_of_what_the_process_may_use() -> None:
    assert share_lost(cores=4, others=1) == 0.25
    # One busy neighbour in a container of two cores on a host of 64: half, not a sixty-fourth.
    assert share_lost(64, others=1, quota=2, in_group=1) == 0.5
    # Half the host is busy, and the quota is still free.
    assert share_lost(64, others=32, quota=2) == 0
    # The host leaves one core of the two.
    assert share_lost(64, others=63, quota=2) == 0.5
    assert share_lost(4, others=1, quota=8) == 0.25
    assert share_lost(4, others=9) == 1 and share_lost(4, others=-1) == 0 and share_lost(0, others=0) == 0


def test_own_work_is_not_called_contention(tmp_path: Path) -> None:
    watch = Neighbours()
    watch.quota = None
    busy, whole, own, group, clock = watch._began
    # Five seconds on two cores: six of the ten core seconds busy, five of them this process's own.
    watch._read = lambda: (busy + 6, whole + 10, own + 5, group, clock + 5)  # type: ignore[method-assign]
    assert watch.share() == pytest.approx(0.1)
    # The same within a quota of one core, where another process of the container did the rest.
    watch.quota = Quota(1, tmp_path / "cpu.stat")
    watch._read = lambda: (busy + 6, whole + 10, own + 4, group + 6, clock + 5)  # type: ignore[method-assign]
    assert watch.share() == pytest.approx(0.4)
    # A counter that can't be read leaves the machine's own figures.
    watch._read = lambda: (busy + 6, whole + 10, own + 4, float("nan"), clock + 5)  # type: ignore[method-assign]
    assert watch.share() == 0


def test_only_the_cores_that_a_process_is_bound_to_count(monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system binds no process to cores")
    times = namedtuple("times", ("user", "idle"))
    # Cores 0 and 2 are others' business.
    monkeypatch.setattr("psutil.cpu_times", lambda percpu: [times(90.0, 0.0), times(3.0, 7.0)] * 2)
    monkeypatch.setattr("psutil.cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 3})
    assert Neighbours()._began[:2] == (6.0, 20.0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert bound_cores() is None and Neighbours()._began[:2] == (186.0, 200.0)


def driver(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A stand-in of the driver's program, and of what torch knows about the card."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!{sys.executable} -S\nimport sys\n{body}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(neighbours, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="12-ab"))


def test_the_use_of_a_gpu_is_asked_by_its_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver(tmp_path, monkeypatch, "assert sys.argv[1:3] == ['-i', 'GPU-12-ab']; print('37')")
    assert gpu_load("cuda:0") == 0.37


@pytest.mark.parametrize("body", ["print('[N/A]')", "sys.exit(9)"])
def test_a_driver_that_does_not_tell_leaves_it_unchecked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    driver(tmp_path, monkeypatch, body)
    assert gpu_load("cuda:0") is None
    (tmp_path / "nvidia-smi").unlink()
    assert gpu_load("cuda:0") is None


@pytest.mark.gpu
def test_a_real_gpu_tells_its_use_or_nothing() -> None:
    load = gpu_load("cuda:0")
    assert load is None or 0 <= load <= 1
