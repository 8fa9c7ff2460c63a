"""Speed and memory of real architectures under the engine, with random weights: records for `measured/`.

uv run python benchmarks/backbones.py WORLD [WORLD …] [--device cuda] [--batch 1 16] [--dtype bfloat16] [--compile]
                                      [--out measured]

For each world and batch (rows of the network's batch): one unpatched forward, a full plan, half of the tokens at every
branch, and a step that reuses everything, taking turns; medians of seconds, ratios to the unpatched forward, and the
most memory that was held beside the weights. What does not fit into memory is recorded as such. The record is the
program's own: hardware, versions, command and date are in it.
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

from ditbench.backbones import Backbone
from ditbench.engine.fills import Reuse
from ditbench.engine.plan import Plan
from ditbench.engine.run import Parts, Run, attached
from ditbench.engine.selectors import RandomTokens
from ditbench.faults import Fault
from ditbench.generate import check_device
from ditbench.records import write_record
from ditbench.worlds import get_world
from ditbench.worlds.real.pipelines import cast_as_loaded

SHARES = {"full plan": 1.0, "half of the tokens": 0.5, "reuse": 0.0}


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


def step_of(backbone: Backbone, share: float, inputs: dict[str, Any]) -> tuple[Run, Callable[[], Any]]:
    """A run that stands before a step at a share of the tokens, and what takes that step."""
    layout = backbone.layout
    plan = Plan(layout, layout.by_branch, np.repeat([[1.0], [share], [share]], len(layout), axis=1))
    generator = torch.Generator(backbone.network.device).manual_seed(0)
    parts = Parts(Reuse(), RandomTokens(generator))
    run = Run(backbone, plan, backbone.tokens(**inputs), lambda: parts)
    with attached(run):
        backbone.network(**inputs)
    return run, lambda: backbone.network(**inputs)


@torch.no_grad()
def measure(backbone: Backbone, inputs: dict[str, Any], rounds: int) -> dict[str, Any]:
    device = backbone.network.device
    plain = lambda: backbone.network(**inputs)  # noqa: E731
    timed(plain, device)
    seconds: dict[str, list[float]] = {"unpatched": [], **{kind: [] for kind in SHARES}}
    peaks: dict[str, int | None] = {}
    for _ in range(rounds):
        seconds["unpatched"].append(timed(plain, device))
        for kind, share in SHARES.items():
            run, call = step_of(backbone, share, inputs)
            weights = _held(device)
            with attached(run):
                seconds[kind].append(timed(call, device))
            peaks[kind] = _peak(device, weights)
            del run, call
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    return {
        "seconds": medians,
        "rounds_seconds": seconds,
        "ratio_to_unpatched": {kind: medians[kind] / medians["unpatched"] for kind in SHARES},
        "peak_bytes_in_the_step": peaks,
    }


def _held(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak(device: torch.device, held: int) -> int | None:
    return torch.cuda.max_memory_allocated(device) - held if device.type == "cuda" else None


def compile_parts(backbone: Backbone) -> None:
    """Compiles attention and feed-forward modules one by one: the engine calls them, not the blocks."""
    for name, part in backbone.network.named_modules():
        if name.rpartition(".")[2] in ("attn", "attn1", "attn2", "ff", "ff_context", "ffn"):
            part.compile()


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
        "attention": "as diffusers chooses (scaled_dot_product_attention)",
        "rounds": rounds,
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
    parser.add_argument("--out", type=Path, default=Path("measured"), help="folder of the records")
    arguments = parser.parse_args()
    try:
        check_device(arguments.device)
        for name in arguments.worlds:
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
            write_record(out, "backbone-speed", body)
            print(out)
    except Fault as fault:
        sys.exit(f"backbones: {fault}")


if __name__ == "__main__":
    main()
