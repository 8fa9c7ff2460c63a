"""Cells that were finished elsewhere: packed into one file, shown by another run, and nothing taken on trust."""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ditbench.cells import Spec
from ditbench.commits import ROOT, Known, known_at
from ditbench.elsewhere import INDEX, Pack, finished_elsewhere, pack, packs_of
from ditbench.faults import Fault
from ditbench.inspect.recommend import Wish, recommend, told
from ditbench.report.page import build_page
from ditbench.report.plans import trace_of
from ditbench.report.results import Results, read_results
from ditbench.report.tables import build_table, html, markdown
from ditbench.report.tracking.publications import publication
from ditbench.study import Study
from ditbench.worlds.scenes.world import assets_folder
from tests.report.conftest import NAMES, Fabricated, fabricated_code


@pytest.fixture(autouse=True)
def as_the_tree_was_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fabricated records name a code of their own, which so is that of here."""
    monkeypatch.setattr("ditbench.elsewhere._code", fabricated_code)


@pytest.fixture
def packed(tree: Fabricated, tmp_path: Path) -> Path:
    """All cells of the tree but FORA's in one file; the tree is gone afterwards."""
    found = tree.read()
    file = tmp_path / "done.zip"
    assert pack(found, [cell for cell in found.cells if cell.arm != "fora-n2"], file) == 3
    return file


def elsewhere(tree: Fabricated, file: Path, root: Path) -> Results:
    return read_results(tree.specs, root, NAMES, packs=packs_of([str(file)], root))


def test_a_packed_cell_says_what_it_said_where_it_was_made(tree: Fabricated, packed: Path, tmp_path: Path) -> None:
    there, here = tree.read(), elsewhere(tree, packed, tmp_path / "other")
    assert [cell.state for cell in here.cells] == ["done", "done", "not run", "done"]
    for mine, theirs in zip(here.cells, there.cells, strict=True):
        if mine.arm != "fora-n2":
            assert {n: replace(v, source="") for n, v in mine.values.items()} == {
                n: replace(v, source="") for n, v in theirs.values.items()
            }
            assert (mine.differences, mine.plan, mine.elsewhere) == (theirs.differences, theirs.plan, packed)
            assert mine.shards == ()
            ran, own = trace_of(mine), trace_of(theirs)
            assert ran is not None and own is not None
            assert ran.summary() == own.summary()


def test_its_jobs_are_not_counted_as_this_runs(tree: Fabricated, packed: Path, tmp_path: Path) -> None:
    assert elsewhere(tree, packed, tmp_path / "other").jobs == ()
    assert tree.read().jobs


def test_tables_page_and_runs_name_the_file(tree: Fabricated, embedded: Study, packed: Path, tmp_path: Path) -> None:
    here, there = elsewhere(tree, packed, tmp_path / "other"), tree.read()
    ours, theirs = markdown(build_table(embedded, here)), markdown(build_table(embedded, there))
    row = next(line for line in theirs.splitlines() if "fewer steps" in line)
    label, values = row.split(" | ", 1)
    assert f"{label} (finished elsewhere) | {values}".replace("**", "") in ours.replace("**", "")  # ranks aside
    assert "finished elsewhere)" not in theirs
    pages = [html(build_table(embedded, results)) for results in (here, there)]
    assert [page.count(">finished elsewhere</span>") for page in pages] == [3, 0]
    assert any(
        note.startswith("3 rows were finished elsewhere (2026-") and "taken from done.zip" in note
        for note in build_table(embedded, here).notes
    )
    page = build_page([embedded], here)
    assert f"3, taken from {packed}" in page
    run = publication(here.of_arm("scenes", "full")[0], here, [embedded])
    assert run.tags["taken_from"] == packed.name
    assert "trace.json" in run.files
    assert run.metrics == publication(there.of_arm("scenes", "full")[0], there, [embedded]).metrics
    assert run.start_ms > 0


def test_a_cell_is_known_by_what_is_asked_of_it_and_not_by_its_arms_name(
    tree: Fabricated, packed: Path, tmp_path: Path
) -> None:
    packs = packs_of([str(packed)], tmp_path)
    spec = tree.spec("fewer-steps-50")
    assert finished_elsewhere(packs, [replace(spec, arm="half")]) == {spec.hash: packs[0]}
    assert finished_elsewhere(packs, [replace(spec, images=9)]) == {}
    assert finished_elsewhere(packs, [tree.spec("fora-n2")]) == {}
    (cell,) = read_results([replace(spec, arm="half")], tmp_path, NAMES, packs=packs).cells
    assert (cell.arm, cell.state) == ("half", "done")


def test_equal_cells_make_files_of_equal_records(tree: Fabricated, packed: Path, tmp_path: Path) -> None:
    found = tree.read()
    pack(found, [cell for cell in found.cells if cell.arm != "fora-n2"][::-1], tmp_path / "again.zip")
    with zipfile.ZipFile(packed) as one, zipfile.ZipFile(tmp_path / "again.zip") as other:
        assert one.namelist() == other.namelist()
        assert all(one.read(name) == other.read(name) for name in one.namelist() if name != INDEX)


def test_only_finished_cells_are_packed(tree: Fabricated, tmp_path: Path) -> None:
    tree.remove("fora-n2", "scores.json")
    found = tree.read()
    with pytest.raises(Fault, match=r"scenes/fora-n2/seed0 is not finished \(not run: judges missing\)"):
        pack(found, found.cells, tmp_path / "done.zip")
    with pytest.raises(Fault, match="nothing to pack yet"):
        pack(found, [], tmp_path / "done.zip")
    assert not (tmp_path / "done.zip").exists()


def other_judges(stage: str, world: str, method: str | None) -> str:
    return "other" if stage == "score" else fabricated_code(stage, world, method)


def test_cells_of_other_code_are_held_against_the_commit_that_they_name(
    tree: Fabricated, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ditbench.elsewhere._code", other_judges)
    found, file = tree.read(), tree.root / "done.zip"
    said = (
        r"scenes/full/seed0 was made by other code or weights than are here \(judges\), and not by that of commit "
        "0123456789ab, which they name; run the workflow again, and pack then"
    )
    with pytest.raises(Fault, match=said):
        pack(found, found.cells, file)  # there is no such commit
    asked: list[str] = []

    def known(commit: str, wanted: set[tuple[str, str, str | None]]) -> Known:
        asked.append(commit)
        return Known({each: fabricated_code(*each) for each in wanted}, {"scenes": {"a.safetensors": "aa"}})

    monkeypatch.setattr("ditbench.elsewhere.known_at", known)
    assert pack(found, found.cells, file) == len(found.cells)
    assert asked == ["0123456789abcdef" * 2 + "01234567"]
    with zipfile.ZipFile(file) as archive:
        assert json.loads(archive.read(INDEX))["weights"] == {"scenes": {"a.safetensors": "aa"}}
    monkeypatch.setattr(
        "ditbench.elsewhere.known_at", lambda commit, wanted: Known(dict.fromkeys(wanted, "third"), {"scenes": {}})
    )
    with pytest.raises(Fault, match="and not by that of commit"):
        pack(found, found.cells, file)


def test_cells_of_several_commits_are_not_packed(tree: Fabricated, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ditbench.elsewhere._code", other_judges)
    path = tree.folder("full") / "scores.json"
    body = json.loads(path.read_text())
    body["provenance"]["git"] = "f" * 40
    path.write_text(json.dumps(body))
    found = tree.read()
    with pytest.raises(Fault, match=r"\(judges\), and not by that of one commit; run the workflow again"):
        pack(found, found.of_arm("scenes", "full"), tree.root / "done.zip")


def test_a_commit_of_this_checkout_tells_its_code_and_weights() -> None:
    asked = {("generate", "scenes", "fora"), ("score", "scenes", None)}
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is no checkout")
    known = known_at(head.strip(), asked)
    assert known is not None
    assert set(known.codes) == asked and all(len(code) == 16 for code in known.codes.values())
    assert {"transformer.safetensors", "reader.safetensors"} <= set(known.weights["scenes"])
    assert known_at("0" * 40, asked) is None


def test_rows_of_other_code_are_told(
    tree: Fabricated, embedded: Study, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ditbench.elsewhere._code", lambda stage, world, method: "other")
    notes = build_table(embedded, elsewhere(tree, packed, tmp_path / "other")).notes
    assert any("3 of them by other code of engine, method or judges than is here now" in note for note in notes)


def own_fora(tree: Fabricated, root: Path, change: Callable[[dict[str, Any]], None], name: str = "latency") -> None:
    """FORA's records in another results folder, one of them changed."""
    folder = Path(tree.spec("fora-n2").folder(root))
    shutil.copytree(tree.folder("fora-n2"), folder)
    body = json.loads((folder / f"{name}.json").read_text())
    change(body)
    (folder / f"{name}.json").write_text(json.dumps(body))


def test_what_was_timed_otherwise_is_marked_and_neither_ranked_nor_recommended(
    tree: Fabricated, embedded: Study, packed: Path, tmp_path: Path
) -> None:
    root = tmp_path / "other"
    own_fora(tree, root, lambda body: body.update(batch=1))
    here = elsewhere(tree, packed, root)
    table = build_table(embedded, here)
    place = next(i for i, heading in enumerate(table.headings) if heading.measure == "speedup")
    line = next(line for line in table.lines if line.arm == "fora-n2")
    assert line.entries[place].apart == "timed with another batch than the others"
    assert not line.entries[place].rank
    advice = recommend(here, Wish("scenes", "fid/scenes", speedup=1.01))
    assert advice.apart == {"fora-n2": "timed with another batch"}
    assert "fora-n2" not in {choice.arm for choice in [*advice.choices, *advice.nearest]}
    assert "not to be compared, and so not considered: fora-n2 (timed with another batch)" in told(advice)
    own_fora(tree, tmp_path / "alike", lambda body: None)
    assert (
        recommend(elsewhere(tree, packed, tmp_path / "alike"), Wish("scenes", "fid/scenes", speedup=1.01)).apart == {}
    )


def test_what_was_judged_with_other_weights_is_marked(
    tree: Fabricated, embedded: Study, tmp_path: Path, packed: Path
) -> None:
    root, file = tmp_path / "other", tmp_path / "weighed.zip"
    for arm in ("full", "fewer-steps-50", "broken"):
        path = tree.folder(arm) / "scores.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "judge_weights": {"reader": "aaaa"}}))
    found = tree.read()
    pack(found, [cell for cell in found.cells if cell.arm != "fora-n2"], file)
    own_fora(tree, root, lambda body: body.update(judge_weights={"reader": "bbbb"}), "scores")
    table = build_table(embedded, elsewhere(tree, file, root))
    line = next(line for line in table.lines if line.arm == "fora-n2")
    judged = [e for h, e in zip(table.headings, line.entries, strict=True) if h.measure.endswith("/scenes")]
    assert judged and all(entry.apart == "by judges with other weights than the others" for entry in judged)


def test_pictures_of_the_full_model_that_are_drawn_here_are_shown(
    tree: Fabricated, packed: Path, tmp_path: Path
) -> None:
    root = tmp_path / "other"
    spec = tree.spec("full")
    shutil.copytree(tree.folder("full") / "shards", spec.folder(root) / "shards")
    shutil.copy(tree.folder("full") / "spec.json", spec.folder(root) / "spec.json")
    (full,) = elsewhere(tree, packed, root).of_arm("scenes", "full")
    assert full.state == "done" and full.elsewhere == packed
    assert [path.stem for path in full.shards] == NAMES
    assert [job.stage for job in elsewhere(tree, packed, root).jobs] == ["images"] * len(NAMES)
    body = {"schema": "ditbench/failure@1", "stage": "images", "reason": "out of room", "detail": "", "created": ""}
    (spec.folder(root) / "failure.json").write_text(json.dumps(body))
    (full,) = elsewhere(tree, packed, root).of_arm("scenes", "full")
    assert full.state_text == "failed: images: out of room"


def test_an_arm_that_others_of_the_run_stand_on_is_not_taken(tmp_path: Path) -> None:
    def spec(arm: str, method: str, **more: Any) -> Spec:
        return Spec("scenes", arm, method, more.pop("knobs", {}), None, 0, 8, "c", None, "float32", **more)

    tuned = spec("tuned", "full-finetuned", learning="pairs-own")
    routed = spec("routed", "diffcr", learning="pairs-own")
    on = spec("on", "fora", weights_of="tuned@abc")
    later = spec("later", "diffcr", knobs={"weights_file": "arm:routed@def"}, learning="nothing")
    specs = [tuned, routed, on, later]

    def taken(*there: Spec) -> set[str]:
        file = Pack(tmp_path / "a.zip", tmp_path, {each.hash: tmp_path for each in there})
        marks = finished_elsewhere([file], specs)
        return {each.arm for each in specs if each.hash in marks}

    assert taken(*specs) == {"tuned", "routed", "on", "later"}
    assert taken(tuned, routed, on) == {"tuned", "on"}
    assert taken(tuned, routed, later) == {"routed", "later"}
    assert taken(tuned, routed) == set()


def rewritten(file: Path, change: Callable[[dict[str, bytes]], None]) -> Path:
    with zipfile.ZipFile(file) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    change(held)
    other = file.with_name("changed.zip")
    with zipfile.ZipFile(other, "w") as archive:
        for name, data in held.items():
            archive.writestr(name, data)
    return other


def _other_number(held: dict[str, bytes]) -> None:
    name = "scenes/full/seed0/scores.json"
    held[name] = held[name].replace(b"2.14", b"1.14")


def _other_hash(held: dict[str, bytes]) -> None:
    held[INDEX] = held[INDEX].replace(b'"hash": "', b'"hash": "f')


def _outwards(held: dict[str, bytes]) -> None:
    held["../../outside.json"] = b"{}"


def _missing(held: dict[str, bytes]) -> None:
    del held["scenes/full/seed0/scores.json"]


def _no_index(held: dict[str, bytes]) -> None:
    del held[INDEX]


def _paths_in_the_index(held: dict[str, bytes]) -> None:
    from ditbench.records import seal

    body = json.loads(held[INDEX])
    del body["seal"]
    body["cells"][0]["cell"] = "../../../elsewhere"
    held[INDEX] = json.dumps({**body, "seal": seal(body)}).encode()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_other_number, r"scores.json is damaged"),
        (_other_hash, r"pack.json is damaged"),
        (_outwards, r"has '../../outside.json', which is no record of a cell"),
        (_missing, r"scores.json is missing"),
        (_no_index, r"has no pack.json"),
        (_paths_in_the_index, r"its list of cells is not as `ditbench pack` writes it"),
    ],
)
def test_a_file_that_was_changed_is_a_sentence(
    packed: Path, tmp_path: Path, change: Callable[[dict[str, bytes]], None], said: str
) -> None:
    with pytest.raises(Fault, match=said):
        packs_of([str(rewritten(packed, change))], tmp_path / "other")
    assert not (tmp_path / "outside.json").exists()


def test_what_is_no_such_file_is_a_sentence(tmp_path: Path, packed: Path) -> None:
    with pytest.raises(Fault, match=r"elsewhere: .*no such file"):
        packs_of([str(tmp_path / "none.zip")], tmp_path)
    (tmp_path / "text.zip").write_text("no archive")
    with pytest.raises(Fault, match=r"is no file of `ditbench pack`, or damaged"):
        packs_of([str(tmp_path / "text.zip")], tmp_path)
    (tmp_path / "cut.zip").write_bytes(packed.read_bytes()[:-400])
    with pytest.raises(Fault, match=r"is no file of `ditbench pack`, or damaged"):
        packs_of([str(tmp_path / "cut.zip")], tmp_path)
    with pytest.raises(Fault, match=r"elsewhere: .*is a directory"):
        packs_of([str(tmp_path)], tmp_path)
    assert not list((tmp_path / "elsewhere").glob("*")) if (tmp_path / "elsewhere").exists() else True


def test_cells_of_other_weights_are_refused(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = assets_folder()
    there = tmp_path / "assets"
    there.mkdir()
    for path in own.iterdir():
        if path.is_file():
            (there / path.name).write_bytes(path.read_bytes())
    monkeypatch.setenv("DITBENCH_SCENES_ASSETS", str(there))
    assert packs_of([str(packed)], tmp_path / "alike")
    for name in ("transformer.safetensors", "reader.safetensors"):
        before = (there / name).read_bytes()
        (there / name).write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        said = rf"of world scenes in .*done.zip were made with other weights \({name}\)"
        with pytest.raises(Fault, match=said):
            packs_of([str(packed)], tmp_path / name)
        (there / name).write_bytes(before)
