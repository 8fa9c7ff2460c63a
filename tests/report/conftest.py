"""A fabricated result tree: the files that a run would leave, with made-up numbers, in a temporary folder only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ditbench.cells import Spec
from ditbench.engine.trace import Trace
from ditbench.methods import get_method
from ditbench.report.results import Results, read_results
from ditbench.storage import write_shard
from ditbench.study import Study, load_study
from ditbench.worlds import get_world

IMAGES, SHARD = 8, 4
NAMES = [f"{a:05d}-{a + SHARD - 1:05d}" for a in range(0, IMAGES, SHARD)]
HARDWARE = {"cpu": "Fabricated CPU 3.0 GHz", "cores": 2, "gpu": None}

# value, low, high of each measure; then whether the paired difference to full includes zero.
SCORES: dict[str, dict[str, tuple[float, float, float]]] = {
    "full": {
        "fid/scenes": (2.14, 2.02, 2.29),
        "attributes/scenes": (0.861, 0.830, 0.889),
        "objects/scenes": (0.893, 0.865, 0.918),
        "relations/scenes": (0.942, 0.910, 0.966),
        "clip/scenes": (0.312, 0.309, 0.315),
        "hps/scenes": (0.274, 0.271, 0.277),
    },
    "fewer-steps-50": {
        "fid/scenes": (2.71, 2.55, 2.90),
        "attributes/scenes": (0.842, 0.809, 0.872),
        "objects/scenes": (0.871, 0.841, 0.899),
        "relations/scenes": (0.938, 0.905, 0.963),
        "clip/scenes": (0.307, 0.304, 0.310),
        "hps/scenes": (0.268, 0.265, 0.271),
        "psnr-to-full": (21.4, 21.1, 21.8),
    },
    "fora-n2": {
        "fid/scenes": (3.08, 2.89, 3.30),
        "attributes/scenes": (0.812, 0.777, 0.844),
        "objects/scenes": (0.848, 0.816, 0.877),
        "relations/scenes": (0.929, 0.894, 0.956),
        "clip/scenes": (0.303, 0.300, 0.306),
        "hps/scenes": (0.262, 0.259, 0.265),
        "psnr-to-full": (19.8, 19.5, 20.2),
    },
    "broken": {
        "fid/scenes": (38.4, 36.9, 40.1),
        "attributes/scenes": (0.021, 0.011, 0.037),
        "objects/scenes": (0.043, 0.028, 0.064),
        "relations/scenes": (0.271, 0.222, 0.325),
        "clip/scenes": (0.118, 0.113, 0.123),
        "hps/scenes": (0.091, 0.087, 0.095),
        "psnr-to-full": (9.2, 9.0, 9.5),
    },
}
SPEED = {
    "full": (1.0, 0.98, 1.02),
    "fewer-steps-50": (1.96, 1.91, 2.0),
    "fora-n2": (1.88, 1.83, 1.93),
    "broken": (3.4, 3.3, 3.5),
}
SAME = {
    ("fewer-steps-50", "relations/scenes"),
    ("fora-n2", "relations/scenes"),
    ("fewer-steps-50", "attributes/scenes"),
}


def write(path: Path, kind: str, body: dict[str, Any], timings: dict[str, float] | None = None) -> None:
    """A record as the workflow writes it, with a provenance of our own making."""
    provenance = {
        "created": "2026-01-02T03:04:05+00:00",
        "ditbench": "0.1.0",
        "git": "0123456789abcdef0123456789abcdef01234567",
        "dirty": False,
        "code": _code_of(kind),
        "python": "3.11.7",
        "torch": "2.15.0",
        "diffusers": "0.42.1",
        "hardware": HARDWARE,
        "host_load": 0.1,
        "timings": timings or {"import_s": 0.5, "load_s": 0.1, "compute_s": 0.2, "write_s": 0.1, "total_s": 1.0},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schema": f"ditbench/{kind}@1", **body, "provenance": provenance}), encoding="utf-8")


def _code_of(kind: str) -> str:
    return hashlib.sha256(kind.encode()).hexdigest()[:12]


def fabricated_code(stage: str, world: str, method: str | None) -> str:
    """What stands for the hash of a stage's code in these records."""
    return _code_of({"generate": "shard", "score": "scores", "time": "latency"}.get(stage, stage))


def written_out(method: str, knobs: dict[str, Any]) -> dict[str, Any]:
    """All knobs of a method, defaults included, as cells have them."""
    made = get_method(method, knobs)
    return {name: getattr(made, name) for name in made.knobs()}


class Fabricated:
    """A result tree of a study, in `root`; cells can be taken away or made to fail."""

    def __init__(self, root: Path, study: Study, seeds: tuple[int, ...] = (0,)) -> None:
        self.root, self.study = root, study
        self.captions = get_world(study.world).draw_captions(IMAGES, 0)
        self.ids = [hashlib.sha256(text.encode()).hexdigest()[:12] for text in self.captions]
        self.specs = [self._spec(row.arm, row.method, row.knobs, seed) for row in study.rows for seed in seeds]
        entries = [{"id": i, "text": text} for i, text in zip(self.ids, self.captions, strict=True)]
        body = {"world": study.world, "name": self.set_name, "split": "evaluation", "seed": 0, "count": IMAGES}
        body |= {"sha256": "0" * 64, "captions": entries}
        write(root / "captions" / study.world / f"{self.set_name}.json", "captions", body)
        for spec in self.specs:
            self.cell(spec)

    set_name = f"evaluation-{IMAGES}-seed0"

    def _spec(self, arm: str, method: str, knobs: dict[str, Any], seed: int) -> Spec:
        return Spec(
            world=self.study.world,
            arm=arm,
            method=method,
            knobs=written_out(method, knobs),
            steps=None,
            seed=seed,
            images=IMAGES,
            captions=self.set_name,
            captions_sha256=None,
            dtype="float32",
        )

    def spec(self, arm: str, seed: int = 0) -> Spec:
        return next(spec for spec in self.specs if spec.arm == arm and spec.seed == seed)

    def folder(self, arm: str, seed: int = 0) -> Path:
        return Path(self.spec(arm, seed).folder(self.root))

    def cell(self, spec: Spec) -> None:
        """All the records of one cell."""
        folder = Path(spec.folder(self.root))
        write(folder / "spec.json", "spec", {**asdict(spec), "hash": spec.hash})
        method, world = get_method(spec.method, spec.knobs), get_world(spec.world)
        shape = world.shape(method.steps(world.default_steps))
        plan = method.plan(shape)
        (folder / "plan.json").write_text(json.dumps(plan.to_json()), encoding="utf-8")
        ran = Trace.empty(shape)
        ran.samples = SHARD
        ran.entered[:] = SHARD
        for (step, branch), count in np.ndenumerate(plan.counts(shape.tokens)):
            if count:
                ran.record(step, branch, int(count), SHARD)
        trace = ran.summary()
        for name in NAMES:
            self._shard(spec, folder, name, trace)
        share = 1 - plan.nominal_ratio
        linear = 61.3e9 * share * shape.steps / world.default_steps
        cost = {"linear": linear, "attention": 0.1 * linear, "total": 1.1 * linear, "steps": shape.steps}
        cost |= {"thop": 1.01 * linear, "selecting": 0.0, "cache_bytes": 0.0 if spec.method == "full" else 524288.0}
        cost |= {"cfg_branches": 2, "realised_ratio": 1 - share, "nominal_ratio": 1 - share}
        write(folder / "cost.json", "cost", {"spec_hash": spec.hash, **cost})
        self._scores(spec, folder)
        self._latency(spec, folder)

    def _shard(self, spec: Spec, folder: Path, name: str, trace: dict[str, Any]) -> None:
        from ditbench.worlds.scenes.grammar import parse
        from ditbench.worlds.scenes.renderer import render_batch

        first, last = (int(part) for part in name.split("-"))
        images = render_batch([parse(text) for text in self.captions[first : last + 1]], spec.seed, first)
        if spec.arm == "broken":
            images = np.roll(images, 20, axis=2)
        archive = folder / "shards" / f"{name}.zip"
        archive.parent.mkdir(exist_ok=True)
        digest = write_shard(archive, images, self.ids[first : last + 1], first)
        body = {"spec_hash": spec.hash, "first": first, "last": last, "count": SHARD, "file": archive.name}
        body |= {"sha256": digest, "bytes": archive.stat().st_size, "ids": self.ids[first : last + 1]}
        body |= {"images_per_second": 3.1, "trace": trace}
        seconds = 82 / SPEED[spec.arm][0]
        timings = {"import_s": 4.2, "load_s": 1.1, "compute_s": seconds, "write_s": 0.3, "total_s": seconds + 5.8}
        write(archive.with_suffix(".json"), "shard", body, timings)

    def _scores(self, spec: Spec, folder: Path) -> None:
        measures, paired = [], []
        for name, (value, low, high) in SCORES[spec.arm].items():
            direction = "lower" if name.startswith("fid") else "higher"
            how = "bootstrap over captions, 1000 draws"
            unit = "dB" if name.startswith("psnr") else ""
            measures.append(
                {"name": name, "value": value, "low": low, "high": high, "n": IMAGES, "unit": unit}
                | {"direction": direction, "method_of_interval": how}
            )
            if spec.arm != "full" and name in SCORES["full"]:
                gap = value - SCORES["full"][name][0]
                half = abs(gap) * (1.4 if (spec.arm, name) in SAME else 0.4)
                ends = {"difference": gap, "low": gap - half, "high": gap + half}
                paired.append({"name": name, **ends, "n": IMAGES, "against": "full"})
        timings = {"import_s": 5.1, "load_s": 0.9, "compute_s": 21.0, "write_s": 0.2, "total_s": 27.4}
        body = {"spec_hash": spec.hash, "n": IMAGES, "measures": measures, "paired": paired}
        write(folder / "scores.json", "scores", body, timings)

    def _latency(self, spec: Spec, folder: Path) -> None:
        value, low, high = SPEED[spec.arm]
        timings = {"import_s": 4.4, "load_s": 1.0, "compute_s": 64.0, "write_s": 0.1, "total_s": 69.8}
        seconds = {"value": 0.32 / value, "low": 0.31 / value, "high": 0.34 / value}
        body = {"spec_hash": spec.hash, "batch": 16, "rounds": 5, "seconds_per_image": seconds}
        body |= {"speedup": {"value": value, "low": low, "high": high}, "contended": False, "load": 0.0, "note": ""}
        body |= {"peak_bytes": None, "peak_bytes_baseline": None, "mode": "eager", "joules_per_image": 3.0}
        body |= {"p50_seconds": seconds["value"], "p90_seconds": seconds["high"]}
        body |= {"forward_seconds": {"baseline": [0.01] * 3, "arm": [0.01, 0.002, 0.01]}}
        write(folder / "latency.json", "latency", body, timings)

    def remove(self, arm: str, *names: str) -> None:
        """Takes records of an arm away; without names, all of them."""
        folder = self.folder(arm)
        for path in [folder / name for name in names] or [p for p in folder.rglob("*") if p.is_file()]:
            path.unlink()

    def fail(self, arm: str, stage: str, reason: str) -> None:
        """What a failed stage leaves."""
        folder = self.folder(arm)
        folder.mkdir(parents=True, exist_ok=True)
        body = {"schema": "ditbench/failure@1", "stage": stage, "reason": reason, "detail": "", "created": ""}
        (folder / "failure.json").write_text(json.dumps(body), encoding="utf-8")

    def read(self) -> Results:
        return read_results(self.specs, self.root, NAMES)


@pytest.fixture
def embedded() -> Study:
    return load_study("embedded")


@pytest.fixture
def fabricate(tmp_path: Path, embedded: Study) -> Callable[..., Fabricated]:
    """Makes a fabricated tree of the embedded study."""
    return lambda seeds=(0,): Fabricated(tmp_path / "results", embedded, seeds)


@pytest.fixture
def tree(fabricate: Callable[..., Fabricated]) -> Fabricated:
    return fabricate()
