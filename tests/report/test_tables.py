"""A study's table in its four forms."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ditbench.report.results import Cell
from ditbench.report.tables import build_table, csv_text, html, latex, markdown, number, plain, tex
from ditbench.study import Study


def columns(study: Study, *measures: str) -> Study:
    """The study with fewer columns."""
    kept = [study.column(measure) for measure in measures]
    return study.model_copy(update={"columns": kept, "figure": study.figure.model_copy(update={"y": measures[0]})})


def test_markdown_of_a_small_table(tree: Any, embedded: Study) -> None:
    small = columns(embedded, "fid/scenes", "relations/scenes", "speedup")
    assert markdown(build_table(small, tree.read()), page="page.html") == (
        "### The embedded study: caching on scenes\n"
        "\n"
        "| arm | FID/scenes ↓ | relations/scenes ↑ | speedup ↑ |\n"
        "| :-- | --: | --: | --: |\n"
        "| [full](page.html#cell-scenes-full-seed0) (baseline) | 2.14 \\[2.02, 2.29\\] | 0.942 \\[0.910, 0.966\\] "
        "| 1.00× \\[0.98, 1.02\\] |\n"
        "| [fewer steps, 50 %](page.html#cell-scenes-fewer-steps-50-seed0) | **2.71** \\[2.55, 2.90\\] "
        "| **0.938** ≈ \\[0.905, 0.963\\] | **1.96×** \\[1.91, 2.00\\] |\n"
        "| [FORA, N = 2](page.html#cell-scenes-fora-n2-seed0) | 3.08 \\[2.89, 3.30\\] | 0.929 ≈ \\[0.894, 0.956\\] "
        "| 1.88× \\[1.83, 1.93\\] |\n"
        "| [broken](page.html#cell-scenes-broken-seed0) (control) | 38.40 \\[36.90, 40.10\\] "
        "| 0.271 \\[0.222, 0.325\\] | 3.40× \\[3.30, 3.50\\] |\n"
        "\n"
        "- World: scenes; n = 8 images per arm; seed 0.\n"
        "- In brackets: 95 % interval; for speed and time, the slowest and the fastest of the interleaved rounds.\n"
        "- Best of the accelerated arms is bold; the baseline and controls are not ranked.\n"
        "- ≈: the 95 % interval of the paired difference to full includes zero.\n"
        "- broken (control): reuses three of four steps, from wrong tokens; every judge must rank it last.\n"
        "- broken (control) ranks last in all 2 columns of quality, as it must.\n"
    )


def test_controls_and_the_baseline_are_never_best(tree: Any, embedded: Study) -> None:
    table = build_table(embedded, tree.read())
    ranks = {line.arm: {entry.rank for entry in line.entries} for line in table.lines}
    # broken is the fastest of all, full has the best FID.
    assert ranks["broken"] == {""} and ranks["full"] == {""}
    assert "best" in ranks["fewer-steps-50"]


def test_second_best_needs_three_rivals_and_equal_print_ranks_alike(tree: Any, embedded: Study) -> None:
    study = embedded.model_copy(update={"controls": []})
    table = build_table(columns(study, "fid/scenes", "macs-linear"), tree.read())
    ranks = {line.arm: tuple(entry.rank for entry in line.entries) for line in table.lines}
    assert ranks["fewer-steps-50"] == ("best", "second")
    assert ranks["fora-n2"] == ("second", "second")
    assert ranks["broken"] == ("", "best")


def test_failed_and_missing_cells_keep_their_row(tree: Any, embedded: Study) -> None:
    tree.fail("fora-n2", "judges", "a | b\nc")
    tree.remove("broken")
    text = markdown(build_table(embedded, tree.read()))
    assert "(failed: judges: a \\| b c)" in text
    assert "[broken](../../report/index.html#cell-scenes-broken-seed0) (control, not run) | – |" in text


def test_an_arm_that_the_config_does_not_run_is_said(tree: Any, embedded: Study) -> None:
    tree.specs = [spec for spec in tree.specs if spec.arm != "fora-n2"]
    lines = {line.arm: line for line in build_table(embedded, tree.read()).lines}
    assert lines["fora-n2"].state == "not run: not in the config"


def test_nothing_run_yet_still_gives_a_table(tree: Any, embedded: Study) -> None:
    for row in embedded.rows:
        tree.remove(row.arm)
    table = build_table(embedded, tree.read())
    assert table.notes == ("Nothing has been run yet.",)
    assert latex(table).count(rf"\multicolumn{{{len(embedded.columns)}}}{{l}}") == 4
    assert html(table).count(f'colspan="{len(embedded.columns)}"') == 4


def test_published_values_stand_apart(tree: Any, embedded: Study) -> None:
    body = embedded.model_dump()
    body["rows"][2]["published"] = {"macs-linear": {"value": 1.5, "source": "Table 2 of a paper"}}
    study = Study.model_validate(body)
    table = build_table(study, tree.read())
    arms = [(line.arm, line.role) for line in table.lines]
    assert arms[2:4] == [("fora-n2", "arm"), ("fora-n2", "published")]
    line = table.lines[3]
    assert [e.text for e in line.entries if e.value] == ["1.50"] and all(not e.rank for e in line.entries)
    rows = [row for row in csv.DictReader(io.StringIO(csv_text(table, "scenes"))) if row["role"] == "published"]
    assert [(row["kind"], row["value"], row["source"]) for row in rows] == [("published", "1.5", "Table 2 of a paper")]


def test_csv_has_plain_numbers_with_their_kind_and_interval(tree: Any, embedded: Study) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(build_table(embedded, tree.read()), "scenes"))))
    assert len(rows) == len(embedded.rows) * len(embedded.columns)
    found = next(r for r in rows if (r["arm"], r["measure"]) == ("fora-n2", "fid/scenes"))
    assert float(found["low"]) <= float(found["value"]) <= float(found["high"])
    assert (found["kind"], found["n"], found["direction"]) == ("measured", "8", "lower")
    assert float(found["difference_low"]) > 0
    assert {r["kind"] for r in rows if r["measure"] == "macs-linear"} == {"derived"}
    absent = next(r for r in rows if (r["arm"], r["measure"]) == ("full", "psnr-to-full"))
    assert (absent["value"], absent["kind"]) == ("", "")


def test_seeds_are_rows_of_their_own(fabricate: Callable[..., Any], embedded: Study) -> None:
    labels = [line.label for line in build_table(embedded, fabricate(seeds=(0, 1)).read()).lines]
    assert labels[:2] == ["full, seed 0", "full, seed 1"] and len(labels) == 8


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(-0.001, 2, "0.00"), (-1.25, 1, "−1.2"), (math.inf, 2, "∞"), (math.nan, 2, "–"), (2.0, 0, "2")],
)
def test_numbers_for_reading(value: float, digits: int, text: str) -> None:
    assert number(value, digits) == text


def test_latex_escapes_all_that_is_special() -> None:
    assert tex(r"50 % of a_b & {c} $#^~\ ≈ −1 ×") == (
        r"50 \% of a\_b \& \{c\} \$\#\textasciicircum{}\textasciitilde{}\textbackslash{} $\approx$ $-$1 $\times$"
    )
    assert tex("日") == r"\texttt{U+65E5}"
    assert tex("é") == "é"


def odd(tree: Any, study: Study) -> Study:
    """The study with a label, a note and a reason that LaTeX and HTML would trip over."""
    tree.fail("fora-n2", "judges", r"C:\new_file & 50 % of <b>{x}</b> ~ 日 #1 $2^3")
    rows = [
        row.model_copy(update={"label": f"<i>{row.label}</i> & [50_%]", "note": "≤ 1 – “so”"}) for row in study.rows
    ]
    return study.model_copy(update={"rows": rows})


def test_latex_balances_its_braces_and_columns(tree: Any, embedded: Study) -> None:
    text = latex(build_table(odd(tree, embedded), tree.read()))
    bare = re.sub(r"\\[{}\\&]", "", text)
    assert bare.count("{") == bare.count("}")
    body = bare[bare.index(r"\midrule") : bare.index(r"\bottomrule")]
    rows = [line for line in body.splitlines() if "&" in line]
    assert rows and {line.count("&") for line in rows} == {len(embedded.columns)}


def test_no_label_is_an_option_of_what_stands_before_it(tree: Any, embedded: Study) -> None:
    labels = {"full": "[base]", "fewer-steps-50": "* starred", "broken": "[x]"}
    rows = [row.model_copy(update={"label": labels.get(row.arm, row.label)}) for row in embedded.rows]
    columns = [column.model_copy(update={"label": f"{column.label} [measured]"}) for column in embedded.columns]
    text = latex(build_table(embedded.model_copy(update={"rows": rows, "columns": columns}), tree.read()))
    assert not re.search(r"(\\\\|rule)\s*(\*|\[(?!2pt\]))", text)
    assert "{}[base]" in text and "{}* starred" in text and "{}[measured]" in text
    assert "\nFORA, N = 2 &" in text, "others are as they were"


def test_latex_compiles(tree: Any, embedded: Study, tmp_path: Path) -> None:
    program = shutil.which("pdflatex") or shutil.which("tectonic")
    if program is None:
        pytest.skip("neither pdflatex nor tectonic is installed")
    body = latex(build_table(odd(tree, embedded), tree.read()))
    packages = r"\usepackage[T1]{fontenc}\usepackage[utf8]{inputenc}\usepackage{booktabs,graphicx}"
    source = rf"\documentclass{{article}}{packages}\begin{{document}}{body}\end{{document}}"
    (tmp_path / "t.tex").write_text(source, encoding="utf-8")
    command = [program, *(["-interaction=nonstopmode", "-halt-on-error"] if "pdflatex" in program else []), "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "t.pdf").stat().st_size > 1000


def test_html_escapes_and_links_every_measured_number(tree: Any, embedded: Study) -> None:
    text = html(build_table(odd(tree, embedded), tree.read()))
    assert "<i>" not in text and "&lt;i&gt;full&lt;/i&gt; &amp; [50_%]" in text
    assert "<b>{x}" not in text
    links = re.findall(r'<a class="value" href="([^"]+)"', text)
    # Full has no drift to itself; the failed arm keeps the numbers that it has.
    assert len(links) == 4 * len(embedded.columns) - 1
    assert all(link.startswith("../../report/index.html#cell-scenes-") for link in links)


def test_a_finished_arm_without_a_number_says_why(tree: Any, embedded: Study) -> None:
    results = tree.read()

    def as_if(cell: Cell) -> Cell:
        values = {name: value for name, value in cell.values.items() if name not in ("psnr-to-full", "fid/scenes")}
        if cell.arm == "fora-n2":
            values.pop("relations/scenes")
        scores = {**cell.bodies["scores"], "judge_seconds": {"psnr": 1.0, "attributes": 1.0, "hps": 1.0, "clip": 1.0}}
        return replace(cell, values=values, bodies={**cell.bodies, "scores": scores})

    results = replace(results, cells=tuple(as_if(cell) for cell in results.cells))
    notes = build_table(embedded, results).notes
    assert "No PSNR to full, dB of full: not defined: it compares with this arm." in notes
    assert "No FID/scenes of all: judge fid did not run; `ditbench judges` says what it needs." in notes
    assert "No relations/scenes of FORA, N = 2: not defined for any of these images." in notes
    # What the line's state says already is not said again.
    tree.remove("fora-n2")
    assert not any("FORA" in note for note in build_table(embedded, tree.read()).notes)


def test_in_a_terminal_a_table_stands_in_columns(tree: Any, embedded: Study) -> None:
    text = plain(build_table(columns(embedded, "fid/scenes", "relations/scenes"), tree.read()))
    heads, rule, full, fewer = text.splitlines()[2:6]
    assert heads.split() == ["arm", "FID/scenes", "↓", "relations/scenes", "↑"]
    assert set(rule) == {"-", " "} and len({len(line) for line in (heads, rule, full, fewer)}) <= 2
    assert full.startswith("full (baseline) ") and full.endswith("0.942 [0.910, 0.966]")
    assert "**2.71 [2.55, 2.90]" in fewer
    assert "\\" not in text and "](" not in text
    assert "- Best of the accelerated arms has **;" in text


def test_an_arm_is_ranked_by_the_mean_of_its_seeds(fabricate: Callable[..., Any], embedded: Study) -> None:
    tree = fabricate(seeds=(0, 1))
    for seed, value in ((0, 2.0), (1, 4.0)):  # the best and the worst of all; fewer steps have 2.71 twice
        path = tree.folder("fora-n2", seed) / "scores.json"
        path.write_text(path.read_text().replace("3.08", str(value)))
    table = build_table(embedded, tree.read())
    ranks = {line.label: line.entries[0].rank for line in table.lines if line.role == "arm"}
    assert ranks == dict.fromkeys(("fewer steps, 50 %, seed 0", "fewer steps, 50 %, seed 1"), "best") | dict.fromkeys(
        ("FORA, N = 2, seed 0", "FORA, N = 2, seed 1"), ""
    )
    assert any(note.endswith("An arm is ranked by the mean of its seeds.") for note in table.notes)


def test_where_all_arms_print_alike_none_is_the_best(tree: Any, embedded: Study) -> None:
    for arm in ("fewer-steps-50", "fora-n2"):
        path = tree.folder(arm) / "scores.json"
        body = json.loads(path.read_text())
        for measure in body["measures"]:
            if measure["name"] == "clip/scenes":
                measure["value"] = 0.9
        path.write_text(json.dumps(body))
    table = build_table(embedded, tree.read())
    (place,) = [i for i, heading in enumerate(table.headings) if heading.measure == "clip/scenes"]
    assert {line.entries[place].rank for line in table.lines} == {""}


def test_contended_arms_are_told_in_one_note(tree: Any, embedded: Study) -> None:
    for i, arm in enumerate(("full", "fewer-steps-50", "fora-n2", "broken")):
        path = tree.folder(arm) / "latency.json"
        body = json.loads(path.read_text())
        note = f"other processes took {(9, 61, 12, 10)[i]}% of the processor meanwhile"
        path.write_text(json.dumps(body | {"contended": True, "note": note}))
    (told,) = [note for note in build_table(embedded, tree.read()).notes if "contended" in note]
    assert told == (
        "The machine was contended while arms were timed: 4 of them, from “other processes took 9% of the processor "
        "meanwhile” to “other processes took 61% of the processor meanwhile”; each cell's record says how much."
    )
