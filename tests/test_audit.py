"""The audit of printed MACs: its file, its verdicts, a few of its figures counted for real, and what it writes."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from ditbench.audit import audited, findings, load_audit
from ditbench.audit import told as reading_told
from ditbench.audit.counting import Counter
from ditbench.audit.plans import GivenMethod
from ditbench.audit.sheet import Audit, PlanGiven, half_unit
from ditbench.audit.verdicts import judge, saved, shown
from ditbench.cli import main
from ditbench.faults import Fault
from ditbench.macs import count_macs
from ditbench.methods import get_method, method_names
from ditbench.study import load_study, study_names
from ditbench.worlds import world_names

# Figures that are counted for real: a family each, and what each kind of plan is billed.
GOLDEN = {
    "ds1-full": ("exact", 2.8576),
    "ds1-fora": ("exact", 1.4290),
    "ds1-deepcache": ("within rounding", 1.4870),
    "ds1-r43": ("within rounding", 1.6288),
    "ds2-20": ("exact", 4.5771),
    "ds2-fora": ("exact", 4.1349),
    "ds3-full": ("not reproduced", 41.9430),
    "ds4-full": ("exact", 10.8511),
    "cr1-full-16": ("exact", 17361.7431),
    "cr1-tome-20-16": ("exact", 15421.1561),
    "cr1-mod-16": ("exact", 13949.2792),
    "cr2-pruning-512": ("exact", 775.5316),
    "cr2-image": ("not reproduced", 4282.5165),
    "sm3-512": ("within rounding", 1.8363),
    "ds4-toca": ("exact", 5.9928),
    "ds9-toca": ("not reproduced", 7.1298),
}


@pytest.fixture(scope="module")
def audit() -> Audit:
    return load_audit("macs_audit")


@pytest.fixture(scope="module")
def golden(audit: Audit) -> dict[str, Any]:
    """The audit of the golden figures alone."""
    chosen = [figure for figure in audit.figures if figure.id in GOLDEN]
    return audited(audit.model_copy(update={"figures": chosen}))


def small() -> dict[str, Any]:
    """An audit in the embedded world; its figures are ours, so that they are reproduced."""
    ours = f"{count_macs('scenes', get_method('full'))['linear'] / 1e9:.3f}"
    return {
        "kind": "audit",
        "title": "Small",
        "papers": {"own": {"short": "Own", "title": "A paper", "source": "nowhere", "read": "all of it"}},
        "tables": {
            "one": {
                "paper": "own",
                "place": "Table 1",
                "about": "scenes",
                "counts": "MACs",
                "unit": "G",
                "world": "scenes",
                "baseline": ["full"],
                "reading": {"count": "linear"},
            }
        },
        "awaited": {"methods": {"magic": "Magic_1"}, "worlds": {"moon": "the moon"}},
        "figures": [
            {"id": "full", "table": "one", "row": "full", "printed": ours, "method": "full"},
            {"id": "both", "table": "one", "row": "both", "printed": f"{2 * float(ours):.1f}", "method": "full",
             "reading": {"branches": 2}},
            {"id": "magic", "table": "one", "row": "Magic & more", "printed": "1.0", "method": "magic"},
            {"id": "moon", "table": "one", "row": "Moon", "printed": "1.0", "method": "full", "world": "moon"},
            {"id": "none", "table": "one", "row": "None", "printed": "1.0", "method": "full", "reading": None},
        ],
    }  # fmt: skip


def write(folder: Path, body: Any) -> Path:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(body, allow_unicode=True), encoding="utf-8")
    return path


# The file


def test_every_figure_names_what_there_is_or_what_it_waits_for(audit: Audit) -> None:
    assert len({figure.id for figure in audit.figures}) == len(audit.figures) == 88
    assert {figure.table for figure in audit.figures} == set(audit.tables)
    for figure in audit.figures:
        assert audit.world(figure) in {*world_names(), *audit.awaited.worlds}, figure.id
        assert figure.plan or figure.method in {*method_names(), *audit.awaited.methods}, figure.id
    cited = {(figure.table, figure.row, figure.column, figure.block) for figure in audit.figures}
    assert len(cited) == len(audit.figures)


def test_every_figure_can_be_counted_or_says_why_not(audit: Audit) -> None:
    counter = Counter(audit)
    why = {figure.id: counter.awaits(figure) for figure in audit.figures}
    assert why["ds2-diffsparse"].startswith("diffsparse learns its plan before it samples")
    assert why["ds1-dicache"].startswith("method dicache decides while sampling")
    assert why["sm3-512-sdtm"] == why["cr1-at-edm-16"] == why["ds1-full"] == ""
    star = {text for name, text in why.items() if "star" in name}
    assert len(star) == 1 and star.pop().startswith("sdtm learns its plan before it samples")
    # Only what there is none of: SDXL.
    assert {name for name, text in why.items() if text.endswith("is not in ditbench yet")} == {"cr2-sdxl"}


def test_what_finding_tokens_takes_is_counted_by_itself(audit: Audit) -> None:
    (figure,) = [figure for figure in audit.figures if figure.id == "sm1-similarity-m"]
    counted = Counter(audit).count(figure)
    # A norm, a sum and a square of every token in each of 24 blocks, for both branches of guidance.
    assert counted.ours == 2 * 24 * 3 * 4096 * 1536 / 1e12
    assert reading_told(counted)[0] == "choosing tokens alone"


def test_no_verdict_is_typed() -> None:
    text = (Path(__file__).parents[1] / "studies/macs_audit.yaml").read_text(encoding="utf-8")
    assert not any(f"{key}:" in text for key in ("verdict", "ours", "exact"))


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    body = small()
    body["papers"]["own"]["yaer"] = 2025
    body["tables"]["one"]["unit"] = "P"
    body["figures"][0]["printed"] = 2.86
    body["figures"][1] |= {"methd": "full"}
    body["figures"][2] |= {"plan": {"kept": 3, "share": 0.5}}
    del body["figures"][3]["method"]
    with pytest.raises(Fault) as caught:
        load_audit(write(tmp_path, body))
    message = str(caught.value)
    assert len(message.splitlines()) == message.count("small.yaml: ") == 6
    assert "papers.own.yaer: unknown key. Possible: short, title, source, read" in message
    assert "tables.one.unit: 'P' must be 'T' or 'G'" in message
    assert "figures.0.printed: 2.86 must be a valid string" in message
    assert "figures.1.methd: unknown key; did you mean 'method'?" in message
    assert "takes exactly one of full_steps, kept, share and left_out" in message
    assert "needs a method or a plan" in message


def test_names_must_exist_and_readings_must_be_whole(tmp_path: Path) -> None:
    body = small()
    body["figures"][0] |= {"table": "two"}
    body["figures"][1] |= {"id": "full", "world": "scens", "reading": {"branchs": 2}}
    body["figures"][2] |= {"method": "magick"}
    body["figures"][3] |= {"method": "fora", "knobs": {"interval": 0}}
    body["figures"][4] |= {"tried": [{"label": "x", "world": "mars", "reading": {"count": "all"}}]}
    with pytest.raises(Fault) as caught:
        load_audit(write(tmp_path, body))
    message = str(caught.value)
    assert "figures: 'full' is listed twice" in message
    assert "figures.full.table: no table 'two'. Possible: one" in message
    assert "figures.full.world: no world 'scens'; did you mean 'scenes'?" in message
    assert "figures.full.reading.branchs: unknown key; did you mean 'branches'?" in message
    assert "figures.magic.method: no method 'magick'; did you mean 'magic'?" in message
    assert "figures.moon.knobs: interval: 0 must be >= 1" in message
    assert "figures.none.tried.0.world: no world 'mars'" in message
    assert "figures.none.tried.0.reading.count: 'all'" in message


def test_an_audit_is_no_study_of_arms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "macs_audit" not in study_names() and study_names("audit") == ["macs_audit"]
    with pytest.raises(Fault, match="of kind 'audit', no study of arms; `uv run snakemake macs_audit`"):
        load_study("macs_audit")
    config = tmp_path / "config.yaml"
    config.write_text("studies: [macs_audit]\n", encoding="utf-8")
    assert main(["cells", "--config", str(config)]) == 2
    assert "studies.0: macs_audit is of kind 'audit'" in capsys.readouterr().err
    with pytest.raises(Fault, match=r"embedded\.yaml is no audit"):
        load_audit("embedded")
    (tmp_path / "odd.yaml").write_text("kind: audit\n---\nkind: audit\n", encoding="utf-8")
    with pytest.raises(Fault, match="cannot be read as YAML"):
        load_audit(tmp_path / "odd.yaml")


# Verdicts


@pytest.mark.parametrize(
    ("printed", "ours", "kind"),
    [
        ("2.86", 2.8551, "exact"),
        ("2.86", 2.8649, "exact"),
        ("2.86", 2.8651, "within rounding"),
        ("2.86", 2.8699, "within rounding"),
        ("2.86", 2.8701, "not reproduced"),
        ("2.86", 2.8499, "not reproduced"),
        ("1.10", 1.1, "exact"),
        ("1.10", 1.12, "not reproduced"),
        ("111737.0", 111737.04, "exact"),
        ("3.0E-04", 3.04e-4, "exact"),
        ("3.0E-04", 3.09e-4, "within rounding"),
        ("1.0", None, "not reproduced"),
    ],
)
def test_verdicts_go_by_the_printed_digits(printed: str, ours: float | None, kind: str) -> None:
    assert judge(printed, ours).kind == kind


def test_a_rounded_ratio_leaves_a_band() -> None:
    # 43 % is 42.5 to 43.5 % of 2.8576: 1.6145 to 1.6431, and 1.635 to 1.645 is what 1.64 can be.
    assert (
        judge("1.64", 1.6288, (1.6145, 1.6431), "43 %").told == "within rounding: 43 %, rounded, allows 1.615 to 1.643"
    )
    assert judge("1.65", 1.6288, (1.6145, 1.6431), "43 %").kind == "not reproduced"
    # The row of the very ratio is exact, not within rounding.
    assert judge("1.63", 1.6288, (1.6145, 1.6431), "43 %").kind == "exact"
    assert [str(part) for part in half_unit("43 %")] == ["0.43", "0.005"]


def test_what_a_verdict_says() -> None:
    verdict = judge("20.13", 23.8731)
    assert verdict.told == "not reproduced: ours is 1.186 times the printed figure" and verdict.ratio is not None
    assert judge("1.83", 1.8363).told == "within rounding: 0.6 of a unit of the last digit off"
    assert (shown("2.86", 2.8576), shown("3.0E-04", 3.04e-4)) == ("2.858", "3.04E-04")


def test_savings_are_as_sharp_as_the_digits() -> None:
    low, high = saved("1.43", "2.86")
    assert low < 0.5 < high and high - low == pytest.approx(0.0052, abs=1e-4)


# Sentences


def told(branches: int, run: int, row: str, **changes: Any) -> dict[str, Any]:
    reading = {"branches": branches, "count": "thop", "per": "run", "images": 1}
    figure = {"reading": reading, "cfg_branches": run, "row": row, "verdict": "exact", "attention_adds": 0.1}
    return {**figure, "also_exact": [], "ratio": None, "saved": None, "column": "", "table": "1", **changes}


def test_a_table_that_mixes_branches_is_told() -> None:
    said = " ".join(findings.of_table([told(1, 2, "A"), told(2, 2, "B"), told(2, 2, "C")]))
    assert "This one table mixes conventions: A counts one of the two branches of guidance, B, C both." in said
    assert "None of them counts attention's products, which would add 10 %" in said
    assert "3 of 3 exact figures are exact only with LayerNorms" in said
    said = " ".join(findings.of_table([told(1, 2, "A"), told(2, 2, "B", verdict="not reproduced")]))
    assert "mixes" not in said and "counts one of the two branches" in said
    assert "No reading of this table is known" in " ".join(findings.of_table([told(1, 2, "A", verdict="waits")]))


def test_rows_that_save_another_share_than_they_are_called_by_are_told() -> None:
    rows = [
        told(1, 2, "ToMe 20%", ratio="20 %", saved=[0.11, 0.112]),
        told(1, 2, "MoD", ratio="20 %", saved=[0.2, 0.2]),
    ]
    assert "by the printed figures themselves: ToMe 20% 11.1 %." in findings.of_table(rows)[-1]


def test_a_paper_whose_tables_differ_is_told() -> None:
    tables = [{"id": "1", "place": "Table 1"}, {"id": "2", "place": "Table 2"}]
    said = findings.of_paper(tables, [told(1, 2, "A"), told(2, 2, "B", table="2")])
    assert said == [
        "One paper, two conventions: Table 1 counts one of the two branches of guidance, Table 2 counts both. Between "
        "them figures are off by a factor of two."
    ]


# Counting


@pytest.mark.parametrize("identity", GOLDEN)
def test_golden_figures(golden: dict[str, Any], identity: str) -> None:
    figure = next(figure for figure in golden["figures"] if figure["id"] == identity)
    kind, ours = GOLDEN[identity]
    assert figure["verdict"] == kind
    assert figure.get("ours") == (None if ours is None else pytest.approx(ours, abs=1e-4))


def test_diffsparse_mixes_one_branch_and_both(golden: dict[str, Any]) -> None:
    assert golden["papers"][0]["findings"] == [
        "One paper, two conventions: Tables 1 and 4 count one of the two branches of guidance, Table 2 counts both. "
        "Between them figures are off by a factor of two."
    ]
    assert any(text.startswith("No figure that is reproduced counts the products") for text in golden["findings"])


@pytest.mark.parametrize(
    ("method", "knobs"), [("full", {}), ("fora", {"interval": 3}), ("fewer-steps", {"share": 0.5})]
)
def test_a_kind_of_step_run_once_is_billed_as_the_whole_run_is(tmp_path: Path, method: str, knobs: Any) -> None:
    body = small()
    body["figures"] = [{"id": "one", "table": "one", "row": "one", "printed": "1", "method": method, "knobs": knobs}]
    audit = load_audit(write(tmp_path, body))
    counted = Counter(audit).count(audit.figures[0])
    whole = count_macs("scenes", get_method(method, knobs))
    assert [getattr(counted, name) for name in ("linear", "attention", "thop", "total", "steps")] == [
        whole[name] for name in ("linear", "attention", "thop", "total", "steps")
    ]


def test_plans_that_cannot_be_are_faults(tmp_path: Path) -> None:
    for plan, message in (
        ({"full_steps": [10]}, "no step 10 in a run of 10"),
        ({"kept": 257}, "257 of 256 tokens"),
        ({"kept": 3, "branches": ["mpl"]}, "no branch 'mpl'; possible: self, cross, mlp"),
    ):
        body = small()
        body["figures"] = [{"id": "one", "table": "one", "row": "one", "printed": "1", "plan": plan}]
        audit = load_audit(write(tmp_path, body))
        with pytest.raises(Fault, match=message):
            Counter(audit).count(audit.figures[0])


def test_a_router_and_whole_layer_norms_cost_what_they_are() -> None:
    counter = {}
    for name, given in (("plain", {}), ("router", {"router": True}), ("norms", {"norms": "whole"})):
        method = GivenMethod(PlanGiven(kept=200, **given))  # type: ignore[arg-type]
        counter[name] = _one_step(method)
    blocks, tokens, width = 8, 256, 192
    assert counter["router"][0] - counter["plain"][0] == blocks * tokens * width
    # Two LayerNorms a block, for the 56 tokens that the layers behind them do not see.
    assert counter["norms"][1] - counter["plain"][1] == blocks * 2 * 56 * 2 * width


def _one_step(method: GivenMethod) -> tuple[float, float]:
    body = small()
    body["figures"] = body["figures"][:1]
    audit = Audit.model_validate({"name": "small", **body})
    figure = audit.figures[0].model_copy(update={"plan": method.given})
    counted = Counter(audit).count(figure.model_copy(update={"reading": {"per": "call"}}))
    return counted.linear, counted.thop


# What is written


def test_the_command_writes_record_tables_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = write(tmp_path, small()), tmp_path / "out"
    assert main(["audit", "--study", str(path), "--out", str(out), "--code", "abc"]) == 0
    assert capsys.readouterr().out.strip() == str(out / "index.html")
    record = json.loads((out / "audit.json").read_text(encoding="utf-8"))
    assert record["schema"] == "ditbench/audit@2" and record["provenance"]["code"] == "abc"
    verdicts = {figure["id"]: figure["verdict"] for figure in record["figures"]}
    assert verdicts == {"full": "exact", "both": "exact", "magic": "waits", "moon": "waits", "none": "not reproduced"}
    assert "This one table mixes conventions: full counts one" in " ".join(record["tables"][0]["findings"])

    page = (out / "index.html").read_text(encoding="utf-8")
    assert "method Magic_1 is not in ditbench yet" in page and "the moon is not in ditbench yet" in page
    assert "Magic &amp; more" in page and "http" not in page
    rows = list(csv.DictReader((out / "table.csv").open(encoding="utf-8")))
    assert [row["id"] for row in rows] == list(verdicts)
    assert float(rows[0]["linear_all_branches"]) == 2 * float(rows[0]["linear_one_branch"])
    markdown = (out / "table.md").read_text(encoding="utf-8")
    widths = {line.replace(r"\|", "").count("|") for line in markdown.splitlines() if line.startswith("| ")}
    assert widths == {11, 13}  # the overview and the table
    assert r"Magic\_1" in markdown
    latex = (out / "table.tex").read_text(encoding="utf-8")
    assert r"\toprule" in latex and r"Magic \& more" in latex and latex.count(r"\begin{table*}") == 1


def test_a_broken_file_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, {**small(), "figures": []})
    assert main(["audit", "--study", str(path), "--out", str(tmp_path / "out")]) == 2
    assert "figures: [] must name at least 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
