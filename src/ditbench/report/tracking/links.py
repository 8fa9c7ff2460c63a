"""Addresses of MLflow's pages."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ditbench.report.tracking.connection import without_secrets
from ditbench.report.tracking.views import VIEW

# Without it MLflow opens its pages for language models.
TRAINING = "?workflowType=machine_learning"


def base_link(uri: str, port: int = 5000) -> str:
    """Where the user interface of a store is: on its server, or where `ditbench mlflow` starts it."""
    return without_secrets(uri).rstrip("/") if uri.startswith("http") else f"http://127.0.0.1:{port}"


def table_link(uri: str, experiment: str, port: int = 5000) -> str:
    """Opens the runs of an experiment with the columns of its study."""
    return f"{base_link(uri, port)}/#/experiments/{experiment}/runs{TRAINING}&viewStateShareKey={VIEW}"


def charts_link(uri: str, experiment: str, port: int = 5000) -> str:
    """Opens the charts of an experiment: quality against speed first, then a bar chart for each measure."""
    return f"{table_link(uri, experiment, port)}&compareRunsMode=CHART"


def compare_link(uri: str, experiment: str, runs: Sequence[str], port: int = 5000) -> str:
    """Opens runs side by side."""
    chosen, where = (json.dumps(list(ids), separators=(",", ":")) for ids in (runs, [experiment]))
    # The runs must come first: that page reads its address in no other order.
    return f"{base_link(uri, port)}/#/compare-runs?runs={chosen}&experiments={where}&{TRAINING[1:]}"
