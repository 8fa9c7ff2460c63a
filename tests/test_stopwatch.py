import time

import pytest

from ditbench.faults import Fault
from ditbench.stopwatch import Neighbours, interleave, spread


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


def test_own_work_is_not_called_contention() -> None:
    neighbours = Neighbours()
    before = neighbours._began
    # Ten seconds of the machine passed, six busy; five of them this process's own.
    neighbours._read = lambda: (before[0] + 6, before[1] + 10, before[2] + 5)  # type: ignore[method-assign]
    assert neighbours.share() == pytest.approx(0.1)
