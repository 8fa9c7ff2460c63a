"""Whatever users write into files, they get a sentence back, never a traceback: mutated files of every kind."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ditbench.caption_files.options import CaptionFile
from ditbench.cells import Spec, cell_table
from ditbench.config import load_config
from ditbench.faults import Fault
from ditbench.records import read_record
from ditbench.study import load_study

ROOT = Path(__file__).parents[2]
BOUNDED = settings(
    max_examples=int(os.environ.get("DITBENCH_FUZZ", "150")),  # more by hand
    deadline=None,
    derandomize="DITBENCH_FUZZ" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SCALARS: Any = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=20),
    st.just("../../etc/passwd"),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def mutated(body: Any, seed: int, value: Any) -> Any:
    """A deep copy of a file's content, of which one place is gone, renamed, doubled or holds another value."""
    body, chance = json.loads(json.dumps(body)), random.Random(seed)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            places.append((node, key))
            walk(node[key])

    walk(body)
    node, key = chance.choice(places)
    what = chance.randrange(4)
    if what == 0:
        del node[key]
    elif what == 1 and isinstance(node, dict):
        node[f"{key}x"] = node.pop(key)
    elif what == 2 and isinstance(node, list):
        node.append(node[key])
    else:
        node[key] = value
    return body


def answered(read: Callable[[], Any]) -> None:
    """Reads; a Fault is an answer, and says something in one line."""
    try:
        read()
    except Fault as fault:
        assert str(fault).strip()
        assert "Traceback" not in str(fault)


CONFIG = {
    "world": "scenes",
    "images": 8,
    "seeds": [0, 1],
    "captions": {"seed": 3},
    "stopwatch": {"rounds": 2, "batch": 4, "batches": [1], "modes": ["eager"], "contended": "refuse"},
    "studies": ["embedded"],
    "arms": {"fora-3": {"method": "fora", "knobs": {"interval": 3}, "steps": 5}},
    "sweeps": {"a": {"method": "toca", "knobs": {"fresh": {"from": 0.1, "to": 0.3, "by": 0.1}}}},
    "learning": {"captions": 4, "seed": 0},
    "weights": {"pixart-alpha-256": "random"},
    "results": "results",
}


@BOUNDED
@given(seed=st.integers(0, 2**32), value=VALUES)
def test_configurations(seed: int, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(mutated(CONFIG, seed, value)), encoding="utf-8")
    answered(lambda: cell_table(load_config(path)))


@BOUNDED
@given(
    seed=st.integers(0, 2**32), value=VALUES, name=st.sampled_from(["embedded", "diffsparse/table1", "diffcr/table1"])
)
def test_studies(seed: int, value: Any, name: str, tmp_path: Path) -> None:
    body = yaml.safe_load((ROOT / f"studies/{name}.yaml").read_text(encoding="utf-8"))
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(mutated(body, seed, value)), encoding="utf-8")
    answered(lambda: load_study(path))


@BOUNDED
@given(text=st.text(max_size=200))
def test_files_that_are_no_yaml(text: str, tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.write_text(text, encoding="utf-8")
    answered(lambda: load_config(path))
    answered(lambda: load_study(path))


SPEC = {
    **{
        "world": "scenes",
        "arm": "a",
        "method": "fora",
        "knobs": {"interval": 2},
        "steps": None,
        "seed": 0,
        "images": 4,
    },
    **{"captions": "some", "captions_sha256": None, "dtype": "float32", "weights": None, "learning": None},
}


@BOUNDED
@given(seed=st.integers(0, 2**32), value=VALUES)
def test_specs(seed: int, value: Any) -> None:
    answered(lambda: Spec.read(json.dumps(mutated(SPEC, seed, value)), "--spec"))
    answered(lambda: Spec.read(repr(value), "--spec"))


@BOUNDED
@given(data=st.binary(max_size=300), ending=st.sampled_from([".txt", ".json", ".tsv", ".csv", ".parquet", ".jsonl"]))
def test_caption_files(data: bytes, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"captions{ending}"
    path.write_bytes(data)
    answered(lambda: CaptionFile(path).entries())


@BOUNDED
@given(data=st.one_of(st.binary(max_size=200), VALUES.map(lambda value: json.dumps(value, default=str).encode())))
def test_records(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    path.write_bytes(data)
    answered(lambda: read_record(path, "scores"))
