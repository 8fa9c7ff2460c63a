"""What keeping freed memory changes in timings on a CPU: a run of the embedded world each way, beside one another.

uv run python benchmarks/heap.py [--rounds N] [--images N] [--out measured/heap-cpu.json]

Two processes, one that keeps freed memory as ditbench does and one that leaves it to the C library, take turns in
drawing the same images with the full model and with FORA, N = 2. If methods are to be compared by what they compute,
the speed-up of FORA must not depend on where the tensors it keeps happen to lie.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ditbench.records import write_record

ARMS: dict[str, dict[str, Any]] = {"full": {}, "fora": {"interval": 2}}
WAYS = {"kept": "keep", "left to the C library": "leave"}


def child(way: str, images: int) -> None:
    """Draws once with an arm for each line it reads, and answers with the seconds it took."""
    import ditbench.generate as generate
    from ditbench.worlds import get_world

    if way == "leave":
        generate.keep_memory = lambda: False
    sampler = generate.Sampler("scenes")
    world = get_world("scenes")
    captions = world.draw_captions(images, 0)
    handle = world.load("cpu", None, "text")
    texts = generate.Texts(
        [f"{i:012x}" for i in range(images)], world.embed(handle, captions), world.embed(handle, [""])
    )
    for line in sys.stdin:
        arm = line.strip()
        spec = {"method": arm, "knobs": ARMS[arm], "steps": None, "seed": 0}
        began = time.perf_counter()
        sampler.draw(spec, texts)
        print(time.perf_counter() - began, flush=True)


def measure(rounds: int, images: int) -> dict[str, Any]:
    """Seconds of every round, of both arms in both processes."""
    workers = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--child", way, "--images", str(images)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, way in WAYS.items()
    }

    def draw(name: str, arm: str) -> float:
        worker = workers[name]
        assert worker.stdin is not None and worker.stdout is not None
        worker.stdin.write(f"{arm}\n")
        worker.stdin.flush()
        return float(worker.stdout.readline())

    places = [(name, arm) for name in workers for arm in ARMS]
    for place in places:  # warm-up
        draw(*place)
    seconds: dict[str, dict[str, list[float]]] = {name: {arm: [] for arm in ARMS} for name in workers}
    for number in range(rounds):
        for name, arm in places:
            seconds[name][arm].append(draw(name, arm))
        print(f"heap: round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    for worker in workers.values():
        assert worker.stdin is not None
        worker.stdin.close()
        worker.wait()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--out", type=Path, help="write a record")
    parser.add_argument("--child", choices=tuple(WAYS.values()), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.images)
        return
    seconds = measure(arguments.rounds, arguments.images)
    found = {}
    for name, arms in seconds.items():
        full, fora = (statistics.median(arms[arm]) for arm in ARMS)
        speedup = statistics.median(a / b for a, b in zip(arms["full"], arms["fora"], strict=True))
        found[name] = {"full_s": full, "fora_s": fora, "speedup": speedup, "rounds": arms}
        print(f"freed memory {name:22} full {full:.2f} s   FORA, N = 2 {fora:.2f} s   speed-up {speedup:.2f}")
    if arguments.out:
        body = {"images": arguments.images, "command": " ".join(sys.argv), "ways": found}
        write_record(arguments.out, "heap-speed", body)
        print(arguments.out)


if __name__ == "__main__":
    main()
