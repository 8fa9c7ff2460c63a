"""A process that has loaded the heavy libraries once, and forks a worker for each job of a run.

Importing torch and diffusers takes ten seconds or more, as long as drawing dozens of images of the embedded world. A
run of the workflow starts one such process (`ditbench warm`); `ditbench` commands that find its socket in
$DITBENCH_WARM hand it their words, their folder, their environment and their open files, and wait for the worker's
exit status. Where there is none, or it does not answer, a command does its work itself: only the waiting differs.

A worker ends with the command that asked for it, and the process with the run that started it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

SOCKET = "DITBENCH_WARM"
# The commands whose libraries take longer to load than to hand over.
HEAVY = ("embed", "generate", "score", "time")
LISTENING = 0.5  # seconds between two looks at whether the run is still there
PATIENCE = 120.0  # seconds in which a command must have been taken: the libraries may still be loading
TAKEN = b"+"


def supported() -> bool:
    """Whether this system forks without surprises and passes open files on."""
    return sys.platform.startswith("linux") and hasattr(socket, "send_fds")


def new_place() -> Path:
    """Where a new process of this kind may listen, in a folder of its own."""
    folder = tempfile.gettempdir()
    # A socket's path may have about a hundred letters, no more.
    return Path(tempfile.mkdtemp(prefix="ditbench-", dir=folder if len(folder) < 70 else "/tmp")) / "socket"


def ask(words: Sequence[str]) -> int | None:
    """Has a command done by the warm process, if there is one; its exit status, or None where it must be done here."""
    path = os.environ.get(SOCKET)
    if not path or not words or words[0] not in HEAVY or not supported():
        return None
    with socket.socket(socket.AF_UNIX) as line:
        try:
            line.settimeout(PATIENCE)
            line.connect(path)
            body = json.dumps({"words": list(words), "folder": os.getcwd(), "environment": dict(os.environ)}).encode()
            socket.send_fds(line, [len(body).to_bytes(4, "big")], [0, 1, 2])
            line.sendall(body)
        except OSError:
            return None
        if not _received(line, len(TAKEN)):  # it ended before it could take the job
            return None
        line.settimeout(None)
        status = _received(line, 4)
        if not status:  # for memory, most likely
            # Not `tell`: this module is run by itself too, where there is no package.
            sys.stderr.write("ditbench: the worker of this job was killed before it had finished\n")
            return 137
        return int.from_bytes(status, "big")


def _received(line: socket.socket, size: int) -> bytes:
    """So many bytes; nothing where the other end went before they were there."""
    body = b""
    with suppress(ConnectionError, TimeoutError):
        while len(body) < size:
            part = line.recv(size - len(body))
            if not part:
                return b""
            body += part
    return body


def serve(path: Path, run: int, preload: Callable[[], None], work: Callable[[Sequence[str]], int]) -> None:
    """Listens at `path` as long as the process `run` is there; each command is done by a fork of this process."""
    # Ctrl-C is for the run and its workers; this process ends with the run, and leaves nothing behind.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _leave)
    try:
        with socket.socket(socket.AF_UNIX) as door:
            door.bind(str(path))
            os.chmod(path, 0o600)
            # Commands may connect from now on; they wait until the libraries are loaded.
            door.listen(64)
            preload()
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the workers: they tell their askers
            while _alive(run):
                ready, _, _ = select.select([door], [], [], LISTENING)
                if ready:
                    line, _ = door.accept()
                    with line:
                        if os.fork() == 0:
                            door.close()
                            _worker(line, run, work)
    finally:
        path.unlink(missing_ok=True)
        with suppress(OSError):
            path.parent.rmdir()  # made for the socket alone


def _leave(*_: object) -> None:
    sys.exit(0)


def _alive(process: int) -> bool:
    import psutil

    with suppress(psutil.Error):
        return bool(psutil.Process(process).status() != psutil.STATUS_ZOMBIE)
    return False


def _worker(line: socket.socket, run: int, work: Callable[[Sequence[str]], int]) -> None:
    """Does one command as if its process had been started for it alone; never returns."""
    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        head, files, _, _ = socket.recv_fds(line, 4, 3)
        asked = json.loads(_received(line, int.from_bytes(head, "big")))
        line.sendall(TAKEN)
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        threading.Thread(target=_end_with, args=(line, run), daemon=True).start()
        os.chdir(asked["folder"])
        os.environ.clear()
        os.environ.update(asked["environment"])
        _use_threads(os.environ.get("OMP_NUM_THREADS"))
        status = work(asked["words"])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        with suppress(OSError):
            line.sendall((status & 0xFF).to_bytes(4, "big"))
        os._exit(status & 0xFF)


def _end_with(line: socket.socket, run: int) -> None:
    """Ends this worker when the command that asked for it is gone, or the run is."""
    with suppress(OSError):
        while _alive(run):
            if select.select([line], [], [], LISTENING)[0] and line.recv(1) == b"":
                break
        os.kill(os.getpid(), signal.SIGKILL)


def _use_threads(count: str | None) -> None:
    """The environment's number of threads, which libraries read when they are loaded, before there was one."""
    import torch

    torch.set_num_threads(int(count) if count and count.isdigit() and int(count) else len(os.sched_getaffinity(0)))


def load_libraries() -> None:
    """What the heavy commands import, torch and diffusers above all; starts no threads and touches no GPU."""
    import diffusers.pipelines.pixart_alpha  # noqa: F401
    import torch
    from diffusers import PixArtAlphaPipeline, PixArtTransformer2DModel  # noqa: F401

    from ditbench.backbones.families import families
    from ditbench.records import environment_hash

    families()
    environment_hash()  # half a second that every job would spend
    torch.set_num_threads(1)
    with suppress(ImportError):  # the judges' own; without them their commands say what is missing
        from cleanfid import fid  # noqa: F401
