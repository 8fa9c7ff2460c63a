"""The warm process: commands done by its forks end, print and fail as if they had been done where they were typed."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ditbench.warm import SOCKET, ask, new_place, supported

pytestmark = pytest.mark.skipif(not supported(), reason="this system does not fork and pass files as needed")

# A server whose work is told by its words; nothing heavy is loaded.
SERVER = """
import os, sys, time
from pathlib import Path
from ditbench import warm

def work(words):
    if words[1] == "say":
        print("said", os.getcwd(), os.environ["TOLD"], flush=True)
        print("complained", file=sys.stderr)
        return 0
    if words[1] == "fail":
        raise ValueError("no good")
    if words[1] == "exit":
        sys.exit(2)
    if words[1] == "die":
        os.kill(os.getpid(), 9)
    Path(words[2]).write_text(str(os.getpid()))
    time.sleep(60)

warm._use_threads = lambda count: None
warm.serve(Path(sys.argv[1]), int(sys.argv[2]), lambda: None, work)
"""
CLIENT = "import sys; from ditbench.warm import ask; sys.exit(ask(['generate', *sys.argv[1:]]))"


def until(true: Callable[[], object]) -> None:
    """Waits until it is so, for ten seconds at most."""
    for _ in range(200):
        if true():
            return
        time.sleep(0.05)
    pytest.fail("this did not become so in ten seconds")


def waiting_asker(place: Path, note: Path) -> subprocess.Popen[bytes]:
    """A command whose worker has begun, written its number into `note`, and would take a minute."""
    environment = {**os.environ, SOCKET: str(place)}
    asker = subprocess.Popen([sys.executable, "-c", CLIENT, "wait", str(note)], env=environment)
    until(lambda: note.exists() and note.read_text())
    return asker


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("w") / "s"
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(place), str(os.getpid())])
    until(place.exists)
    yield place
    process.kill()
    process.wait()


def run(server: Path, *words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, SOCKET: str(server), "TOLD": "so"}
    return subprocess.run(
        [sys.executable, "-c", CLIENT, *words], env=environment, cwd=folder, capture_output=True, text=True, timeout=60
    )


def test_a_command_prints_and_ends_as_if_done_here(server: Path, tmp_path: Path) -> None:
    done = run(server, "say", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"said {tmp_path} so\n", "complained\n")
    assert run(server, "exit").returncode == 2
    failed = run(server, "fail")
    assert failed.returncode == 1
    assert "ValueError: no good" in failed.stderr
    assert run(server, "say", folder=tmp_path).stdout == done.stdout, "a failure leaves the process as it was"


def test_a_worker_that_was_killed_is_a_failure(server: Path) -> None:
    done = run(server, "die")
    assert done.returncode == 137
    assert "was killed" in done.stderr


def test_a_worker_ends_with_the_command_that_asked(server: Path, tmp_path: Path) -> None:
    note = tmp_path / "worker"
    asker = waiting_asker(server, note)
    worker = int(note.read_text())
    asker.send_signal(signal.SIGKILL)
    asker.wait()
    until(lambda: not Path(f"/proc/{worker}").exists())


def test_without_a_warm_process_commands_do_their_work_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask(["generate"]) is None
    monkeypatch.setenv(SOCKET, str(tmp_path / "nobody"))
    assert ask(["generate"]) is None
    assert ask(["worlds"]) is None


def test_a_process_that_does_not_answer_is_not_waited_for(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path_factory.mktemp("w") / "s"
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(place))
        deaf.listen(1)
        monkeypatch.setenv(SOCKET, str(place))
        monkeypatch.setattr("ditbench.warm.PATIENCE", 0.2)
        assert ask(["generate"]) is None


def test_ended_while_it_loads_it_leaves_nothing_behind(tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("w") / "s"
    loading = SERVER.replace("lambda: None, work", "lambda: time.sleep(60), work")
    server = subprocess.Popen([sys.executable, "-c", loading, str(place), str(os.getpid())])
    until(place.exists)
    server.send_signal(signal.SIGINT)  # Ctrl-C is for the run
    time.sleep(0.2)
    assert server.poll() is None
    server.terminate()
    assert server.wait(timeout=20) == 0
    assert not place.parent.exists()


def test_a_worker_ends_with_the_run(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    place, note = tmp_path_factory.mktemp("w") / "s", tmp_path / "worker"
    of_run = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(place), str(of_run.pid)])
    until(place.exists)
    asker = waiting_asker(place, note)
    of_run.kill()
    of_run.wait()
    assert asker.wait(timeout=20) == 137
    server.wait(timeout=20)


def test_a_long_temporary_folder_is_no_place_for_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    place = new_place()
    try:
        with socket.socket(socket.AF_UNIX) as door:
            door.bind(str(place))
    finally:
        shutil.rmtree(place.parent)


def test_it_ends_with_the_run_that_started_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("w") / "s"
    run_process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    server = subprocess.Popen([sys.executable, "-c", SERVER, str(place), str(run_process.pid)])
    until(place.exists)
    run_process.kill()
    run_process.wait()
    assert server.wait(timeout=20) == 0
    assert not place.exists()
