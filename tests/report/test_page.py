"""The page and the pictures: whole in themselves, true to the states of cells, legible."""

from __future__ import annotations

import base64
import io
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ditbench.report import figures, page
from ditbench.report.build import write_studies
from ditbench.report.page import build_page, calls_text, learned_text
from ditbench.report.plans import ASKED, executed, plan_svg, plan_text, trace_of
from ditbench.report.ratios import ratios_figure, ratios_svg
from ditbench.report.results import Cell
from ditbench.report.samples import collect, data_uri
from ditbench.report.tables import build_table
from ditbench.runs import NAME
from ditbench.study import Study
from tests.report.conftest import write


class Reader(HTMLParser):
    """Collects what a page refers to, and the ids it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.images_without_text = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.references += [v for k, v in attrs if k in ("src", "href", "xlink:href", "srcset", "action", "data") and v]
        self.ids += [v for k, v in attrs if k == "id" and v]
        self.images_without_text += tag == "img" and not values.get("alt")
        if tag not in ("meta", "img", "br", "wbr", "rect", "use", "path", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag in ("rect", "use", "path"):
            return
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()


def test_the_page_needs_no_network_and_its_links_lead_somewhere(tree: Any, embedded: Study) -> None:
    text = build_page([embedded], tree.read())
    page = Reader(text)
    outward = [r for r in page.references if not r.startswith(("#", "data:image/png;base64,"))]
    assert outward == []
    assert "http:" not in text and "https:" not in text and "@import" not in text
    assert {r[1:] for r in page.references if r.startswith("#")} <= set(page.ids)
    assert [name for name, count in Counter(page.ids).items() if count > 1] == []
    assert page.open == [] and page.images_without_text == 0


def test_small_pictures_stay_as_they_are_and_large_ones_become_small() -> None:
    generator = np.random.default_rng(0)
    for side, kind, shown in ((64, "png", 64), (1024, "webp", 256)):
        image = np.kron(generator.integers(0, 256, (8, 8, 3)), np.ones((side // 8, side // 8, 1))).astype(np.uint8)
        address = data_uri(image)
        assert address.startswith(f"data:image/{kind};base64,")
        picture = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
        assert picture.size == (shown, shown)
        if side == 64:
            assert np.array_equal(np.asarray(picture), image)


def test_every_number_of_the_table_leads_to_its_cell(tree: Any, embedded: Study) -> None:
    text = build_page([embedded], tree.read())
    cell = text[text.index('id="cell-scenes-fora-n2-seed0"') :]
    cell = cell[: cell.index("</article>")]
    spec = tree.spec("fora-n2")
    for needed in (spec.hash, "interval = 2", "0123456789ab", "Fabricated CPU 3.0 GHz", "float32", "2.890, 3.300"):
        assert needed in cell
    assert 'href="#cell-scenes-fora-n2-seed0"' in text


def test_a_cell_timed_on_a_gpu_tells_its_peak_beside_the_baselines(tree: Any, embedded: Study) -> None:
    assert "peak GPU memory" not in build_page([embedded], tree.read())
    path = tree.folder("fora-n2") / "latency.json"
    body = json.loads(path.read_text(encoding="utf-8"))
    peaks = {"peak_bytes": 3_500_000_000, "peak_bytes_baseline": 3_000_000_000}
    path.write_text(json.dumps({**body, **peaks, "device": "cuda"}), encoding="utf-8")
    assert "3.5 GB, of the baseline 3 GB" in build_page([embedded], tree.read())


def test_failed_and_missing_cells_are_told_first(tree: Any, embedded: Study) -> None:
    tree.remove("fora-n2")
    tree.fail("fora-n2", "images", "no such device <cuda:1>")
    tree.remove("broken", "latency.json")
    text = build_page([embedded], tree.read())
    head = text[: text.index("<main")]
    assert "1 of 4 cells failed" in head and "no such device &lt;cuda:1&gt;" in head
    assert "1 of 4 cells not run yet" in head and "stopwatch missing" in head
    assert "2 of 4" in head
    assert "no image" in text
    Reader(text)


def test_a_page_of_nothing_is_still_a_page(tree: Any, embedded: Study) -> None:
    for row in embedded.rows:
        tree.remove(row.arm)
    text = build_page([embedded], tree.read())
    assert "4 of 4 cells not run yet" in text and "Nothing has been run yet." in text
    assert Reader(text).open == []


def test_two_studies_share_a_page(tree: Any, embedded: Study) -> None:
    other = embedded.model_copy(update={"name": "other", "title": "Another study"})
    page = Reader(build_page([embedded, other], tree.read()))
    assert [name for name, count in Counter(page.ids).items() if count > 1] == []
    assert {"study-embedded", "study-other"} <= set(page.ids)


def test_writing_makes_every_file_and_leaves_no_old_picture(tree: Any, embedded: Study) -> None:
    page = write_studies([embedded], tree.read())
    folder = tree.root / "studies" / "embedded"
    names = {"table.md", "table.tex", "table.csv", "table.html", "pareto.svg", "pareto.png", "grid.png"}
    assert {path.name for path in folder.iterdir()} == names
    assert page.stat().st_size > 50_000
    for row in embedded.rows:
        tree.remove(row.arm)
    write_studies([embedded], tree.read())
    assert not (folder / "pareto.svg").exists() and not (folder / "grid.png").exists()


def test_the_same_results_give_the_same_files(tree: Any, embedded: Study) -> None:
    table = build_table(embedded, tree.read())
    assert figures.pareto(embedded, table) == figures.pareto(embedded, table)
    assert build_page([embedded], tree.read()) == build_page([embedded], tree.read())


def test_a_control_far_off_does_not_flatten_the_figure(tree: Any, embedded: Study) -> None:
    points = figures.points_of(embedded, build_table(embedded, tree.read()))
    low, high = figures._limits([p.y for p in points], [p.y for p in points if p.role != "control"])
    assert low < 2.02 and 3.3 < high < 5
    near = figures._limits([(1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (2.5, 2.5, 2.5)], [(1.0, 1.0, 1.0), (2.0, 2.0, 2.0)])
    assert near[1] > 2.5


def test_of_many_arms_one_that_is_far_off_does_not_flatten_the_others() -> None:
    spans = [(v, v - 1, v + 1) for v in (16.0, 17.0, 17.5, 18.0, 19.0, 20.0, 22.0, 24.0, 29.0, 38.0, 45.0, 300.0)]
    low, high = figures._limits(spans, spans)
    assert low < 15 and 46 < high < 60
    assert figures._limits(spans[-4:], spans[-4:])[1] > 300  # of few arms each is shown where it is


def test_labels_of_the_figure_do_not_overlap(tree: Any, embedded: Study) -> None:
    figure = figures._draw(embedded, build_table(embedded, tree.read()))
    renderer = figure.canvas.get_renderer()
    boxes = [figures._text_box(note, renderer) for note in figure.axes[0].texts]
    assert len(boxes) == 4
    assert not any(figures._overlap(a, b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    assert all(box[2] <= figure.bbox.x1 and box[0] >= 0 for box in boxes)


def test_the_grid_has_a_row_per_caption_and_enlarges_by_whole_pixels(tree: Any, embedded: Study) -> None:
    found = collect(embedded, tree.read(), count=3)
    assert found is not None and len(found.captions) == 3 and len(found.arms) == 4
    sheet = Image.open(io.BytesIO(figures.sample_grid(found.arms, found.captions, found.images)))
    side, gap = 192, figures.GAP
    assert sheet.size == (figures.CAPTION_WIDTH + 4 * (side + gap) + gap, 44 + 3 * (side + gap) + gap)
    pixels = np.asarray(sheet)[44 : 44 + side, figures.CAPTION_WIDTH : figures.CAPTION_WIDTH + side]
    first = found.images[0][0]
    assert first is not None
    assert np.array_equal(pixels[1::3, 1::3], first) and np.array_equal(pixels[0::3, 2::3], first)


def test_samples_are_matched_by_caption_not_by_place(tree: Any, embedded: Study) -> None:
    found = collect(embedded, tree.read())
    assert found is not None
    full, fewer = found.images[0][0], found.images[0][1]
    assert full is not None and fewer is not None and np.array_equal(full, fewer)
    assert list(found.captions) == tree.captions


def test_a_damaged_shard_is_told_and_the_other_arms_are_shown(tree: Any, embedded: Study) -> None:
    (tree.folder("fora-n2") / "shards" / "00000-00003.zip").write_bytes(b"PK")
    found = collect(embedded, tree.read())
    assert found is not None
    assert any("FORA" in problem and "damaged" in problem for problem in found.problems)
    assert found.images[0][2] is None and found.images[0][0] is not None


def test_a_plan_in_words_and_as_a_picture() -> None:
    plan = {
        "steps": 3,
        "layout": [[0, "self"], [0, "mlp"], [1, "self"], [1, "mlp"]],
        "units": [[0, 1], [1, 2], [2, 3], [3, 4]],
        "shares": [[1, 1, 1, 1], [0, 0.5, 0, 0.5], [0, 0, 0, 0]],
    }
    assert plan_text(plan, "x") == (
        "Plan of x: 1 of 3 steps compute everything (1); 42% of all token computations are done."
    )
    svg = plan_svg(plan, "a < b", 200)
    on = re.findall(r'<rect class="on" x="[\d.]+" y="[\d.]+" width="(\d+)" height="\d+" opacity="([\d.]+)"', svg)
    # In each block: the first step of both branches, and half of the second step of one.
    assert sorted(on) == sorted([("11", "1.00")] * 4 + [("11", "0.57")] * 2)
    assert "a &lt; b" in svg


def test_ratios_that_were_learned_are_drawn_and_the_rest_is_told_in_few_words() -> None:
    found: dict[str, Any] = {
        "file": "results/learned/scenes/arm/weights.safetensors",
        "sha256": "0" * 64,
        "history": {"ratio": [0.0, 0.1, 0.2], "deployed": [0.0, 0.1, 0.2], "loss": [1.0, 0.5, 0.2]},
        "trajectory": [[[0.0, 0.0]], [[0.1, 0.1]], [[0.1, 0.3]]],
        "ratios": [[0.1, 0.3]],
        "mean": 0.2,
    }
    svg = ratios_svg(found, {"ratio": 0.2}, "DiffCR <L>", "ratios-x")
    assert svg is not None
    assert 'aria-label="Compression ratios of DiffCR &lt;L&gt; while it was trained"' in svg
    by_region = {**found, "ratios": [[0.1, 0.3], [0.0, 0.2]], "trajectory": [[[0.0, 0.0]] * 2] * 3}
    assert ratios_figure(by_region, {"ratio": 0.2}, "png").startswith(b"\x89PNG")  # type: ignore[union-attr]
    assert ratios_svg({"file": "x"}, {}, "MoD", "y") is None
    told = learned_text(found)
    assert told == (
        "file results/learned/scenes/arm/weights.safetensors, history 3 values, trajectory 3 values, ratios 1 values, "
        "mean 0.2"
    )


def test_a_plan_of_spans_that_sampling_decides() -> None:
    layout = [[0, "self"], [0, "mlp"], [1, "self"], [1, "mlp"], [2, "self"], [2, "mlp"]]
    plan = {"steps": 2, "layout": layout, "units": [[0, 2], [2, 6]], "shares": [[1, 1], [1, -1]]}
    assert plan_text(plan, "x") == (
        "Plan of x: 1 of 2 steps compute everything (1); 67% of all token computations are done, "
        "and 33% are decided while sampling."
    )
    svg = plan_svg(plan, "x", 200)
    assert svg.count('class="asked"') == 2 and ">block<" in svg and ">span<" in svg


def test_the_page_holds_compute_against_the_wall_time_of_the_run(tree: Any, embedded: Study) -> None:
    assert "none of them is of a run whose wall time is known" in build_page([embedded], tree.read())
    ended = datetime.fromisoformat("2026-01-02T03:04:10+00:00").timestamp()  # five seconds after every record
    write(tree.root / NAME, "run", {"settings": "a.yaml", "began": ended - 1000, "ended": ended, "cores": 1, "gpus": 0})
    text = build_page([embedded], tree.read())
    time = text[text.index('id="time"') :]
    compute = 4 * 64 + 4 * 21 + sum(2 * 82 / speed for speed in (1.0, 1.96, 1.88, 3.4))
    assert f'<p class="big">{compute / 1000:.0%}</p>' in time
    assert "The last run took 17 min from start to end on 1 core, with 25 jobs." in time
    assert Reader(text).open == []


def test_seeds_have_their_own_cells(fabricate: Callable[..., Any], embedded: Study) -> None:
    text = build_page([embedded], fabricate(seeds=(0, 1)).read())
    assert {"cell-scenes-full-seed0", "cell-scenes-full-seed1"} <= set(Reader(text).ids)
    assert "The pictures are those of seed 0." in text


def test_seeds_are_points_of_their_own_and_the_front_goes_through_their_means(
    fabricate: Callable[..., Any], embedded: Study
) -> None:
    tree = fabricate(seeds=(0, 1))
    path = tree.folder("fora-n2", 1) / "scores.json"
    path.write_text(path.read_text().replace("3.08", "1.08"))  # one lucky seed
    table = build_table(embedded, tree.read())
    points = figures.points_of(embedded, table)
    assert [p.key for p in points if p.arm == "fora-n2"] == ["fora-n2.seed0", "fora-n2.seed1"]
    (mean,) = [p for p in figures.of_arms(embedded, points) if p.arm == "fora-n2"]
    assert mean.label == "FORA, N = 2" and mean.y[0] == pytest.approx(2.08)
    text = build_page([embedded], tree.read())
    assert "Each seed is a point" in text
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    marks = re.findall(r'data-arm="fora-n2" aria-label="([^"]+)"', text.partition("FID/scenes against MACs")[0])
    assert [re.sub(r"speedup [^,]+, ", "", mark) for mark in marks] == [
        "FORA, N = 2, seed 0: FID/scenes 3.08",
        "FORA, N = 2, seed 1: FID/scenes 1.08",
    ]


def test_calls_are_told_by_how_much_they_compute() -> None:
    same = {"baseline": [0.01, 0.03, 0.02], "arm": [0.01, 0.01]}
    assert calls_text(same) == "median of the baseline 20 ms (from 10 to 30), of the arm 10 ms (from 10 to 10)"
    kinds = calls_text({**same, "arm": [0.01, 0.002, 0.012, 0.006], "kinds": ["all", "none", "all", "some"]})
    assert kinds.endswith(
        "; the arm's calls that compute everything (2) 12 ms (from 10 to 12), some (1) 6 ms (from 6 to 6), "
        "nothing (1) 2 ms (from 2 to 2)"
    )


def test_of_a_plan_that_is_decided_while_sampling_the_page_shows_what_ran(tree: Any, embedded: Study) -> None:
    results = tree.read()
    assert "What ran" not in build_page([embedded], results)

    def as_if(cell: Cell) -> Cell:
        if cell.arm != "fora-n2":
            return cell
        assert cell.plan is not None
        shares = [[ASKED for _ in step] if i else step for i, step in enumerate(cell.plan["shares"])]
        return replace(cell, plan={**cell.plan, "shares": shares})

    page = build_page([embedded], replace(results, cells=tuple(as_if(cell) for cell in results.cells)))
    assert page.count("What ran, on the mean over 8 images: 50% of all token computations were done.") == 1
    # Whole steps and reused ones, as the trace has them, in a panel for each branch.
    (cell,) = results.of_arm("scenes", "fora-n2")
    trace = trace_of(cell)
    assert trace is not None and trace.samples == 8
    assert [set(step) for step in executed(trace)["shares"]] == [{1.0}, {0.0}] * 5


def test_many_shards_of_a_cell_are_one_row_with_all_their_time(tree: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = tree.read().of_arm("scenes", "full")[0].jobs
    assert [row["record"] for row in page._jobs(jobs)][1:3] == ["images 00000-00003", "images 00004-00007"]
    each = [float(row["compute"]) for row in page._jobs(jobs)]
    monkeypatch.setattr(page, "SHARDS", 1)
    rows = list(page._jobs(jobs))
    assert rows[0]["record"] == "images, 2 shards" and len(rows) == len(jobs) - 1
    assert float(rows[0]["compute"]) == each[1] + each[2]
    assert not any("00000" in row["record"] for row in rows)


def test_of_many_arms_some_on_the_front_are_named_and_no_name_lies_on_another() -> None:
    points = [
        figures.Point(f"a{i}", f"a rather long name, number {i}", "arm", "#000000", "o", (i, i, i), (i, i, i), f"a{i}")
        for i in range(60)
    ]
    assert [point.arm for point in figures._some(points)][:: figures.SOME - 1] == ["a0", "a59"]
    assert len(figures._some(points)) == figures.SOME
    figure = Figure(figsize=(5, 3))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([0, 60], [0, 60])
    figure.canvas.draw()
    drawn = [(point.label, point.colour, 30.0, 30.0) for point in points]  # all in one place
    figures.name_marks(axes, drawn, always=False)
    boxes = [figures._text_box(note, figure.canvas.get_renderer()) for note in axes.texts]
    assert 1 < len(boxes) < len(points)
    assert not any(figures._overlap(a, b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_no_name_of_many_arms_lies_on_a_bar(embedded: Study) -> None:
    figure = Figure(figsize=(5, 3))
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    points = [
        figures.Point("full", "full", "arm", "#000000", "o", (i, i, i), (5, 0, 10), f"a{i}") for i in range(0, 10, 2)
    ]
    drawn = figures._marks(axes, embedded, points, (-1, 10), (-1, 11), (1, 1))
    figure.canvas.draw()
    taken = figures._taken(axes, drawn)
    bars = taken[len(drawn) :]
    upright = [box for box in bars if box[3] - box[1] > 100]
    assert len(upright) == len(points), "each of them reaches over most of the figure"
    figures.name_marks(axes, drawn, always=False, taken=taken)
    boxes = [figures._text_box(note, figure.canvas.get_renderer()) for note in axes.texts]
    assert boxes and not any(figures._overlap(name, bar) for name in boxes for bar in bars)
