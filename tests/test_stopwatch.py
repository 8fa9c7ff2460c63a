import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ditbench import stopwatch
from ditbench.caption_sets import write_captions
from ditbench.cells import Spec
from ditbench.energy import gpu_meter, processor_meter
from ditbench.faults import Fault
from ditbench.generate import embed
from ditbench.records import read_record, write_record
from ditbench.report.results import _speeds
from ditbench.stopwatch import (
    Protocol,
    check_repeats,
    contention,
    interleave,
    metered,
    peak_memory,
    quantile,
    spread,
    time_arm,
)
from ditbench.study import is_cost
from ditbench.worlds import get_world


def test_rounds_interleave_the_baseline_with_every_arm() -> None:
    calls: list[str] = []
    runs = {name: (lambda name=name: calls.append(name)) for name in ("full", "a", "b")}
    timings = interleave(runs, "full", rounds=2)
    assert calls[:3] == ["full", "a", "b"]  # warm-up
    assert calls[3:] == ["full", "a", "b", "full", "b", "a", "full"]
    assert {name: len(timing.ratios) for name, timing in timings.items()} == {"full": 2, "a": 2, "b": 2}


def test_a_ratio_is_of_the_full_runs_around_an_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 4.0, 10.0, 11.0, 20.0, 22.0])  # full takes 4 s, the arm 1 s, full 2 s
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    timings = interleave({"full": lambda: None, "arm": lambda: None}, "full", rounds=1)
    assert timings["arm"].ratios == [3.0]
    assert timings["full"].ratios == [2.0]


def test_without_a_baseline_there_is_no_ratio() -> None:
    with pytest.raises(Fault, match="full"):
        interleave({"a": lambda: None}, "full", rounds=1)


def test_an_arm_that_changes_the_full_model_gives_no_speed() -> None:
    images = np.full((2, 8, 8, 3), 100, np.uint8)
    rounded, other = images.copy(), images + 40
    rounded[0, 0, 0, 0] += 1
    spec = {"arm": "a", "method": "m"}
    check_repeats({"full": (images, rounded), "a": (other, other)}, spec)
    with pytest.raises(Fault, match=r"arm a, method m: in the last round full drew other images .* left behind"):
        check_repeats({"full": (images, other), "a": (other, other)}, spec)


def test_spread_is_the_median_between_the_extremes() -> None:
    assert spread([3.0, 1.0, 2.0]) == {"value": 2.0, "low": 1.0, "high": 3.0}


def test_what_makes_a_time_uncertain_is_said_of_processor_and_gpu() -> None:
    assert contention(0.1, None) == contention(0.05, 0.1) == ""
    assert contention(0.5, None) == "other processes took 50% of the processor meanwhile"
    assert contention(0.0, 0.4) == "other processes kept the GPU busy 40% of the time before or after"
    assert contention(0.5, 0.4).count(" and ") == 1
    # A burst of a few seconds: 6 % of the whole time, but not of each round.
    assert contention(0.06, None, [1.9, 1.81, 2.8, 2.1]) == "the speed-up was 1.81 in one round and 2.80 in another"
    assert contention(0.06, None, [1.9, 1.85, 2.0]) == ""


def test_the_peak_is_an_arms_own_and_the_highest_of_its_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, held = [0], iter([7, 5, 9, 4])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: gpu.__setitem__(0, 0))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: gpu[0])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    peaks: dict[str, int] = {}
    for arm in ("full", "arm", "full", "arm"):
        with peak_memory("cuda:0", arm, peaks):
            gpu[0] = max(gpu[0], next(held))
    assert peaks == {"full": 9, "arm": 5}


def test_on_a_cpu_no_peak_is_told() -> None:
    peaks: dict[str, int] = {}
    with peak_memory("cpu", "full", peaks):
        pass
    assert peaks == {}


# --- the record of an arm ---


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four captions with embeddings, the full arm and one that reuses, at three steps."""
    root = tmp_path_factory.mktemp("stopwatch")
    write_captions(get_world("scenes"), "some", 4, 0, root / "captions.json")
    embed("scenes", root / "captions.json", root / "embeddings.json")
    knobs = {"interval": 2, "direction": "up"}
    for arm, method, own in (("full", "full", {}), ("fora", "fora", knobs)):
        spec = Spec("scenes", arm, method, own, 3, 0, 4, "some", None, "float32")
        write_record(root / f"{arm}.json", "spec", {**vars(spec), "hash": spec.hash})
    return root


def timed(root: Path, protocol: Protocol) -> dict[str, Any]:
    out = root / "latency.json"
    time_arm(root / "fora.json", root / "full.json", root / "captions.json", root / "embeddings.json", out, protocol)
    return read_record(out, "latency")


def test_batches_and_modes_are_timed_beside_the_main_one(ready: Path) -> None:
    record = timed(ready, Protocol(1, (2, 1), ("eager",), report=True))
    assert (record["batch"], record["mode"], record["warmup_rounds"]) == (2, "eager", 1)
    assert [(lap["mode"], lap["batch"]) for lap in record["others"]] == [("eager", 1)]
    calls = record["forward_seconds"]
    assert len(calls["baseline"]) == len(calls["arm"]) == 3
    assert calls["kinds"] == ["all", "none", "all"]
    values = dict(_speeds(record, "latency.json"))
    assert {"speedup", "speedup-b1", "seconds-per-image", "latency-p50", "latency-p90", "forward-ms"} <= set(values)
    assert all(is_cost(name) for name in values)
    assert values["latency-p50"].value == pytest.approx(2 * values["seconds-per-image"].value)


def test_the_time_of_a_call_is_all_calls_time_over_their_number() -> None:
    # A plan of two kinds of calls: the middle one is of neither's mean.
    spread = {"value": 1.0, "low": 1.0, "high": 1.0}
    latency = {"rounds": 1, "speedup": spread, "seconds_per_image": spread, "forward_seconds": {"arm": [3.0, 1.0, 3.0]}}
    value = dict(_speeds(latency, "latency.json"))["forward-ms"]
    assert (value.value, value.n) == (pytest.approx(7e3 / 3), 3)


def test_a_contended_machine_gets_no_speed_unless_told(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []

    def busy(*args: object) -> str:
        tries.append(1)
        return "other processes took 70% of the processor meanwhile"

    monkeypatch.setattr(stopwatch, "contention", busy)
    refused = timed(ready, Protocol(1, (1,)))
    assert len(tries) == 2, "a burst may pass: it is timed once more"
    assert refused["refused"] == refused["note"] and refused["contended"]
    assert refused["speedup"] is None and refused["seconds_per_image"] is None and refused["others"] == []
    assert not dict(_speeds(refused, "latency.json")) and refused["trace"], "what ran is known all the same"
    told = timed(ready, Protocol(1, (1,), report=True))
    assert told["refused"] == "" and told["contended"] and told["speedup"]["value"] > 0
    assert len(tries) == 3


def test_any_mode_can_be_the_main_one(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopwatch, "mode_of", lambda sampler, mode: nullcontext())  # compiling takes minutes
    record = timed(ready, Protocol(1, (1,), ("compiled",), report=True))
    assert record["mode"] == "compiled" and record["trace"] and record["speedup"]["value"] > 0


def test_each_timing_is_tried_again_and_refused_by_itself(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = iter(["", "busy", "busy still"])
    monkeypatch.setattr(stopwatch, "contention", lambda *args: next(said))
    record = timed(ready, Protocol(1, (2, 1)))
    assert record["refused"] == "" and record["speedup"]["value"] > 0
    assert [(lap["refused"], lap["speedup"]) for lap in record["others"]] == [("busy still", None)]
    assert "speedup-b1" not in dict(_speeds(record, "latency.json"))


def test_the_warm_up_takes_no_joules(ready: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = (float(2**i) for i in range(100))  # every run takes as much as all before it
    monkeypatch.setattr(stopwatch, "meter", lambda device: lambda: next(readings))
    watched: list[list[float]] = []
    metered_ = stopwatch.metered

    def kept(run: Any, device: str, used: list[float]) -> Any:
        watched.append(used)
        return metered_(run, device, used)

    monkeypatch.setattr(stopwatch, "metered", kept)
    record = timed(ready, Protocol(1, (1,), report=True))
    arm = watched[1]
    assert len(arm) == 2 and record["joules_per_image"] == arm[1] != arm[0]


def test_an_arm_that_cannot_be_recorded_is_timed_eager_and_says_so() -> None:
    watch = stopwatch._Watch(None, {}, {}, None, 1)
    watch._why_not = lambda mode: "made while sampling" if mode == "graphs" else ""  # type: ignore[method-assign]
    assert watch.possible(("graphs",)) == ("eager",) and watch.not_timed == {"graphs": "made while sampling"}
    assert watch.possible(("graphs", "compiled")) == ("compiled",)


def test_graphs_need_a_gpu(ready: Path) -> None:
    with pytest.raises(Fault, match="CUDA graphs need a GPU, and device is cpu; possible there: eager, compiled"):
        timed(ready, Protocol(1, (1,), ("eager", "graphs")))


def test_compiled_parts_are_as_they_were_afterwards() -> None:
    from ditbench.engine.compiling import compiled

    backbone, _ = get_world("scenes").backbone("cpu")
    parts = [part for name, part in backbone.network.named_modules() if name.rpartition(".")[2] in ("attn1", "ff")]
    with compiled(backbone):
        assert all(part._compiled_call_impl is not None for part in parts)
    assert parts and all(part._compiled_call_impl is None for part in parts)


def test_quantiles_lie_between_neighbours() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([0.0, 10.0], 0.9) == 9.0


@pytest.mark.parametrize(
    ("name", "cost"),
    [("speedup", True), ("speedup-b16", True), ("speedup-compiled", True), ("speedup-graphs-b1", True), ("fid", False)],
)
def test_speedups_of_other_modes_and_batches_are_costs(name: str, cost: bool) -> None:
    assert is_cost(name) is cost


# --- energy ---


def package(powercap: Path, name: str, used: int, most: int = 1000) -> Path:
    folder = powercap / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "energy_uj").write_text(f"{used}\n")
    (folder / "max_energy_range_uj").write_text(f"{most}\n")
    return folder / "energy_uj"


def test_packages_add_up_and_counters_that_begin_anew_are_noticed(tmp_path: Path) -> None:
    first = package(tmp_path, "intel-rapl:0", 900)
    package(tmp_path, "intel-rapl:1", 100)
    package(tmp_path, "intel-rapl:0:0", 50)  # a part of the first package
    read = processor_meter(tmp_path)
    assert read is not None
    before = read()
    first.write_text("200\n")
    assert (read() - before) * 1e6 == pytest.approx(300)


def test_where_no_counter_can_be_read_there_is_no_energy(tmp_path: Path) -> None:
    assert processor_meter(tmp_path) is None
    (tmp_path / "intel-rapl:0").mkdir()
    assert processor_meter(tmp_path) is None
    assert gpu_meter("cuda:0", "no-such-library.so") is None


def test_joules_are_those_of_the_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([5.0, 8.0, 20.0, 21.5])
    monkeypatch.setattr(stopwatch, "meter", lambda device: lambda: next(readings))
    used: list[float] = []
    run = metered(lambda: None, "cpu", used)
    run()
    run()
    assert used == [3.0, 1.5]
