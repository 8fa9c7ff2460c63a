"""Sweeps: what arms and studies a configuration's lists and ranges make."""

from __future__ import annotations

import time
from typing import Any

import pytest

from ditbench.cells import cell_table, studies_of
from ditbench.config import check_config
from ditbench.faults import Fault
from ditbench.sweeps import run_studies


def swept(**sweep: Any) -> Any:
    return check_config({"sweeps": {"by": sweep}})


def test_all_combinations_become_arms_and_a_study() -> None:
    config = swept(method="fora", knobs={"interval": {"from": 3, "to": 5, "by": 1}, "direction": ["up", "down"]})
    study = run_studies(config)[-1]
    assert study.name == "sweep-by" and study.baseline == "full"
    assert [row.knobs for row in study.rows[1:]] == [
        {"interval": i, "direction": d} for i in (3, 4, 5) for d in ("up", "down")
    ]
    assert study.columns[0].measure == "fid/scenes"  # the embedded study's
    cells = {spec.arm: spec for spec in cell_table(config)}
    assert cells["by.interval-4.direction-down"].knobs == {"interval": 4, "direction": "down"}
    assert studies_of(config, cells["by.interval-4.direction-down"]) == ["sweep-by"]


def test_a_point_that_is_an_arm_already_goes_by_its_name() -> None:
    config = swept(method="fora", knobs={"interval": [2, 3]})
    assert [row.arm for row in run_studies(config)[-1].rows] == ["full", "fora-n2", "by.interval-3"]
    assert studies_of(config, cell_table(config)[2]) == ["embedded", "sweep-by"]


def test_ranges_have_both_ends_and_no_rounding() -> None:
    config = swept(method="fewer-steps", knobs={"share": {"from": 0.1, "to": 0.7, "by": 0.2}})
    assert [row.knobs["share"] for row in run_studies(config)[-1].rows[1:]] == [0.1, 0.3, 0.5, 0.7]


def test_steps_can_be_swept_and_knobs_held() -> None:
    config = swept(method="fora", knobs={"interval": 3}, steps=[10, 20])
    rows = run_studies(config)[-1].rows[1:]
    assert [(row.arm, row.steps, row.label) for row in rows] == [
        ("by.steps-10", 10, "steps = 10"),
        ("by.steps-20", 20, "steps = 20"),
    ]


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ({"method": "foar"}, "sweeps.by.method: no method 'foar'; did you mean 'fora'?"),
        ({"method": "fora", "knobs": {"interval": [0, 2]}}, "sweeps.by.knobs.interval: 0 must be >= 1"),
        ({"method": "fora", "knobs": {"intervall": [2]}}, "sweeps.by: fora has no knob 'intervall'"),
        ({"method": "fora", "knobs": {"interval": []}}, "sweeps.by.knobs.interval: an empty list makes no arm"),
        ({"method": "fora", "knobs": {"interval": {"from": 3, "to": 2, "by": 1}}}, "must go upwards"),
        (
            {"method": "fora", "knobs": {"interval": {"from": 2, "to": 3, "by": 0}}},
            "interval.by: 0 must be greater than 0",
        ),
    ],
)
def test_mistakes_are_told(sweep: dict[str, Any], said: str) -> None:
    with pytest.raises(Fault) as caught:
        swept(**sweep)
    assert said in str(caught.value)


def test_fifty_arms_are_their_own_cells() -> None:
    began = time.monotonic()
    config = swept(method="toca", knobs={"fresh": {"from": 0.02, "to": 1.0, "by": 0.02}})
    assert len(cell_table(config)) == 4 + 50
    print(f"planned in {time.monotonic() - began:.2f} s")


def test_the_usual_number_of_steps_makes_no_other_arm() -> None:
    config = swept(method="fora", knobs={"interval": 2}, steps=[10, 20])
    rows = run_studies(config)[-1].rows[1:]
    assert [(row.arm, row.steps) for row in rows] == [("fora-n2", None), ("by.steps-20", 20)]
    assert len(cell_table(config)) == len(cell_table(check_config({}))) + 1


def test_many_knobs_make_as_many_arms_as_there_are_combinations() -> None:
    knobs = {
        "interval": [1, 2, 3],
        "order": [1, 2],
        "weights_file": ["shipped:diffcr-lt-30"],
        "coefficient": [0.3, 0.4],
    }
    knobs |= {"router_rate": [0.001], "checkpointing": ["off"], "guidance": ["separate"], "training_seed": [0, 1]}
    config = swept(method="diffcr", knobs=knobs)
    assert len(run_studies(config)[-1].rows) == 1 + 3 * 2 * 2 * 2


def test_a_range_to_nowhere_is_told() -> None:
    with pytest.raises(Fault, match="finite number"):
        swept(method="fora", knobs={"interval": {"from": 2, "to": float("nan"), "by": 1}})
