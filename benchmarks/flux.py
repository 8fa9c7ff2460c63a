"""What keeping attention and merging in FLUX's single-stream blocks takes, beside what the ledger says it saves.

uv run python benchmarks/flux.py [--device cuda] [--width N] [--rounds R] [--out measured/flux-partial-cpu.json]

A FLUX of random weights, a third of its blocks double-stream. Runs of its network alone take turns, each method with
the network as it is: the median of its time over the plain one's, with the least and the most of the rounds, and its
share of the plain run's MACs (products of attention included), without and with what choosing took.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel

from ditbench.backbones import Backbone
from ditbench.backbones.families import backbone_of
from ditbench.engine.ledger import bill
from ditbench.engine.run import attached
from ditbench.methods import get_method
from ditbench.records import write_record
from ditbench.sampling import run_of

STEPS, HEAD = 6, 128
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "fora": ("fora", {"interval": 2}),
    "toca": ("toca", {"interval": 2, "fresh": 0.1, "lead": 1}),
    "toca, random tokens": ("toca", {"interval": 2, "fresh": 0.1, "lead": 1, "score": "random"}),
    "sdtm": ("sdtm", {"ratio": 0.5}),
    "tomesd, mlp": ("tomesd", {"ratio": 0.5, "pattern": "every", "where": "mlp"}),
}


def network(width: int, blocks: int, device: str) -> Backbone:
    torch.manual_seed(0)
    with torch.device(device):
        made = FluxTransformer2DModel(
            num_attention_heads=width // HEAD,
            attention_head_dim=HEAD,
            num_layers=blocks // 3,
            num_single_layers=blocks - blocks // 3,
            in_channels=64,
            joint_attention_dim=width,
            pooled_projection_dim=256,
        )
    return backbone_of(made.eval().requires_grad_(False))


def sampled(backbone: Backbone, given: dict[str, Any], name: str, device: str) -> tuple[float, Any]:
    """Seconds of a run, and the run."""
    method, knobs = METHODS.get(name, (name, {}))
    run = run_of(get_method(method, knobs), backbone, backbone.shape(STEPS, **given))
    _wait(device)
    began = time.perf_counter()
    for _ in range(STEPS):
        with attached(run):
            backbone.network(**given)
    _wait(device)
    return time.perf_counter() - began, run


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=768, help="of a token (default %(default)s)")
    parser.add_argument("--blocks", type=int, default=9, help="of both kinds (default %(default)s)")
    parser.add_argument("--side", type=int, default=24, help="tokens of the image's side (default %(default)s)")
    parser.add_argument("--text", type=int, default=256, help="tokens of the text (default %(default)s)")
    parser.add_argument("--device", default="cpu", help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default %(default)s")
    parser.add_argument("--out", type=Path, help="write a record")
    arguments = parser.parse_args()
    backbone = network(arguments.width, arguments.blocks, arguments.device)
    size = (2 * arguments.side, 2 * arguments.side)
    given = backbone.example_inputs(1, size, arguments.text, torch.float32, arguments.device)
    seconds: dict[str, list[float]] = {name: [] for name in METHODS}
    runs: dict[str, Any] = {}
    with torch.inference_mode():
        sampled(backbone, given, "full", arguments.device)  # loads kernels
        plain_bill = sampled(backbone, given, "full", arguments.device)[1]
        for _ in range(arguments.rounds):
            for name in METHODS:
                own, runs[name] = sampled(backbone, given, name, arguments.device)
                plain = _plain(backbone, given, arguments.device)
                seconds[name].append(own / plain)
    whole = bill(plain_bill.trace, plain_bill.costs).total
    found = {}
    print(f"{'method':22} {'time':>6} {'least':>6} {'most':>6} {'MACs':>6} {'and choosing':>13}")
    for name, ratios in seconds.items():
        cost = bill(runs[name].trace, runs[name].costs)
        found[name] = {
            "time": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
            "macs": cost.total / whole,
            "with_choosing": (cost.total + cost.selecting) / whole,
        }
        print(f"{name:22}", *(f"{value:6.3f}" for value in found[name].values()))
    if arguments.out is not None:
        body = {key: getattr(arguments, key) for key in ("width", "blocks", "side", "text", "device", "rounds")}
        command = "benchmarks/flux.py --rounds " + str(arguments.rounds)
        write_record(arguments.out, "flux-speed", {**body, "command": command, "steps": STEPS, "methods": found})


def _plain(backbone: Backbone, given: dict[str, Any], device: str) -> float:
    """Seconds of as many steps of the network as it is."""
    _wait(device)
    began = time.perf_counter()
    for _ in range(STEPS):
        backbone.network(**given)
    _wait(device)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
