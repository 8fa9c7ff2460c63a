"""MLflow's SQLite store as a file: whether it is there, and whether it can be written to now.

Nothing of MLflow is imported here: the workflow asks on every start.
"""

from __future__ import annotations

import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from ditbench.faults import Fault

if TYPE_CHECKING:
    from ditbench.config import Config

# How long another program may keep the store locked before publishing gives up; the workflow tries it three times.
PATIENCE = 90.0
_POLL = 0.5


def store_uri(config: Config, results: Path) -> str:
    """Where runs go: the config's server, or an SQLite file in the results."""
    return config.mlflow.uri or f"sqlite:///{(results / 'mlflow.db').resolve()}"


def store_file(uri: str) -> Path | None:
    """The file of an SQLite store; None for a server."""
    return Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:///") else None


def missing_store(config: Config, published: str | Path) -> str:
    """Which store is gone that was published to; nothing where it is there, or nothing was published."""
    file = store_file(store_uri(config, Path(config.results)))
    return str(file) if file is not None and Path(published).exists() and not file.exists() else ""


def await_writable(file: Path, patience: float = PATIENCE) -> None:
    """Waits while another program has an SQLite store locked; a Fault where that lasts, or it is read-only."""
    if not file.exists() or file.stat().st_size == 0:
        return
    began, told = time.monotonic(), False
    while True:
        try:
            with closing(sqlite3.connect(file, timeout=_POLL, isolation_level=None)) as store:
                store.execute("BEGIN IMMEDIATE")
                store.execute("ROLLBACK")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise fault_of(file, str(error)) from error
            if time.monotonic() - began > patience:
                raise fault_of(file, str(error)) from error
        except sqlite3.DatabaseError as error:
            raise fault_of(file, str(error)) from error
        if not told:
            told = True
            print(f"MLflow: another program has {file} locked; waiting for it", file=sys.stderr, flush=True)
        time.sleep(_POLL)


def fault_of(file: Path, reason: str) -> Fault:
    """What is wrong with an SQLite store, and what to do; the records stand beside it whatever becomes of it."""
    if "locked" in reason:
        return Fault(
            f"{file} is locked by another program, and stayed so; end that program and run again: "
            "the records are kept, and are published then"
        )
    if "readonly" in reason or "unable to open" in reason:
        return Fault(
            f"{file} cannot be written: {reason}; give yourself the right to write it and to its folder, or move it "
            "away, and run again: it is made anew from the records"
        )
    if "disk is full" in reason or "disk I/O" in reason:
        return Fault(f"{file} cannot be written: {reason}; make room, and run again: the records are kept")
    return Fault(f"{file} cannot be used as an MLflow store: {reason}; move it away and run again, it is made anew")
