"""Figures that studies ask for: every mistake told, what is drawn true, and a reason for what is not."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from ditbench.cli import main
from ditbench.faults import Fault
from ditbench.report import drawn
from ditbench.report.drawn import Drawing
from ditbench.report.drawn.looked import redundancy_file
from ditbench.report.results import Results
from ditbench.study import Study, load_study

NOTHING = Results(Path("nowhere"), (), ())


def study_of(folder: Path, *figures: dict[str, Any], **body: Any) -> Study:
    rows = [
        {"arm": "full", "method": "full", "label": "full"},
        {"arm": "sdtm", "method": "sdtm", "knobs": {"ratio": 0.5}, "label": "SDTM"},
        {"arm": "toca", "method": "toca", "knobs": {"interval": 3}, "label": "ToCa"},
        {
            "arm": "diffcr",
            "method": "diffcr",
            "knobs": {"ratio": 0.3},
            "label": "DiffCR",
            "published": {"minutes": 2.0},
        },
    ]
    whole = {
        "title": "Small",
        "source": "a paper",
        "world": "scenes-mmdit",
        "rows": rows,
        "columns": [
            {"measure": "speedup", "label": "speedup"},
            {"measure": "minutes", "label": "minutes"},
        ],
        "baseline": "full",
        "figures": [{"title": "A figure", **figure} for figure in figures],
    }
    path = folder / "drawn.yaml"
    path.write_text(yaml.safe_dump({**whole, **body}), encoding="utf-8")
    return load_study(path)


def only(study: Study, results: Results = NOTHING) -> Drawing:
    (drawing,) = drawn.drawings(study, results)
    return drawing


def test_every_mistake_of_a_figure_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(Fault) as caught:
        study_of(
            tmp_path,
            {"kind": "plans"},
            {"kind": "plan", "arms": ["full", "tocca"], "captions": 3},
            {"kind": "plan", "arms": ["full"]},
            {"kind": "macs-by-branch", "worlds": ["scenes", "scene"]},
            {"kind": "trade-off", "x": "speedup", "y": "fid"},
        )
    with pytest.raises(Fault, match=r"figures\.0\.arm: unknown key; did you mean 'arms'\?"):
        study_of(tmp_path, {"kind": "plan", "arm": "full"})
    told = [line.partition("drawn.yaml: ")[2] for line in str(caught.value).splitlines()]
    assert [line.partition(". Possible")[0].partition("; did")[0] for line in told] == [
        "figures.0.kind: no kind of figure is called 'plans'",
        "figures.1.captions: kind plan has no such key",
        "figures.1.arms: no row has arm 'tocca'",
        "figures.2: its files would be called like those of figures.1; give it a `name`",
        "figures.3.arms: missing; kind macs-by-branch needs it",
        "figures.3.worlds: no world 'scene'",
        "figures.4.y: 'fid' is not a column",
    ]


def test_macs_of_branches_are_the_ledger_s(tmp_path: Path) -> None:
    from ditbench.macs import count_macs
    from ditbench.methods import get_method

    arms = ["full", "sdtm", "diffcr"]
    study = study_of(
        tmp_path,
        {"kind": "macs-by-branch", "arms": arms, "counted": "total", "worlds": ["scenes-mmdit", "scenes"]},
        {"kind": "macs-by-step", "arms": arms, "marked": [2]},
    )
    by_branch, by_step = drawn.drawings(study, NOTHING)
    counted = count_macs("scenes-mmdit", get_method("sdtm", {"ratio": 0.5}))
    rows = [row for row in by_branch.rows if (row["arm"], row["world"]) == ("sdtm", "scenes-mmdit")]
    assert sum(row["macs"] for row in rows) == pytest.approx(counted["total"] / counted["steps"])
    assert {
        row["branch"]: row["macs"] * counted["steps"] for row in rows if row["branch"] != "embeddings and head"
    } == (pytest.approx(counted["by_branch"]))
    along = [row["macs"] for row in by_step.rows if row["arm"] == "sdtm"]
    assert sum(along) == pytest.approx(counted["linear"] - counted["outside"])
    # Linear layers and products of attention are the two parts of the whole.
    assert sum(along) < counted["total"] - counted["outside"]
    # What must be trained first is told, not drawn.
    assert list(by_branch.missing) == ["DiffCR: not run: not in the config."]
    assert not any(row["arm"] == "diffcr" for row in [*by_branch.rows, *by_step.rows])


def test_a_plan_s_map_is_what_the_plan_leaves_out(tmp_path: Path) -> None:
    from ditbench.methods import get_method
    from ditbench.worlds import get_world

    study = study_of(tmp_path, {"kind": "plan", "arms": ["toca", "diffcr"], "first_step": 2}, world="scenes")
    drawing = only(study)
    world = get_world("scenes")
    plan = get_method("toca", {"interval": 3}).plan(world.shape(world.default_steps))
    blocks = world.shape(1).layout.blocks
    assert {row["step"] for row in drawing.rows} == set(range(2, world.default_steps + 1))
    assert {row["block"] for row in drawing.rows} == set(range(1, blocks + 1))
    mean = np.mean([row["left_out"] for row in drawing.rows])
    assert mean == pytest.approx(1 - plan.shares[1:].mean())
    assert drawing.missing == ["DiffCR: not run: not in the config."]


def test_published_values_have_a_panel_of_their_own_and_nothing_is_drawn_empty(tmp_path: Path) -> None:
    study = study_of(tmp_path, {"kind": "trade-off", "x": "speedup", "y": "minutes"})
    drawing = only(study)
    assert drawing.picture is None and dict(drawing.files("s"))["figure-trade-off.png"] is None
    assert drawing.told == "All 4 arms: not run: not in the config."
    rows = [*yaml.safe_load((tmp_path / "drawn.yaml").read_text())["rows"]]
    rows[3]["published"]["speedup"] = 1.5
    drawing = only(study_of(tmp_path, {"kind": "trade-off", "x": "speedup", "y": "minutes"}, rows=rows))
    assert [axes.get_title() for axes in drawing.picture.axes] == ["as published"]
    assert [(row["arm"], row["kind"], row["speedup"]) for row in drawing.rows] == [("diffcr", "published", 1.5)]
    assert next(csv.DictReader(io.StringIO(drawing.table())))["minutes"] == "2.0"


def test_ratios_are_those_that_training_noted(tmp_path: Path) -> None:
    from ditbench.report.results import Cell

    found = {
        "trajectory": [[[0.0, 0.0]], [[0.2, 0.4]]],
        "ratios": [[0.2, 0.4]],
        "history": {"ratio": [0.0, 0.1, 0.3], "deployed": [0.0, 0.1, 0.3]},
    }
    spec = {"arm": "diffcr", "seed": 0, "world": "scenes", "knobs": {"ratio": 0.3}, "found": found}
    results = Results(tmp_path, (Cell(spec, "hash", Path("cell"), "not run", "images missing"),), ())
    study = study_of(tmp_path, {"kind": "ratios", "arms": ["diffcr", "full"]}, world="scenes")
    drawing = only(study, results)
    ended = [row["value"] for row in drawing.rows if row["what"] == "ratio" and row["step"] == 3]
    assert ended[-2:] == [0.2, 0.4]
    assert drawing.missing == ["full: not run: not in the config."]


def test_a_network_is_looked_at_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = study_of(tmp_path, {"kind": "redundancy", "captions": 2}, {"kind": "plan", "arms": ["toca"]})
    place, results = str(tmp_path / "drawn.yaml"), ["--results", str(tmp_path / "results")]
    assert only_kind(study, Results(tmp_path / "results", (), ())).missing == [
        "Nobody has looked at the network yet; `ditbench look drawn` does, with the same --config and --results."
    ]
    assert main(["look", place, *results]) == 0
    assert capsys.readouterr().out.strip() == str(
        redundancy_file(tmp_path / "results", "scenes-mmdit", study.figures[0])
    )
    assert main(["study", place, *results]) == 0
    assert "figure-redundancy.svg, .png and .csv." in capsys.readouterr().out
    folder = tmp_path / "results" / "studies" / "drawn"
    assert (folder / "figure-redundancy.png").read_bytes().startswith(b"\x89PNG")
    with (folder / "figure-redundancy.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert {row["quantity"] for row in rows} == {"norm_LL", "norm_LH", "norm_HL", "norm_HH", "distance", "cosine"}
    assert all(float(row["least"]) <= float(row["mean"]) <= float(row["greatest"]) for row in rows)


def only_kind(study: Study, results: Results) -> Drawing:
    return drawn.draw(study, study.figures[0], results)
