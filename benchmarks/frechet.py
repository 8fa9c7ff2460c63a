"""How long a Frechet distance of Inception's width takes, and its interval for thirty thousand pictures.

uv run python benchmarks/frechet.py [--pictures N] [--width D] [--out measured/frechet-cpu.json]

A distance is what two means and covariances take; an interval is that of features, group by group left out, and the
preparation of both sets. Features are random, of full rank.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ditbench.records import write_record
from ditbench.statistics import FrechetTo, frechet

TARGETS = {"distance_s": 2.0, "interval_s": 20.0}


def seconds(work: Callable[[], object]) -> float:
    """How long some work takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=30_000, help="pictures (default %(default)s)")
    parser.add_argument("--references", type=int, default=5_000, help="reference pictures (default %(default)s)")
    parser.add_argument("--width", type=int, default=2_048, help="features of a picture (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default %(default)s)")
    parser.add_argument("--out", type=Path, help="write a record")
    arguments = parser.parse_args()

    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(arguments.width, arguments.width)) / arguments.width**0.5
    real = (rng.normal(size=(arguments.references, arguments.width)) @ mixed).astype(np.float32)
    mine = (rng.normal(size=(arguments.pictures, arguments.width)) @ mixed + 0.01).astype(np.float32)
    moments = [(f.mean(0), np.cov(f, rowvar=False)) for f in (mine.astype(np.float64), real.astype(np.float64))]

    def interval() -> None:
        FrechetTo(real).leaving_out(mine)

    def distance() -> None:
        frechet(*moments[0], *moments[1])

    distance()  # the first call starts the library's threads
    rounds = [{"distance_s": seconds(distance), "interval_s": seconds(interval)} for _ in range(arguments.rounds)]
    best = {name: min(r[name] for r in rounds) for name in TARGETS}
    for name, target in TARGETS.items():
        print(f"{name}: {best[name]:.2f} (target {target:g}); rounds {', '.join(f'{r[name]:.2f}' for r in rounds)}")
    if arguments.out:
        sizes = {name: getattr(arguments, name) for name in ("pictures", "references", "width")}
        body = {"command": " ".join(sys.argv), **sizes, "targets": TARGETS, **best, "rounds": rounds}
        write_record(arguments.out, "frechet-speed", body)
        print(arguments.out)


if __name__ == "__main__":
    main()
