import time

import pytest
import torch

from ditbench.faults import Fault
from ditbench.stopwatch import contention, interleave, peak_memory, spread


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
