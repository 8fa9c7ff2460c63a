"""What a run will take, from what earlier shards took."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ditbench.cells import Spec, cell_table
from ditbench.config import ArmConfig, Config
from ditbench.faults import Fault
from ditbench.forecast import BYTES_PER_PIXEL, effort, forecast, speed_of_macs, told
from ditbench.methods.fora import Fora
from ditbench.records import write_record
from ditbench.worlds import get_world
from ditbench.worlds.scenes.world import Scenes

ARMS = {"full": ArmConfig(method="full"), "fora": ArmConfig(method="fora")}
CONFIG = Config(images=8, shard=4).model_copy(update={"studies": [], "arms": ARMS})


def specs(config: Config) -> dict[str, Spec]:
    return {spec.arm: spec for spec in cell_table(config)}


def drawn(results: Path, spec: Spec, first: int, last: int, rate: float) -> None:
    """The record of a shard of 1,000 bytes per image."""
    count = last - first + 1
    body = {"spec_hash": spec.hash, "count": count, "bytes": 1000 * count, "images_per_second": rate}
    write_record(spec.folder(results) / "shards" / f"{first:05d}-{last:05d}.json", "shard", body)


def test_before_the_first_shard_a_measured_speed_and_the_plans_tell_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ditbench.worlds.scenes.world.Scenes.measured_speed", lambda world: (2.0, "a quiet machine"))
    outlook = forecast(CONFIG, tmp_path)
    assert outlook["generation_seconds_on_one_worker"] == 6  # 8 images at 2/s, and 8 of FORA's half effort
    assert "from a measurement on a quiet machine" in told(outlook)


def test_where_nobody_measured_time_is_unknown_before_the_first_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ditbench.worlds.scenes.world.Scenes.measured_speed", lambda world: None)
    outlook = forecast(CONFIG, tmp_path)
    assert (outlook["cells"], outlook["shards"], outlook["images_to_draw"]) == (2, 4, 16)
    assert outlook["generation_seconds_on_one_worker"] is None
    assert "unknown until the first shard is drawn" in told(outlook)


def test_what_is_there_is_not_drawn_again_and_tells_speed_and_size(tmp_path: Path) -> None:
    drawn(tmp_path, specs(CONFIG)["full"], 0, 3, rate=2.0)
    drawn(tmp_path, specs(CONFIG)["fora"], 0, 3, rate=4.0)
    outlook = forecast(CONFIG, tmp_path)
    assert (outlook["images_done"], outlook["images_to_draw"]) == (8, 8)
    assert outlook["disk_bytes_to_write"] == 8000
    assert outlook["generation_seconds_on_one_worker"] == 3  # 4 images at 2/s and 4 at 4/s


def test_an_arm_without_shards_is_taken_to_be_as_slow_as_the_slowest(tmp_path: Path) -> None:
    drawn(tmp_path, specs(CONFIG)["full"], 0, 3, rate=2.0)
    assert forecast(CONFIG, tmp_path)["generation_seconds_on_one_worker"] == 6  # 4 and 8 images at 2/s


def test_shards_of_another_spec_tell_speed_but_are_drawn_again(tmp_path: Path) -> None:
    other = specs(CONFIG.model_copy(update={"images": 9}))["full"]
    drawn(tmp_path, other, 0, 3, rate=4.0)
    outlook = forecast(CONFIG, tmp_path)
    assert outlook["images_done"] == 0
    assert outlook["generation_seconds_on_one_worker"] == 4


def test_too_little_room_is_said_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "NOT ENOUGH" not in told(forecast(CONFIG, tmp_path / "not" / "there"))
    monkeypatch.setattr("ditbench.forecast._free", lambda folder: 10)
    assert "NOT ENOUGH" in told(forecast(CONFIG, tmp_path))


def test_a_stated_speed_has_the_last_word(tmp_path: Path) -> None:
    drawn(tmp_path, specs(CONFIG)["full"], 0, 3, rate=2.0)
    outlook = forecast(CONFIG, tmp_path, (4.0, "my own measurement"))
    assert outlook["generation_seconds_on_one_worker"] == 2  # 4 images at 4/s, and 8 of FORA's half effort
    assert "from my own measurement" in told(outlook)


def test_on_a_gpu_hours_are_those_of_the_measured_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ditbench.worlds.scenes.world.Scenes.measured_speed", lambda world: None)
    monkeypatch.setattr("ditbench.measured.forward_seconds", lambda world: (18.0, "a GPU"))
    steps, branches = Scenes().default_steps, Scenes().cfg_branches
    outlook = forecast(CONFIG.model_copy(update={"device": "cuda"}), tmp_path)
    assert outlook["generation_seconds_on_one_worker"] == 12 * steps * branches * 18  # 8 images, and 8 of half effort
    assert f"time to draw on one GPU: {12 * steps * branches * 18 / 3600:,.1f} GPU hours" in told(outlook)
    assert "the network alone on a GPU" in told(outlook)
    assert forecast(CONFIG, tmp_path)["generation_seconds_on_one_worker"] is None  # a GPU's speed is not a processor's


def test_the_ledger_turns_a_devices_speed_into_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ditbench.macs.count_macs", lambda world, method: {"total": 2e12, "cfg_branches": 2})
    rate, source = speed_of_macs("scenes", 100)
    assert rate == 25  # 4 T an image
    assert source == "4 T MACs an image of full at 100 T a second, as stated"


def test_each_world_has_its_own_speed_and_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = cell_table(CONFIG)
    others = [replace(spec, world="scenes-mmdit") for spec in ours]
    monkeypatch.setattr("ditbench.forecast.cell_table", lambda config: [*ours, *others])
    drawn(tmp_path, ours[0], 0, 3, rate=2.0)
    outlook = forecast(CONFIG, tmp_path, {"scenes": (2.0, "one thing"), "scenes-mmdit": (0.5, "another")})
    assert (outlook["arms"], outlook["images_done"], outlook["images_to_draw"]) == (4, 4, 28)
    # 4 images and 8 of half effort at 2/s; 8 and 8 of half effort at 0.5/s
    assert outlook["generation_seconds_on_one_worker"] == 4 + 24
    assert outlook["estimated_from"] == "one thing; another"
    pixels = get_world("scenes-mmdit").image_size ** 2
    assert outlook["disk_bytes_to_write"] == round(12 * 1000 + 16 * pixels * BYTES_PER_PIXEL)
    monkeypatch.setattr("ditbench.forecast.measured_speed", lambda world, device: None)
    assert forecast(CONFIG, tmp_path)["generation_seconds_on_one_worker"] is None  # of one of them it is not known


def test_a_plan_that_cannot_be_made_stops_no_other_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = specs(CONFIG)["fora"]

    def fails(error: Exception) -> None:
        def plan(*_: object) -> None:
            raise error

        monkeypatch.setattr(Fora, "plan", plan)

    assert effort(spec) == 0.5
    fails(ZeroDivisionError("a token was divided by none"))
    assert effort(spec) == 1  # the job that makes the plan tells of it
    fails(Fault("interval: 3 does not fit"))
    with pytest.raises(Fault, match="does not fit"):  # what a person can mend is told before anything starts
        effort(spec)
