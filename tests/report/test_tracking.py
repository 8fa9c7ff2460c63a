"""MLflow as a view of the records: whole, without doubles, whoever publishes and how often."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ditbench.faults import Fault
from ditbench.records import write_record
from ditbench.report.figures import arm_colours
from ditbench.report.tracking import connection, publications, publishing
from ditbench.report.tracking import runs as stored
from ditbench.report.tracking.learning import curves, summary
from ditbench.report.tracking.views import VIEW, experiment_tags, metric_name, view_state
from ditbench.study import Study

ARMS = ["full", "fewer-steps-50", "fora-n2", "broken"]


def uri_of(root: Path) -> str:
    return f"sqlite:///{root.resolve()}/mlflow.db"


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with its schema and nothing else: making one takes seconds, copying it none."""
    folder = tmp_path_factory.mktemp("store")
    with connection.locked(uri_of(folder)):
        connection.open_store(uri_of(folder))
    return folder / "mlflow.db"


@pytest.fixture
def published(tree: Any, embedded: Study, empty_store: Path) -> Iterator[Callable[[], dict[str, Any]]]:
    """Publishes the fabricated tree as it is at the time."""
    shutil.copyfile(empty_store, tree.root / "mlflow.db")
    yield lambda: publishing.publish_results(tree.read(), [embedded], uri_of(tree.root))


def _all_runs_of(root: Path) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri_of(root))
    experiment = client.get_experiment_by_name("ditbench/scenes")
    return list(client.search_runs([experiment.experiment_id], order_by=["attributes.run_name"]))


def runs_of(root: Path) -> list[Any]:
    """Those of cells and of what was learned."""
    return [run for run in _all_runs_of(root) if not run.info.run_name.startswith("study ")]


def studies_of(root: Path) -> list[Any]:
    return [run for run in _all_runs_of(root) if run.info.run_name.startswith("study ")]


def actions(body: dict[str, Any]) -> dict[str, str]:
    return {run["arm"]: run["action"] for run in body["runs"]}


def test_a_run_holds_what_its_cell_says(tree: Any, published: Callable[[], dict[str, Any]]) -> None:
    body = published()
    assert [run["arm"] for run in body["runs"]] == ARMS
    run = next(run for run in runs_of(tree.root) if run.info.run_name == "fora-n2")
    assert run.info.status == "FINISHED"
    assert run.data.params["method"] == "fora" and "interval=2" in run.data.params["knobs"]
    assert run.data.params["knob.interval"] == "2"
    assert run.data.params["nominal_ratio"] == run.data.params["realised_ratio"] == "0.5"
    metrics = run.data.metrics
    assert metrics["fid_scenes"] == 3.08
    assert not [name for name in metrics if name.endswith(("_low", "_high"))], "ends stand in the note"
    assert metrics["speedup"] == 1.88 and metrics["macs_linear_G"] == 30.65 and "psnr_to_full" in metrics
    tags = run.data.tags
    assert tags["results.path"] == "cells/scenes/fora-n2/seed0" and tags["studies"] == "embedded"
    assert tags["code.dirty"] == "False" and tags["spec.hash"] == tree.spec("fora-n2").hash
    assert "| fid/scenes | 3.08" in tags["mlflow.note.content"]
    captions = run.inputs.dataset_inputs[0].dataset
    assert (captions.name, captions.digest) == ("evaluation-8-seed0", "0" * 12)


def test_references_are_a_data_set_of_the_run(tree: Any) -> None:
    path = tree.folder("full") / "scores.json"
    body = json.loads(path.read_text())
    body["reference_set"] = {"name": "renders-200", "sha256": "ab" * 32, "count": 200}
    path.write_text(json.dumps(body))
    publishing.publish_results(tree.read(), [], uri_of(tree.root))
    run = next(run for run in runs_of(tree.root) if run.info.run_name == "full")
    found = {given.dataset.name: (given.dataset.digest, given.tags[0].value) for given in run.inputs.dataset_inputs}
    assert found == {"evaluation-8-seed0": ("0" * 12, "evaluation"), "renders-200": ("ab" * 6, "real")}


def test_a_study_s_tables_are_a_run_of_its_own(tree: Any, published: Callable[[], dict[str, Any]]) -> None:
    published()
    (run,) = studies_of(tree.root)
    folder = tree.root / "mlartifacts" / "scenes" / run.info.run_id / "artifacts"
    assert {"table.md", "table.tex", "table.csv", "table.html", "pareto.svg"} <= {p.name for p in folder.iterdir()}
    assert run.data.tags["mlflow.note.content"].startswith("### The embedded study")
    # In charts it is nothing.
    assert run.data.metrics == {} and run.data.params == {}
    published()
    assert [run.info.run_name for run in studies_of(tree.root)] == ["study embedded"]


def test_a_run_took_as_long_as_its_jobs(tree: Any, published: Callable[[], dict[str, Any]]) -> None:
    published()
    run = next(run for run in runs_of(tree.root) if run.info.run_name == "full")
    assert run.info.end_time - run.info.start_time == 87_800


def test_artifacts_are_the_records_the_trace_and_the_pictures(
    tree: Any, published: Callable[[], dict[str, Any]]
) -> None:
    logs = tree.root / "logs" / "images"
    logs.mkdir(parents=True)
    for name in ("fora-n2.seed0.00000-00003", "fora-n2.seed01.00000-00003", "full.seed0.00000-00003"):
        (logs / f"scenes.{name}.log").write_text("8 of 8 images")
    body = published()
    run = next(run for run in body["runs"] if run["arm"] == "fora-n2")
    folder = tree.root / "mlartifacts" / "scenes" / run["run_id"] / "artifacts"
    expected = {"spec.json", "plan.json", "cost.json", "scores.json", "latency.json", "trace.json", "samples.png"}
    assert {path.name for path in folder.iterdir()} == expected | {"logs"}
    assert [path.name for path in (folder / "logs" / "images").iterdir()] == ["scenes.fora-n2.seed0.00000-00003.log"]
    trace = json.loads((folder / "trace.json").read_text())
    assert trace["samples"] == 8  # both shards
    assert (folder / "scores.json").read_bytes() == (tree.folder("fora-n2") / "scores.json").read_bytes()


def test_learning_is_a_run_beneath_its_arms_with_its_curves(tree: Any, published: Callable[[], dict[str, Any]]) -> None:
    from mlflow import MlflowClient

    body = {
        **{"arm": "fora-n2", "world": "scenes", "method": "fora", "knobs": {"interval": 2}, "learner": "sparsity"},
        **{"arm_hash": "abc", "training": {"name": "training-4-seed0", "count": 4, "sha256": "f" * 64}},
        "found": {"left_out": 0.43, "history": {"loss": [3.0, 2.0, 1.5], "part": ["layers"] * 3}, "shares": [[1.0]]},
    }
    write_record(tree.root / "learned" / "scenes" / "fora-n2" / "learned.json", "learned", body)
    results = tree.read()
    for cell in results.cells:
        if cell.arm == "fora-n2":
            cell.spec["learning"] = "training-4-seed0"
    publishing.publish_results(results, [], uri_of(tree.root))
    publishing.publish_results(results, [], uri_of(tree.root))
    runs = runs_of(tree.root)
    assert len(runs) == 5, "once, however often it is published"
    (child,) = (run for run in runs if "mlflow.parentRunId" in run.data.tags)
    parent = next(run for run in runs if run.info.run_id == child.data.tags["mlflow.parentRunId"])
    assert (parent.info.run_name, child.info.run_name) == ("fora-n2", "fora-n2 learning")
    assert child.data.params["learner"] == "sparsity" and child.data.metrics["learned_left_out"] == 0.43
    curve = MlflowClient(tracking_uri=uri_of(tree.root)).get_metric_history(child.info.run_id, "learning_loss")
    assert [(point.step, point.value) for point in curve] == [(0, 3.0), (1, 2.0), (2, 1.5)]
    assert set(child.data.metrics) == {"learned_left_out", "learning_loss"}
    # What was learned is registered, once.
    (version,) = MlflowClient(tracking_uri=uri_of(tree.root)).search_model_versions("name='ditbench-scenes-fora-n2'")
    assert version.run_id == child.info.run_id


def test_a_calibrations_tries_are_curves_too() -> None:
    found = {"threshold": 0.2, "reached": 1.9, "tried": [[0.1, 1.2], [0.2, 1.9]]}
    assert curves(found) == {"learning_threshold": [0.1, 0.2], "learning_reached": [1.2, 1.9]}
    assert dict(summary(found)) == {"learned_threshold": 0.2, "learned_reached": 1.9}


def test_publishing_again_changes_nothing(tree: Any, published: Callable[[], dict[str, Any]]) -> None:
    first, second = published(), published()
    assert set(actions(first).values()) == {"written"} and set(actions(second).values()) == {"kept"}
    assert [run["run_id"] for run in first["runs"]] == [run["run_id"] for run in second["runs"]]
    assert len(runs_of(tree.root)) == 4


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("(sqlite3.OperationalError) database or disk is full"), "make room"),
        (PermissionError(13, "Permission denied"), "change its rights"),
        (RuntimeError("file is not a database"), "move it away"),
    ],
)
def test_a_store_that_cannot_be_written_is_not_to_be_thrown_away(tmp_path: Path, error: Exception, says: str) -> None:
    said = str(connection.store_trouble(uri_of(tmp_path), error))
    assert says in said and ("move it away" in said) == (says == "move it away")


def test_a_changed_cell_replaces_its_run_and_no_other(tree: Any, published: Callable[[], dict[str, Any]]) -> None:
    published()
    tree.fail("fora-n2", "judges", "the disk is full")
    assert actions(published()) == {arm: "replaced" if arm == "fora-n2" else "kept" for arm in ARMS}
    run = next(run for run in runs_of(tree.root) if run.info.run_name == "fora-n2")
    assert run.info.status == "FAILED" and run.data.tags["state"] == "failed: judges: the disk is full"
    assert len(runs_of(tree.root)) == 4


def test_changed_knobs_leave_no_run_of_the_old_cell(
    tree: Any, published: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    published()
    import dataclasses

    changed = [
        dataclasses.replace(s, knobs={**s.knobs, "interval": 3}) if s.arm == "fora-n2" else s for s in tree.specs
    ]
    monkeypatch.setattr(tree, "specs", changed)
    tree.cell(tree.spec("fora-n2"))
    published()
    found = [run for run in runs_of(tree.root) if run.info.run_name == "fora-n2"]
    assert len(found) == 1 and "interval=3" in found[0].data.params["knobs"]


def test_two_results_folders_on_one_store_leave_each_others_runs(
    tree: Any, embedded: Study, published: Callable[[], dict[str, Any]], tmp_path: Path
) -> None:
    """Cells of one name but of another image count, published by another run of the workflow."""
    published()
    other = tmp_path / "other"
    shutil.copytree(tree.root, other, ignore=shutil.ignore_patterns("mlflow.db", ".folder-id", "mlartifacts"))
    mine, tree.root = tree.root, other
    tree.fail("full", "judges", "made otherwise")
    body = publishing.publish_results(tree.read(), [embedded], uri_of(mine))
    tree.root = mine
    assert set(actions(body).values()) == {"written"}
    assert set(actions(published()).values()) == {"kept"}
    assert len(runs_of(mine)) == 8


def kill_within_a_run(patch: pytest.MonkeyPatch, published: Callable[[], dict[str, Any]]) -> None:
    """A publication that ends before its first run does."""
    from mlflow import MlflowClient

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    patch.setattr(MlflowClient, "set_terminated", die)
    with pytest.raises(KeyboardInterrupt):
        published()


def test_what_a_killed_publication_left_is_tidied_up(
    tree: Any, published: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        kill_within_a_run(patch, published)
    assert not runs_of(tree.root)  # a run is written in one transaction
    published()
    assert sorted(run.info.status for run in runs_of(tree.root)) == ["FINISHED"] * 4


def test_a_half_written_run_on_a_server_is_tidied_up(
    tree: Any, published: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server commits every call of its own: there a publication that is killed leaves a run without an end."""
    with monkeypatch.context() as patch:
        patch.setattr(stored, "one_transaction", lambda client: nullcontext())
        kill_within_a_run(patch, published)
    assert [run.info.status for run in runs_of(tree.root)] == ["RUNNING"]
    published()
    assert sorted(run.info.status for run in runs_of(tree.root)) == ["FINISHED"] * 4


def test_whoever_reads_meanwhile_sees_a_run_whole_or_not_at_all(
    tree: Any, published: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    real = stored._log_files

    def look(*given: Any) -> None:
        with closing(sqlite3.connect(tree.root / "mlflow.db")) as store:
            (runs,) = store.execute("SELECT COUNT(*) FROM runs").fetchone()
            (whole,) = store.execute("SELECT COUNT(*) FROM tags WHERE key = ?", [stored.DIGEST]).fetchone()
        seen.append((runs, whole))
        real(*given)

    monkeypatch.setattr(stored, "_log_files", look)
    published()
    assert seen == [(before, before) for before in range(len(ARMS) + 1)]  # the last is the study's


def test_cells_that_were_not_run_have_no_run(tree: Any, published: Callable[[], dict[str, Any]]) -> None:
    tree.remove("broken")
    assert [run["arm"] for run in published()["runs"]] == ARMS[:-1]
    assert len(runs_of(tree.root)) == 3


def test_a_moved_results_folder_gets_a_fresh_experiment(
    tree: Any, embedded: Study, published: Callable[[], dict[str, Any]], tmp_path: Path
) -> None:
    published()
    moved = tmp_path / "elsewhere"
    tree.root.rename(moved)
    tree.root = moved
    body = publishing.publish_results(tree.read(), [embedded], uri_of(moved))
    assert set(actions(body).values()) == {"written"}
    assert len(runs_of(moved)) == 4
    assert (moved / "mlartifacts" / "scenes" / body["runs"][0]["run_id"]).is_dir()


def _publish(root: Path, tree: Any, study: Study, out: Any) -> None:
    try:
        out.put(actions(publishing.publish_results(tree.read(), [study], uri_of(root))))
    except BaseException as error:
        out.put(repr(error))
        raise


def test_eight_writers_on_a_fresh_store_neither_double_nor_lose_a_run(
    tree: Any, embedded: Study, empty_store: Path
) -> None:
    # empty_store is asked for because it imports MLflow here, once, rather than in each of the eight.
    assert empty_store.is_file() and not (tree.root / "mlflow.db").exists()
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    writers = [context.Process(target=_publish, args=(tree.root, tree, embedded, out)) for _ in range(8)]
    for writer in writers:
        writer.start()
    told = [out.get(timeout=200) for _ in writers]
    for writer in writers:
        writer.join(timeout=20)
    assert [writer.exitcode for writer in writers] == [0] * 8, told
    written = [arm for told_one in told for arm, action in told_one.items() if action == "written"]
    assert sorted(written) == sorted(ARMS)
    assert sorted(run.info.run_name for run in runs_of(tree.root)) == sorted(ARMS)


def test_a_server_that_is_not_there_is_told_within_seconds(tree: Any, embedded: Study) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://user:secret@127.0.0.1:{unused.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(Fault, match="cannot be reached") as caught:
            publishing.publish_results(tree.read(), [embedded], address)
    assert time.monotonic() - began < 10
    assert "secret" not in str(caught.value) and "the records are kept" in str(caught.value)


def test_a_file_that_is_no_store_is_named_with_its_remedy(tree: Any, embedded: Study) -> None:
    (tree.root / "mlflow.db").write_bytes(b"not a database at all, but long enough to be taken for one" * 40)
    with pytest.raises(Fault, match=r"mlflow\.db cannot be used as an MLflow store: .*move it away"):
        publishing.publish_results(tree.read(), [embedded], uri_of(tree.root))


def test_the_knobs_that_are_set_come_first_in_their_column() -> None:
    knobs = {"interval": 3, "variant": "paper", "age": 0.25, "fresh": 0.1}
    told = [name for name, _ in publications._telling_first({"method": "toca", "knobs": knobs})]
    assert told[0] == "fresh" and set(told) == set(knobs)


def test_links_open_the_view_that_is_published(
    tree: Any, embedded: Study, published: Callable[[], dict[str, Any]]
) -> None:
    from mlflow import MlflowClient

    links = published()["experiments"][0]
    assert "workflowType=machine_learning" in links["table"] and f"viewStateShareKey={VIEW}" in links["table"]
    assert links["table"].startswith("http://127.0.0.1:5000/#/experiments/")
    # MLflow's page of comparisons reads its address in this order only.
    assert "/#/compare-runs?runs=[" in links["compare"]
    tags = MlflowClient(tracking_uri=uri_of(tree.root)).get_experiment(links["experiment_id"]).tags
    state = json.loads(tags[f"mlflow.sharedViewState.{VIEW}"])
    metrics = {name for run in runs_of(tree.root) for name in run.data.metrics}
    shown = [c.removeprefix("metrics.`").rstrip("`") for c in state["selectedColumns"] if c.startswith("metrics.")]
    assert shown[:4] == ["fid_scenes", "speedup", "seconds_per_image", "macs_linear_G"]
    assert set(shown) == {metric_name(column.measure) for column in embedded.columns} and set(shown) <= metrics
    assert set(state["columnOrder"]) - {"attributes.`Run Name`"} == set(state["selectedColumns"])


def test_the_installed_mlflow_knows_the_form_of_our_view(embedded: Study) -> None:
    """The form is not documented: the words that we use must be in the user interface that is installed."""
    import mlflow

    scripts = Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js"
    text = "".join(path.read_text(encoding="utf-8", errors="ignore") for path in scripts.glob("main.*.js"))
    words = {"viewStateShareKey", "mlflow.sharedViewState.", "machine_learning", "SCATTER"}
    words |= {"runsHiddenMode", "SHOWALL"}
    words |= {
        "selectedColumns",
        "columnOrder",
        "columnWidths",
        "compareRunCharts",
        "compareRunSections",
        "hideEmptyCharts",
    }
    assert {word for word in words if word not in text} == set()
    assert {"selectedColumns", "columnOrder", "columnWidths", "compareRunCharts"} <= set(view_state([embedded]))


def test_titles_of_studies_are_no_markup_in_the_note_of_their_experiment(embedded: Study) -> None:
    titled = embedded.model_copy(update={"title": "a <img src=x> [b](http://c) *d*"})
    note = experiment_tags(embedded.world, [titled])["mlflow.note.content"]
    assert "- a \\<img src=x\\> \\[b\\](http://c) \\*d\\*\n" in note


def test_secrets_stay_out_of_what_is_told() -> None:
    assert connection.without_secrets("https://me:word@host:8/x") == "https://host:8/x"
    assert connection.without_secrets("sqlite:////a/b.db") == "sqlite:////a/b.db"


def test_the_whole_way_from_a_config_to_the_record(
    tree: Any, published: Callable[[], dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    from ditbench.config import Config
    from ditbench.records import read_record

    config = Config(images=8, shard=4, results=str(tree.root))
    publishing.publish(config, None, tree.root / "published.json")
    body = read_record(tree.root / "published.json", "published")
    assert [run["arm"] for run in body["runs"]] == ARMS
    assert str(tree.root) not in json.dumps(body["experiments"]) and body["uri"].endswith("in the results folder")
    told = capsys.readouterr().err
    assert "4 runs of world scenes" in told and body["experiments"][0]["table"] in told


def test_runs_carry_the_hash_of_the_configuration_that_asked_for_them(
    tree: Any, published: Callable[[], dict[str, Any]]
) -> None:
    from ditbench.config import Config, keep_settings

    first, second = (Config(images=8, shard=4, batch=batch, results=str(tree.root)) for batch in (16, 8))
    hashes = [Path(keep_settings(config)).stem for config in (first, second)]
    assert len(set(hashes)) == 2
    ids = []
    for config, expected in zip((first, second), hashes, strict=True):
        # Other settings change what is said of a cell's run, and leave the run: its records are the same.
        body = publishing.publish(config, None, tree.root / "published.json")
        ids.append([run["run_id"] for run in body["runs"]])
        assert {run.data.tags["config.hash"] for run in runs_of(tree.root)} == {expected}
    assert ids[0] == ids[1]


def test_the_user_interface_goes_when_it_is_told_to(tree: Any, published: Callable[[], dict[str, Any]]) -> None:
    """SIGTERM to the command ends the server and what the server started."""
    import signal
    import subprocess
    import sys

    import psutil

    published()
    words = ["mlflow", "--config", "config.yaml", "--results", str(tree.root), "--port", "5870"]
    taken = socket.create_server(("127.0.0.1", 5870))
    with (tree.root / "ui.log").open("w") as log, taken:
        command = subprocess.Popen(
            [sys.executable, "-m", "ditbench", *words], stdout=subprocess.PIPE, stderr=log, text=True
        )
        # The next port serves where the one that was asked for is taken.
        assert command.stdout is not None and ":5871/#/experiments/" in command.stdout.readline()
    assert "port 5870 is taken, 5871 serves" in (tree.root / "ui.log").read_text()
    parent, children, until = psutil.Process(command.pid), [], time.monotonic() + 60
    while not children and time.monotonic() < until:
        time.sleep(0.2)
        children = parent.children(recursive=True)
    time.sleep(2)  # until the server has taken over its signals
    children = parent.children(recursive=True)
    command.send_signal(signal.SIGTERM)
    command.wait(timeout=30)
    gone, alive = psutil.wait_procs(children, timeout=30)
    assert gone and not alive


def test_asking_again_for_what_is_published_asks_the_store_once(
    tree: Any, published: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    published()
    asked: list[str] = []
    for name in ("search_runs", "get_run", "create_run", "log_batch", "log_artifacts"):
        real = getattr(MlflowClient, name)
        monkeypatch.setattr(
            MlflowClient, name, lambda self, *a, n=name, r=real, **k: asked.append(n) or r(self, *a, **k)
        )
    assert set(actions(published()).values()) == {"kept"}
    assert asked == ["search_runs"]


def logs_kept(cell: Any, results: Any) -> dict[str, bytes]:
    """The files of a cell's run that hold what its jobs said."""
    logs = publications.logs_by_cell(results.root)
    return {name: data for name, data in publications._files(cell, results, logs) if "logs" in name}


def test_logs_of_many_shards_are_one_file(tree: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tree.root / "logs" / "images"
    folder.mkdir(parents=True)
    for cell, name in (("full.seed0", "00000-00003"), ("full.seed0", "00004-00007"), ("full.seed01", "00000-00003")):
        (folder / f"scenes.{cell}.{name}.log").write_text(f"{cell} {name}\n")
    results = tree.read()
    (cell,) = results.of_arm("scenes", "full")
    files = {
        name: data
        for name, data in publications._files(cell, results, publications.logs_by_cell(tree.root))
        if "logs" in name
    }
    assert list(files) == [f"logs/images/scenes.full.seed0.{name}.log" for name in ("00000-00003", "00004-00007")]
    monkeypatch.setattr(publications, "LOGS", 1)
    files = {
        name: data
        for name, data in publications._files(cell, results, publications.logs_by_cell(tree.root))
        if "logs" in name
    }
    assert list(files) == ["logs/images.log"]
    assert files["logs/images.log"].decode().splitlines()[1::2] == ["full.seed0 00000-00003", "full.seed0 00004-00007"]


def test_the_ledgers_trace_is_published_as_it_is(tree: Any) -> None:
    results = tree.read()
    (cell,) = results.of_arm("scenes", "full")
    added = json.loads(dict(publications._files(cell, results, {}))["trace.json"])
    assert added["samples"] == 8  # both shards, added up here
    (tree.folder("full") / "trace.json").write_text(json.dumps({**added, "samples": 12}))
    assert json.loads(dict(publications._files(cell, results, {}))["trace.json"]) == {**added, "samples": 12}
    (tree.folder("full") / "trace.json").write_text("{}")  # damaged: the shards say it
    assert json.loads(dict(publications._files(cell, results, {}))["trace.json"]) == added


def test_a_cells_picture_is_drawn_only_for_a_new_run(
    tree: Any, published: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    real = publications._grid
    monkeypatch.setattr(publications, "_grid", lambda cell, results: drawn.append(cell.arm) or real(cell, results))
    published()
    assert sorted(drawn) == sorted(ARMS)
    published()
    assert len(drawn) == len(ARMS)
    shard = tree.folder("fora-n2") / "shards" / "00000-00003.json"
    shard.write_text(shard.read_text().replace(json.loads(shard.read_text())["sha256"], "1" * 64))
    assert actions(published())["fora-n2"] == "replaced"
    assert drawn[len(ARMS) :] == ["fora-n2"]


def test_seeds_of_an_arm_lie_beneath_a_run_of_their_means(
    fabricate: Callable[..., Any], embedded: Study, empty_store: Path
) -> None:
    tree = fabricate((0, 1))
    shutil.copyfile(empty_store, tree.root / "mlflow.db")
    for _ in range(2):
        publishing.publish_results(tree.read(), [embedded], uri_of(tree.root))
    runs = {run.info.run_name: run for run in runs_of(tree.root)}
    assert len(runs_of(tree.root)) == len(runs) == 3 * len(ARMS)
    whole, seeds = runs["fora-n2"], [runs[f"fora-n2 seed{seed}"] for seed in (0, 1)]
    assert "mlflow.parentRunId" not in whole.data.tags
    assert {run.data.tags["mlflow.parentRunId"] for run in seeds} == {whole.info.run_id}
    assert whole.data.params["seed"] == "0, 1" and whole.data.params["knobs"] == seeds[0].data.params["knobs"]
    name = metric_name("fid/scenes")
    assert whole.data.metrics[name] == pytest.approx(sum(run.data.metrics[name] for run in seeds) / 2)
    # One seed again: what stood above them goes.
    alone = replace(tree.read(), cells=tuple(cell for cell in tree.read().cells if cell.seed == 0))
    publishing.publish_results(alone, [embedded], uri_of(tree.root))
    assert [name for name in ARMS if name in {run.info.run_name for run in runs_of(tree.root)}] == ARMS
    assert not any(run.info.run_id == whole.info.run_id for run in runs_of(tree.root))


def test_arms_of_two_studies_have_colours_of_their_own(tree: Any, embedded: Study) -> None:
    first, other = (
        embedded.model_copy(update={"name": arm, "rows": [embedded.row("full"), embedded.row(arm)], "controls": []})
        for arm in ("fewer-steps-50", "fora-n2")
    )
    cells = {cell.arm: cell for cell in tree.read().cells}

    def colour(arm: str, *studies: Study) -> str | None:
        return publications.publication(cells[arm], tree.read(), studies).tags.get("mlflow.runColor")

    ours = {arm: colour(arm, first, other) for arm in ("full", "fewer-steps-50", "fora-n2")}
    assert len(set(ours.values())) == 3
    assert ours["fewer-steps-50"] == arm_colours(first)["fewer-steps-50"]
    assert colour("broken", first, other) is None
