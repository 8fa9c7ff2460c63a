"""Opens MLflow's store: one process at a time where it is a file, and a sentence soon where it cannot be opened."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from ditbench.faults import Fault
from ditbench.report.tracking.store import await_writable, fault_of, store_file

if TYPE_CHECKING:
    from mlflow import MlflowClient

# How long a server may take to answer before it counts as unreachable.
PATIENCE_S = 5


def quiet_mlflow() -> None:
    """Settings that must be made before MLflow is imported: no telemetry, no long waits for a silent server."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(2 * PATIENCE_S))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")


@contextmanager
def locked(uri: str) -> Iterator[None]:
    """Lets one process at a time use an SQLite store; a server looks after itself."""
    import fcntl

    file = store_file(uri)
    if file is None:
        yield
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = file.with_name(f".{file.name}.lock").open("w")
    except OSError as error:
        raise Fault(f"{file}: the MLflow store cannot be written there ({error.strerror})") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        await_writable(file)
        yield


def open_store(uri: str) -> MlflowClient:
    """A client of a store that answers and has today's schema; call it under `locked`."""
    _check_reachable(uri)
    quiet_mlflow()
    import logging

    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    for name in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        _upgrade(uri)
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    except MlflowException as error:
        raise store_trouble(uri, error) from error
    except Exception as error:  # SQLAlchemy, alembic and requests all have their own
        raise store_trouble(uri, error) from error
    return client


def _upgrade(uri: str) -> None:
    """Gives an SQLite store the schema of the installed MLflow: on a copy, so that a stop leaves no half-made file."""
    file = store_file(uri)
    if file is None:
        return
    from mlflow.store.db import utils

    fresh = not file.is_file() or file.stat().st_size == 0
    if not fresh and _has_todays_schema(uri):
        return
    partial = file.with_name(f".{file.name}.partial")
    partial.unlink(missing_ok=True)
    if not fresh:
        shutil.copyfile(file, partial)
    engine = utils.create_sqlalchemy_engine_with_retry(f"sqlite:///{partial}")
    try:
        if fresh:
            utils._initialize_tables(engine)
        else:
            utils._upgrade_db(engine)
    finally:
        engine.dispose()
    os.replace(partial, file)


def _has_todays_schema(uri: str) -> bool:
    from mlflow.store.db import utils

    engine = utils.create_sqlalchemy_engine_with_retry(uri)
    try:
        return bool(utils._get_schema_version(engine) == utils._get_latest_schema_revision())
    finally:
        engine.dispose()


def store_trouble(uri: str, error: Exception) -> Fault:
    file = store_file(uri)
    reason = " ".join(str(error).split())[:300]
    if file is None:
        return Fault(
            f"MLflow at {without_secrets(uri)} does not serve us: {reason}; the records are kept, publish again"
        )
    if isinstance(error, OSError):
        return Fault(f"{file} cannot be written: {reason}; make room or change its rights, and publish again")
    return fault_of(file, reason)


def _check_reachable(uri: str) -> None:
    """Answers within seconds whether anybody listens, before MLflow's own patience begins."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=PATIENCE_S).close()
    except OSError as error:
        raise Fault(
            f"MLflow at {without_secrets(uri)} cannot be reached ({error.strerror or error}); start the server or "
            "change mlflow.uri and run again; the records are kept"
        ) from error


def without_secrets(uri: str) -> str:
    """An address without user name and password."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri
