"""What other processes took of the machine while something was timed: of the processor, and of the GPU.

What counts is what this process may use: the cores it is bound to, and a container's share of them. A busy process in
the same container takes half of a quota of two cores, however many cores the host has.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

CGROUPS, MEMBERSHIP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# NVML's utilisation is of up to the last second: own work must be over for that long.
QUIET_SECONDS, LOOKS = 1.2, 3


@dataclass(frozen=True)
class Quota:
    """How many cores a container may use, and the file that counts what it used."""

    cores: float
    usage: Path

    def seconds(self) -> float:
        """Processor seconds that all processes of the container have used; NaN where it can't be read."""
        try:
            text = self.usage.read_text()
            if self.usage.name == "cpu.stat":
                return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("usage_usec")) / 1e6
            return int(text) / 1e9
        except (OSError, ValueError, StopIteration):
            return float("nan")


def find_quota(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> Quota | None:
    """The tightest limit on processor time that holds for this process; None where there is none."""
    try:
        lines = [line.split(":", 2) for line in membership.read_text().splitlines()]
    except OSError:
        return None
    found = []
    for _, controllers, place in (line for line in lines if len(line) == 3):
        names = controllers.split(",")
        if controllers == "":
            found += [_unified(folder) for folder in _upwards(cgroups, place)]
        elif "cpu" in names:
            mounts = [cgroups / name for name in (controllers, "cpu") if (cgroups / name).is_dir()]
            found += [_legacy(folder, cgroups) for mount in mounts[:1] for folder in _upwards(mount, place)]
    return min(filter(None, found), key=lambda quota: quota.cores, default=None)


def _upwards(mount: Path, place: str) -> list[Path]:
    """A group's folder and those above it, which limit it too; in a container often only the mount itself is there."""
    folder = mount / place.strip("/")
    folders = [folder, *folder.parents]
    return folders[: folders.index(mount) + 1] if mount in folders else [mount]


def _unified(folder: Path) -> Quota | None:
    """The limit of a folder of cgroup v2: "max 100000", or microseconds of processor time per period."""
    try:
        most, period = (folder / "cpu.max").read_text().split()
        return None if most == "max" else Quota(int(most) / int(period), folder / "cpu.stat")
    except (OSError, ValueError, ZeroDivisionError):
        return None


def _legacy(folder: Path, cgroups: Path) -> Quota | None:
    """The limit of a folder of cgroup v1, where -1 is none; another controller counts the use."""
    try:
        most, period = (int((folder / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        if most <= 0:
            return None
        counter = folder / "cpuacct.usage"  # cpu and cpuacct are often one
        if not counter.exists():
            counter = cgroups / "cpuacct" / folder.relative_to(cgroups / folder.relative_to(cgroups).parts[0])
            counter /= "cpuacct.usage"
        return Quota(most / period, counter)
    except (OSError, ValueError, ZeroDivisionError):
        return None


def bound_cores() -> list[int] | None:
    """The cores that this process may run on; None where that is all of them, or can't be said."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    return cores if len(cores) < (psutil.cpu_count() or 1) else None


def share_lost(cores: float, others: float, quota: float | None = None, in_group: float = 0.0) -> float:
    """The share of what a process may use that others took, between 0 and 1.

    `others` cores' worth of work was done by others on the `cores` it may run on, `in_group` of it within its own
    quota. A quota is lost to others in the group, and where the rest of the machine leaves less than the quota free.
    """
    if cores <= 0:
        return 0.0
    if quota is None or quota >= cores:
        return max(0.0, min(1.0, others / cores))
    return max(0.0, min(1.0, max(in_group, quota - (cores - others)) / quota))


class Neighbours:
    """Measures the share that other processes took of the processor time that this one may use."""

    def __init__(self, quota: Quota | None = None) -> None:
        self.quota = quota or find_quota()
        self.bound = bound_cores()
        self._began = self._read()

    def _read(self) -> tuple[float, float, float, float, float]:
        """Seconds so far: all work on the cores in question, their whole time, own work, the group's, and a clock."""
        machine = psutil.cpu_times(percpu=True)
        if self.bound is not None and self.bound[-1] < len(machine):
            machine = [machine[core] for core in self.bound]
        idle = sum(core.idle + getattr(core, "iowait", 0.0) for core in machine)
        # On Linux guest time is counted within user time.
        guest = sum(getattr(core, "guest", 0.0) + getattr(core, "guest_nice", 0.0) for core in machine)
        busy = sum(sum(core) for core in machine) - idle - guest
        own = psutil.Process().cpu_times()
        group = self.quota.seconds() if self.quota else 0.0
        return busy, busy + idle, own.user + own.system, group, time.monotonic()

    def share(self) -> float:
        """The share taken by others since this was made, between 0 and 1."""
        busy, whole, own, group, passed = (now - then for now, then in zip(self._read(), self._began, strict=True))
        if whole <= 0 or passed <= 0:
            return 0.0
        in_group = (group - own) / passed if self.quota and group == group else 0.0
        return share_lost(
            whole / passed, max(0.0, busy - own) / passed, self.quota.cores if self.quota else None, in_group
        )


def gpu_load(device: str) -> float | None:
    """The share of the time that others keep a GPU busy, seen while this process leaves it idle; None if not checked.

    The driver's own program tells it, by the GPU's identity: indices differ where only some GPUs are visible.
    """
    import torch

    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    torch.cuda.synchronize(device)
    identity = str(torch.cuda.get_device_properties(device).uuid)
    identity = identity if identity.startswith(("GPU-", "MIG-")) else f"GPU-{identity}"
    command = [program, "-i", identity, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    seen = []
    for _ in range(LOOKS):
        time.sleep(QUIET_SECONDS)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
            seen.append(int(done.stdout.strip()) / 100)
        except (OSError, subprocess.SubprocessError, ValueError):  # "[N/A]" on parts of a divided GPU
            return None
    return max(seen)
