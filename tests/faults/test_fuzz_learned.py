"""Records of learning that someone changed: a sentence that names the file, wherever they are taken from."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ditbench.cells import Spec
from ditbench.cli import main
from ditbench.engine.layout import Shape
from ditbench.faults import Fault
from ditbench.generate import write_plan
from ditbench.learn.job import arm_hash, learned_method, read_found, read_lent, tuned_weights
from ditbench.learn.record import read_shown
from ditbench.learn.sources import ship
from ditbench.learn.sparsity import transferred
from ditbench.learn.tuning import taken_over
from ditbench.methods import get_method
from ditbench.report.page import learned_text
from ditbench.report.ratios import noted_steps
from ditbench.report.tracking.learning import curves, period, summary
from ditbench.storage import hash_file
from ditbench.worlds import get_world
from tests.faults.test_fuzz import BOUNDED, VALUES, mutated

STEPS = 4
SHAPE: Shape = get_world("scenes").shape(STEPS)
SHARES = np.ones(SHAPE.sites).tolist()
RATIOS, TIMES = np.full((4, SHAPE.layout.blocks), 0.2).tolist(), [900.0, 600.0, 300.0, 100.0]
WEIGHTS = {"file": "weights.safetensors", "sha256": "0" * 64}
HISTORY = {"loss": [0.5, 0.25], "ratio": [0.1, 0.2], "deployed": [0.1, 0.2], "part": ["layers", "steps"]}
STAGE = {**WEIGHTS, "mean": 0.1, "ratios": RATIOS}
# One method of each learner, with knobs by which it reads all that its learner finds.
FOUND: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "diffsparse": ({}, {"shares": SHARES, "history": HISTORY, "left_out": 0.43}),
    "plan-search": ({}, {"shares": SHARES, "fitness": 0.1, "history": {"best": [0.2, 0.1]}}),
    "l2c": ({}, {"keep": SHARES, "theta": 0.1, "losses": [0.1, 0.2], "updates": 3}),
    "sdtm": ({"adjusting": "threshold"}, {"thresholds": [0.5, 3.4e38], "left_out": 0.4}),
    "teacache": (
        {"target": 1.5, "polynomial": "fit"},
        {"coefficients": [1.0, 0.0], "least": 0.0, "most": 1.0, "threshold": 0.1, "tried": [[0.1, 1.4], [0.2, 1.5]]},
    ),
    "diffcr": (
        {"ratio": 0.2},
        {
            **{**WEIGHTS, "ratios": RATIOS, "times": TIMES, "history": HISTORY, "mean": 0.2},
            **{"trajectory": [RATIOS, RATIOS], "on_the_way": [STAGE]},
        },
    ),
    "mod": ({}, {**WEIGHTS, "history": {"loss": [0.1]}}),
    "full-finetuned": ({}, {**WEIGHTS, "history": {"loss": [0.1]}}),
    "dydit": ({}, {**WEIGHTS, "times": TIMES, "share": 0.5}),
    "tokencache": ({}, {**WEIGHTS, "shares": SHARES, "rank": 2}),
}


def record_of(method: str) -> dict[str, Any]:
    """A record as its learner writes it, but for a seal: of version 1, which has none."""
    knobs, found = FOUND[method]
    body = {
        **{"arm": "some", "world": "scenes", "method": method, "knobs": knobs, "steps": STEPS, "dtype": "float32"},
        **{"weights": None, "learning": "training-4-seed0"},
    }
    return {
        **{"schema": "ditbench/learned@1", **body, "arm_hash": arm_hash(body)},
        **{"learner": get_method(method, knobs).learner, "training": {"name": "some", "count": 4, "sha256": "00"}},
        **{"found": found, "provenance": {"created": "2026-11-30T08:00:00+00:00", "timings": {"total_s": 3.5}}},
    }


def written(folder: Path, body: Any) -> Path:
    """A record in a file, whatever it holds, beside a file of weights."""
    path = folder / "some" / "learned.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(body), encoding="utf-8")  # NaN and Infinity as Python writes and reads them
    return path


def spec_of(body: dict[str, Any]) -> dict[str, Any]:
    """The spec of a cell whose arm learned this."""
    own = {name: body[name] for name in ("world", "arm", "method", "knobs", "steps", "dtype", "weights", "learning")}
    return asdict(Spec(**own, seed=0, images=4, captions="some", captions_sha256=None))


def takers(path: Path, body: dict[str, Any]) -> list[Callable[[], Any]]:
    """Whoever reads a record of learning: the library, the stages of learning and of specs, and the report."""
    method, spec = get_method(body["method"], body["knobs"]), spec_of(body)
    elsewhere = path.parent.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)

    def sample() -> None:
        ready = learned_method(path)
        ready.plan(SHAPE)
        if body["method"] == "teacache":
            ready.decider(SHAPE)
        if body["method"] == "sdtm":
            assert len(ready.thresholds) == 2  # type: ignore[attr-defined]

    def cell() -> None:
        found = {**read_found(path, spec), "record": str(path)}
        write_plan({**spec, "found": found}, elsewhere / "plan.json")

    def show() -> None:
        record = read_shown(path)
        learned_text(record["found"]), list(summary(record["found"])), curves(record["found"]), period(record)
        if record["found"].get("trajectory"):
            noted_steps(record["found"])
            assert np.array(record["found"]["trajectory"]).ndim == 3
        assert f"{record['training']['count']}"

    found: list[Callable[[], Any]] = [sample, cell, show, lambda: ship(path, elsewhere)]
    if hasattr(method, "plan_file"):
        found.append(lambda: transferred(path, method))  # type: ignore[arg-type]
    if hasattr(method, "weights_file") and body["method"] != "tokencache":
        found.append(lambda: taken_over(path, method, elsewhere))  # type: ignore[arg-type]
        at = {"at": 0.05, "weights_file": str(path)}
        if body["method"] == "diffcr":
            found.append(lambda: taken_over(path, get_method("diffcr", {**body["knobs"], **at}), elsewhere))  # type: ignore[arg-type]
    if method.lends_weights:
        found += [lambda: tuned_weights(path), lambda: read_lent(path, f"some@{body['arm_hash']}")]
    return found


@pytest.mark.parametrize("method", FOUND)
def test_what_learners_write_is_read(method: str, tmp_path: Path) -> None:
    body = record_of(method)
    weights = tmp_path / "some" / "weights.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    found = json.loads(json.dumps(body["found"]).replace("0" * 64, hash_file(weights)))
    path = written(tmp_path, {**body, "found": found})
    for take in takers(path, body):
        take()


@BOUNDED
@given(seed=st.integers(0, 2**32), value=VALUES, method=st.sampled_from(sorted(FOUND)))
def test_records_of_learning(seed: int, value: Any, method: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    body = record_of(method)
    path = written(folder, mutated(body, seed, value))
    for take in takers(path, body):
        try:
            take()
        except Fault as fault:
            assert str(path.parent) in str(fault)
            assert "Traceback" not in str(fault) and "\n" not in str(fault)


def deep(levels: int) -> Any:
    """A list in a list, and so on."""
    value: Any = 1.0
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("method", "change", "said"),
    [
        ("diffsparse", {"shares": "many"}, "found.shares is 'many' and must be a list"),
        ("diffsparse", {"shares": [[1.0, "0.5"]]}, r"found.shares\[0\]\[1\] is '0.5' and must be a finite number"),
        (
            "diffsparse",
            {"shares": [[1.0, 0.5], [1.0]]},
            r"found.shares\[1\] has other lengths \(1\) than ",
        ),
        ("diffsparse", {"shares": [[1.0, math.nan]]}, r"found.shares\[0\]\[1\] is nan and must be a finite number"),
        ("diffsparse", {"shares": [[1.0, 1.5]]}, r"found.shares\[0\]\[1\] is 1.5 and must be from 0 to 1"),
        ("diffsparse", {"shares": deep(200)}, r"found.shares\[0\]\[0\] is a list and must be a finite number"),
        ("diffsparse", {"shares": [[1.0, True]]}, r"found.shares\[0\]\[1\] is True and must be a finite number"),
        ("diffsparse", {"left_out": 10**400}, "found.left_out is 1000.* and must be a finite number"),
        ("diffcr", {"times": []}, "found.times is an empty list"),
        ("diffcr", {"times": None}, "found.times is none at all"),
        ("diffcr", {"history": {}}, "found.history.ratio is missing"),
        ("mod", {"file": "../../etc/passwd"}, "found.file is '../../etc/passwd' and must be the name of a file beside"),
        ("sdtm", {"thresholds": [0.1]}, "found.thresholds has 1 numbers and must have 2"),
    ],
)
def test_what_is_wrong_is_said(method: str, change: dict[str, Any], said: str, tmp_path: Path) -> None:
    body = record_of(method)
    path = written(tmp_path, {**body, "found": {**body["found"], **change}})
    with pytest.raises(Fault, match=rf"some/learned\.json is no record of learning that can be used: {said}"):
        learned_method(path)


@pytest.mark.parametrize("name", ["method", "knobs", "found", "arm", "training"])
def test_what_is_missing_is_said(name: str, tmp_path: Path) -> None:
    body = record_of("l2c")
    del body[name]
    with pytest.raises(Fault, match=rf"some/learned\.json is no .*`?{name}"):
        learned_method(written(tmp_path, body))


def test_a_plan_of_another_network_names_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = record_of("diffsparse")
    body["found"] = {**body["found"], "shares": [[1.0, 1.0], [0.5, 0.5]]}
    path = written(tmp_path, body)
    said = f"{path}: the plan is of 2 steps and 2 branches, this run has 4 and {len(SHAPE.layout)}"
    with pytest.raises(Fault) as told:
        learned_method(path).plan(SHAPE)
    assert str(told.value) == said
    words = ["spec", "--spec", json.dumps(spec_of(body)), "--learned", str(path), "--out", str(tmp_path / "spec.json")]
    assert main(words) == 2
    assert f"ditbench: {said}\n" == capsys.readouterr().err
    assert not (tmp_path / "spec.json").exists() and not (tmp_path / "plan.json").exists()
