"""Publishes cells to MLflow: one run per cell, in one experiment per world.

MLflow is a view of the records and can be rebuilt from them at any time. Publishing is repeatable: a cell's run is
found by its key, left alone when nothing changed and replaced when something did. An SQLite store is opened by one
process at a time, because several that open a fresh file at once ruin it.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditbench.faults import Fault
from ditbench.report.results import Cell, Results, load_results
from ditbench.report.tracking.connection import locked, open_store, store_trouble, without_secrets
from ditbench.report.tracking.links import TRAINING, base_link, charts_link, compare_link, table_link
from ditbench.report.tracking.publications import (
    ALL_SEEDS,
    PARENT,
    Publication,
    arm_publication,
    folder_id,
    learning_publication,
    logs_by_cell,
    publication,
    study_publication,
)
from ditbench.report.tracking.runs import experiment_of, is_there, known_runs, place_of_run, publish_one
from ditbench.report.tracking.store import store_file, store_uri
from ditbench.study import Study
from ditbench.sweeps import run_studies

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from ditbench.config import Config

# For how many cells something is drawn before they are written.
AHEAD = 4


def publish(config: Config, results: str | Path | None, out: str | Path, code: str | None = None) -> dict[str, Any]:
    """Publishes every finished or failed cell of a config, and writes a record of the runs and their links."""
    from ditbench.config import kept_settings
    from ditbench.records import Clock, write_record

    clock = Clock()
    with clock("load"):
        found = load_results(config, results)
        studies = run_studies(config)
    with clock("write"):
        body = publish_results(found, studies, store_uri(config, found.root), kept_settings(config).stem)
    write_record(out, "published", body, timings=clock.seconds, code=code)
    for each in body["experiments"]:
        count = sum(run["world"] == each["world"] for run in body["runs"])
        print(f"MLflow: {count} runs of world {each['world']} in {body['uri']}", file=sys.stderr)
        start = "" if body["uri"].startswith("http") else ", after `ditbench mlflow`"
        print(f"MLflow: {each['table']}{start}", file=sys.stderr, flush=True)
    return body


def publish_results(results: Results, studies: Sequence[Study], uri: str, settings: str = "") -> dict[str, Any]:
    """Publishes results that have been read; returns the runs and the links that open them.

    `settings` is the hash of the configuration that asked for them, a tag of every run.
    """
    logs = logs_by_cell(results.root)
    plans = [(cell, publication(cell, results, studies, logs)) for cell in results.cells if cell.state != "not run"]
    experiments, runs = [], []
    with locked(uri):
        client = open_store(uri)
        try:
            for world in dict.fromkeys(cell.world for cell, _ in plans):
                experiment = experiment_of(client, uri, world, studies)
                known = known_runs(client, experiment, folder_id(results.root))
                ids, parents = [], _publish_arms(client, experiment, world, plans, results, known, settings)
                here = [(cell, _beneath(plan, parents.get(cell.arm))) for cell, plan in plans if cell.world == world]
                drawn = _drawn_ahead([plan for _, plan in here], known)
                for (cell, _), plan in zip(here, drawn, strict=True):
                    run_id, action = publish_one(client, experiment, plan, known, settings)
                    ids.append(run_id)
                    if results.of_arm(world, cell.arm)[0] is cell:
                        lesson = learning_publication(cell, results, parents.get(cell.arm) or run_id)
                        if lesson is not None:
                            publish_one(client, experiment, lesson, known, settings)
                    row = {"world": world, "arm": cell.arm, "seed": cell.seed, "state": cell.state}
                    row |= {"run_id": run_id, "experiment_id": experiment, "digest": plan.digest, "action": action}
                    runs.append(row | {"link": f"{base_link(uri)}/#/experiments/{experiment}/runs/{run_id}{TRAINING}"})
                for study in studies:
                    tables = study_publication(study, results) if study.world == world else None
                    if tables is not None:
                        publish_one(client, experiment, tables, known, settings)
                links = {"table": table_link(uri, experiment), "charts": charts_link(uri, experiment)}
                links |= {"compare": compare_link(uri, experiment, ids)}
                experiments.append({"world": world, "experiment_id": experiment, **links})
        except Fault:
            raise
        except Exception as error:
            raise store_trouble(uri, error) from error
    return {"uri": _stored_uri(uri, results.root), "experiments": experiments, "runs": runs}


def _beneath(plan: Publication, parent: str | None) -> Publication:
    """A cell's publication beneath the run of its arm, where the arm has one."""
    return plan if parent is None else replace(plan, tags=plan.tags | {PARENT: parent})


def _drawn_ahead(plans: Sequence[Publication], known: Mapping[str, list[Any]]) -> Iterator[Publication]:
    """The publications in their order; a thread draws for the next ones while one is written.

    What is kept as it is is not drawn.
    """
    waiting: deque[Publication] = deque()
    with ThreadPoolExecutor(max_workers=1) as pool:
        for plan in plans:
            kept = is_there(plan.digest, known.get(place_of_run(plan), []))
            waiting.append(plan if kept else replace(plan, draw=pool.submit(plan.draw).result))
            if len(waiting) > AHEAD:
                yield waiting.popleft()
        yield from waiting


def _publish_arms(
    client: MlflowClient,
    experiment: str,
    world: str,
    plans: Sequence[tuple[Cell, Publication]],
    results: Results,
    known: Mapping[str, list[Any]],
    settings: str,
) -> dict[str, str]:
    """The runs of those arms of a world that have several seeds; one that has no longer several goes."""
    by_arm: dict[str, list[tuple[Cell, Publication]]] = {}
    for cell, plan in plans:
        if cell.world == world:
            by_arm.setdefault(cell.arm, []).append((cell, plan))
    found = {}
    for arm, of_seeds in by_arm.items():
        if len(of_seeds) > 1:
            whole = arm_publication([cell for cell, _ in of_seeds], [plan for _, plan in of_seeds], results)
            found[arm], _ = publish_one(client, experiment, whole, known, settings)
        else:
            for run in known.get(f"{world}/{arm}/{ALL_SEEDS}", ()):
                client.delete_run(run.info.run_id)
    return found


def _stored_uri(uri: str, root: Path) -> str:
    """The store as it may be told: relative to the results, without secrets."""
    file = store_file(uri)
    if file is not None and file.parent == root.resolve():
        return f"sqlite:///{file.name} in the results folder"
    return without_secrets(uri)
