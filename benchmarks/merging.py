"""What merging tokens takes beside what it saves: finding groups, merging and copying, next to attention and an MLP.

uv run python benchmarks/merging.py [--tokens N ...] [--width W --heads H] [--device cuda] [--rounds R] [--out FILE]

Half of the tokens are merged away. Groups are merged and copied in two ways: as rows of memory (a gather, and a sum
into the groups' rows) and as products with matrices of zeros and ones. `saved` is what attention and MLP take less on
half of the tokens. Medians of rounds in which all take turns, in milliseconds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ditbench.engine.facility import Weighted, facilities
from ditbench.engine.matching import Windows, bipartite, one_of_each, window_similarity
from ditbench.engine.merging import Groups
from ditbench.methods.sito import SiTo, pruned
from ditbench.records import write_record

TILE = 8


class Block:
    """Attention and MLP of one width, with random weights."""

    def __init__(self, width: int, heads: int, device: str) -> None:
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width, device=device), nn.Linear(width, width, device=device)
        self.up, self.down = nn.Linear(width, 4 * width, device=device), nn.Linear(4 * width, width, device=device)

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed: Tensor = self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return mixed

    def mlp(self, x: Tensor) -> Tensor:
        grown: Tensor = self.down(functional.gelu(self.up(x), approximate="tanh"))
        return grown


def works(tokens: int, width: int, heads: int, samples: int, device: str) -> dict[str, Callable[[], Any]]:
    """What is timed, by name."""
    x = torch.randn(samples, tokens, width, device=device)
    half = x[:, : tokens // 2].contiguous()
    side = int(tokens**0.5)
    windows, tiles = Windows((side, side), 2, x.device), Windows((side, side), TILE, x.device)
    drawn = one_of_each(windows, torch.rand(samples, tokens, device=device))
    groups = Groups.of(*bipartite(x, drawn).closest(tokens // 2), tokens)
    # As matrices: rows of means, and of ones.
    spreading = functional.one_hot(groups.group, tokens // 2).to(x.dtype)
    merging = (spreading / spreading.sum(1, keepdim=True)).transpose(1, 2).contiguous()
    chosen = facilities(x, tiles, TILE**2 // 2)
    soft = Weighted.of(x, tiles, chosen, 0.1)
    block = Block(width, heads, device)
    sito, noise = SiTo(), torch.randn(samples, tokens, device=device)
    return {
        "match: one of each square and the closest to it (ToMeSD)": lambda: bipartite(x, drawn).closest(tokens // 2),
        "match: windows by likeness (SDTM)": lambda: window_similarity(x, windows).argsort(1, descending=True),
        "match: bases, those most like them, nearest of the others (SiTo)": lambda: pruned(
            x, sito, noise, (side, side), tokens // 2
        ),
        "match: tiles' best cover (ToMA)": lambda: facilities(x, tiles, TILE**2 // 2),
        "match: tiles' weights (ToMA)": lambda: Weighted.of(x, tiles, chosen, 0.1),
        "groups from a matching": lambda: Groups.of(*bipartite_pairs(groups), tokens)._sources,
        "merge: rows": lambda: groups.before(x),
        "merge: product with a matrix": lambda: merging @ x,
        "merge: product in tiles": lambda: soft.before(x),
        "copy: rows": lambda: groups.after(half),
        "copy: product with a matrix": lambda: spreading @ half,
        "copy: product in tiles": lambda: soft.after(half),
        "attention, all tokens": lambda: block.attention(x),
        "attention, half of them": lambda: block.attention(half),
        "MLP, all tokens": lambda: block.mlp(x),
        "MLP, half of them": lambda: block.mlp(half),
    }


def bipartite_pairs(groups: Groups) -> tuple[Tensor, Tensor]:
    """Sources and destinations that a matching could have found."""
    _samples, tokens = groups.group.shape
    sources = groups.away.int().argsort(dim=1, descending=True, stable=True)[:, : tokens - groups.kept.shape[1]]
    return sources, groups.kept.gather(1, groups.group.gather(1, sources))


def measure(tokens: int, width: int, heads: int, samples: int, device: str, rounds: int) -> dict[str, float]:
    """Median milliseconds of each."""
    timed = works(tokens, width, heads, samples, device)
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    with torch.inference_mode():
        for number in range(rounds + 1):
            for name, work in timed.items():
                _wait(device)
                began = time.perf_counter()
                work()
                _wait(device)
                if number:  # the first round loads kernels
                    seconds[name].append(time.perf_counter() - began)
    return {name: 1e3 * statistics.median(found) for name, found in seconds.items()}


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024, 4096], help="tokens (default %(default)s)")
    parser.add_argument("--width", type=int, default=1152, help="of a token (default %(default)s)")
    parser.add_argument("--heads", type=int, default=16, help="of attention (default %(default)s)")
    parser.add_argument("--samples", type=int, default=2, help="of a batch (default %(default)s)")
    parser.add_argument("--device", default="cpu", help="default %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default %(default)s)")
    parser.add_argument("--out", type=Path, help="write a record")
    arguments = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    for tokens in arguments.tokens:
        times = measure(tokens, arguments.width, arguments.heads, arguments.samples, arguments.device, arguments.rounds)
        saved = sum(times[f"{part}, all tokens"] - times[f"{part}, half of them"] for part in ("attention", "MLP"))
        found[str(tokens)] = {**times, "saved by half": saved}
        print(f"\n{tokens} tokens of width {arguments.width}, {arguments.samples} samples, ms")
        for name, value in found[str(tokens)].items():
            print(f"  {name:66} {value:9.2f}")
    if arguments.out:
        command = " ".join(["benchmarks/merging.py", *sys.argv[1:]])
        shape = {"width": arguments.width, "heads": arguments.heads, "samples": arguments.samples}
        body = {"command": command, **shape, "milliseconds": found}
        write_record(arguments.out, "merging-speed", body)


if __name__ == "__main__":
    main()
