"""Runs in MLflow's store: written whole, kept where nothing changed, replaced where something did."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ditbench.report.tracking.publications import FOLDER, Publication
from ditbench.report.tracking.store import store_file
from ditbench.report.tracking.transaction import one_transaction
from ditbench.report.tracking.views import experiment_tags
from ditbench.study import Study

if TYPE_CHECKING:
    from mlflow import MlflowClient

KEY, DIGEST = "ditbench.key", "ditbench.digest"
# The name of the settings' file in <results>/configs. Not in the digest: other settings, an added arm for instance,
# leave a cell what it was.
CONFIG = "config.hash"
# A run without a digest this old was left by a publication that died.
ABANDONED_MS = 3600 * 1000
# As many metrics as MLflow takes at once.
BATCH = 1000


def place_of_run(plan: Publication) -> str:
    """What a publication is of, whatever its spec: a cell's world, arm and seed."""
    return plan.key.rpartition("/")[0]


def is_there(digest: str, runs: Sequence[Any]) -> bool:
    """Whether one run alone is there, and with this content: nothing is to be done."""
    return len(runs) == 1 and runs[0].data.tags.get(DIGEST) == digest


def publish_one(
    client: MlflowClient, experiment: str, plan: Publication, known: Mapping[str, list[Any]], settings: str
) -> tuple[str, str]:
    """Makes the store hold exactly one run of a cell, with its present content; the run's id and what was done.

    `known` are the runs that this folder had in the experiment before, by cell: where one alone holds the content
    already, there is nothing more to ask of the store.
    """
    digest = plan.digest
    action, there = "kept", known.get(place_of_run(plan), [])
    if is_there(digest, there):
        _tag_settings(client, there[0], settings)
        return str(there[0].info.run_id), action
    if not any(run.data.tags.get(DIGEST) == digest for run in there):
        created = _create_run(client, experiment, plan, digest, settings)
        action = "written"
        if not there and _alone(client):
            return created, action
    # A new run is written before the old one goes: a stop in between loses nothing, the next publication tidies up.
    # Whoever publishes last sees all and keeps the same one as everybody else would.
    runs = _runs_of(client, experiment, plan)
    kept = min(run.info.run_id for run in runs if run.data.tags.get(DIGEST) == digest)
    for run in runs:
        unfinished = DIGEST not in run.data.tags
        if run.info.run_id != kept and (not unfinished or _abandoned(client, run)):
            client.delete_run(run.info.run_id)
            action = "replaced" if action == "written" else action
    _tag_settings(client, next(run for run in runs if run.info.run_id == kept), settings)
    return kept, action


def known_runs(client: MlflowClient, experiment: str, folder: str) -> dict[str, list[Any]]:
    """All runs of a results folder in an experiment, by the cell that they are of; a page of them at a time."""
    found: dict[str, list[Any]] = {}
    page: str | None = None
    while True:
        runs = client.search_runs([experiment], f"tags.`{FOLDER}` = '{folder}'", max_results=1000, page_token=page)
        for run in runs:
            found.setdefault(run.data.tags.get("ditbench.cell", ""), []).append(run)
        page = runs.token
        if not page:
            return found


def experiment_of(client: MlflowClient, uri: str, world: str, studies: Sequence[Study]) -> str:
    """The experiment of a world, made, restored or brought up to date; its id."""
    name = f"ditbench/{world}"
    store = store_file(uri)
    # Beside the store: several results folders may share one.
    place = (store.parent / "mlartifacts" / world).resolve().as_uri() if store is not None else None
    experiment = client.get_experiment_by_name(name)
    if experiment is not None and experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    if experiment is not None and place is not None and experiment.artifact_location != place:
        # MLflow keeps absolute paths: after a move the old experiment points to where nothing is any more.
        stamp = hashlib.sha256(experiment.artifact_location.encode()).hexdigest()[:6]
        client.rename_experiment(experiment.experiment_id, f"{name} (before its folder moved, {stamp})")
        experiment = None
    made = experiment.experiment_id if experiment is not None else _create(client, name, place)
    for key, value in experiment_tags(world, studies).items():
        if experiment is None or experiment.tags.get(key) != value:
            client.set_experiment_tag(made, key, value)
    return str(made)


def _create(client: MlflowClient, name: str, place: str | None) -> str:
    from mlflow.exceptions import MlflowException

    try:
        return str(client.create_experiment(name, artifact_location=place))
    except MlflowException:
        # Another publication to the same server may have been faster.
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            raise
        return str(experiment.experiment_id)


def _tag_settings(client: MlflowClient, run: Any, settings: str) -> None:
    """Says on a run which configuration was the last to ask for it, where that has changed."""
    if settings and run.data.tags.get(CONFIG) != settings:
        client.set_tag(run.info.run_id, CONFIG, settings)


def _alone(client: MlflowClient) -> bool:
    """Whether nobody else can be publishing: a store in a file is locked while somebody does (see `locked`)."""
    return bool(client.tracking_uri.startswith("sqlite"))


def _abandoned(client: MlflowClient, run: Any) -> bool:
    """Whether an unfinished run is nobody's: an SQLite store has one writer at a time, a server may have others."""
    created = int(run.data.tags.get("ditbench.published_ms", 0))
    return _alone(client) or time.time() * 1000 - created > ABANDONED_MS


def _runs_of(client: MlflowClient, experiment: str, plan: Publication) -> list[Any]:
    place = place_of_run(plan)
    # Of all specs: a cell whose knobs changed has a new key, and its old run must go. Of this results folder alone:
    # other runs of the workflow may publish cells of the same name to the same server.
    wanted = f"tags.`ditbench.cell` = '{place}' and tags.`{FOLDER}` = '{plan.tags[FOLDER]}'"
    return list(client.search_runs([experiment], wanted, max_results=1000))


def _create_run(client: MlflowClient, experiment: str, plan: Publication, digest: str, settings: str) -> str:
    """Writes a run; returns its id."""
    if plan.model is None:
        with one_transaction(client):
            run = _write_run(client, experiment, plan, settings)
            client.set_tag(run.info.run_id, DIGEST, digest)
        return str(run.info.run_id)
    run = _write_run(client, experiment, plan, settings)
    _register(client, run.info.run_id, plan.model)
    # Last of all: a run with a digest is a whole one.
    client.set_tag(run.info.run_id, DIGEST, digest)
    return str(run.info.run_id)


def _write_run(client: MlflowClient, experiment: str, plan: Publication, settings: str) -> Any:
    """All of a run but the digest that says that it is whole."""
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    tags = plan.tags | {KEY: plan.key, "ditbench.cell": place_of_run(plan), "ditbench.published_ms": str(now)}
    tags |= {CONFIG: settings} if settings else {}
    run = client.create_run(experiment, start_time=plan.start_ms or now, tags=tags, run_name=plan.name)
    run_id, stamp = run.info.run_id, plan.end_ms or now
    metrics = [Metric(name, value, stamp, 0) for name, value in plan.metrics.items()]
    client.log_batch(run_id, metrics, [Param(k, v) for k, v in plan.params.items()])
    points = [
        Metric(name, value, stamp, step)
        for name, values in plan.curves.items()
        for step, value in enumerate(values)
        if math.isfinite(value)
    ]
    for first in range(0, len(points), BATCH):
        client.log_batch(run_id, points[first : first + BATCH])
    _log_datasets(client, run_id, plan)
    _log_files(client, run, {**plan.files, **plan.draw()})
    client.set_terminated(run_id, "FAILED" if plan.failed else "FINISHED", end_time=stamp)
    return run


def _log_files(client: MlflowClient, run: Any, files: Mapping[str, bytes]) -> None:
    """Writes a run's artifacts: straight to where they will lie, where that is a folder of this machine."""
    from mlflow.utils.file_utils import local_file_uri_to_path

    uri = run.info.artifact_uri
    if urlsplit(uri).scheme in ("", "file"):
        _write_files(Path(local_file_uri_to_path(uri)), files)
        return
    with tempfile.TemporaryDirectory() as folder:
        _write_files(Path(folder), files)
        client.log_artifacts(run.info.run_id, folder)


def _write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def _log_datasets(client: MlflowClient, run_id: str, plan: Publication) -> None:
    """The caption set and the references as the run's data sets, known by their own hashes."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = []
    for given, folder, context in ((plan.captions, "captions", "evaluation"), (plan.references, "references", "real")):
        if given is not None:
            name, digest = given
            data = Dataset(name, digest[:12] or "unknown", "local", json.dumps({"uri": f"{folder}/{name}.json"}))
            inputs.append(DatasetInput(data, [InputTag("mlflow.data.context", context)]))
    if inputs:
        client.log_inputs(run_id, datasets=inputs)


def _register(client: MlflowClient, run_id: str, name: str) -> None:
    """Makes what a run learned the newest version of a registered model; the run's artifacts are that version."""
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException):  # there already
        client.create_registered_model(name, description="What an arm of ditbench learned: learned.json")
    uri = client.get_run(run_id).info.artifact_uri
    client.create_model_version(name, source=uri, run_id=run_id)
