"""How fast arms are: whole sampling runs, interleaved with the full model, as ratios.

Absolute times drift with the machine; a ratio of neighbouring runs does not. Every round times the full model and
then the arm; an arm's ratio in a round uses the full runs before and after it. What other processes took of the
processor meanwhile is measured, and a contended machine is said in the record.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from ditbench.energy import meter
from ditbench.faults import Fault
from ditbench.neighbours import Neighbours, gpu_load
from ditbench.stopwatch_modes import Forwards, mode_of, recording

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ditbench.engine.trace import Trace
    from ditbench.stopwatch_modes import StandIn

# Above this share of the processor or the GPU taken by others, timings are called contended.
CONTENTION = 0.1
# Above this ratio of the slowest to the fastest round's speed-up, something came between for a part of the time only.
UNSTEADY = 1.2


@dataclass(frozen=True)
class Timing:
    """An arm's seconds per round and its speed-up over the full model in each."""

    seconds: list[float]
    ratios: list[float]


def interleave(runs: dict[str, Callable[[], None]], baseline: str, rounds: int) -> dict[str, Timing]:
    """Times every run `rounds` times, the baseline between rounds and once more at the end."""
    if baseline not in runs:
        raise Fault(f"timing needs the arm {baseline!r} to compare with")
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    others = [name for name in runs if name != baseline]
    for name in runs:  # warm-up: first calls allocate, compile and page in
        runs[name]()
    for number in range(rounds + 1):
        seconds[baseline].append(_timed(runs[baseline]))
        if number == rounds:
            break
        # The order turns from round to round, so that no arm always follows the same one.
        turn = number % max(len(others), 1)
        for name in others[turn:] + others[:turn]:
            seconds[name].append(_timed(runs[name]))
        print(f"stopwatch: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    around = [(a + b) / 2 for a, b in pairwise(seconds[baseline])]
    timings = {
        name: Timing(seconds[name], [a / s for a, s in zip(around, seconds[name], strict=True)]) for name in others
    }
    full = seconds[baseline]
    timings[baseline] = Timing(full, [a / b for a, b in pairwise(full)])
    return timings


def _timed(run: Callable[[], None]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def spread(values: Sequence[float]) -> dict[str, float]:
    """The median with the smallest and the largest value."""
    return {"value": median(values), "low": min(values), "high": max(values)}


@dataclass(frozen=True)
class Protocol:
    """What is timed: rounds, the batches and modes (the first of each is the main one), and whether it is reported
    from a contended machine too."""

    rounds: int = 4
    batches: tuple[int, ...] = (8,)
    modes: tuple[str, ...] = ("eager",)
    report: bool = False


def time_arm(
    spec_path: Path,
    baseline_path: Path,
    captions_path: Path,
    embeddings_path: Path | None,
    out: Path,
    protocol: Protocol,
    device: str = "cpu",
    weights: str | None = None,
    code: str | None = None,
) -> None:
    """Times whole sampling runs of an arm, interleaved with the full model's, and writes the arm's record.

    With random weights there are no embeddings: noise stands in for them, and nothing is decoded after the last step.
    `peak_bytes` and `peak_bytes_baseline` of the record are the most GPU memory that tensors held in a run of the arm
    and of the full model, weights included; on a CPU they are null. Where others disturbed the main timing twice in a
    row, the record says so and gives no speed, unless the protocol reports all the same.
    """
    from ditbench.generate import Sampler, Texts, read_batch
    from ditbench.records import Clock, read_record, write_record
    from ditbench.weights import weights_of
    from ditbench.worlds import RANDOM

    clock = Clock()
    spec, baseline = read_record(spec_path, "spec"), read_record(baseline_path, "spec")
    if spec["world"] != baseline["world"]:
        raise Fault(f"{spec_path} and {baseline_path} are of different worlds: their times cannot be compared")
    if spec.get("weights") != baseline.get("weights"):
        raise Fault(f"{spec_path} and {baseline_path} are of different weights: their times cannot be compared")
    weights = weights_of(spec, weights)
    if embeddings_path is None and weights != RANDOM:
        raise Fault("--embeddings is needed: only random weights do without the captions' embeddings")
    if "graphs" in protocol.modes and device == "cpu":
        raise Fault("stopwatch.modes: CUDA graphs need a GPU, and device is cpu; possible there: eager, compiled")
    most = max(protocol.batches)
    with clock("load"):
        sampler = Sampler(spec["world"], device, weights)
        if embeddings_path is not None and weights != RANDOM:
            texts = read_batch(captions_path, embeddings_path, range(most), sampler.handle.weights)
        else:
            entries = read_record(captions_path, "captions")["captions"][:most]
            given, negative = (
                sampler.world.embed(sampler.handle, captions) for captions in ([e["text"] for e in entries], [""])
            )
            texts = Texts([entry["id"] for entry in entries], given, negative)
    watch = _Watch(sampler, baseline, spec, texts, protocol.rounds)
    with clock("compute"):
        # An arm that a mode cannot time is timed in the next, or eager, and the record says so.
        modes = watch.possible(protocol.modes)
        main = watch.twice_at_most(modes[0], protocol.batches[0], protocol.report)
        refused = main.refused(protocol.report)
        others = [] if refused else list(watch.others(modes, protocol))
        forwards = {} if refused else watch.forwards(protocol.batches[0])
    if main.note:
        print(
            f"stopwatch: the machine is contended: {main.note}; "
            + ("no speed is given; `stopwatch: {contended: report}` gives it all the same" if refused else "less sure"),
            file=sys.stderr,
        )
    if device != "cpu" and main.gpu is None:
        print("stopwatch: whether others use the GPU was not checked: nvidia-smi does not tell", file=sys.stderr)
    assert sampler.costs is not None
    body: dict[str, Any] = {
        "spec_hash": spec["hash"],
        "batch": protocol.batches[0],
        "mode": modes[0],
        "rounds": protocol.rounds,
        "warmup_rounds": 1,
        "clock": "perf_counter" if device == "cpu" else "perf_counter, the GPU synchronised",
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "device": device,
        "keeps_memory": sampler.keeps_memory,
        "refused": refused,
        **(main.body() if not refused else dict.fromkeys(main.body())),
        "others": [{"mode": mode, "batch": batch, **lap.whole(protocol.report)} for mode, batch, lap in others],
        "not_timed": watch.not_timed,
        "forward_seconds": forwards,
        "peak_bytes": main.peaks.get(spec["arm"]),
        "peak_bytes_baseline": main.peaks.get(baseline["arm"]),
        "rounds_seconds": main.seconds,
        "contended": bool(main.note),
        "load": main.load,
        "gpu_load": main.gpu,
        "note": main.note,
        "weights": sampler.handle.weights,
        "decoded": sampler.world.no_images(spec.get("weights")) is None,
        "trace": main.ran[spec["arm"]].summary(),
        "costs": sampler.costs.to_json(),
    }
    write_record(out, "latency", body, timings=clock.seconds, code=code)


@dataclass(frozen=True)
class Lap:
    """An arm's timing in one mode at one batch size."""

    batch: int
    seconds: list[float]
    ratios: list[float]
    load: float
    gpu: float | None
    note: str
    joules: float | None
    joules_baseline: float | None
    ran: dict[str, Trace]
    peaks: dict[str, int]

    def refused(self, report: bool) -> str:
        """Why no speed is given; nothing where one is."""
        return "" if report else self.note

    def whole(self, report: bool) -> dict[str, Any]:
        """The record of a timing besides the main one, which may be refused by itself."""
        refused = self.refused(report)
        numbers = self.body()
        return {
            **(dict.fromkeys(numbers) if refused else numbers),
            "refused": refused,
            "note": self.note,
            "load": self.load,
            "gpu_load": self.gpu,
            "peak_bytes": dict(self.peaks),
        }

    def body(self) -> dict[str, Any]:
        """The numbers of the record."""
        return {
            "seconds_per_image": spread([seconds / self.batch for seconds in self.seconds]),
            "speedup": spread(self.ratios),
            "p50_seconds": quantile(self.seconds, 0.5),
            "p90_seconds": quantile(self.seconds, 0.9),
            "joules_per_image": self.joules,
            "joules_per_image_baseline": self.joules_baseline,
        }


class _Watch:
    """Times an arm against the full model, in any mode at any batch size."""

    def __init__(self, sampler: Any, baseline: dict[str, Any], spec: dict[str, Any], texts: Any, rounds: int) -> None:
        self.sampler, self.baseline, self.spec, self.texts, self.rounds = sampler, baseline, spec, texts, rounds
        self.not_timed: dict[str, str] = {}

    def time(self, mode: str, batch: int) -> Lap:
        """One timing, with what others took of the machine meanwhile."""
        device, texts = self.sampler.device, self.texts.part(0, batch)
        used: dict[str, list[float]] = {}
        ran: dict[str, Trace] = {}
        peaks: dict[str, int] = {}
        before = None if device == "cpu" else gpu_load(device)
        neighbours = Neighbours()
        drawn: dict[str, tuple[NDArray[np.uint8], ...]] = {}
        with ExitStack() as stack:
            stack.enter_context(mode_of(self.sampler, mode))
            runs = {}
            for each in (self.baseline, self.spec):
                stand_in = stack.enter_context(recording(mode))
                run = _runner(self.sampler, each, texts, ran, peaks, drawn, stand_in)
                runs[each["arm"]] = metered(run, device, used.setdefault(each["arm"], []))
            timing = interleave(runs, self.baseline["arm"], self.rounds)[self.spec["arm"]]
        check_repeats(drawn, self.spec)
        taken = neighbours.share()
        # Others' use of a GPU shows only while the own one rests: before and after.
        after = None if before is None else gpu_load(device)
        gpu = None if before is None or after is None else max(before, after)
        # The first run of each is the warm-up, which may compile or record.
        joules = {arm: sum(each[1:]) / len(each[1:]) / batch if each[1:] else None for arm, each in used.items()}
        return Lap(
            batch,
            timing.seconds,
            timing.ratios,
            taken,
            gpu,
            contention(taken, gpu, timing.ratios),
            joules[self.spec["arm"]],
            joules[self.baseline["arm"]],
            ran,
            peaks,
        )

    def twice_at_most(self, mode: str, batch: int, report: bool) -> Lap:
        """One timing, or a second one where others disturbed the first and that would cost it its speed."""
        lap = self.time(mode, batch)
        if lap.refused(report):
            print(f"stopwatch: {lap.note}; timing once more", file=sys.stderr, flush=True)
            lap = self.time(mode, batch)
        return lap

    def possible(self, modes: Sequence[str]) -> tuple[str, ...]:
        """The modes that the arm can be timed in, the main one first; eager where it can in none of them."""
        self.not_timed = {mode: reason for mode in modes if (reason := self._why_not(mode))}
        return tuple(mode for mode in modes if mode not in self.not_timed) or ("eager",)

    def others(self, modes: Sequence[str], protocol: Protocol) -> Iterator[tuple[str, int, Lap]]:
        """What is timed besides the main mode and batch."""
        for mode in modes:
            for batch in protocol.batches:
                if (mode, batch) != (modes[0], protocol.batches[0]):
                    print(f"stopwatch: {mode}, batch {batch}", file=sys.stderr, flush=True)
                    yield mode, batch, self.twice_at_most(mode, batch, protocol.report)

    def _why_not(self, mode: str) -> str:
        """Why the arm cannot be timed in a mode; nothing if it can."""
        if mode != "graphs":
            return ""
        from ditbench.methods import method_of

        method, world = method_of(self.spec), self.sampler.world
        plan = method.plan(world.shape(method.steps(self.spec["steps"] or world.default_steps)))
        return "its plan is made while sampling: only static plans can be recorded" if plan.online else ""

    def forwards(self, batch: int) -> dict[str, Any]:
        """Seconds of each call of the network, of the arm and of the full model, in a run of its own.

        And of the arm's calls, how much each computed.
        """
        from ditbench.methods import method_of

        found: dict[str, Any] = {}
        for name, each in (("baseline", self.baseline), ("arm", self.spec)):
            clock = Forwards(self.sampler.device)
            texts = self.texts.part(0, batch)
            self.sampler.run(method_of(each), each["steps"], each["seed"], texts, clock)
            found[name] = clock.seconds
            if name == "arm":
                found["kinds"] = clock.kinds
        return found


def quantile(values: Sequence[float], share: float) -> float:
    """A quantile, between neighbours where it falls between them."""
    import numpy as np

    return float(np.quantile(np.asarray(values), share))


def metered(run: Callable[[], None], device: str, used: list[float]) -> Callable[[], None]:
    """A run that adds the joules it took to `used`, where the device tells them."""
    read = meter(device)
    if read is None:
        return run

    def measured() -> None:
        before = read()
        run()
        used.append(read() - before)

    return measured


def contention(processor: float, gpu: float | None, ratios: Sequence[float] = ()) -> str:
    """What others took, where it was too much to trust a time; nothing where it was not.

    A short burst hardly shows in the share of the whole time, but in rounds that differ from one another.
    """
    parts = []
    if processor > CONTENTION:
        parts.append(f"other processes took {processor:.0%} of the processor meanwhile")
    if gpu is not None and gpu > CONTENTION:
        parts.append(f"other processes kept the GPU busy {gpu:.0%} of the time before or after")
    if ratios and max(ratios) > UNSTEADY * min(ratios):
        parts.append(f"the speed-up was {min(ratios):.2f} in one round and {max(ratios):.2f} in another")
    return " and ".join(parts)


def _runner(
    sampler: Any,
    spec: dict[str, Any],
    texts: Any,
    ran: dict[str, Trace],
    peaks: dict[str, int],
    drawn: dict[str, tuple[NDArray[np.uint8], ...]],
    stand_in: StandIn | None = None,
) -> Callable[[], None]:
    from ditbench.generate import told_of
    from ditbench.methods import method_of

    arm, method = spec["arm"], method_of(spec)

    def run() -> None:
        with told_of(spec), peak_memory(sampler.device, arm, peaks):
            images, ran[arm] = sampler.run(method, spec["steps"], spec["seed"], texts, stand_in)
        drawn[arm] = (drawn.get(arm, (images,))[0], images)

    return run


def check_repeats(drawn: Mapping[str, Sequence[NDArray[np.uint8]]], spec: dict[str, Any]) -> None:
    """A Fault where an arm's last images are not its first: what ran in turn with it has left something behind.

    Sums that are rounded in another order change single grey levels, which is no reason.
    """
    import numpy as np

    for arm, images in drawn.items():
        first, last = images[0], images[-1]
        if first.size and float(np.abs(first.astype(np.int16) - last).mean()) > 1:
            raise Fault(
                f"arm {spec['arm']}, method {spec['method']}: in the last round {arm} drew other images than in the "
                "first, so that something is left behind by a run; no speed can be given before that is mended"
            )


@contextmanager
def peak_memory(device: str, arm: str, peaks: dict[str, int]) -> Iterator[None]:
    """Waits for the GPU at the end, and keeps the most bytes that tensors held there in any run of an arm.

    On a CPU it notes nothing: the system knows one peak per process, and both arms run in this one.
    """
    if device == "cpu":
        yield
        return
    import torch

    torch.cuda.reset_peak_memory_stats(device)
    yield
    torch.cuda.synchronize(device)
    peaks[arm] = max(peaks.get(arm, 0), torch.cuda.max_memory_allocated(device))
