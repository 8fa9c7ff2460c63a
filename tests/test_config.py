"""A wrong configuration is answered at once: every mistake, one line each, with what is possible."""

from pathlib import Path

import pytest

from ditbench.config import Config, check_config, load_config, retyped
from ditbench.faults import Fault

ROOT = Path(__file__).parents[1]


def told(body: object) -> list[str]:
    with pytest.raises(Fault) as fault:
        check_config(body, "c.yaml")
    return str(fault.value).splitlines()


def test_the_default_configuration_is_right_and_states_the_defaults() -> None:
    config = load_config(ROOT / "config.yaml")
    assert config == Config()
    assert check_config({"images": 30_000}).images == 30_000


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ({"imgaes": 5}, "imgaes: unknown key; did you mean 'images'? Possible: world, images,"),
        ({"images": 0}, "images: 0 must be >= 1"),
        ({"images": "many"}, "images: 'many' must be a valid integer"),
        ({"images": True}, "images: True must be a valid integer"),
        ({"world": "scene"}, "world: no world 'scene'; did you mean 'scenes'? Possible: scenes"),
        ({"device": "gpu"}, "device: 'gpu' is not a device; possible: cpu, cuda"),
        ({"studies": ["embeded"]}, "studies.0: no study 'embeded'; did you mean 'embedded'?"),
        ({"judges": ["fdi"]}, "judges.0: no judge 'fdi' in world scenes; did you mean 'fid'?"),
        ({"arms": {"a": {"method": "foar"}}}, "arms.a.method: no method 'foar'; did you mean 'fora'?"),
        ({"arms": {"a": {}}}, "arms.a.method: missing"),
        ({"arms": {"a": {"method": "fora", "knobs": {"interval": 0}}}}, "arms.a.knobs.interval: 0 must be >= 1"),
        ({"arms": {"a": {"method": "fora", "knobs": {"n": 2}}}}, "arms.a: fora has no knob 'n'; it has interval"),
        ({"arms": {"a": {"method": "fora", "n": 2}}}, "arms.a.n: unknown key. Possible: method, knobs, steps"),
        ({"stopwatch": {"round": 2}}, "stopwatch.round: unknown key; did you mean 'rounds'? Possible: rounds, batch"),
        ({"seeds": []}, "seeds: [] must"),
        ({"arms": {"A b": {"method": "full"}}}, "arms.A b"),
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


def test_nested_settings_of_the_command_line_get_their_types() -> None:
    given = {"rounds": "1", "deep": ["0.5", "true", "up"], "file": "a: b"}
    assert retyped(given) == {"rounds": 1, "deep": [0.5, True, "up"], "file": "a: b"}


@pytest.mark.parametrize(("text", "says"), [("a: [", "cannot be read as YAML"), ("- 1", "must hold keys and values")])
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(Fault, match=says):
        load_config(tmp_path / "c.yaml")
    with pytest.raises(Fault, match="no configuration file"):
        load_config(tmp_path / "none.yaml")
