"""Studies as they stand: every file of `studies/` renders in every form, with the cells at hand or without any."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
import yaml

from ditbench.cli import main
from ditbench.config import check_config
from ditbench.inspect.studies import FORMS, listed, rendered, standing
from ditbench.study import load_study, study_names


@pytest.mark.parametrize("name", study_names())
def test_every_study_renders_without_weights_or_cells(name: str, tmp_path: Path) -> None:
    study = load_study(name)
    results = standing(study, check_config({}), tmp_path)
    for form in FORMS:
        assert rendered(study, results, form)
    rows = list(csv.DictReader(io.StringIO(rendered(study, results, "csv"))))
    published = [row for row in rows if row["kind"] == "published"]
    assert len(published) == sum(len(row.published) for row in study.rows)
    assert all(row["source"] for row in published)
    assert not any(row["kind"] == "measured" for row in rows)


def test_published_values_are_as_printed(tmp_path: Path) -> None:
    study = load_study("diffsparse/table1")
    text = rendered(study, standing(study, check_config({}), tmp_path), "md")
    assert (
        "| DiffSparse (R = 54 %) (published, not run: cannot be run as configured) | 1.30 | 1.91 | 27.79 | 0.164 |"
        in text
    )
    assert "What cannot be run as configured: world pixart-alpha-256 has no captions" in text


def test_groups_have_headings_in_every_form_for_readers(tmp_path: Path) -> None:
    study = load_study("diffsparse-table5")
    results = standing(study, check_config({}), tmp_path)
    assert "| *with DiffSparse* |" in rendered(study, results, "md")
    assert r"\multicolumn{2}{l}{\textit{with DiffSparse}} \\" in rendered(study, results, "tex")
    assert '<th scope="rowgroup" colspan="2">with DiffSparse</th>' in rendered(study, results, "html")


def test_a_study_that_awaits_a_world_tells_so_and_is_refused_by_a_run(tmp_path: Path) -> None:
    from ditbench.cells import cell_table
    from ditbench.faults import Fault

    text = rendered(
        load_study("diffcr-table2"), standing(load_study("diffcr-table2"), check_config({}), tmp_path), "md"
    )
    assert "not run: awaits inpainting" in text
    with pytest.raises(Fault, match=r"diffcr-table2 awaits inpainting; `ditbench study diffcr-table2` shows"):
        cell_table(check_config({"studies": ["diffcr-table2"]}))


def test_awaiting_rows_make_no_cells(tmp_path: Path) -> None:
    from ditbench.cells import cell_table

    captions = tmp_path / "captions.txt"
    captions.write_text("".join(f"a picture of {i} things\n" for i in range(4)), encoding="utf-8")
    config = check_config(
        {
            "studies": ["diffsparse-table3"],
            "world": "wan2.1-1.3b-256",
            "images": 4,
            "captions": {"file": str(captions), "train": {"file": str(captions)}},
            "weights": {"wan2.1-1.3b-256": "random"},
        }
    )
    arms = {spec.arm for spec in cell_table(config)}
    assert "full" in arms and not any("duca" in arm for arm in arms)


def test_the_command_prints_or_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"results": "elsewhere"}), encoding="utf-8")
    assert main(["study", "sdtm/table-s2-flux", "--config", str(path)]) == 0
    assert "595.2" in capsys.readouterr().out
    assert main(["study", "sdtm-table-s2-flux", "--config", str(path), "--out", str(tmp_path / "out")]) == 0
    assert main(["study", "sdtm-table-s2-flux", "--config", str(path), "--out", str(path / "in a file")]) == 2
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == sorted(f"table.{form}" for form in FORMS)
    assert main(["studies"]) == 0
    assert "diffsparse-table1" in capsys.readouterr().out
    assert {"study", "world", "arms", "awaiting", "title"} == set(listed()[0])


def test_a_sweep_of_the_configuration_is_a_study_to_be_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("sweeps: {caching: {method: fora, knobs: {interval: [3, 4]}}}\n")
    assert main(["study", "sweep-caching", "--config", str(config), "--results", str(tmp_path / "none")]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "(not run)" in line]
    assert len(rows) == 2 and "interval = 3" in rows[0]
