"""A Slurm of one node on loopback, with two GPUs that are pretended: to run the workflow's profile for real."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Where its programs look for settings: jobs are started without the variables that would name another place.
SETTINGS = Path("/etc/slurm")
PROGRAMS = ("slurmctld", "slurmd", "sinfo", "sbatch", "squeue", "scancel", "munged", "munge")
CONFIGURATION = """ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldPort={control}
SlurmdPort={node}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MinJobAge=300
KillWait=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 Sockets=1 CoresPerSocket={cores} ThreadsPerCore=1 RealMemory={memory} Gres=gpu:fake:2
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def lacking() -> str | None:
    """Why no Slurm can be started here; None where one can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "only root can start a Slurm"
    if (SETTINGS / "slurm.conf").exists():
        return "this machine has a Slurm of its own"
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    return f"Slurm is not installed ({', '.join(missing)}; packages slurm-wlm and munge)" if missing else None


class Slurm:
    """A running Slurm, whose files are in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def call(self, *words: str, check: bool = True) -> str:
        """A command's answer."""
        done = subprocess.run(words, capture_output=True, text=True, timeout=60)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(words)}: {done.stderr}")
        return done.stdout

    def start_node(self) -> None:
        """The node's daemon; when this returns it takes jobs."""
        self.call("slurmd")
        began = time.monotonic()
        while "idle" not in self.call("sinfo", "--noheader", "--format=%T") and time.monotonic() - began < 60:
            time.sleep(0.5)

    def stop(self, daemon: str) -> None:
        """Ends a daemon at once."""
        path = self.folder / f"{daemon}.pid"
        if path.exists():
            subprocess.run(["kill", "-9", path.read_text().strip()], check=False, capture_output=True)
            path.unlink(missing_ok=True)


@contextmanager
def slurm(folder: Path, cores: int = 2) -> Iterator[Slurm]:
    """Starts all of it, and leaves nothing running."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("state", "spool", "devices"):
        (folder / name).mkdir(exist_ok=True)
    # Slurm takes device files only: these are the empty and the zero device by other names.
    for number, minor in ((0, 3), (1, 5)):
        os.mknod(folder / "devices" / f"nvidia{number}", 0o020666, os.makedev(1, minor))
    host = socket.gethostname().split(".")[0]
    control, node = _free_ports(2)
    words = {"host": host, "folder": folder, "cores": cores, "memory": 16000, "control": control, "node": node}
    (folder / "slurm.conf").write_text(CONFIGURATION.format(**words))
    devices = folder / "devices" / "nvidia[0-1]"
    (folder / "gres.conf").write_text(f"NodeName={host} Name=gpu Type=fake File={devices} Flags=nvidia_gpu_env\n")
    SETTINGS.mkdir(exist_ok=True)
    for name in ("slurm.conf", "gres.conf"):
        (SETTINGS / name).symlink_to(folder / name)
    munged = _munge()
    made = Slurm(folder)
    try:
        made.call("slurmctld", "-c")
        made.start_node()
        yield made
    finally:
        made.call("scancel", "--user=root", check=False)
        for daemon in ("slurmd", "slurmctld"):
            made.stop(daemon)
        if munged is not None:
            munged.terminate()
        for name in ("slurm.conf", "gres.conf"):
            (SETTINGS / name).unlink()


def _munge() -> subprocess.Popen[bytes] | None:
    """Its authentication, unless it is at work already."""
    if subprocess.run(["munge", "-n"], capture_output=True).returncode == 0:
        return None
    os.makedirs("/run/munge", exist_ok=True)
    shutil.chown("/run/munge", "munge", "munge")
    started = subprocess.Popen(["runuser", "-u", "munge", "--", shutil.which("munged") or "munged", "--foreground"])
    for _ in range(50):
        if subprocess.run(["munge", "-n"], capture_output=True).returncode == 0:
            break
        time.sleep(0.1)
    return started


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports
