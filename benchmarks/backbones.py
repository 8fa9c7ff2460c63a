"""Speed and memory of real architectures under the engine, with random weights: records for `measured/`.

uv run python benchmarks/backbones.py WORLD [WORLD …] [--device cuda] [--batch 1 16] [--dtype bfloat16] [--compile]
                                      [--seconds S] [--out measured]

For each world and batch (rows of the network's batch): one unpatched forward, a full plan, half of the tokens at every
branch, and a step that reuses everything, taking turns; medians of seconds, ratios to the unpatched forward, and the
most memory that was held beside the weights. On a GPU also the same steps replayed as CUDA graphs, and what kinds of
kernels they spend their time in. What does not fit into memory is recorded as such. The record is the program's own:
hardware, versions, command and date are in it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from ditbench.backbones import Backbone, Stream
from ditbench.codehash import code_hash
from ditbench.engine.compiling import compile_parts
from ditbench.engine.fills import Reuse
from ditbench.engine.graphs import Recording
from ditbench.engine.layout import Layout, Unit
from ditbench.engine.plan import Plan
from ditbench.engine.rows import Rows
from ditbench.engine.run import Parts, Run, attached
from ditbench.faults import Fault
from ditbench.generate import check_device
from ditbench.records import write_record
from ditbench.worlds import get_world
from ditbench.worlds.real.pipelines import cast_as_loaded

SHARES = {"full plan": 1.0, "half of the tokens": 0.5, "reuse": 0.0}
LONG = 0.15  # seconds of a forward


def settled(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], Any], device: torch.device) -> float:
    settled(device)
    began = time.perf_counter()
    call()
    settled(device)
    return time.perf_counter() - began


def batched(inputs: dict[str, Any], batch: int) -> dict[str, Any]:
    """Inputs for one row, repeated."""

    def repeat(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: repeat(inner) for key, inner in value.items()}
        if torch.is_tensor(value) and value.shape[:1] == (1,):
            return value.repeat(batch, *[1] * (value.ndim - 1))
        return value

    return {key: repeat(value) for key, value in inputs.items()}


class DrawnBefore:
    """Random tokens of every block, drawn before the step that is timed: selecting is a method's own cost."""

    def __init__(self, layout: Layout, share: float, samples: int, tokens: int, device: torch.device) -> None:
        generator = torch.Generator(device).manual_seed(0)
        self._blocks = [branch.block for branch in layout.branches]
        self._rows: dict[int, Rows] = {}
        for block in set(self._blocks):
            chances = torch.rand(samples, tokens, device=device, generator=generator)
            rows = Rows(chances.topk(round(share * tokens)).indices.sort().values, tokens)
            self._rows[block] = rows
            _ = rows.flat  # made when it is first asked for, and kept

    def choose(self, unit: Unit, step: int, stream: Stream, count: int) -> Rows:
        return self._rows[self._blocks[unit.start]]


def step_of(backbone: Backbone, share: float, inputs: dict[str, Any]) -> tuple[Run, Callable[[], Any]]:
    """A run that stands before a step at a share of the tokens, and what takes that step."""
    layout = backbone.layout
    plan = Plan(layout, layout.by_branch, np.repeat([[1.0], [share], [share]], len(layout), axis=1))
    tokens, samples = backbone.tokens(**inputs), len(inputs["hidden_states"])
    selector = DrawnBefore(layout, share, samples, tokens, backbone.network.device)
    run = Run(backbone, plan, tokens, lambda: Parts(Reuse(), selector))
    with attached(run):
        backbone.network(**inputs)
    return run, lambda: backbone.network(**inputs)


@torch.no_grad()
def measure(backbone: Backbone, inputs: dict[str, Any], rounds: int) -> dict[str, Any]:
    device = backbone.network.device
    plain = lambda: backbone.network(**inputs)  # noqa: E731
    timed(plain, device)
    # Long forwards vary little, and a GPU is dear.
    rounds = rounds if timed(plain, device) < LONG else min(rounds, 3)
    seconds: dict[str, list[float]] = {"unpatched": [], **{kind: [] for kind in SHARES}}
    peaks: dict[str, int | None] = {}
    for _ in range(rounds):
        seconds["unpatched"].append(timed(plain, device))
        for kind, share in SHARES.items():
            run, call = step_of(backbone, share, inputs)
            weights, kept = _held(device), run.kept_bytes
            with attached(run):
                seconds[kind].append(timed(call, device))
            peaks[kind] = _peak(device, weights)
            del run, call
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    on_gpu: dict[str, Any] = {}
    if device.type == "cuda":
        on_gpu["kernel_seconds"] = {
            kind: kernel_seconds(backbone, share, inputs) for kind, share in SHARES.items() if share
        }
        # A recording holds what the step kept and used once more.
        spare = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - weights
        needed = 3 * max(peak or 0 for peak in peaks.values()) + 2 * kept
        on_gpu["graphs"] = "too little memory" if needed > spare else replayed(backbone, inputs, rounds)
    return {
        "rounds": rounds,
        "seconds": medians,
        "rounds_seconds": seconds,
        "ratio_to_unpatched": {kind: medians[kind] / medians["unpatched"] for kind in SHARES},
        "peak_bytes_in_the_step": peaks,
        "kept_bytes": kept,
        **on_gpu,
    }


def replayed(backbone: Backbone, inputs: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Seconds of the same steps as CUDA graphs."""
    seconds: dict[str, float] = {}
    for kind, share in SHARES.items():
        run, _ = step_of(backbone, share, inputs)
        recording = Recording(Run(backbone, run.plan, run.tokens, run.new_parts))
        for _ in range(2):
            recording.record((), inputs)
        calls = recording.calls

        def replay(number: int, calls: Any = calls) -> None:
            calls[number].inputs.take((), inputs)
            calls[number].graph.replay()

        found = []
        for _ in range(rounds):
            replay(0)
            found.append(timed(lambda again=replay: again(1), backbone.network.device))
        seconds[kind] = statistics.median(found)
        del run, recording, calls, replay
        torch.cuda.empty_cache()
    return {"seconds": seconds, "ratio_to_full_plan": {kind: s / seconds["full plan"] for kind, s in seconds.items()}}


# What a part of a kernel's name says of it; the first that fits.
KERNELS = {
    "attention": ("fmha", "flash", "attention", "softmax"),
    "gather and scatter": ("index", "gather", "scatter"),
    "matrix products": ("gemm", "nvjet", "cutlass", "xmma", "splitk"),
}


def kernel_seconds(backbone: Backbone, share: float, inputs: dict[str, Any]) -> dict[str, float]:
    """What kinds of kernels a step spends the GPU's time in; `other` is norms and elementwise work."""
    run, call = step_of(backbone, share, inputs)
    with attached(run), profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        settled(backbone.network.device)
    found = dict.fromkeys([*KERNELS, "other"], 0.0)
    for event in seen.key_averages():
        name = event.key.lower()
        kind = next((kind for kind, parts in KERNELS.items() if any(part in name for part in parts)), "other")
        found[kind] += event.self_device_time_total / 1e6
    return found


def _held(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak(device: torch.device, held: int) -> int | None:
    return torch.cuda.max_memory_allocated(device) - held if device.type == "cuda" else None


def record(
    name: str, batches: list[int], device: str, dtype: torch.dtype, compiled: bool, rounds: int
) -> dict[str, Any]:
    """What one world's network takes, for every batch."""
    world = get_world(name)
    torch.manual_seed(0)
    backbone, inputs = world.backbone(device)
    cast_as_loaded(backbone.network.eval().requires_grad_(False), dtype)
    inputs = {k: v.to(dtype) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in inputs.items()}
    if compiled:
        compile_parts(backbone)
    found: dict[str, Any] = {}
    for batch in batches:
        print(f"{name}: batch {batch}", file=sys.stderr, flush=True)
        try:
            found[str(batch)] = measure(backbone, batched(inputs, batch), rounds)
        except torch.OutOfMemoryError:
            found[str(batch)] = {"out_of_memory": True}
            torch.cuda.empty_cache()
    return {
        "world": name,
        "weights": "random",
        "device": device,
        "dtype": str(dtype).removeprefix("torch."),
        "compiled_parts": compiled,
        "cuda": torch.version.cuda,
        "attention": "as diffusers chooses (scaled_dot_product_attention)",
        "threads": torch.get_num_threads(),
        "tokens": backbone.tokens(**inputs),
        "text_tokens": backbone.text_tokens(**inputs),
        "parameters": sum(p.numel() for p in backbone.network.parameters()),
        "command": " ".join(sys.argv),
        "batches": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("worlds", nargs="+", metavar="WORLD")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--dtype", default="bfloat16", choices=("float16", "bfloat16", "float32"))
    parser.add_argument("--compile", action="store_true", help="compile attention and feed-forward modules")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no world after so long")
    parser.add_argument("--out", type=Path, default=Path("measured"), help="folder of the records")
    arguments = parser.parse_args()
    began = time.monotonic()
    try:
        check_device(arguments.device)
        for name in arguments.worlds:
            if time.monotonic() - began > arguments.seconds:
                sys.exit(f"backbones: {arguments.seconds:.0f} s are over; {name} and later ones were not measured")
            body = record(
                name,
                arguments.batch,
                arguments.device,
                getattr(torch, arguments.dtype),
                arguments.compile,
                arguments.rounds,
            )
            suffix = "-compiled" if arguments.compile else ""
            out = arguments.out / f"{name}-{arguments.device.replace(':', '')}-{arguments.dtype}{suffix}.json"
            write_record(out, "backbone-speed", body, code=code_hash("time", name))
            print(out)
    except Fault as fault:
        sys.exit(f"backbones: {fault}")


if __name__ == "__main__":
    main()
