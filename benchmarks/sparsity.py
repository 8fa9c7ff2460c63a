"""What settings of learning make of DiffSparse's plans in the embedded world, when training is short.

uv run python benchmarks/sparsity.py [--settings NAME ...] [--captions N] [--ratio R] [--out measured/sparsity-cpu.json]

Every setting learns from the same captions in the same order. Before training and after each of its parts the plan is
tried on other captions that no training saw: the mean distance of the reader's features (the loss itself) to the full
network's images. Beside them stand ToCa's allocation, which training begins with, and how the tokens left out are
spread over the steps at the end.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ditbench.generate import Sampler, Texts
from ditbench.learn.lesson import Lesson, Notebook
from ditbench.learn.sparsity import School, Training
from ditbench.methods import get_method
from ditbench.methods.diffsparse import DiffSparse
from ditbench.records import write_record

# What differs from the published settings (AdamW, rates of 1.0 and 0.1, delta 10).
SETTINGS: dict[str, dict[str, Any]] = {
    "as published": {},
    "a tenth of the rate": {"layer_rate": 0.1, "unified_rate": 0.01},
    "one scale": {"scaling": "all"},
    "one scale, a tenth of the rate": {"scaling": "all", "layer_rate": 0.1},
    "one scale, a tenth of the rate, delta 1": {"scaling": "all", "layer_rate": 0.1, "delta": 1.0},
    "one scale, a thirtieth of the rate": {"scaling": "all", "layer_rate": 0.03},
}
HELD_OUT, CAPTIONS_SEED = 32, 777


def off(school: School, levels: NDArray[np.int64], texts: Texts) -> float:
    """The mean loss of a plan's images of some captions, as it is really executed."""
    method = school.method.knowing({"shares": school.budget.candidates[levels].tolist()})
    images, _ = school.sampler.run(method, None, school.seed, texts)
    own = torch.from_numpy(images).movedim(-1, 1).float() / 127.5 - 1
    with torch.no_grad():
        return float(school.loss(own, school.originals(texts)).mean())


def learn(sampler: Sampler, texts: Texts, captions: int, knobs: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """What a setting makes of the plan, part by part."""
    method = get_method("diffsparse", {**knobs, "captions": captions})
    assert isinstance(method, DiffSparse)
    spec = {"arm": "benchmark", "world": "scenes", "steps": None, "weights": None, "dtype": "float32"}
    lesson = Lesson(method, spec, sampler, texts, method.batch, Notebook(folder / "notes.json", ""))
    school = School(lesson, method, method.loss, method.training_seed)
    others = texts.part(captions, captions + HELD_OUT)
    training = Training(school, method)
    parts = [{"after": "nothing", "off": off(school, training.levels(), others)}]
    while training.part < len(training.parts):
        part, began = training.parts[training.part], time.perf_counter()
        batches = training._batches(captions)
        for batch in batches:
            training._learn_from(school.lesson.texts, batch)
        seconds = time.perf_counter() - began
        training._end_part()
        levels = training.levels()
        found = {"after": part, "off": off(school, levels, others), "seconds": seconds}
        changed = training.history["changed"][-len(batches) :]
        parts.append({**found, "losses": training.history["loss"][-len(batches) :], "changed": changed})
        print(f"  {part}: {found['off']:.4f} on captions kept out, {seconds:.0f} s", flush=True)
    return {"knobs": dict(knobs), "parts": parts, "computed_by_step": school.budget.candidates[levels].mean(1).tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), metavar="NAME")
    parser.add_argument("--captions", type=int, default=48, help="of training (default %(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="images of a step (default %(default)s)")
    parser.add_argument("--ratio", type=float, default=0.54, help="of MACs left out (default %(default)s)")
    parser.add_argument("--out", type=Path, help="write a record")
    arguments = parser.parse_args()
    sampler = Sampler("scenes", "cpu", None)
    drawn = sampler.world.draw_captions(arguments.captions + HELD_OUT, CAPTIONS_SEED)
    texts = Texts(drawn, sampler.world.embed(sampler.handle, drawn), sampler.world.embed(sampler.handle, [""]))
    common = {"ratio": arguments.ratio, "budget": "macs", "batch": arguments.batch}
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.settings:
            print(name, flush=True)
            knobs = common | SETTINGS[name]
            found[name] = learn(sampler, texts, arguments.captions, knobs, Path(folder) / "learned" / name)
            print(f"  before: {found[name]['parts'][0]['off']:.4f}", flush=True)
    if arguments.out:
        body = {"command": " ".join(sys.argv), "captions": arguments.captions, "kept_out": HELD_OUT, "settings": found}
        write_record(arguments.out, "sparsity-settings", body)
        print(arguments.out)


if __name__ == "__main__":
    main()
