"""Records that someone wrote with a whole seal and of which a part is nonsense: a sentence, wherever they are read.

The seal finds what a disk has changed. What another program, or another ditbench, has written and sealed is held
against the shapes of `ditbench.shapes`; so that no test ends at the seal, each mutated record is sealed anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ditbench.cli import main
from ditbench.config import Config, kept_settings, load_config
from ditbench.elsewhere import INDEX, pack
from ditbench.engine.costs import Costs, UnitCost, Work
from ditbench.faults import Fault
from ditbench.inspect import show
from ditbench.judges.references import read_references
from ditbench.methods.registry import method_of
from ditbench.records import SEAL, read_record, seal
from ditbench.report.drawn import draw
from ditbench.report.drawn.looked import redundancy_file
from ditbench.report.page import build_page, learned_text
from ditbench.report.plans import trace_of
from ditbench.report.ratios import ratios_figure
from ditbench.report.results import load_results
from ditbench.report.tables import build_table, markdown
from ditbench.report.tracking.publications import learning_publication, publication, study_publication
from ditbench.study import load_study
from ditbench.study_figures import Figure
from ditbench.sweeps import run_studies
from tests.faults.test_fuzz import BOUNDED, VALUES, mutated
from tests.faults.test_fuzz_learned import FOUND as LEARNED
from tests.faults.test_fuzz_learned import SHAPE, record_of, spec_of
from tests.report.conftest import IMAGES, SHARD, Fabricated, fabricated_code, write

ARM = "fora-n2"
# By hand as many as are wanted; here each is a whole command.
SOME = settings(BOUNDED, max_examples=int(os.environ.get("DITBENCH_FUZZ", "18")))
FEW = settings(BOUNDED, max_examples=int(os.environ.get("DITBENCH_FUZZ", "4")))
# What is of the right type, or nearly, and still nonsense.
ODD: Any = st.sampled_from(
    [
        *(
            None,
            True,
            False,
            0,
            -1,
            1,
            2.5,
            2**70,
            -(2**70),
            10**400,
            1e308,
            -1e308,
            5e-324,
            float("nan"),
            float("inf"),
        ),
        *("", "x", "\0", "\ud800", "../../etc/passwd", "</script><img src=x>", "9999-12-31T23:59:59", "full"),
        *([], {}, [[]], [None], [{}], [1, "a"], [[1.0, [2]]], {"a": 1}),
    ]
)


def sealed(body: dict[str, Any]) -> str:
    """A record's text with a seal over what it holds now."""
    kept = {name: value for name, value in body.items() if name != SEAL}
    kept["schema"] = str(kept["schema"]).replace("@1", "@2")
    return json.dumps({**kept, SEAL: seal(kept)})


def record_mutated(body: Any, chance: random.Random, value: Any) -> Any:
    """A record with one place changed; as often in a short part of it as in a long one."""
    if "schema" not in body:  # a plan
        return mutated(body, chance.randrange(2**32), value)
    name = chance.choice([name for name in body if name not in ("schema", SEAL)])
    if chance.random() < 0.25 or not isinstance(body[name], (dict, list)) or not body[name]:
        return mutated({name: body[name]}, chance.randrange(2**32), value) | {
            k: v for k, v in body.items() if k != name
        }
    return {**body, name: mutated(body[name], chance.randrange(2**32), value)}


class Filled:
    """A finished tree of results with every record that a run leaves, sealed, and the commands that read it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.tree = folder, Fabricated(folder / "results", load_study("embedded"))
        self.root, self.settings = self.tree.root, folder / "config.yaml"
        self.settings.write_text(f"studies: [embedded]\nimages: {IMAGES}\nshard: {SHARD}\nreferences: 16\n")
        self.config: Config = load_config(self.settings)
        self._shared()
        for path in self.records:
            path.write_text(sealed(self._fuller(path, json.loads(path.read_text()))))
        for arm in ("full", ARM):
            columns = {"caption_id": self.tree.ids, "clip/scenes": [0.1 * i for i in range(IMAGES)]}
            pq.write_table(pa.table(columns), self.tree.folder(arm) / "samples.parquet")
        self.plan = self.tree.folder(ARM) / "plan.json"
        self.targets = [*(p for p in self.records if "cells" not in p.parts or ARM in p.parts), self.plan]
        self.before = {path: path.read_bytes() for path in self.targets}

    @property
    def records(self) -> list[Path]:
        return sorted(path for path in self.root.rglob("*.json") if path.name != "plan.json")

    def _shared(self) -> None:
        digest = "0" * 64
        body = {
            "world": "scenes",
            "captions_sha256": digest,
            "count": IMAGES,
            "file": "a.safetensors",
            "sha256": digest,
        }
        write(self.root / "embeddings" / "scenes" / f"{self.tree.set_name}.json", "embeddings", body)
        body = {"world": "scenes", "name": "renders-16", "count": 16, "sha256": digest, "source": "seed 1000003"}
        write(self.root / "references" / "scenes" / "renders-16.json", "references", body)
        name = kept_settings(self.config).name
        body = {"settings": name, "began": 1767323000.0, "ended": 1767325000.0, "cores": 2, "gpus": 0}
        write(self.root / "run.json", "run", body)

    def _fuller(self, path: Path, body: dict[str, Any]) -> dict[str, Any]:
        """A fabricated record with what else real ones have."""
        if path.parent.name == "shards":
            branches = (UnitCost(1000, 10, keys="computed", width=8),) * len(body["trace"]["layout"])
            body["costs"] = Costs(branches, Work(500, 3), {"text": Work(3)}).to_json()
            body["trace"]["noted"] = {"text": [SHARD] * body["trace"]["steps"]}
        if path.name == "latency.json":
            lap = {"mode": "compiled", "batch": 16, "speedup": body["speedup"], "refused": None}
            body |= {"others": [lap], "not_timed": {"graphs": "no GPU"}, "gpu_load": 0.1, "device": "cuda"}
            body |= {"peak_bytes": 10**9, "peak_bytes_baseline": 2 * 10**9}
            body["forward_seconds"]["kinds"] = ["all", "none", "all"]
        if path.name == "scores.json":
            body["reference_set"] = {"name": "renders-16", "sha256": "0" * 64, "count": 16, "preprocessing": None}
            body |= {"judge_weights": {"a": "b"}, "judge_seconds": {"a": 1.0}}
            body["measures"][0]["left_out"] = [body["measures"][0]["value"] + 0.01 * i for i in range(IMAGES)]
        return body

    def mutate(self, chance: random.Random, value: Any) -> None:
        """Changes one place of one record, as often in one of few records of a kind as in one of many."""
        kinds = sorted(
            {(path.parent.name == "shards", path.name) for path in self.targets if path.parent.name != "shards"}
        )
        names = [name for _, name in kinds] + ["shards"]
        name = chance.choice(names)
        path = chance.choice([path for path in self.targets if name in (path.name, path.parent.name)])
        self.write(path, record_mutated(json.loads(self.before[path]), chance, value))

    def write(self, path: Path, body: Any) -> None:
        path.write_text(sealed(body) if path != self.plan else json.dumps(body))

    def restore(self) -> None:
        for path, content in self.before.items():
            if path.read_bytes() != content:
                path.write_bytes(content)

    def change(self, path: Path, place: tuple[Any, ...], value: Any) -> None:
        """Puts a value in a place of a record."""
        body = json.loads(self.before[path])
        node = body
        for key in place[:-1]:
            node = node[key]
        node[place[-1]] = value
        self.write(path, body)

    @property
    def commands(self) -> dict[str, list[str]]:
        of = ["--config", str(self.settings), "--results", str(self.root)]
        cell = self.tree.folder(ARM)
        shards = sorted(str(path) for path in (cell / "shards").glob("*.json"))
        full = sorted(str(path) for path in (self.tree.folder("full") / "shards").glob("*.json"))
        captions = str(self.root / "captions" / "scenes" / f"{self.tree.set_name}.json")
        out = self.folder / "out"
        ran = ["--spec", str(cell / "spec.json"), "--shards", *shards]
        return {
            "study": ["study", "embedded", "--format", "md", *of],
            "cells": ["cells", *of],
            "show": ["show", ARM, *of],
            "show for a program": ["show", ARM, "--json", *of],
            "diff": ["diff", "full", ARM, *of],
            "recommend": ["recommend", "--quality-loss", "5%", *of],
            "plan": ["plan", *of],
            "spent": ["spent", *of],
            "pack": ["pack", *of, "--out", str(out / "done.zip")],
            "pack two": ["pack", "full", ARM, *of, "--out", str(out / "done.zip")],
            "cost": ["cost", *ran, "--out", str(out / "cost.json")],
            "score": [
                *("score", *ran, "--full-shards", *full, "--captions", captions, "--judges", "psnr"),
                *("--out", str(out / "scores.json")),
            ],
        }

    def run(self, name: str) -> tuple[int, list[Path]]:
        """The exit status of a command, and what it wrote."""
        out = self.folder / "out"
        out.mkdir(exist_ok=True)
        status = main(self.commands[name])
        files = sorted(out.iterdir())
        for path in files:
            path.unlink()
        return status, files


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ditbench.elsewhere._code", fabricated_code)
        yield Filled(tmp_path_factory.mktemp("sealed"))


def answered(filled: Filled, name: str, capsys: pytest.CaptureFixture[str], say: str = "") -> None:
    """A command that ends well or with a sentence; a file is there whole, or not at all."""
    status, files = filled.run(name)
    said = capsys.readouterr()
    assert "failed with" not in said.err and "Traceback" not in said.err, said.err
    assert status in (0, 2), said.err
    assert not [path for path in files if path.name.endswith(".partial")]
    assert not list(filled.root.rglob(".*.partial"))
    if status == 2:
        assert said.err.startswith("ditbench: ") and not {"done.zip"} & {path.name for path in files}
        assert name not in ("cost", "score") or f"{name}s.json".replace("costs", "cost") not in files
    said.out.encode("utf-8")  # as terminals and pipes have it
    assert say in said.out + said.err


def test_what_is_whole_is_read_by_all_commands(filled: Filled, capsys: pytest.CaptureFixture[str]) -> None:
    filled.restore()
    wrote = {
        "pack": ["done.zip"],
        "pack two": ["done.zip"],
        "cost": ["cost.json", "trace.json"],
        "score": ["samples.parquet", "scores.json"],
    }
    for name in filled.commands:
        status, files = filled.run(name)
        assert status == 0, capsys.readouterr().err
        assert [path.name for path in files if path.name != "failure.json"] == wrote.get(name, [])


@SOME
@given(seed=st.integers(0, 2**32), value=VALUES | ODD)
def test_commands(seed: int, value: Any, filled: Filled, capsys: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(seed)
    filled.restore()
    filled.mutate(chance, value)
    for name in chance.sample(sorted(filled.commands), 2):
        answered(filled, name, capsys)


@SOME
@given(seed=st.integers(0, 2**32), value=VALUES | ODD, name=st.sampled_from(sorted(LEARNED)))
def test_what_specs_say_was_learned(seed: int, value: Any, name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    body, path = record_of(name), tmp_path_factory.mktemp("spec") / "spec.json"
    found = {**body["found"], **({"file": "/some/where/weights.safetensors"} if "file" in body["found"] else {})}
    spec = {"schema": "ditbench/spec@2", **spec_of(body), "hash": "0" * 12}

    def read(found: Any) -> None:
        path.write_text(sealed({**spec, "found": found}))
        record = read_record(path, "spec")
        learned_text(record["found"] or {}), ratios_figure(record["found"] or {}, record["knobs"], "svg")
        method = method_of(record)
        method.plan(SHAPE), method.decider(SHAPE)
        assert name != "sdtm" or len(method.thresholds) == 2  # type: ignore[attr-defined]

    changed = mutated({"found": found}, seed, value).get("found")
    try:
        read(changed)
    except Fault as fault:
        # A spec of which nothing was learned yet is a whole one; its method says what it waits for.
        expected = str(path) if changed is not None else f"{name} must be fitted first"
        assert expected in str(fault) and "\n" not in str(fault)


def test_a_learned_plan_in_a_spec_that_cannot_be_is_said_with_file_and_field(tmp_path: Path) -> None:
    path, body = tmp_path / "spec.json", record_of("diffsparse")
    shares = [[1.0, 1.5], [0.5, 0.5]]
    path.write_text(sealed({"schema": "ditbench/spec@2", **spec_of(body), "found": {"shares": shares}}))
    said = r"spec\.json cannot be used: found\.shares\[0\]\[1\] is 1\.5 and must be from 0 to 1; delete it"
    with pytest.raises(Fault, match=said):
        method_of(read_record(path, "spec"))
    path.write_text(sealed({"schema": "ditbench/spec@2", **spec_of(body), "found": {"ratios": "x"}}))
    with pytest.raises(Fault, match=r"spec\.json is no whole spec record: found\.ratios is 'x' and must be a list"):
        read_record(path, "spec")


def published(filled: Filled) -> None:
    """All that is told to MLflow of a run, but for telling it."""
    found, studies = load_results(filled.config, filled.root), run_studies(filled.config)
    for cell in found.cells:
        if cell.state != "not run":
            run = publication(cell, found, studies)
            assert run.digest and (run.draw is None or run.draw() is not None)
            learning_publication(cell, found, "parent")
    for study in studies:
        study_publication(study, found)


def shown(filled: Filled) -> None:
    """The page, which shows all that there is."""
    build_page(run_studies(filled.config), load_results(filled.config, filled.root)).encode("utf-8")


@pytest.mark.parametrize(
    ("name", "value"),
    [("cores", 10**400), ("gpus", -1), ("settings", "../config.yaml"), ("settings", "a\0b"), ("clock_jump", 10**400)],
)
def test_a_run_that_notes_nonsense_is_none(
    name: str, value: Any, filled: Filled, capsys: pytest.CaptureFixture[str]
) -> None:
    filled.restore()
    filled.change(filled.root / "run.json", (name,), value)
    answered(filled, "spent", capsys, f"no run is noted in {filled.root}")


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"clip/scenes": [0.5]}, "has no `caption_id`"),
        ({"caption_id": ["a"], "clip/scenes": ["much"]}, "`clip/scenes` are no numbers"),
        ({"caption_id": [["a"]], "clip/scenes": [[0.5]]}, "`clip/scenes` are no numbers"),
    ],
)
def test_tables_of_pictures_that_are_none(
    columns: dict[str, Any], said: str, filled: Filled, capsys: pytest.CaptureFixture[str]
) -> None:
    filled.restore()
    path = filled.tree.folder(ARM) / "samples.parquet"
    kept = path.read_bytes()
    try:
        pq.write_table(pa.table(columns), path)
        answered(filled, "diff", capsys, f"ditbench: {path} cannot be read ({said}); delete scores.json beside it")
    finally:
        path.write_bytes(kept)


@pytest.mark.parametrize("count", [2**40, -1])
def test_references_are_as_many_as_a_folder_holds(count: int, tmp_path: Path) -> None:
    path = tmp_path / "renders.json"
    path.write_text(sealed({"schema": "ditbench/references@2", "world": "scenes", "count": count, "sha256": "0"}))
    with pytest.raises(Fault, match=rf"renders\.json is no whole references record: count: {count} must be"):
        read_references(path)


@pytest.mark.parametrize("content", [b"no archive", b"", b"PK\3\4"])
def test_what_was_seen_of_a_network_and_cannot_be_read(content: bytes, filled: Filled) -> None:
    filled.restore()
    figure = Figure.model_validate({"kind": "redundancy", "title": "Redundancy", "captions": 2})
    path = redundancy_file(filled.root, "scenes", figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    drawing = draw(load_study("embedded"), figure, load_results(filled.config, filled.root))
    assert drawing.picture is None
    assert drawing.missing[0].startswith("What was seen of the network cannot be read (")
    assert f"delete what is in {path.parent} and run `ditbench look embedded` again" in drawing.missing[0]
    path.unlink()


def test_a_note_of_a_failure_can_be_printed(filled: Filled, capsys: pytest.CaptureFixture[str]) -> None:
    filled.restore()
    folder = filled.tree.folder(ARM)
    spec = (folder / "spec.json").read_bytes()
    (folder / "spec.json").unlink()
    note = {"schema": "ditbench/failure@1", "stage": "images", "reason": "a\ud800", "detail": "", "created": ""}
    (folder / "failure.json").write_text(json.dumps(note))
    try:
        answered(filled, "show", capsys, "failure.json cannot be read")
    finally:
        (folder / "failure.json").unlink()
        (folder / "spec.json").write_bytes(spec)


@pytest.fixture(scope="module")
def packed(filled: Filled, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What is in a file of finished cells."""
    filled.restore()
    file = tmp_path_factory.mktemp("pack") / "done.zip"
    found = load_results(filled.config, filled.root)
    pack(found, [cell for cell in found.cells if cell.arm == ARM], file)
    with zipfile.ZipFile(file) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@SOME
@given(seed=st.integers(0, 2**32), value=VALUES | ODD)
def test_files_of_finished_cells(
    seed: int, value: Any, packed: dict[str, bytes], filled: Filled, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, chance = tmp_path_factory.mktemp("packs"), random.Random(seed)
    changed, file = chance.choice([name for name in packed if name.endswith(".json")]), folder / "done.zip"
    body = record_mutated(json.loads(packed[changed]), chance, value)
    files = packed | {changed: (sealed(body) if "schema" in body else json.dumps(body)).encode()}
    if changed != INDEX:  # whose hashes are those of what the file has now
        index = json.loads(files[INDEX])
        index["cells"][0]["files"][changed.rpartition("/")[2]] = hashlib.sha256(files[changed]).hexdigest()
        files[INDEX] = sealed(index).encode()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    try:
        found = load_results(filled.config.model_copy(update={"elsewhere": [str(file)]}), folder / "results")
        for cell in found.cells:
            if cell.elsewhere is not None:
                show.told(cell, found.root), trace_of(cell), publication(cell, found, run_studies(filled.config))
        markdown(build_table(load_study("embedded"), found))
    except Fault as fault:
        assert str(folder) in str(fault) and "\n" not in str(fault)
    assert not list(folder.rglob(".*.partial"))


SHARED = ("captions/scenes/evaluation-8-seed0.json", "references/scenes/renders-16.json")


@pytest.mark.parametrize("file", SHARED)
def test_a_damaged_record_that_cells_share_is_told_by_a_report_that_goes_on(
    file: str, filled: Filled, capsys: pytest.CaptureFixture[str]
) -> None:
    filled.restore()
    of = ["--config", str(filled.settings), "--results", str(filled.root)]
    path, table = filled.root / file, filled.root / "studies" / "embedded" / "table.md"
    path.write_text(path.read_text().replace("scenes", "scenery", 1))
    table.unlink(missing_ok=True)
    assert main(["report", *of]) == 0
    damaged = f"{path} is damaged: it does not hold what was written; delete it and run again"
    assert f"report: WARNING: {damaged}\n" in capsys.readouterr().err
    assert "**" in table.read_text()
    page = (filled.root / "report" / "index.html").read_text()
    assert page.count(damaged) == (2 if "captions" in file else 1)  # where its pictures would be, too
    assert (table.with_name("grid.png")).exists() == ("captions" not in file)
    assert main(["spent", *of]) == 0
    assert f"ditbench: not counted: {damaged}\n" in capsys.readouterr().err


@FEW
@given(seed=st.integers(0, 2**32), value=VALUES | ODD)
def test_page_and_publications(seed: int, value: Any, filled: Filled) -> None:
    filled.restore()
    filled.mutate(random.Random(seed), value)
    for tell in (shown, published):
        try:
            tell(filled)
        except Fault as fault:
            assert str(fault).strip() and "\n" not in str(fault)


SHARD_RECORD, SPEC = "shards/00000-00003.json", "spec.json"
# What ended in a KeyError, TypeError, ValueError, OverflowError, AttributeError or UnicodeEncodeError.
FOUND: list[tuple[str, str, tuple[Any, ...], Any, str]] = [
    ("cost", SPEC, ("knobs",), "x", "no whole spec record: knobs: 'x' must be a valid dictionary"),
    ("cost", SHARD_RECORD, ("costs", "branches", 0, "price"), 1, "costs.branches.0.price: unknown key"),
    ("cost", SHARD_RECORD, ("costs", "step"), None, "costs.step: None must be"),
    ("score", SHARD_RECORD, ("first",), [None], "first: [None] must be a valid integer"),
    ("score", SHARD_RECORD, ("file",), "a\0b", "file: 'a\\x00b' must be the name of a file beside the record"),
    ("pack two", SHARD_RECORD, ("trace", "layout", 3), [0], "trace.layout.3"),
    ("pack two", SHARD_RECORD, ("trace", "noted"), -1, "trace.noted: -1 must be a valid dictionary"),
    ("pack two", SHARD_RECORD, ("trace", "entered"), [4], "every step as `entered` and `noted`"),
    (
        "pack two",
        SHARD_RECORD,
        ("trace", "computed", 9),
        [],
        "every branch at every step as `computed`",
    ),
    ("pack two", SHARD_RECORD, ("trace", "squares", 0, 0), 10**400, "trace.squares.0.0: 1000"),
    ("pack two", SHARD_RECORD, ("provenance", "git"), ["a"], "provenance.git: ['a'] must be a valid string"),
    ("plan", SHARD_RECORD, ("count",), 0, "to draw: 4 images, 28 are there already"),
    ("plan", SHARD_RECORD, ("images_per_second",), 0, "to draw: 4 images, 28 are there already"),
    ("show", "plan.json", ("shares", 0, 0), 1.5, "shares.0.0: 1.5 must be from 0 to 1, or -1"),
    ("show", "plan.json", ("shares", 0, 0), float("nan"), "shares.0.0: nan must be"),
    (
        "show",
        "plan.json",
        ("layout", 0, 1),
        "a\ud800",
        "plan.json cannot be read as JSON (it holds half",
    ),
    ("show", "scores.json", ("measures", 0, "name"), "a\ud800", "it holds half of a character"),
]


@pytest.mark.parametrize(
    ("name", "file", "place", "value", "said"), FOUND, ids=[f"{f[0]}-{'.'.join(map(str, f[2]))}" for f in FOUND]
)
def test_what_is_found_is_said(
    name: str,
    file: str,
    place: tuple[Any, ...],
    value: Any,
    said: str,
    filled: Filled,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled.restore()
    filled.change(filled.tree.folder(ARM) / file, place, value)
    answered(filled, name, capsys, said)
