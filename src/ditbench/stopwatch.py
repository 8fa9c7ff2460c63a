"""How fast arms are: whole sampling runs, interleaved with the full model, as ratios.

Absolute times drift with the machine; a ratio of neighbouring runs does not. Every round times the full model and
then the arm; an arm's ratio in a round uses the full runs before and after it. What other processes took of the
processor meanwhile is measured, and a contended machine is said in the record.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from ditbench.faults import Fault
from ditbench.neighbours import Neighbours, gpu_load

if TYPE_CHECKING:
    from ditbench.engine.trace import Trace

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


def time_arm(
    spec_path: Path,
    baseline_path: Path,
    captions_path: Path,
    embeddings_path: Path | None,
    out: Path,
    rounds: int = 4,
    batch: int = 8,
    device: str = "cpu",
    weights: str | None = None,
    code: str | None = None,
) -> None:
    """Times whole sampling runs of an arm, interleaved with the full model's, and writes the arm's record.

    With random weights there are no embeddings: noise stands in for them, and nothing is decoded after the last step.
    `peak_bytes` and `peak_bytes_baseline` of the record are the most GPU memory that tensors held in a run of the arm
    and of the full model, weights included; on a CPU they are null.
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
    with clock("load"):
        sampler = Sampler(spec["world"], device, weights)
        if embeddings_path is not None and weights != RANDOM:
            texts = read_batch(captions_path, embeddings_path, range(batch), sampler.handle.weights)
        else:
            entries = read_record(captions_path, "captions")["captions"][:batch]
            given, negative = (
                sampler.world.embed(sampler.handle, captions) for captions in ([e["text"] for e in entries], [""])
            )
            texts = Texts([entry["id"] for entry in entries], given, negative)
    ran: dict[str, Trace] = {}
    peaks: dict[str, int] = {}
    runs = {each["arm"]: _runner(sampler, each, texts, ran, peaks) for each in (baseline, spec)}
    before = None if device == "cpu" else gpu_load(device)
    neighbours = Neighbours()
    with clock("compute"):
        timing = interleave(runs, baseline["arm"], rounds)[spec["arm"]]
    taken = neighbours.share()
    # Others' use of a GPU shows only while the own one rests: before and after.
    after = None if before is None else gpu_load(device)
    gpu = None if before is None or after is None else max(before, after)
    note = contention(taken, gpu, timing.ratios)
    if note:
        print(f"stopwatch: the machine is contended: {note}; the ratios are less certain", file=sys.stderr)
    if device != "cpu" and gpu is None:
        print("stopwatch: whether others use the GPU was not checked: nvidia-smi does not tell", file=sys.stderr)
    assert sampler.costs is not None
    body: dict[str, Any] = {
        "spec_hash": spec["hash"],
        "batch": batch,
        "rounds": rounds,
        "threads": int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)),
        "device": device,
        "keeps_memory": sampler.keeps_memory,
        "seconds_per_image": spread([seconds / batch for seconds in timing.seconds]),
        "speedup": spread(timing.ratios),
        "peak_bytes": peaks.get(spec["arm"]),
        "peak_bytes_baseline": peaks.get(baseline["arm"]),
        "rounds_seconds": timing.seconds,
        "contended": bool(note),
        "load": taken,
        "gpu_load": gpu,
        "note": note,
        "weights": sampler.handle.weights,
        "decoded": sampler.world.no_images(spec.get("weights")) is None,
        "trace": ran[spec["arm"]].summary(),
        "costs": sampler.costs.to_json(),
    }
    write_record(out, "latency", body, timings=clock.seconds, code=code)


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
    sampler: Any, spec: dict[str, Any], texts: Any, ran: dict[str, Trace], peaks: dict[str, int]
) -> Callable[[], None]:
    arm = spec["arm"]

    def run() -> None:
        with peak_memory(sampler.device, arm, peaks):
            _, ran[arm] = sampler.draw(spec, texts)

    return run


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
