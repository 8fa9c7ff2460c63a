"""Starts MLflow's own pages on a results folder's store."""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ditbench.faults import Fault
from ditbench.report.tracking.connection import locked, open_store, without_secrets
from ditbench.report.tracking.links import table_link
from ditbench.report.tracking.store import store_file, store_uri

if TYPE_CHECKING:
    from ditbench.config import Config


def serve(config: Config, results: str | Path | None = None, port: int = 5000, host: str = "127.0.0.1") -> None:
    """Starts MLflow's user interface on the results' store until it is interrupted.

    Only this machine can open it, unless `host` says otherwise. Where `port` is taken, the next free one serves.
    """
    import signal
    import subprocess

    root = Path(results if results is not None else config.results)
    uri = store_uri(config, root)
    file = store_file(uri)
    if file is not None and not file.is_file():
        there = "" if results is None else f" --config results={results}"
        raise Fault(f"nothing has been published to {file} yet: `uv run snakemake --cores all{there}` does")
    if uri.startswith("http"):
        raise Fault(f"runs are published to {without_secrets(uri)}; open that address, there is nothing to start here")
    asked, port = port, _free_port(port)
    if port != asked:
        print(f"port {asked} is taken, {port} serves", file=sys.stderr)
    with locked(uri):
        experiments = open_store(uri).search_experiments(filter_string="name LIKE 'ditbench/%'")
    links = [f"{experiment.name}: {table_link(uri, experiment.experiment_id, port)}" for experiment in experiments]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--registry-store-uri", uri]
    command += ["--host", host, "--port", str(port), "--workers", "1"]
    # Without this MLflow starts seven more processes, for jobs that we do not have.
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    # What its libraries warn each other of is nobody's business here.
    environment.setdefault("PYTHONWARNINGS", "ignore")
    # A group of its own: MLflow's server starts another process, and both must go when we are told to stop.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        print("MLflow's server starts …", file=sys.stderr, flush=True)
        while server.poll() is None and not _answers(port):
            time.sleep(0.2)
        if server.poll() is None:
            print("\n".join([*links, "Ctrl+C stops it"]), flush=True)
        code = server.wait()
    except KeyboardInterrupt:
        return
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
    raise Fault(f"MLflow's server stopped with exit code {code}; what it said is above")


def _answers(port: int) -> bool:
    """Whether somebody listens at a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_port(first: int) -> int:
    last = min(first + 19, 65535)
    for port in range(first, last + 1):
        if not _answers(port):
            return port
    which = f"no port from {first} to {last} is" if last > first else f"port {first}, the last there is, is not"
    raise Fault(f"{which} free on this machine; stop a server that you no longer need, or name a lower --port")
