"""What the code may not do with files and words of others, and what hostile words become on our pages."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from ditbench.codehash import PACKAGE
from ditbench.report.build import write_studies
from ditbench.report.tracking.publications import note
from tests.report.conftest import Fabricated

HOSTILE = '</script><script>alert(1)</script><img src=x onerror="alert(2)"> \\input{/etc/passwd} $x_1$ & 50 % | a | b'


def calls() -> Iterator[tuple[Path, ast.Call, str]]:
    """Every call of the package, with the words that name what is called."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield path, node, ast.unparse(node.func)


def said(node: ast.Call, name: str) -> object:
    found = next((word.value for word in node.keywords if word.arg == name), None)
    return found.value if isinstance(found, ast.Constant) else None


def test_nothing_of_others_is_unpickled() -> None:
    for path, node, name in calls():
        if name == "torch.load":
            assert said(node, "weights_only") is True, path
        if name in ("np.load", "numpy.load"):
            assert said(node, "allow_pickle") is False, path
        if name == "yaml.load":
            assert "SafeLoader" in ast.unparse(node.args[1]), path
        assert not re.search(r"pickle|joblib|marshal|shelve|dill", name), path
        assert name not in ("eval", "exec", "yaml.unsafe_load", "yaml.full_load"), path
        if name == "torch.jit.load":  # its code is looked at first: see test_set_judges.py
            assert path.name == "inception.py", path


def test_no_shell_reads_what_we_run() -> None:
    for path, node, name in calls():
        assert not said(node, "shell"), path
        assert name not in ("os.system", "os.popen", "subprocess.getoutput"), path


# Letters that end a row, a cell, a text or a line in one of the forms that tables have; formulas that are none.
HOSTILE_LABEL = (
    f"{HOSTILE} $\\frac{{$ {{a}} ~b~ `c` #d ^e \u202eright to left \t | \n\n [f](javascript:g) &lt;h&gt; **i**"
)


def test_words_of_a_study_are_text_in_all_its_tables_and_figures(tree: Fabricated) -> None:
    study = tree.study
    rows = [
        row.model_copy(update={"label": f"{HOSTILE_LABEL} {row.arm}", "group": HOSTILE_LABEL}) for row in study.rows
    ]
    columns = [column.model_copy(update={"label": HOSTILE_LABEL}) for column in study.columns]
    words = {"title": HOSTILE_LABEL, "notes": [HOSTILE_LABEL]}
    hostile = study.model_copy(update={"rows": rows, "columns": columns, **words})
    tree.fail("fora-n2", "images", HOSTILE_LABEL)
    page = write_studies([hostile], tree.read()).read_text(encoding="utf-8")
    assert "<script>alert" not in page and "<img src=x" not in page
    folder = tree.root / "studies" / study.name
    assert (folder / "pareto.svg").stat().st_size > 1000
    texts = {form: (folder / f"table.{form}").read_text(encoding="utf-8") for form in ("md", "tex", "html")}
    assert "<script>" not in texts["html"] and "<img src=x" not in texts["html"]
    markdown = [line for line in texts["md"].splitlines() if line.startswith("|")]
    cells = {len(re.findall(r"(?<!\\)\|", line)) for line in markdown}
    assert cells == {len(study.columns) + 2}
    assert markup(texts["md"]) == []
    for letter in "$#&%^~{}":
        assert f"\\{letter}" in texts["tex"] or letter in "^~"
    assert texts["tex"].count("{") - texts["tex"].count("\\{") == texts["tex"].count("}") - texts["tex"].count("\\}")
    assert "\\input" not in texts["tex"] and not re.search("[\x00-\x08\x0b-\x1f]", texts["tex"])
    run = note(next(cell for cell in tree.read().cells if cell.arm == "fora-n2"), HOSTILE_LABEL)
    assert markup(run) == []


def markup(markdown: str) -> list[str]:
    """What of the hostile words Markdown would take for more than words."""
    return re.findall(r"(?<!\\)(?:<script|<img|&lt;|\]\(javascript|\*\*i|`c`|~b|\$x)", markdown)


@pytest.mark.parametrize("word", [HOSTILE])
def test_captions_of_others_are_text_on_our_pages(tree: Fabricated, word: str) -> None:
    record = tree.root / "captions" / "scenes" / f"{tree.set_name}.json"
    body = json.loads(record.read_text())
    for entry in body["captions"]:
        entry["text"] = word
    record.write_text(json.dumps(body))
    page = write_studies([tree.study], tree.read()).read_text(encoding="utf-8")
    assert "alert(1)</script>" not in page
    assert "<img src=x" not in page
    assert "&lt;script&gt;alert(1)" in page  # it is there, and is text
    for table in (tree.root / "studies").rglob("table.*"):
        assert "<script>" not in table.read_text(encoding="utf-8")
