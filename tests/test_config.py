"""A wrong configuration is answered at once: every mistake, one line each, with what is possible."""

import json
from pathlib import Path

import pytest

from ditbench.config import Config, check_config, load_config, origins_of, retyped, schema
from ditbench.faults import Fault

ROOT = Path(__file__).parents[1]


def told(body: object) -> list[str]:
    with pytest.raises(Fault) as fault:
        check_config(body, "c.yaml")
    return str(fault.value).splitlines()


def test_the_default_configuration_is_right_and_states_the_defaults() -> None:
    config = load_config(ROOT / "config.yaml")
    # What ships of learned methods is in the default run; settings of one's own begin with one study.
    assert config == Config(studies=["embedded", "embedded_learned"])
    assert check_config({"images": 30_000}).images == 30_000
    assert (config.learning.threads, check_config({"learning": {"threads": 2}}).learning.threads) == (1, 2)


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ({"imgaes": 5}, "imgaes: unknown key; did you mean 'images'? Possible: world, images,"),
        ({"images": 0}, "images: 0 must be >= 1"),
        ({"images": "many"}, "images: 'many' must be a valid integer"),
        ({"images": True}, "images: True must be a valid integer"),
        ({"world": "scene"}, "world: no world 'scene'; did you mean 'scenes'? Possible: "),
        ({"device": "gpu"}, "device: 'gpu' is not a device; possible: cpu, cuda"),
        ({"stopwatch": {"modes": ["graphs"]}}, "stopwatch.modes: CUDA graphs need a GPU, and device is cpu"),
        ({"studies": ["embeded"]}, "studies.0: no study 'embeded'; did you mean 'embedded'?"),
        ({"judges": ["fdi"]}, "judges.0: no judge 'fdi' in world scenes; did you mean 'fid'?"),
        ({"arms": {"a": {"method": "foar"}}}, "arms.a.method: no method 'foar'; did you mean 'fora'?"),
        ({"arms": {"a": {}}}, "arms.a.method: missing"),
        ({"arms": {"a": {"method": "fora", "knobs": {"interval": 0}}}}, "arms.a.knobs.interval: 0 must be >= 1"),
        ({"arms": {"a": {"method": "fora", "knobs": {"n": 2}}}}, "arms.a: fora has no knob 'n'; it has interval"),
        (
            {"sweeps": {"s": {"method": "fora", "knobs": {"n": [2, 3]}}}},
            "sweeps.s: fora has no knob 'n'; it has interval",
        ),
        ({"arms": {"a": {"method": "fora", "n": 2}}}, "arms.a.n: unknown key. Possible: method, knobs, steps"),
        ({"stopwatch": {"round": 2}}, "stopwatch.round: unknown key; did you mean 'rounds'? Possible: rounds, batch"),
        (
            {"world": "dit-xl-2-256", "references": {"fodler": "x"}},
            "references.fodler: unknown key; did you mean 'folder'? Possible: folder,",
        ),
        ({"world": "dit-xl-2-256", "references": {"folder": 5}}, "references.folder: 5 must be a valid string"),
        ({"references": "many"}, "references: 'many' must be a valid integer"),
        (
            {"sweeps": {"s": {"method": "fora", "knobs": {"interval": {"from": "x", "to": 3, "by": 1}}}}},
            "sweeps.s.knobs: {'interval': {'from': 'x', 'to': 3, 'by': 1}} is wrong: interval.from: 'x' must be",
        ),
        ({"seeds": []}, "seeds: [] must name at least 1"),
        ({"seeds": [1, 1]}, "seeds: [1, 1] names one thing twice"),
        ({"judges": []}, "judges: [] must name at least 1"),
        ({"arms": {"A b": {"method": "full"}}}, "arms.A b: 'A b' is no name of an arm; possible: lower-case"),
        ({"results": "s3://bucket/run"}, "results: 's3://bucket/run' must be a folder that is mounted here"),
        (
            {"mlflow": {"uri": "sqlite:///x.db?timeout=30"}},
            "mlflow.uri: 'sqlite:///x.db?timeout=30' is no store of runs",
        ),
        ({"mlflow": {"uri": "sqlite+pysqlite:///x.db"}}, "mlflow.uri: 'sqlite+pysqlite:///x.db' is no store of runs"),
        ({"results": "my results"}, "results: 'my results' must be a path of letters"),
    ],
)
def test_one_mistake_is_one_line(body: dict, line: str) -> None:
    lines = told(body)
    assert len(lines) == 1
    assert lines[0].startswith(f"c.yaml: {line}")


def test_all_mistakes_are_told_at_once() -> None:
    lines = told({"images": 0, "wrold": "x", "studies": ["nope"], "arms": {"a": {"method": "foar"}}})
    assert len(lines) == 4
    assert all(line.startswith("c.yaml: ") for line in lines)


def test_what_does_not_go_together_is_told_beside_what_is_wrong_by_itself() -> None:
    lines = told(
        {"images": 30_000, "shard": 1, "stopwatch": {"modes": ["graphs"]}, "device": "cpu", "batch": 0, "judges": "fid"}
    )
    assert sorted(line.split(": ")[1] for line in lines) == ["batch", "judges", "shard", "stopwatch.modes"]
    # With what is wrong itself nothing clashes.
    assert len(told({"images": 0, "shard": 1, "stopwatch": {"modes": ["graphs"]}, "device": "gpu"})) == 2


def test_a_mistake_is_told_with_the_file_or_the_words_that_it_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("{images: 0, wrold: x, batch: 0}")
    (tmp_path / "mine.yaml").write_text("{images: -1}")
    (tmp_path / "empty.yaml").write_text("")
    origins = origins_of(["config.yaml", tmp_path / "mine.yaml", "empty.yaml"], ["batch", "arms"])
    body = {"images": -1, "wrold": "x", "batch": -2, "arms": {"a": {"method": "foar"}}, "shard": 0}
    with pytest.raises(Fault) as fault:
        check_config(body, origins=origins)
    assert {line[: line.index(": ", line.index(": ") + 1)] for line in str(fault.value).splitlines()} == {
        "mine.yaml: images",
        "config.yaml: wrold",
        "--config: batch",
        "--config: arms.a.method",
        "config.yaml: shard",  # nobody said it
    }


def test_nested_settings_of_the_command_line_get_their_types() -> None:
    given = {"rounds": "1", "deep": ["0.5", "true", "up"], "file": "a: b"}
    assert retyped(given) == {"rounds": 1, "deep": [0.5, True, "up"], "file": "a: b"}


def test_keys_given_twice_are_told_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("images: 4\nstopwatch: {rounds: 1, rounds: 2}\nimages: 5\n")
    with pytest.raises(Fault) as fault:
        load_config(path)
    assert str(fault.value).splitlines() == [
        f"{path}: stopwatch.rounds: given twice, in lines 2 and 2; keep one",
        f"{path}: images: given twice, in lines 1 and 3; keep one",
    ]


def test_the_committed_schema_is_that_of_the_models() -> None:
    committed = json.loads((ROOT / "workflow/schemas/config.schema.json").read_text())
    assert committed == schema(), "run `ditbench schema > workflow/schemas/config.schema.json`"


@pytest.mark.parametrize(("text", "says"), [("a: [", "cannot be read as YAML"), ("- 1", "must hold keys and values")])
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(Fault, match=says):
        load_config(tmp_path / "c.yaml")
    with pytest.raises(Fault, match="no configuration file"):
        load_config(tmp_path / "none.yaml")
