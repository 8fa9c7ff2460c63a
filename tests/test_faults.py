"""What the user is told."""

from __future__ import annotations

import io
import os
import sys

import pytest

from ditbench.cli import main
from ditbench.faults import tell


def unbuffered(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What is written to the terminal, write by write, where Python does not buffer (PYTHONUNBUFFERED)."""
    reads, writes = os.pipe()
    pieces: list[bytes] = []

    class Raw(io.FileIO):
        def write(self, data: object) -> int:  # each write to the system
            pieces.append(bytes(data))  # type: ignore[call-overload]
            return len(pieces[-1])

    os.close(reads)
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(Raw(writes, "w"), write_through=True))  # type: ignore[type-var]
    return pieces


def test_a_sentence_reaches_the_terminal_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process writing to the same terminal must not come between it and its end, buffered or not."""
    pieces = unbuffered(monkeypatch)
    tell("the disk is full; make room")
    assert pieces == [b"ditbench: the disk is full; make room\n"]


def test_what_commands_print_reaches_the_terminal_by_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    def say(options: object) -> None:
        print("images: 4 of 8", "soon", sep=", ", file=sys.stderr)
        print("images: 8 of 8", file=sys.stderr, flush=True)

    monkeypatch.setattr("ditbench.cli._worlds", say)
    pieces = unbuffered(monkeypatch)
    assert main(["worlds"]) == 0
    assert [piece for piece in pieces if piece] == [b"images: 4 of 8, soon\n", b"images: 8 of 8\n"]
