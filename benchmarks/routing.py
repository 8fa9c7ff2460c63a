"""What routing tokens costs and saves in the embedded world: a step of training, and sampling at half of the tokens.

uv run python benchmarks/routing.py [--rounds R] [--out measured/routing-cpu.json]

Training: a step of DiffCR, which runs every block with two bins of tokens, beside one of the whole network, on the same
pairs, at several mean ratios: of layers (L), and of layers and timesteps (LT), whose regions go through the network one
after another. Sampling: a run of routed blocks at such ratios beside one of all tokens, batches of
images with both branches of guidance. Weights were not trained: they do not change what is timed. Medians of rounds in
which all take turns, in seconds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from ditbench.generate import Sampler, Texts
from ditbench.learn.lesson import Lesson, Notebook
from ditbench.learn.tuning import Training, _trained
from ditbench.methods import get_method
from ditbench.methods.diffcr import DiffCR
from ditbench.methods.tuned import Tuned
from ditbench.records import write_record
from ditbench.storage import hash_file, write_tensors

RATIOS = (0.2, 0.25, 0.3, 0.5)
WHOLE = "all tokens"
# How far what is run may be off the tokens that a ratio stands for; counts of tokens are rounded.
OFF = 0.01


def around(ratio: float, blocks: int, on_bins: bool) -> list[float]:
    """Ratios of blocks with such a mean, half of them below it and half above, as ratios that were learned have them.

    They lie on bins, as sampling has them, or in the middle between two, where a step of training runs the tokens of
    both: 2 - 2 x the ratio times all of them. On a bin it would run those of the next as well.
    """
    is_bin = round(20 * ratio) % 2 == 0
    gap = (0.1 if is_bin else 0.05) if on_bins else (0.05 if is_bin else 0.0)
    return [round(ratio + (gap if block % 2 else -gap), 2) for block in range(blocks)]


def trained_share(run: Training) -> float:
    """The tokens that a step of training runs, both bins together, over those of the whole network."""
    regions = [run._mixes(region) for region in range(len(run.table()))]
    shares = [(mix.more + mix.fewer) / run.shape.tokens for mixes in regions for mix in mixes or ()]
    return statistics.fmean(shares)


def agreed(found: float, wanted: float) -> None:
    """Stops where other work is run than is told."""
    if abs(found / wanted - 1) > OFF:
        raise SystemExit(f"tokens run are {found:.3f} of all, and were to be {wanted:.3f}")


def prepare(run: Training, ratio: float) -> None:
    """Ratios in the middle of a training, with a mean."""
    assert run.ratios is not None
    with torch.no_grad():
        run.ratios.copy_(torch.tensor(around(ratio, run.ratios.shape[1], on_bins=False)).expand_as(run.ratios))
    agreed(trained_share(run), 2 - 2 * ratio)


@contextmanager
def training(sampler: Sampler, method: Tuned) -> Iterator[Training]:
    """A training that has begun, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder, _trained(method, sampler.handle.pipeline.transformer) as weights:
        spec = {"arm": "benchmark", "world": "scenes", "steps": None, "weights": None}
        notebook = Notebook(Path(folder) / "notes.json", "")
        lesson = Lesson(method, spec, sampler, Texts([], {}, {}), method.batch, notebook)
        yield Training(lesson, method, weights, Path(folder) / "training.pt")


def steps(sampler: Sampler, batch: int, rounds: int) -> dict[str, float]:
    """Seconds of one step of training."""
    seconds: dict[str, list[float]] = {}
    short = {"rank": 8, "batch": batch, "at_once": batch}
    routed = [(f"{ratio:.0%} pass by, {variant}", ratio, variant) for variant in ("L", "LT") for ratio in RATIOS]
    for number in range(rounds + 1):
        for name, ratio, variant in [(WHOLE, 0.0, ""), *routed]:
            method = (
                get_method("diffcr", {**short, "variant": variant}) if variant else get_method("full-finetuned", short)
            )
            assert isinstance(method, Tuned)
            with training(sampler, method) as run:
                if variant:
                    prepare(run, ratio)
                run.done = number
                began = time.perf_counter()
                run._step()
                if number:  # the first round loads kernels
                    seconds.setdefault(name, []).append(time.perf_counter() - began)
    return {name: statistics.median(found) for name, found in seconds.items()}


def samplings(sampler: Sampler, images: int, rounds: int) -> dict[str, float]:
    """Seconds of one run of sampling; `images` times two branches of guidance go through the network at once."""
    world, handle = sampler.world, sampler.handle
    captions = world.draw_captions(images, 0)
    texts = Texts(captions, world.embed(handle, captions), world.embed(handle, [""]))
    blocks = world.shape(1).layout.blocks
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "routers.safetensors"
        write_tensors(file, {"routers": torch.randn(blocks, 192)})
        found = {"file": str(file), "sha256": hash_file(file), "times": list(range(1000, 0, -100))}
        works: dict[str, Callable[[], Any]] = {WHOLE: lambda: sampler.run(get_method("full"), None, 0, texts)}
        for ratio in RATIOS:
            method = get_method("diffcr", {"variant": "L", "ratio": ratio})
            assert isinstance(method, DiffCR)
            routed = method.knowing({**found, "ratios": [around(ratio, blocks, on_bins=True)]})
            agreed(float(routed.plan(world.shape(10)).shares.mean()), 1 - ratio)
            works[f"{ratio:.0%} pass by"] = lambda routed=routed: sampler.run(routed, None, 0, texts)  # type: ignore[misc]
        seconds: dict[str, list[float]] = {name: [] for name in works}
        for number in range(rounds + 1):
            for name, work in works.items():
                began = time.perf_counter()
                work()
                if number:
                    seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16, help="pairs of a step of training (default %(default)s)")
    parser.add_argument("--images", type=int, default=16, help="images drawn at once (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds (default %(default)s)")
    parser.add_argument("--out", type=Path, help="write a record")
    arguments = parser.parse_args()
    sampler = Sampler("scenes")
    found = {
        "training": steps(sampler, arguments.batch, arguments.rounds),
        "sampling": samplings(sampler, arguments.images, arguments.rounds),
    }
    for part, times in found.items():
        print(f"\n{part}, seconds, and times those of all tokens")
        for name, value in times.items():
            print(f"  {name:20} {value:8.3f} {value / times[WHOLE]:6.2f}")
    if arguments.out:
        command = " ".join(["benchmarks/routing.py", *sys.argv[1:]])
        body = {"command": command, "batch": arguments.batch, "images": arguments.images, "seconds": found}
        write_record(arguments.out, "routing-speed", body)


if __name__ == "__main__":
    main()
