"""Questions to a fabricated run: cells are found, shown and compared, and the right arm is recommended."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ditbench.cli import main
from ditbench.faults import Fault
from ditbench.inspect import diff, recommend, show
from ditbench.inspect.cells import find_cell
from ditbench.inspect.recommend import Wish, parse_loss
from ditbench.report.results import Cell, Results
from ditbench.statistics import jackknife
from tests.report.conftest import IMAGES, Fabricated

FID = "fid/scenes"


@pytest.fixture
def results(tree: Fabricated) -> Results:
    return tree.read()


@pytest.mark.parametrize("called", ["scenes/fora-n2/seed0", "fora-n2", "fora-n2/seed0", "scenes/fora-n2"])
def test_a_cell_goes_by_any_part_of_its_name_that_is_its_own(results: Results, called: str) -> None:
    cell = find_cell(results, called)
    assert cell.arm == "fora-n2"
    assert find_cell(results, cell.hash[:6]) is cell


def test_a_name_that_is_nobody_s_or_of_several_is_one_sentence(results: Results) -> None:
    with pytest.raises(Fault, match=r"no cell 'fora-n3'.* Possible: scenes/full/seed0"):
        find_cell(results, "fora-n3")
    with pytest.raises(Fault, match=r"'seed0' may be any of scenes/full/seed0, .*; say which"):
        find_cell(results, "seed0")


def test_a_cell_is_shown_with_everything_its_records_say(results: Results) -> None:
    cell = find_cell(results, "fora-n2")
    text = show.told(cell, results.root)
    for said in (
        cell.hash,
        "interval = 2",
        "3.080",
        "[2.890, 3.300]",
        "+0.940",
        "Fabricated CPU",
        "5 of 10 steps",
        "G",
    ):
        assert said in text
    assert re.search(r"relations/scenes .*not distinguishable", text)
    data = json.loads(json.dumps(show.as_data(cell, results.root)))
    assert data["measures"][FID]["value"] == 3.08
    assert data["differences"]["relations/scenes"]["distinguishable"] is False
    assert data["provenance"]["shard"]["git"].startswith("0123")


def test_a_cell_that_is_not_there_yet_is_shown_as_such(tree: Fabricated) -> None:
    tree.remove("fora-n2")
    results = tree.read()
    text = show.told(find_cell(results, "fora-n2"), results.root)
    assert "not run" in text.splitlines()[0]
    assert "measure" not in text


def samples(tree: Fabricated, arm: str, **columns: list[float | None]) -> None:
    table = pa.table({"caption_id": tree.ids, **columns})
    pq.write_table(table, tree.folder(arm) / "samples.parquet")


def test_what_differs_between_two_cells(tree: Fabricated) -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(0.3, 0.01, IMAGES)
    flags = [1.0, 1.0, None, 0.0, 1.0, 1.0, 1.0, 1.0]
    samples(tree, "fora-n2", **{"clip/scenes": base.tolist(), "attributes/scenes": flags})
    changed = [0.0 if i < 2 else flag for i, flag in enumerate(flags)]
    samples(tree, "broken", **{"clip/scenes": (base - 0.1).tolist(), "attributes/scenes": changed})
    results = tree.read()
    pair = (find_cell(results, "fora-n2"), find_cell(results, "broken"))
    found = diff.diff(*pair, (results.root, results.root))
    changes = {change.place: (change.first, change.second) for change in found.spec}
    assert changes["method"] == ("fora", "broken")
    assert changes["knobs.interval"] == (2, 4)
    assert found.provenance == []
    measures = {m.measure: m for m in found.measures}
    clip, attributes = measures["clip/scenes"].paired, measures["attributes/scenes"].paired
    assert clip is not None and clip.value == pytest.approx(-0.1) and clip.excludes_zero()
    assert attributes is not None and attributes.n == IMAGES - 1
    assert attributes.value == pytest.approx(-2 / 7)
    assert "Bonett-Price" in attributes.method
    assert measures[FID].paired is None
    text = diff.told(found)
    assert "interval: 2 -> 4" in text and "what ran them\n  the same" in text and "-0.1000 [" in text
    assert json.loads(json.dumps(diff.as_data(found)))["cells"] == ["scenes/fora-n2/seed0", "scenes/broken/seed0"]


def test_measures_of_whole_sets_differ_by_what_they_are_without_each_group(tree: Fabricated) -> None:
    """As the judges' own difference to the full arm, and between any two arms."""
    for arm in ("fora-n2", "broken"):
        samples(tree, arm)
    results = tree.read()
    apart = {"fora-n2": [3.0, 3.1, 3.2], "broken": [4.5, 4.4, 4.7]}

    def kept(arm: str) -> Cell:
        cell = find_cell(results, arm)
        scores = cell.bodies["scores"]
        measures = [m | {"left_out": apart[arm]} if m["name"] == FID else m for m in scores["measures"]]
        return replace(cell, bodies=cell.bodies | {"scores": scores | {"measures": measures}})

    first, second = kept("fora-n2"), kept("broken")
    (fid,) = [m.paired for m in diff.diff(first, second, (results.root,) * 2).measures if m.measure == FID]
    values = [cell.values[FID].value for cell in (first, second)]
    expected = jackknife(values[1] - values[0], np.array([1.5, 1.3, 1.5]), IMAGES)
    assert fid is not None and (fid.value, fid.low, fid.high) == (expected.value, expected.low, expected.high)


def test_cells_of_other_captions_or_counts_are_not_compared(tree: Fabricated) -> None:
    results = tree.read()
    first, second = find_cell(results, "fora-n2"), find_cell(results, "broken")
    elsewhere = replace(
        second,
        spec={**second.spec, "captions": "other", "images": 16},
        values={**second.values, FID: replace(second.values[FID], n=16, interval="delete-a-group jackknife")},
    )
    first = replace(
        first, values={**first.values, FID: replace(first.values[FID], interval="delete-a-group jackknife")}
    )
    found = diff.diff(first, elsewhere, (results.root, results.root))
    assert found.unpaired == "their images, captions differ"
    told = {m.measure: m.refused for m in found.measures}
    assert told[FID] == f"of {IMAGES} and 16 images, and such a distance falls with their number"
    assert told["clip/scenes"] == ""
    others = replace(first, bodies={**first.bodies, "scores": {**first.bodies["scores"], "references": 5}})
    (refused,) = [m.refused for m in diff.diff(first, others, (results.root,) * 2).measures if m.measure == FID]
    assert refused == "against different references"
    assert "not comparable: against different references" in diff.told(diff.diff(first, others, (results.root,) * 2))


def test_values_are_told_with_their_intervals(results: Results) -> None:
    found = diff.diff(find_cell(results, "full"), find_cell(results, "fora-n2"), (results.root,) * 2)
    (fid,) = [measure for measure in diff.as_data(found)["measures"] if measure["measure"] == FID]
    assert (fid["first"]["value"], fid["first"]["low"], fid["second"]["high"]) == (2.14, 2.02, 3.3)
    text = diff.told(found)
    assert "2.140 [2.020, 2.290]" in text and "3.080 [2.890, 3.300]" in text
    # What only one of them has is not left out in silence.
    assert found.alone == ((), ("psnr-to-full",))
    assert "only of the second: psnr-to-full" in text


def test_speeds_of_other_machines_or_batches_are_not_compared(results: Results) -> None:
    first, second = find_cell(results, "fora-n2"), find_cell(results, "broken")

    def refused(latency: dict[str, Any], provenance: dict[str, Any]) -> dict[str, str]:
        bodies = {**second.bodies, "latency": {**second.bodies["latency"], **latency}}
        where = {**second.provenance, "latency": {**second.provenance["latency"], **provenance}}
        other = replace(second, bodies=bodies, provenance=where)
        return {m.measure: m.refused for m in diff.diff(first, other, (results.root,) * 2).measures}

    assert set(refused({}, {}).values()) == {""}
    batch = refused({"batch": 1}, {})
    assert batch["speedup"] == batch["seconds-per-image"] == "timed with another batch"
    assert refused({"mode": "compiled"}, {})["speedup"] == "timed with another mode"
    assert batch["clip/scenes"] == batch["macs-linear"] == ""
    machine = {"hardware": {"cpu": "another", "cores": 64, "gpu": None}}
    assert refused({"batch": 1}, machine)["speedup"] == "timed with another hardware, batch"


def test_the_packages_are_shown_where_records_know_them(results: Results) -> None:
    cell = find_cell(results, "fora-n2")
    assert "\npackages" not in show.told(cell, results.root)  # records from before there was such a hash
    known = {kind: {**p, "environment": "c0ffee0123456789"} for kind, p in cell.provenance.items()}
    assert re.search(r"packages +c0ffee0123456789\n", show.told(replace(cell, provenance=known), results.root))


def test_the_best_arm_that_is_fast_enough_is_recommended(results: Results) -> None:
    advice = recommend.recommend(results, Wish("scenes", FID, speedup=1.8), controls={"broken"})
    # FORA is slower and worse than fewer steps here: not on the front.
    assert [choice.arm for choice in advice.choices] == ["fewer-steps-50"]
    (choice,) = advice.choices
    assert choice.loss == pytest.approx((2.71 - 2.14) / 2.14)
    assert choice.line == 'ditbench.accelerate(pipe, "fewer-steps", share=0.5)'
    assert "1.96 [1.91, 2.00] times as fast" in recommend.told(advice)
    # A control is fast, and never recommended.
    advice = recommend.recommend(results, Wish("scenes", FID, speedup=3.0), controls={"broken"})
    assert advice.choices == [] and [choice.arm for choice in advice.nearest] == ["fewer-steps-50"]
    assert "no arm satisfies that" in recommend.told(advice)


def test_quality_is_counted_in_its_own_direction(results: Results) -> None:
    wish = Wish("scenes", "relations/scenes", loss=parse_loss("1%"))
    advice = recommend.recommend(results, wish, controls={"broken"})
    assert [choice.arm for choice in advice.choices] == ["fewer-steps-50"]
    assert advice.choices[0].loss == pytest.approx((0.942 - 0.938) / 0.942)
    assert advice.choices[0].same is True
    assert "not distinguishable from full" in recommend.told(advice)
    assert json.loads(json.dumps(recommend.as_data(advice)))["choices"][0]["indistinguishable_from_full"] is True


def test_a_loss_has_an_interval_and_a_speed_of_a_busy_machine_is_told_as_that(tree: Fabricated) -> None:
    advice = recommend.recommend(tree.read(), Wish("scenes", "relations/scenes", speedup=1.8), controls={"broken"})
    choice = advice.choices[0]
    paired = tree.read().of_arm("scenes", choice.arm)[0].differences["relations/scenes"]
    # More is better: what the difference falls by is lost.
    assert choice.loss_ends == pytest.approx((-paired.high / 0.942, -paired.low / 0.942))
    low, high = choice.loss_ends
    assert f"[{low:.1%}, {high:.1%}]" in recommend.told(advice)
    assert recommend.as_data(advice)["choices"][0]["loss_interval"] == choice.loss_ends
    assert "contended" not in recommend.told(advice) and recommend.as_data(advice)["choices"][0]["contended"] is None
    cell = tree.read().of_arm("scenes", choice.arm)[0]
    cell.bodies["latency"] |= {"contended": True, "note": "others used 60 % of the processor"}
    cells = [cell if other.arm == cell.arm else other for other in tree.read().cells]
    busy = recommend.recommend(replace(tree.read(), cells=tuple(cells)), advice.wish, {"broken"})
    assert "do not trust these speeds: fewer-steps-50 (others used 60 % of the processor)" in recommend.told(busy)


def test_arms_that_are_not_finished_are_named(tree: Fabricated) -> None:
    tree.remove("fewer-steps-50", "latency.json")
    advice = recommend.recommend(tree.read(), Wish("scenes", FID, speedup=1.8), controls={"broken"})
    assert [choice.arm for choice in advice.choices] == ["fora-n2"]
    assert advice.waiting == ["fewer-steps-50"]
    assert recommend.told(advice).endswith("not considered: fewer-steps-50")


def test_an_arm_that_failed_is_named_with_its_reason_and_no_other_is_held_up(tree: Fabricated) -> None:
    tree.remove("fewer-steps-50", "latency.json")
    tree.fail("fewer-steps-50", "stopwatch", "the device went away")
    advice = recommend.recommend(tree.read(), Wish("scenes", FID, speedup=1.8), controls={"broken"})
    assert [choice.arm for choice in advice.choices] == ["fora-n2"] and advice.waiting == []
    assert "fewer-steps-50: stopwatch: the device went away" in recommend.told(advice)


def test_a_cell_that_is_compared_too_early_is_said_to_be_unfinished(tree: Fabricated) -> None:
    tree.remove("fora-n2", "scores.json")
    results = tree.read()
    found = diff.diff(find_cell(results, "full"), find_cell(results, "fora-n2"), (results.root, results.root))
    lines = diff.told(found).splitlines()
    assert lines[:2] == ["first   scenes/full/seed0", "second  scenes/fora-n2/seed0  (not run: judges missing)"]


def test_of_many_cells_those_with_the_word_in_their_names_are_offered(results: Results) -> None:
    with pytest.raises(Fault, match=r"no cell 'fora'\. Possible: scenes/fora-n2/seed0$"):
        find_cell(results, "fora")
    full = results.cells[0]
    many = [replace(full, spec=full.spec | {"arm": f"caching.interval-{n}"}) for n in range(40)]
    with pytest.raises(Fault, match=r"interval-11/seed0, and 28 more, which `ditbench cells` lists$"):
        find_cell(replace(results, cells=tuple(many)), "sweep")


@pytest.mark.parametrize(("text", "share"), [("1%", 0.01), ("0.02", 0.02), (" 2.5 % ", 0.025), (".5%", 0.005)])
def test_a_loss_is_a_percentage_or_a_share(text: str, share: float) -> None:
    assert parse_loss(text) == pytest.approx(share)


def test_texts_among_the_knobs_are_quoted_as_the_method_is(results: Results) -> None:
    advice = recommend.recommend(results, Wish("scenes", "relations/scenes", speedup=1), controls={"fewer-steps-50"})
    lines = [choice.line for choice in (*advice.choices, *advice.nearest)]
    assert 'ditbench.accelerate(pipe, "broken", interval=4, shift=0.375)' in lines
    fora = recommend.recommend(results, Wish("scenes", FID, speedup=1), controls={"broken", "fewer-steps-50"})
    assert fora.choices[0].line == 'ditbench.accelerate(pipe, "fora", interval=2, direction="up")'


def test_what_was_learned_is_applied_with_its_record(tree: Fabricated) -> None:
    results = tree.read()

    def as_if(**spec: Any) -> Results:
        cells = [replace(c, spec=c.spec | spec) if c.arm == "fora-n2" else c for c in results.cells]
        return replace(results, cells=tuple(cells))

    wish, others = Wish("scenes", FID, speedup=1), {"broken", "fewer-steps-50"}
    learned = recommend.recommend(as_if(learning="training-64"), wish, others).choices[0].line
    record = (results.root / "learned" / "scenes").as_posix()
    assert learned == f'ditbench.accelerate(pipe, learned="{record}/fora-n2/learned.json")'
    lent = recommend.recommend(as_if(weights_of="full-finetuned@0123"), wish, others).choices[0].line
    assert lent.endswith(f'direction="up", weights_of="{record}/full-finetuned/learned.json")')


def test_arms_without_a_speed_are_named_with_the_reason(tree: Fabricated) -> None:
    results = tree.read()
    refused = {"latency": {"refused": "other processes took 40 % of the processor"}}
    cells = [
        replace(c, values={n: v for n, v in c.values.items() if n != "speedup"}, bodies=c.bodies | refused)
        for c in results.cells
    ]
    advice = recommend.recommend(replace(results, cells=tuple(cells)), Wish("scenes", FID, speedup=2), {"broken"})
    assert advice.waiting == [] and set(advice.untimed) == {"fora-n2", "fewer-steps-50"}
    told = recommend.told(advice)
    assert "no other arm has a speed yet" in told
    assert "not considered: fewer-steps-50, fora-n2 (other processes took 40 % of the processor)" in told


def test_what_an_arm_costs_is_no_quality(results: Results) -> None:
    with pytest.raises(Fault, match=r"--measure: 'speedup' says what an arm costs.* Possible: fid/scenes, "):
        recommend.recommend(results, Wish("scenes", "speedup", speedup=2))
    with pytest.raises(Fault, match="the full arm has no 'macs'") as fault:
        recommend.recommend(results, Wish("scenes", "macs", speedup=2))
    assert "macs-linear" not in str(fault.value)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "fast"])
def test_a_speed_up_that_nothing_could_have_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["recommend", "--speedup", text])
    assert f"--speedup: {text!r} is not a number above 0" in capsys.readouterr().err


def test_wrong_wishes_are_one_sentence(results: Results) -> None:
    with pytest.raises(Fault, match="'one' must be a percentage such as 1%"):
        parse_loss("one")
    with pytest.raises(Fault, match=r"--world: no cell of world 'scene'; did you mean 'scenes'"):
        recommend.recommend(results, Wish("scene", FID, speedup=2))
    with pytest.raises(Fault, match=r"--measure: the full arm has no 'fid'; did you mean 'fid/scenes'|Possible: "):
        recommend.recommend(results, Wish("scenes", "fid", speedup=2))
