"""How fast the scenes world draws: pictures of 64x64 a second on one core, beside the target.

uv run python benchmarks/renderer.py [--pictures N] [--rounds N] [--out measured/renderer-cpu.json]

The renderer starts no threads (numpy's element-wise operations have none), so its process is one core. The best of
the rounds is what it can do: other work on the machine only ever slows a round down.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from pathlib import Path

from ditbench.records import write_record
from ditbench.worlds.scenes.grammar import draw_scenes
from ditbench.worlds.scenes.renderer import render_batch

TARGET = 800  # pictures a second
SIZE = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000, help="pictures in a round (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default %(default)s)")
    parser.add_argument("--out", type=Path, help="write a record")
    arguments = parser.parse_args()

    scenes = draw_scenes(arguments.pictures, seed=0)
    render_batch(scenes[:50], seed=0, size=SIZE)  # backgrounds are kept after their first use
    rates = []
    for _ in range(arguments.rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        render_batch(scenes, seed=0, size=SIZE)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        rates.append((arguments.pictures / wall, cpu / wall))
    best, share = max(rates)
    print(f"renderer, {SIZE}x{SIZE}, one core of {platform.machine()}: {best:.0f} pictures/s (target {TARGET})")
    print(f"  rounds: {', '.join(f'{rate:.0f}' for rate, _ in rates)}; share of a core in the best one: {share:.0%}")
    if share < 0.9:
        print("  the machine is busy with other work, which makes this figure too low")
    if arguments.out:
        rounds = [{"pictures_per_s": rate, "share_of_core": cpu} for rate, cpu in rates]
        body = {"command": " ".join(sys.argv), "pictures": arguments.pictures, "size": SIZE, "target": TARGET}
        write_record(arguments.out, "renderer-speed", {**body, "pictures_per_s": best, "rounds": rounds})
        print(arguments.out)


if __name__ == "__main__":
    main()
