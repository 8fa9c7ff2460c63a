"""What the user is told."""

from __future__ import annotations

import io
import os
import sys

import pytest

from ditbench.faults import tell


def test_a_sentence_reaches_the_terminal_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process writing to the same terminal must not come between it and its end, buffered or not."""
    reads, writes = os.pipe()
    pieces: list[bytes] = []

    class Raw(io.FileIO):
        def write(self, data: object) -> int:  # each write to the system
            pieces.append(bytes(data))  # type: ignore[call-overload]
            return len(pieces[-1])

    os.close(reads)
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(Raw(writes, "w"), write_through=True))  # type: ignore[type-var]
    tell("the disk is full; make room")
    assert pieces == [b"ditbench: the disk is full; make room\n"]
