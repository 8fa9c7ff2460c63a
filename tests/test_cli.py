"""The command line: tables for a person, JSON for a program, and one sentence where the user can mend something."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ditbench.cli import main
from ditbench.config import keep_settings, load_config
from ditbench.records import write_record
from ditbench.runs import NAME
from ditbench.worlds import world_names

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "config.yaml")


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(words) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a refused command says: one line on stderr, exit status 2."""
    assert main(words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("ditbench: ")
    return told.err


def test_worlds_and_methods_for_a_person_and_for_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert "scenes" in said(capsys, "worlds")
    assert [world["name"] for world in json.loads(said(capsys, "worlds", "--json"))] == world_names()
    table = said(capsys, "methods")
    assert "steps from one full step to the next" in table
    fora = next(m for m in json.loads(said(capsys, "methods", "--json")) if m["name"] == "fora")
    assert fora["knobs"]["interval"]["default"] == 2
    assert fora["knobs"]["interval"]["type"] == "int"


def test_cells_tell_their_state(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ("cells", "--config", CONFIG, "--results", str(tmp_path))
    lines = said(capsys, *words).splitlines()
    assert lines[0].split()[:2] == ["cell", "method"]
    assert [line.split()[0] for line in lines[2:]] == [f"scenes/{a}/seed0" for a in arms()]
    cells = json.loads(said(capsys, *words, "--json"))
    assert {cell["state"] for cell in cells} == {"not run"}
    note = tmp_path / "cells/scenes/fora-n2/seed0/failure.json"
    note.parent.mkdir(parents=True)
    note.write_text(json.dumps({"stage": "images", "reason": "the disk is full"}))
    cells = json.loads(said(capsys, *words, "--json"))
    assert [c["state"] for c in cells if c["arm"] == "fora-n2"] == ["failed: images: the disk is full"]


def arms() -> list[str]:
    from ditbench.study import load_study

    rows = [row.arm for name in ("embedded", "embedded_learned") for row in load_study(name).rows]
    return list(dict.fromkeys(rows))


def test_a_plan_says_what_a_run_takes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("{images: 30000, shard: 256, studies: [embedded]}")
    words = ("plan", "--config", str(config), "--results", str(tmp_path / "none"))
    told = said(capsys, *words)
    assert "120,000 images in 472 shards" in told
    assert "from a measurement on" in told
    outlook = json.loads(said(capsys, *words, "--json"))
    assert outlook["images_to_draw"] == outlook["images"] == 120_000
    assert outlook["disk_bytes_to_write"] > 1e8
    assert outlook["generation_seconds_on_one_worker"] > 3600


def test_the_time_of_the_last_run_is_told_with_its_own_settings(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    results = tmp_path / "results"
    config = load_config(CONFIG).model_copy(update={"results": str(results)})
    settings = keep_settings(config)
    words = ("spent", "--results", str(results), "--config")
    assert refused(capsys, *words, settings) == f"ditbench: no run is noted in {results}\n"
    assert refused(capsys, *words, settings, "--json") == f"ditbench: no run is noted in {results}\n"
    began = time.time() - 100
    write_record(
        results / NAME,
        "run",
        {"settings": Path(settings).name, "began": began, "cores": 2, "gpus": 0} | {"ended": None},
    )
    assert f"the last run in {results} has made no record yet" in refused(capsys, *words, settings)
    write_record(results / "published.json", "published", {}, timings={"write": 1.0})
    assert "on 2 cores, with 1 job." in said(capsys, *words, settings)
    assert json.loads(said(capsys, *words, settings, "--json"))["worker_seconds"]["writing"] == 1.0
    assert f"had other settings: ditbench spent --config {settings}" in refused(capsys, *words, CONFIG)


def test_mistakes_are_sentences(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "no configuration file" in refused(capsys, "cells", "--config", str(tmp_path / "none.yaml"))
    wrong = tmp_path / "c.yaml"
    wrong.write_text("{imags: 3, device: gpu}")
    told = refused(capsys, "plan", "--config", str(wrong)).splitlines()
    assert len(told) == 2  # every mistake has its line
    out = str(tmp_path / "out.json")
    assert "no world 'scene'" in refused(
        capsys, "captions", "--world", "scene", "--name", "x", "--count", "1", "--out", out
    )
    assert not Path(out).exists()


SPEC = {"world": "scenes", "arm": "full", "method": "full", "knobs": {}, "steps": None, "seed": 0, "images": 2}
SPEC |= {"captions": "x", "captions_sha256": None, "dtype": "float32"}


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("{}", "--spec: world: missing; arm: missing; method: missing;"),
        ("{", "--spec: '{' is not JSON ("),
        ("[1]", "--spec must hold keys and values (world, arm, method, …), not [1]"),
        ({**SPEC, "stpes": 3}, "--spec: stpes: unknown key; did you mean 'steps'? Possible: world, arm,"),
        ({**SPEC, "steps": 0, "images": "2"}, "--spec: steps: 0 must be >= 1; images: '2' must be a valid integer"),
        ({**SPEC, "method": "foar"}, "no method 'foar'; did you mean 'fora'?"),
        ({**SPEC, "knobs": {"n": 2}}, "full has no knob 'n'; it has none"),
        ({**SPEC, "world": "scene"}, "no world 'scene'; did you mean 'scenes'?"),
    ],
)
def test_a_wrong_spec_is_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, spec: str | dict[str, object], says: str
) -> None:
    text = spec if isinstance(spec, str) else json.dumps(spec)
    told = refused(capsys, "spec", "--spec", text, "--out", str(tmp_path / "spec.json"))
    assert told.startswith(f"ditbench: {says}") and len(told.splitlines()) == 1
    assert not (tmp_path / "spec.json").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [(None, "spec.json is missing"), ("{", "spec.json cannot be read"), ("[]", "is not a spec record")],
)
def test_a_missing_or_broken_spec_file_is_one_sentence_in_every_stage(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str | None, says: str
) -> None:
    spec = tmp_path / "spec.json"
    if text is not None:
        spec.write_text(text)
    x = str(tmp_path / "x.json")
    drawing = ("--captions", x, "--embeddings", x)
    for words in (
        ("score", "--shards", x, "--captions", x, "--references", x),
        ("generate", *drawing, "--first", "0", "--last", "1"),
        ("cost", "--shards", x),
        ("time", *drawing, "--baseline", x),
    ):
        told = refused(capsys, *words, "--spec", str(spec), "--out", str(tmp_path / "out.json"))
        assert says in told and len(told.splitlines()) == 1


def test_a_file_where_a_folder_is_needed_is_a_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = str(tmp_path / "file" / "c.json")
    words = ("captions", "--world", "scenes", "--name", "x", "--count", "1", "--out", out)
    assert "could not be written" in refused(capsys, *words)


def test_an_unknown_device_is_a_sentence_and_is_noted_beside_the_cell(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    spec = cell_spec(tmp_path)
    captions, embeddings = str(tmp_path / "c.json"), str(tmp_path / "e.json")
    assert main(("captions", "--world", "scenes", "--name", "x", "--count", "2", "--out", captions)) == 0
    words = ("generate", "--spec", spec, "--captions", captions, "--embeddings", embeddings, "--first", "0")
    told = refused(capsys, *words, "--last", "1", "--device", "cuda:99", "--out", str(tmp_path / "0-1.json"))
    assert "'cuda:99' was asked for, this machine has" in told
    note = json.loads((tmp_path / "failure.json").read_text())
    assert note["stage"] == "images"
    assert "cuda:99" in note["reason"]


def cell_spec(folder: Path) -> str:
    assert main(("spec", "--spec", json.dumps(SPEC), "--out", str(folder / "spec.json"))) == 0
    return str(folder / "spec.json")


def test_a_spec_carries_its_hash_and_its_plan(tmp_path: Path) -> None:
    spec = json.loads(Path(cell_spec(tmp_path)).read_text())
    assert len(spec["hash"]) == 12
    assert json.loads((tmp_path / "plan.json").read_text())


def test_an_mlflow_server_that_does_not_answer_is_a_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("{mlflow: {uri: 'http://127.0.0.1:9'}}")  # the discard port: nobody listens
    out = tmp_path / "published.json"
    told = refused(capsys, "publish", "--config", str(config), "--results", str(tmp_path), "--out", str(out))
    assert "127.0.0.1:9" in told
    assert not out.exists()


def test_the_light_commands_load_nothing_heavy() -> None:
    heavy = "{'torch', 'diffusers', 'transformers', 'mlflow', 'pandas', 'matplotlib'}"
    code = f"""
import sys
from ditbench.cli import main
for words in (["worlds"], ["methods"], ["plan", "--config", {CONFIG!r}]):
    assert main(words) == 0
print(sorted({heavy} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_fault_shows_its_traceback_when_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from ditbench.faults import Fault

    monkeypatch.setenv("DITBENCH_DEBUG", "1")
    with pytest.raises(Fault):
        main(("cells", "--config", str(tmp_path / "none.yaml")))


def test_questions_about_a_results_folder_are_of_its_last_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from ditbench.config import check_config, keep_settings
    from ditbench.runs import begin_run

    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text("images: 512\n")
    for folder in ("small", "results"):
        small = check_config({"images": 24, "results": folder})
        begin_run(folder, keep_settings(small), cores=2)
    capsys.readouterr()

    def asked(*words: str) -> tuple[set[int], str]:
        assert main(["cells", "--json", *words]) == 0
        out, err = capsys.readouterr()
        return {cell["images"] for cell in json.loads(out)}, err

    assert asked("--results", "small") == ({24}, "")
    shutil.move("small", "moved")
    assert asked("--results", "moved") == ({24}, "")
    assert asked("--results", "moved", "--config", "config.yaml") == ({512}, "")
    images, err = asked()
    assert images == {512}
    assert "the last run in results had other settings: with --results results they are asked about" in err
    assert asked("--results", "nowhere")[0] == {512}
