"""MLflow's SQLite file when others have it, when it may not be written, and when it is gone."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from ditbench.config import check_config
from ditbench.faults import Fault
from ditbench.report.tracking.store import await_writable, missing_store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(path)) as base:
        base.execute("CREATE TABLE runs (name TEXT)")
        base.commit()
    return path


def test_a_store_that_others_have_locked_is_waited_for(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = sqlite3.connect(store, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    timer = threading.Timer(1.0, other.rollback)
    timer.start()
    await_writable(store, patience=60)
    timer.join()
    other.close()
    assert capsys.readouterr().err.count("locked; waiting for it") == 1


def test_one_that_stays_locked_is_told_and_not_to_be_moved_away(store: Path) -> None:
    with closing(sqlite3.connect(store, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        with pytest.raises(Fault, match=r"locked by another program.*end that program and run again") as told:
            await_writable(store, patience=0.5)
        assert time.monotonic() - began < 30
    assert "move" not in str(told.value)


def test_a_read_only_one_is_told(store: Path) -> None:
    with store.open("r+b") as file:
        file.seek(18)
        file.write(bytes([9]))  # a format that today's SQLite may read only: what rights do, root has all of
    with pytest.raises(Fault, match=r"mlflow\.db cannot be written: .*readonly.*run again"):
        await_writable(store)


def test_what_is_no_database_is_told(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    path.write_bytes(b"no database at all, but long enough to be looked at" * 40)
    with pytest.raises(Fault, match="move it away and run again, it is made anew"):
        await_writable(path)


def test_a_store_is_missing_only_where_it_was_published_to(store: Path) -> None:
    root = store.parent
    config = check_config({"results": str(root)})
    published = root / "published.json"
    assert not missing_store(config, published)
    published.touch()
    assert not missing_store(config, published)
    store.unlink()
    assert missing_store(config, published) == str(store)
    server = check_config({"results": str(root), "mlflow": {"uri": "http://127.0.0.1:1"}})
    assert not missing_store(server, published)
