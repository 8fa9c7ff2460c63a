"""What the engine costs on the embedded world's backbone: ratios to the unpatched model within one run, beside targets.

uv run python benchmarks/engine.py [--rounds N] [--rows N] [--json] [--out measured/engine-cpu.json]

CFG batch 32 (32 rows of the network's batch), bf16, 256 and 1,024 tokens. Unpatched and planned forwards take turns;
each ratio is the median over rounds of planned by the mean of the unpatched ones around it. On a machine that is busy
with other work the ratios scatter: the spread is printed beside them.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ditbench.backbones import Backbone, Stream
from ditbench.backbones.pixart import PixArtBackbone
from ditbench.engine.fills import Reuse
from ditbench.engine.layout import Unit
from ditbench.engine.plan import Plan
from ditbench.engine.rows import Rows
from ditbench.engine.run import Parts, Run, attached
from ditbench.heap import keep_memory
from ditbench.neighbours import Neighbours
from ditbench.records import processor_name, write_record
from ditbench.worlds.scenes import settings
from ditbench.worlds.scenes.pipeline import load_pipeline
from ditbench.worlds.scenes.world import assets_folder

# What a plain hand-written version of the same reached, and what this engine is to reach: share of a full step.
KINDS = {"full plan": 1.0, "half of the tokens": 0.5, "a quarter": 0.25, "reuse": 0.0}
TARGETS = {
    256: {"full plan": 1.02, "half of the tokens": 0.56, "a quarter": 0.34, "reuse": 0.05},
    1024: {"full plan": 1.02, "half of the tokens": 0.55, "a quarter": 0.31, "reuse": 0.05},
}


class PerBlock:
    """Random tokens, drawn once for each block: its branches share a gather, as methods that select by block do."""

    def __init__(self) -> None:
        self.block: tuple[int, int] | None = None
        self.rows: Rows | None = None

    def choose(self, unit: Unit, step: int, stream: Stream, count: int) -> Rows:
        block = (step, unit.start // 3)
        if self.rows is None or block != self.block:
            draw = torch.rand(stream.samples, stream.tokens)
            self.block, self.rows = block, Rows(draw.topk(count).indices.sort().values, stream.tokens)
        return self.rows


def planned(backbone: Backbone, share: float, inputs: dict[str, Any]) -> float:
    """Seconds of one step at a share of the tokens at every branch, after a full step; the plan goes on after it."""
    layout = backbone.layout
    # The step between is only there so that the timed one has a cache to write to, as in the middle of a run.
    shares = np.repeat([[1.0], [share], [share], [share]], len(layout), axis=1)
    plan = Plan(layout, layout.by_branch, shares)
    run = Run(backbone, plan, backbone.tokens(**inputs), lambda: Parts(Reuse(), PerBlock()))
    with attached(run):
        backbone.network(**inputs)
        backbone.network(**inputs)
        return timed(backbone, inputs)


def timed(backbone: Backbone, inputs: dict[str, Any]) -> float:
    began = time.perf_counter()
    backbone.network(**inputs)
    return time.perf_counter() - began


@torch.no_grad()
def measure(backbone: Backbone, tokens: int, rows: int, rounds: int) -> dict[str, list[float]]:
    """The ratio of every kind of step in every round."""
    side = int(tokens**0.5) * settings.PATCH
    inputs = backbone.example_inputs(rows, (side, side), settings.TEXT_LENGTH, torch.bfloat16, "cpu")
    for share in KINDS.values():
        planned(backbone, share, inputs)
    found: dict[str, list[float]] = {kind: [] for kind in KINDS}
    before = timed(backbone, inputs)
    for _ in range(rounds):
        for kind, share in KINDS.items():
            seconds = planned(backbone, share, inputs)
            after = timed(backbone, inputs)
            found[kind].append(seconds / ((before + after) / 2))
            before = after
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="rounds (default %(default)s)")
    parser.add_argument("--rows", type=int, default=32, help="rows of the network's batch (default %(default)s)")
    parser.add_argument("--tokens", type=int, nargs="*", default=list(TARGETS), help="image tokens")
    parser.add_argument("--json", action="store_true", help="for a program")
    parser.add_argument("--out", type=Path, help="write a record, for instance measured/engine-cpu.json")
    arguments = parser.parse_args()

    keep_memory()
    pipeline = load_pipeline(assets_folder())
    # The world's own casts between fp32 and bf16 are its pipeline's, not the network's.
    pipeline.transformer._forward_pre_hooks.clear()
    pipeline.transformer._forward_hooks.clear()
    backbone = PixArtBackbone(pipeline.transformer)
    neighbours = Neighbours()
    results = {tokens: measure(backbone, tokens, arguments.rows, arguments.rounds) for tokens in arguments.tokens}
    body = {
        "threads": torch.get_num_threads(),
        "rows": arguments.rows,
        "rounds": arguments.rounds,
        "dtype": "bfloat16",
        "others_share_of_the_cores": neighbours.share(),
        "command": " ".join(sys.argv),
        "targets": TARGETS,
        "ratios_to_the_unpatched_model": results,
    }
    if arguments.out:
        write_record(arguments.out, "engine-speed", body)
    if arguments.json:
        print(json.dumps(body, indent=1))
        return
    print(
        f"{processor_name() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, bf16"
    )
    print(f"{arguments.rows} rows, {arguments.rounds} rounds: time of a step / time of the unpatched model's")
    for tokens, kinds in results.items():
        print(f"\n{tokens} tokens             median  (least, most)   target")
        for kind, ratios in kinds.items():
            target = TARGETS.get(tokens, {}).get(kind)
            spread = f"({min(ratios):.3f}, {max(ratios):.3f})"
            print(f"  {kind:20} {statistics.median(ratios):6.3f}  {spread:15}  {f'<= {target}' if target else ''}")


if __name__ == "__main__":
    main()
