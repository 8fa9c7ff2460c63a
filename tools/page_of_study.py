"""A finished study as a page of the documentation: its table and figure as rendered, with date, machine and commit.

    uv run tools/page_of_study.py RESULTS STUDY docs/PAGE.md [--arms ARM ...] [--figures NAME ...]

The table is the one under RESULTS/studies/STUDY, without links into the run's own page; the figure, others of the study
by their names, and a grid of the arms named, for the first captions, go to docs/images. Nothing is typed in.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ditbench.config import load_config
from ditbench.report.drawn import draw
from ditbench.report.figures import pareto_png, sample_grid
from ditbench.report.page import code_text, hardware_text, versions_text
from ditbench.report.results import Results, load_results
from ditbench.report.samples import collect
from ditbench.report.tables import build_table
from ditbench.study import Study, load_study


def records(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """Every cell's record of a kind."""
    for path in sorted(folder.glob(f"cells/*/*/seed*/{name}.json")):
        yield json.loads(path.read_text(encoding="utf-8"))


def made(folder: Path) -> list[str]:
    """When, where and by what the study was made, a line each."""
    bodies = [*records(folder, "scores"), *records(folder, "latency")]
    known = [body["provenance"] for body in bodies]
    days = sorted(str(p["created"])[:10] for p in known)
    numbers = ", ".join(map(str, sorted({body["n"] for body in records(folder, "scores")})))
    until = f" to {days[-1]}" if days[-1] != days[0] else ""

    def told(name: str, texts: Sequence[str]) -> str:
        return f"- {name}: {'; '.join(dict.fromkeys(texts))}"

    return [
        f"- Made on {days[0]}{until}, {numbers} images per arm",
        told("Machine", [hardware_text(p["hardware"]) for p in known]),
        told("Versions", [versions_text(p) for p in known]),
        told("Code", [code_text(p) for p in known]),
    ]


def grid(study: Study, results: Results, arms: Sequence[str]) -> bytes | None:
    """Pictures of some arms for the first captions."""
    found = collect(study, results)
    if found is None:
        return None
    columns = [found.keys.index(arm) for arm in arms]
    images = [[row[column] for column in columns] for row in found.images]
    return sample_grid([found.arms[column] for column in columns], found.captions, images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("study")
    parser.add_argument("page", type=Path)
    parser.add_argument("--config", default="config.yaml", help="the run's, as RESULTS/configs keeps it")
    parser.add_argument("--arms", nargs="+", default=[], help="arms of the grid")
    parser.add_argument("--figures", nargs="+", default=[], help="more of the study's figures, by their names")
    arguments = parser.parse_args()
    source = arguments.results / "studies" / arguments.study
    title, _, table = (source / "table.md").read_text(encoding="utf-8").partition("\n")
    table = re.sub(r"\[([^\]]+)\]\(\.\./\.\./report/[^)]*\)", r"\1", table)
    images = arguments.page.parent / "images"
    name = arguments.page.stem
    config, study = load_config(arguments.config), load_study(arguments.study)
    results = load_results(config, arguments.results)
    figure = pareto_png(study, build_table(study, results))
    assert figure is not None, "a study without a figure makes no page"
    (images / f"{name}-pareto.png").write_bytes(figure)
    text = [f"# {title.lstrip('# ')}", "", *made(arguments.results), ""]
    text += [f"![Quality and speed](images/{name}-pareto.png)", ""]
    for wanted in arguments.figures:
        entry = next(each for each in study.figures if each.name == wanted)
        picture = dict(draw(study, entry, results).files(study.name))[f"figure-{wanted}.png"]
        assert picture is not None, f"figure {wanted} cannot be drawn"
        (images / f"{name}-{wanted}.png").write_bytes(picture)
        text += [f"![{entry.title}](images/{name}-{wanted}.png)", ""]
    if arguments.arms:
        drawn = grid(study, results, arguments.arms)
        if drawn is not None:
            (images / f"{name}-grid.png").write_bytes(drawn)
            text += [f"![The same captions by {len(arguments.arms)} arms](images/{name}-grid.png)", ""]
    arguments.page.write_text("\n".join([*text, table.strip(), ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
