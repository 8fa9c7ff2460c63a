"""Study files: what a good one says, and that every mistake of a bad one is told at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ditbench.faults import Fault
from ditbench.learn.sources import ARM, KNOBS
from ditbench.study import arm_name, load_study, study_names


def small() -> dict:
    return {
        "title": "Small",
        "world": "scenes",
        "rows": [
            {"arm": "full", "method": "full", "label": "full"},
            {"arm": "fora-n3", "method": "fora", "knobs": {"interval": 3}, "label": "FORA"},
        ],
        "columns": [
            {"measure": "fid/scenes", "label": "FID/scenes"},
            {"measure": "speedup", "label": "speedup", "digits": 1},
        ],
        "figure": {"x": "speedup", "y": "fid/scenes"},
        "baseline": "full",
    }


def write(folder: Path, body: object) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(body), encoding="utf-8")
    return path


def test_the_embedded_study_has_a_baseline_a_control_and_both_axes() -> None:
    study = load_study("embedded")
    arms = [row.arm for row in study.rows]
    assert arms == ["full", "fewer-steps-50", "fora-n2", "broken"]
    assert study.baseline == "full" and study.controls == ["broken"]
    assert study.row("fora-n2").knobs == {"interval": 2}
    assert study.column(study.figure.y).label == "FID/scenes"


def test_a_study_is_called_like_its_file(tmp_path: Path) -> None:
    assert load_study(write(tmp_path, small())).name == "small"
    with pytest.raises(Fault, match="called like its file"):
        load_study(write(tmp_path, {**small(), "name": "other"}))


def test_an_unknown_study_is_answered_with_the_possible_ones() -> None:
    with pytest.raises(Fault, match=r"no study 'embeded'; did you mean 'embedded'\?"):
        load_study("embeded")


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    body = small()
    body["rows"][0]["methd"] = "full"
    body["columns"][1]["digits"] = "two"
    body["controlls"] = []
    del body["baseline"]
    with pytest.raises(Fault) as caught:
        load_study(write(tmp_path, body))
    message = str(caught.value)
    assert len(message.splitlines()) == 4 and message.count("small.yaml: ") == 4
    assert "rows.0.methd: unknown key; did you mean 'method'?" in message
    assert "columns.1.digits: 'two' must be a valid integer" in message
    assert "controlls: unknown key; did you mean 'controls'?" in message
    assert "baseline: missing" in message


def test_mistakes_of_a_study_are_told_like_those_of_a_configuration(tmp_path: Path) -> None:
    body = small()
    body["rows"][0]["arm"] = "A b"
    body["rows"][1]["steps"] = 0
    body["columns"][0]["label"] = ""
    body["columns"][1]["digits"] = 10
    body["nmae"] = "x"
    with pytest.raises(Fault) as caught:
        load_study(write(tmp_path, body))
    place = tmp_path / "small.yaml"
    assert str(caught.value).splitlines() == [
        f"{place}: rows.0.arm: 'A b' is no name of an arm; possible: lower-case letters, digits and . _ -, "
        "a letter or digit first",
        f"{place}: rows.1.steps: 0 must be >= 1",
        f"{place}: columns.0.label: '' must not be empty",
        f"{place}: columns.1.digits: 10 must be <= 9",
        # `name` is the file's to say.
        f"{place}: nmae: unknown key. Possible: title, world, rows, columns, baseline, figure, figures, controls, "
        "references, rows_of, ablations, source, awaits, twin, notes, not_printed",
    ]


def test_names_must_exist_and_be_unique(tmp_path: Path) -> None:
    body = small()
    body["rows"][1] |= {"arm": "full", "knobs": {"interval": 0}}
    body["columns"].append({"measure": "clip/elsewhere", "label": "CLIP"})
    body["columns"].append({"measure": "macs-lineer", "label": "MACs"})
    # What others published needs no judge of ours.
    body["columns"].append({"measure": "minutes", "label": "minutes (published only)"})
    body["rows"][0]["published"] = {"minutes": {"value": 1.0, "source": "a paper"}}
    body["figure"]["x"] = "speed"
    body["controls"] = ["brocken"]
    with pytest.raises(Fault) as caught:
        load_study(write(tmp_path, body))
    message = str(caught.value)
    assert "arm 'full' is listed twice" in message
    assert "rows.1.knobs: interval: 0 must be >= 1" in message
    assert "belongs to world 'elsewhere'" in message
    assert "nothing measures 'macs-lineer'; did you mean 'macs-linear'?" in message
    assert "nothing measures 'minutes'" not in message
    assert "figure.x: 'speed' is not a column; did you mean 'speedup'?" in message
    assert "controls: no row has arm 'brocken'" in message


@pytest.mark.parametrize("text", ["- a list", "title: [unclosed", ""])
def test_a_file_that_is_no_study_is_a_fault(tmp_path: Path, text: str) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(Fault, match=r"odd\.yaml"):
        load_study(path)


def test_reading_a_study_loads_nothing_heavy() -> None:
    code = (
        "import sys; from ditbench.study import load_study; load_study('embedded');"
        "print([m for m in ('torch', 'pandas', 'matplotlib', 'mlflow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_folders_are_part_of_a_name() -> None:
    assert load_study("diffsparse-table1") == load_study("diffsparse/table1")
    assert load_study("studies/diffsparse/table1.yaml").name == "diffsparse-table1"


def test_a_row_has_a_method_or_says_what_it_awaits(tmp_path: Path) -> None:
    body = small()
    body["rows"].append({"arm": "later", "label": "later", "awaits": "Later"})
    body["rows"].append({"arm": "both", "label": "both", "awaits": "Later", "method": "fora"})
    body["rows"].append({"arm": "neither", "label": "neither"})
    with pytest.raises(Fault) as caught:
        load_study(write(tmp_path, body))
    lines = str(caught.value).splitlines()
    assert [line.partition(": ")[2].partition(":")[0] for line in lines] == ["rows.3", "rows.4"]


def test_a_published_number_has_the_study_s_source_or_needs_its_own(tmp_path: Path) -> None:
    body = small()
    body["rows"][1]["published"] = {"speedup": 1.5}
    with pytest.raises(Fault, match=r"rows\.1\.published\.speedup"):
        load_study(write(tmp_path, body))
    study = load_study(write(tmp_path, {**body, "source": "A paper, Table 1"}))
    assert study.rows[1].published["speedup"].source == "A paper, Table 1"
    assert study.rows[1].published["speedup"].value == 1.5


def test_ablations_vary_one_knob_at_a_time_or_all_together(tmp_path: Path) -> None:
    vary = {"interval": [2, 3, 4], "direction": ["down"]}
    body = small() | {"ablations": [{"base": "fora-n3", "vary": vary}]}
    arms = {row.arm: row.knobs for row in load_study(write(tmp_path, body)).rows}
    # 3 is where the base stands already.
    assert set(list(arms)[2:]) == {"fora-n3.interval-2", "fora-n3.interval-4", "fora-n3.direction-down"}
    assert arms["fora-n3.direction-down"] == {"interval": 3, "direction": "down"}
    body["ablations"][0]["grid"] = True
    arms = {row.arm: row.knobs for row in load_study(write(tmp_path, body)).rows}
    assert len(arms) == 5 and arms["fora-n3.direction-down.interval-2"] == {"interval": 2, "direction": "down"}


def test_an_ablation_with_a_wrong_value_or_base_is_told(tmp_path: Path) -> None:
    body = small() | {"ablations": [{"base": "fora-n3", "vary": {"interval": [0]}}]}
    with pytest.raises(Fault, match=r"ablations: rows\.2\.knobs: interval: 0 must be >= 1"):
        load_study(write(tmp_path, body))
    body["ablations"][0]["base"] = "fora"
    with pytest.raises(Fault, match=r"ablations: no row has arm 'fora'"):
        load_study(write(tmp_path, body))


def borrowing(**wanted: object) -> dict:
    body = small()
    return body | {"rows": body["rows"][:1], "rows_of": [wanted]}


def test_rows_of_other_studies_are_taken_once(tmp_path: Path) -> None:
    body = borrowing(study="embedded", arms=["fora-n2", "broken"], group="of others")
    body["controls"] = ["broken"]
    body["rows_of"].append({"study": "embedded"})
    study = load_study(write(tmp_path, body))
    assert [row.arm for row in study.rows] == ["full", "fora-n2", "broken", "fewer-steps-50"]
    assert [row.group for row in study.rows] == ["", "of others", "of others", ""]
    # The same cell by another name is the same cell.
    body["rows"].append({"arm": "mine", "method": "fora", "label": "mine"})
    assert [row.arm for row in load_study(write(tmp_path, body)).rows] == ["full", "mine", "broken", "fewer-steps-50"]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"study": "embeded"}, "no study 'embeded'; did you mean 'embedded'"),
        ({"study": "embedded", "arms": ["fora-2"]}, "rows_of.0: embedded has no arm 'fora-2'; did you mean 'fora-n2'"),
        ({"study": "embedded_sdtm"}, "rows_of.0: embedded_sdtm is of world scenes-mmdit, this study of scenes"),
        ({"study": "embedded_all"}, "rows_of.0: embedded_all takes rows of others itself; name those studies"),
    ],
)
def test_rows_that_cannot_be_taken_are_told(tmp_path: Path, wanted: dict, said: str) -> None:
    with pytest.raises(Fault, match=said):
        load_study(write(tmp_path, borrowing(**wanted)))


def test_an_arm_that_is_something_else_elsewhere_is_told(tmp_path: Path) -> None:
    body = borrowing(study="embedded")
    body["rows"].append({"arm": "fora-n2", "method": "fora", "knobs": {"interval": 5}, "label": "mine"})
    with pytest.raises(Fault, match=r"arm 'fora-n2' is something else in embedded than in a row before"):
        load_study(write(tmp_path, body))


def test_what_another_arm_of_a_study_learned_is_named_by_the_arm() -> None:
    # A path would be of one configuration's results, and of no other's; only another world's run has no shorter name.
    for study in map(load_study, study_names()):
        arms = {row.arm for row in study.rows}
        for row in study.rows:
            for knob, value in row.knobs.items():
                if knob in KNOBS and value.startswith(ARM):
                    assert value.removeprefix(ARM) in arms, (study.name, row.arm)
                own_run = str(value).startswith("results/") and f"/{study.world}/" in str(value)
                assert not own_run, (study.name, row.arm, knob)


def test_the_twin_of_a_study_of_diffcr_has_all_of_its_methods() -> None:
    for study in map(load_study, study_names()):
        if study.name.startswith("diffcr-") and study.twin:
            twin = {row.method for row in load_study(study.twin).rows}
            assert {row.method for row in study.rows if row.method} <= twin, (study.name, study.twin)
    ratios = {row.knobs.get("ratio") for row in load_study("diffcr/supplement-table3").rows if row.method == "diffcr"}
    pressed = load_study("embedded_diffcr_ratios").rows
    asked = {row.knobs.get("at") or row.knobs.get("ratio") for row in pressed if row.knobs.get("whole")}
    assert ratios <= asked


def test_the_study_of_all_methods_has_them_all() -> None:
    methods = {row.method for row in load_study("embedded_all").rows}
    of_others = ("embedded_caching", "embedded_merging")
    assert {row.method for name in of_others for row in load_study(name).rows} < methods
    assert {"diffcr", "mod", "diffsparse"} < methods
    # What issue and papers name of merging, pruning and dynamic networks.
    assert {"tomesd", "sdtm", "toma", "at-edm", "sito", "tokencache", "dydit"} < methods
    assert any(row.knobs.get("adjusting") == "threshold" for row in load_study("embedded_all").rows)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"baseline": "fora-n3"}, "baseline: differences and speed-ups are measured to the arm full"),
        ({"twin": "embeded"}, "twin: no study 'embeded'; did you mean 'embedded'?"),
        ({"references": 123456789012}, "references: a hash of digits alone must stand in quotes"),
        (
            {"columns": [{"measure": "speedup", "label": "s", "unit": "T"}]},
            "columns.0.unit: speedup cannot be shown in T",
        ),
        (
            {"columns": [{"measure": "cache-bytes", "label": "c", "unit": "ms"}]},
            "columns.0.unit: cache-bytes cannot be shown in ms; it can be MB or GB, or be left out",
        ),
        (
            {"columns": [{"measure": "fid/scenes", "label": "FID", "unit": "T"}]},
            "columns.0.unit: fid/scenes cannot be shown in T",
        ),
    ],
)
def test_what_would_be_told_wrongly_later_is_refused(tmp_path: Path, change: dict, said: str) -> None:
    with pytest.raises(Fault) as caught:
        load_study(write(tmp_path, {**small(), "figure": None, **change}))
    assert said in str(caught.value)


def test_a_published_number_without_a_source_is_told_as_that(tmp_path: Path) -> None:
    body = small()
    body["rows"][1]["published"] = {"speedup": 1.5, "fid/scenes": float("nan")}
    body["columns"][0]["digits"] = 12
    with pytest.raises(Fault) as caught:
        load_study(write(tmp_path, body))
    told = str(caught.value)
    assert "rows.1.published.speedup: 1.5 has no source; name the `source` of all published values" in told
    assert "columns.0.digits: 12 must be <= 9" in told
    with pytest.raises(Fault, match="nan must be a finite number"):
        load_study(write(tmp_path, {**body, "source": "a paper"}))


def test_a_key_given_twice_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, small())
    path.write_text(path.read_text() + "baseline: full\n")
    with pytest.raises(Fault, match="baseline: given twice, in lines"):
        load_study(path)


def test_names_of_arms_that_vary_much_stay_apart() -> None:
    point = {f"a_knob_with_a_long_name_{i}": i for i in range(5)}
    names = {arm_name("base", point | {"last": value}) for value in range(10)}
    assert len(names) == 10 and all(len(name) <= 80 for name in names)
