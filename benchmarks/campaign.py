"""How the workflow, MLflow and the page grow with a campaign, up to more than 50,000 jobs, beside their targets.

uv run python benchmarks/campaign.py [--arms 3 16 64 200] [--shard 300 2500] [--out measured/campaign-cpu.json]

A campaign is a sweep of FORA by interval and steps in the embedded world, with three seeds and 30,000 images an arm,
in a hundred shards of 300 images or in twelve of 2,500. It is planned (`snakemake -n`, whole and the first of four
batches); then what its jobs would leave is written without computing anything, in the records' own writers and with
made-up numbers; then it is drawn as tables and page, published to MLflow, and published again; `ditbench plan` says
once more what is left to do. Of the images only the first eight of each arm are there, and a cell's other shards are
copies of the record of its first. Each step is a process of its own: its wall time, the processor's time (less of a
guess on a machine that others use), and its peak of memory.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ditbench.cells import Spec, cell_table, shard_ranges
from ditbench.config import Config, load_config
from ditbench.records import SEAL, seal, write_record

REPOSITORY = Path(__file__).parents[1]
SEEDS, IMAGES, SHARDS = (0, 1, 2), 30_000, (300, 2500)
# Pictures that are there: as many as the page shows of an arm.
SHOWN = 8
TARGETS = {
    "plan_s_at_50000_jobs": 30.0,
    "plan_gb_at_50000_jobs": 1.0,
    "publish_s_per_1000_cells": 60.0,
    "page_mb": 20.0,
}
MEASURES = {"fid/scenes": 2.0, "attributes/scenes": 0.86, "objects/scenes": 0.89, "relations/scenes": 0.94}
MEASURES |= {"clip/scenes": 0.31, "hps/scenes": 0.27, "psnr-to-full": 30.0}


def configuration(arms: int, folder: Path, images: int = IMAGES, shard: int = SHARDS[0]) -> Path:
    """The settings of a campaign of about so many arms: a grid of FORA's interval and of steps."""
    intervals = list(range(2, 2 + min(arms, 10)))
    steps = list(range(20, 20 + max(1, round(arms / len(intervals)))))
    body = {
        "world": "scenes",
        "images": images,
        "seeds": list(SEEDS),
        "shard": shard,
        "studies": ["embedded"],
        "sweeps": {"fora": {"method": "fora", "knobs": {"interval": intervals}, "steps": steps}},
        "results": str(folder / "results"),
    }
    path = folder / "campaign.yaml"
    path.write_text(json.dumps(body))
    return path


def fabricate(config: Config) -> None:
    """Writes what the jobs of a campaign would leave, but for most of its pictures."""
    from ditbench.generate import write_cost, write_plan
    from ditbench.worlds import get_world

    root = Path(config.results)
    specs, names = cell_table(config), [f"{a:05d}-{b:05d}" for a, b in shard_ranges(config)]
    texts = get_world("scenes").draw_captions(config.images, config.captions.seed)
    ids = [f"{i:012x}" for i in range(len(texts))]
    body = {"world": "scenes", "name": specs[0].captions, "split": "evaluation", "seed": 0, "count": len(texts)}
    body |= {"sha256": "0" * 64, "captions": [{"id": i, "text": t} for i, t in zip(ids, texts, strict=True)]}
    write_record(root / "captions" / "scenes" / f"{specs[0].captions}.json", "captions", body)
    pictures = _pictures(texts[:SHOWN])
    for place, spec in enumerate(specs):
        folder = spec.folder(root)
        told = {**asdict(spec), "hash": spec.hash}
        write_record(folder / "spec.json", "spec", told)
        write_plan(told, folder / "plan.json")
        first = folder / "shards" / f"{names[0]}.json"
        share = _shard(spec, first, ids[: config.shard], np.roll(pictures, place, axis=2))
        write_cost(folder / "spec.json", [first], folder / "cost.json")
        _copies(first, names, root / "logs" / "images", f"{spec.world}.{spec.arm}.seed{spec.seed}")
        _scores(spec, folder, share)
        _latency(spec, folder, share)


def _pictures(texts: Sequence[str]) -> Any:
    from ditbench.worlds.scenes.grammar import parse
    from ditbench.worlds.scenes.renderer import render_batch

    return render_batch([parse(text) for text in texts], 0, 0)


def _shard(spec: Spec, path: Path, ids: Sequence[str], pictures: Any) -> float:
    """A cell's first shard, with the first few of its pictures; the share of tokens that its plan computes."""
    from ditbench.engine.costs import Costs, UnitCost, Work
    from ditbench.engine.trace import Trace
    from ditbench.methods import get_method
    from ditbench.storage import write_shard
    from ditbench.worlds import get_world

    world, method = get_world(spec.world), get_method(spec.method, spec.knobs)
    shape = world.shape(method.steps(spec.steps or world.default_steps))
    plan, ran = method.plan(shape), Trace.empty(shape)
    ran.samples = len(ids)
    ran.entered[:] = len(ids)
    for (step, branch), count in np.ndenumerate(plan.counts(shape.tokens)):
        if count:
            ran.record(step, branch, int(count), len(ids))
    costs = Costs((UnitCost(per_token=10**6),) * len(shape.layout), Work(linear=10**6))
    path.parent.mkdir(parents=True, exist_ok=True)
    archive = path.with_suffix(".zip")
    digest = write_shard(archive, pictures, ids[: len(pictures)])
    body = {"spec_hash": spec.hash, "first": 0, "last": len(ids) - 1, "count": len(ids), "file": archive.name}
    body |= {"sha256": digest, "bytes": archive.stat().st_size, "ids": list(ids), "images_per_second": 3.0}
    body |= {"weights": "made up", "trace": ran.summary(), "costs": costs.to_json()}
    write_record(path, "shard", body, timings={"load": 1.0, "compute": 82.0, "write": 0.3})
    return float(1 - ran.realised_ratio) * shape.steps / world.default_steps


def _copies(first: Path, names: Sequence[str], logs: Path, cell: str) -> None:
    """The records of a cell's other shards, and a line of log for each, as jobs leave one."""
    record = json.loads(first.read_text())
    del record[SEAL]
    logs.mkdir(parents=True, exist_ok=True)
    for name in names:
        a, b = (int(part) for part in name.split("-"))
        (logs / f"{cell}.{name}.log").write_text(f"{cell} [{a}-{b}]: {b - a + 1} of {b - a + 1} images, 3.0/s\n")
        if name != names[0]:
            other = {**record, "first": a, "last": b, "file": f"{name}.zip"}
            (first.parent / f"{name}.json").write_text(json.dumps({**other, SEAL: seal(other)}))


def _scores(spec: Spec, folder: Path, share: float) -> None:
    measures, paired = [], []
    for name, best in MEASURES.items():
        if spec.arm == "full" and name == "psnr-to-full":
            continue
        worse = 1 + 0.3 * (1 - share) + 0.01 * spec.seed
        value = best * worse if name.startswith("fid") else best / worse
        ends = {"low": value * 0.98, "high": value * 1.02, "n": spec.images}
        measures.append(
            {"name": name, "value": value, **ends, "unit": "dB" if name.startswith("psnr") else ""}
            | {"direction": "lower" if name.startswith("fid") else "higher", "method_of_interval": "made up"}
        )
        if spec.arm != "full" and name != "psnr-to-full":
            gap = value - best
            paired.append({"name": name, "difference": gap, "low": 0.9 * gap, "high": 1.1 * gap})
            paired[-1] |= {"n": spec.images, "against": "full"}
    body = {"spec_hash": spec.hash, "n": spec.images, "measures": measures, "paired": paired}
    write_record(folder / "scores.json", "scores", body)


def _latency(spec: Spec, folder: Path, share: float) -> None:
    second = {"value": 0.32 * share, "low": 0.31 * share, "high": 0.34 * share}
    body = {"spec_hash": spec.hash, "batch": 8, "rounds": 4, "seconds_per_image": second, "mode": "eager"}
    body |= {"speedup": {"value": 1 / share, "low": 0.97 / share, "high": 1.03 / share}, "contended": False, "note": ""}
    body |= {"peak_bytes": None, "peak_bytes_baseline": None, "p50_seconds": second["value"]}
    body |= {"p90_seconds": second["high"], "forward_seconds": {"baseline": [0.01] * 80, "arm": [0.008] * 80}}
    write_record(folder / "latency.json", "latency", body)


def step(*words: str, runs: int = 1) -> dict[str, float]:
    """What a command took, the best of some runs; one that fails ends the benchmark with what it said."""
    return min((_once(words) for _ in range(runs)), key=lambda took: took["processor_s"])


def _once(words: Sequence[str]) -> dict[str, float]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    began = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", *words],
            environment,
            file_actions=[(os.POSIX_SPAWN_DUP2, said.fileno(), stream) for stream in (1, 2)],
        )
        _, status, used = os.wait4(pid, 0)
        if status:
            said.seek(0)
            raise SystemExit(f"{' '.join(words)} failed:\n{said.read().decode(errors='replace')[-3000:]}")
    took = {"wall_s": time.perf_counter() - began, "processor_s": used.ru_utime + used.ru_stime}
    return {**{name: round(value, 2) for name, value in took.items()}, "peak_mb": round(used.ru_maxrss / 1000)}


def _weigh(folder: Path) -> dict[str, int]:
    """How many files lie in a folder, and their bytes."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return {"files": len(sizes), "bytes": sum(sizes)}


def measure(arms: int, runs: int, images: int, shard: int) -> dict[str, Any]:
    """One campaign from its settings to its page."""
    with tempfile.TemporaryDirectory() as place:
        path = configuration(arms, Path(place), images, shard)
        config = load_config(path)
        specs, results = cell_table(config), Path(config.results)
        cells, shards = len(specs), len(shard_ranges(config))
        found: dict[str, Any] = {"arms": cells // len(SEEDS), "cells": cells}
        found |= {"shard": shard, "shards_of_a_cell": shards}
        found["jobs"] = cells * (shards + 4) + 5  # and captions, embeddings, references, page, MLflow
        dry = ("snakemake", "-n", "--quiet", "all", "--cores", "2", "--configfile", str(path))
        print(f"{found['arms']} arms, about {found['jobs']:,} jobs", flush=True)
        found["plan"] = step(*dry, runs=runs)
        print("  plan", found["plan"], flush=True)
        found["plan_batch"] = step(*dry[:-2], "--configfile", str(path), "--batch", "report=1/4", runs=runs)
        print("  plan of a quarter", found["plan_batch"], flush=True)
        began = time.perf_counter()
        fabricate(config)
        print(f"  records made in {time.perf_counter() - began:.0f} s", flush=True)
        found["records"] = _weigh(results)
        for name, words in (
            ("forecast", ("plan",)),
            ("report", ("report",)),
            ("publish", ("publish", "--out", str(results / "published.json"))),
            ("publish_again", ("publish", "--out", str(results / "published.json"))),
        ):
            found[name] = step("ditbench", words[0], "--config", str(path), *words[1:])
            print(" ", name, found[name], flush=True)
        found["page_bytes"] = (results / "report" / "index.html").stat().st_size
        found["mlflow_db_bytes"] = (results / "mlflow.db").stat().st_size
        found["mlflow_artifacts"] = _weigh(results / "mlartifacts")
        print(f"  page {found['page_bytes'] / 1e6:.1f} MB, MLflow {found['mlflow_artifacts']}", flush=True)
        shutil.rmtree(results)
        return found


MARKS = ("<!-- campaign: made by benchmarks/campaign.py -->", "<!-- campaign end -->")
# Of a size: a heading, the step that took it (or none) and what of it.
COLUMNS = (
    ("images a shard", lambda size: f"{size['shard']:,}"),
    ("jobs", lambda size: f"{size['jobs']:,}"),
    ("cells", lambda size: f"{size['cells']:,}"),
    ("plan, s", lambda size: _seconds(size["plan"])),
    ("GB", lambda size: f"{size['plan']['peak_mb'] / 1000:.2f}"),
    ("a quarter, s", lambda size: _seconds(size["plan_batch"])),
    ("GB", lambda size: f"{size['plan_batch']['peak_mb'] / 1000:.2f}"),
    ("`ditbench plan`, s", lambda size: _seconds(size["forecast"])),
    ("page, s", lambda size: _seconds(size["report"])),
    ("MB", lambda size: f"{size['page_bytes'] / 1e6:.1f}"),
    ("MLflow, s", lambda size: _seconds(size["publish"])),
    ("again, s", lambda size: _seconds(size["publish_again"])),
    ("files", lambda size: f"{size['mlflow_artifacts']['files']:,}"),
)


def _seconds(took: dict[str, float]) -> str:
    """The processor's seconds, and those on the wall."""
    return f"{took['processor_s']:.0f} ({took['wall_s']:.0f})"


def table(record: dict[str, Any]) -> str:
    """The growth of a campaign in Markdown, with the machine and the version that it was measured with."""
    for size in record["sizes"]:
        size.setdefault("shard", record.get("shard"))  # one for all, in older records
    rows = [[heading for heading, _ in COLUMNS], ["--:"] * len(COLUMNS)]
    rows += [
        [of(size) for _, of in COLUMNS]
        for size in sorted(record["sizes"], key=lambda size: (size["shard"], size["jobs"]))
    ]
    made = record["provenance"]
    where = f"{made['hardware']['cpu']}, {made['hardware']['cores']} cores, {made['created'][:10]}"
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([*lines, "", f"Measured on {where}, at commit {made['git'][:12]}: `{record['command']}`."])


def write_tables(records: Sequence[dict[str, Any]], page: Path) -> None:
    """Makes the tables of a page anew, between its two marks."""
    before, _, rest = page.read_text(encoding="utf-8").partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    page.write_text(f"{before}{MARKS[0]}\n\n{_tables(records)}\n\n{MARKS[1]}{after}", encoding="utf-8")


def _tables(records: Sequence[dict[str, Any]]) -> str:
    return "\n\n".join(table(record) for record in records)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", type=int, nargs="+", default=[3, 16, 64, 200], help="arms (default %(default)s)")
    parser.add_argument("--images", type=int, default=IMAGES, help="of an arm and seed (default %(default)s)")
    parser.add_argument("--shard", type=int, nargs="+", default=SHARDS, help="images of a shard (default %(default)s)")
    parser.add_argument("--runs", type=int, default=2, help="of each dry run, the better counts (default %(default)s)")
    parser.add_argument("--out", type=Path, help="write a record")
    parser.add_argument(
        "--table", type=Path, nargs="+", metavar="RECORD", help="measure nothing: print tables of records"
    )
    parser.add_argument("--write", type=Path, metavar="PAGE", help="with --table: write them into a page instead")
    arguments = parser.parse_args()
    if arguments.table:
        records = [json.loads(path.read_text(encoding="utf-8")) for path in arguments.table]
        write_tables(records, arguments.write) if arguments.write else print(_tables(records))
        return
    os.chdir(REPOSITORY)
    asked = [(arms, shard) for shard in arguments.shard for arms in arguments.arms]
    sizes = [measure(arms, arguments.runs, arguments.images, shard) for arms, shard in asked]
    if arguments.out:
        body = {"command": " ".join(sys.argv), "targets": TARGETS, "seeds": list(SEEDS), "images": arguments.images}
        write_record(arguments.out, "campaign", {**body, "sizes": sizes})
        print(arguments.out)


if __name__ == "__main__":
    main()
