"""The committed configurations; those of papers ask for the arms of all the tables that can be run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from ditbench.cells import cell_table
from ditbench.config import check_config, load_config
from ditbench.study import load_study, study_names

ROOT = Path(__file__).parents[2]
PAPERS = sorted((ROOT / "configs" / "papers").glob("*.yaml"))
EMBEDDED = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small stand-ins for the files that the configurations name."""
    folder = tmp_path_factory.mktemp("data")
    annotations = folder / "coco" / "annotations"
    annotations.mkdir(parents=True)
    for number, name in enumerate(("val2014", "train2014", "val2017", "train2017")):
        notes = [{"id": i, "image_id": 1000 * number + i, "caption": f"{name}, number {i}"} for i in range(3)]
        images = [{"id": note["image_id"], "file_name": f"{note['image_id']}.jpg"} for note in notes]
        (annotations / f"captions_{name}.json").write_text(json.dumps({"images": images, "annotations": notes}))
    (folder / "PartiPrompts.tsv").write_text("Prompt\tCategory\tChallenge\tNote\na bowl\tFood\tBasic\t\n")
    for name in ("vbench/all_dimension.txt", "hpsv2/prompts.txt"):
        (folder / name).parent.mkdir()
        (folder / name).write_text("a person walks a dog\n")
    return folder


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_a_configuration_of_a_paper_asks_for_the_arms_of_its_studies(path: Path, data: Path) -> None:
    body = yaml.safe_load(path.read_text().replace("/data/", f"{data}/"))
    # Their weights are nobody's here: random ones stand for them, where nothing is drawn.
    body["weights"] = {load_study(name).world: "random" for name in body["studies"]}
    config = check_config(body, str(path))
    cells = {spec.arm for spec in cell_table(config)}
    rows = {row.arm for name in body["studies"] for row in load_study(name).rows if row.method}
    assert rows <= cells
    assert {load_study(name).world for name in body["studies"]} == {config.world}


@pytest.mark.parametrize("path", EMBEDDED, ids=lambda path: path.stem)
def test_a_configuration_of_the_embedded_worlds_can_be_run_as_it_is(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config(path)
    assert cell_table(config)
    assert all((ROOT / pack).is_file() for pack in config.elsewhere)


def test_every_table_that_can_be_run_is_in_a_configuration() -> None:
    named = {load_study(name).name for path in PAPERS for name in yaml.safe_load(path.read_text())["studies"]}
    papers = [load_study(name) for name in study_names() if name.split("-")[0] in ("diffsparse", "diffcr", "sdtm")]
    assert {study.name for study in papers if study.awaits is None and any(row.method for row in study.rows)} <= named
