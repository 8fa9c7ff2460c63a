"""Judges a cell: all judges of its world in one process, values with intervals, and differences to the full arm."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditbench.faults import Fault
from ditbench.judges import Judge, Pictures, Result, default_judges, get_judge
from ditbench.judges.references import check_networks, read_references
from ditbench.judges.registry import Given
from ditbench.patience import progress
from ditbench.records import Clock, read_record, write_record
from ditbench.storage import hash_file, images_of, replacing
from ditbench.weights import need_images, need_one_weights
from ditbench.worlds import get_world

if TYPE_CHECKING:
    import numpy as np


def score_cell(
    spec_path: Path,
    shard_jsons: Sequence[Path],
    captions_path: Path,
    references_json: Path | None,
    full_shard_jsons: Sequence[Path] | None,
    out: Path,
    judges: Sequence[str] | None = None,
    device: str = "cpu",
    code: str | None = None,
    places: Mapping[str, str] | None = None,
    features: Sequence[Path] = (),
    statistics: Path | None = None,
) -> None:
    """Writes the scores record `out` and `samples.parquet` beside it.

    `references_json` is None for worlds without reference images. `full_shard_jsons` are the full arm's shards of the
    same captions; without them (for the full arm itself) nothing is compared in pairs. `judges` defaults to those of
    the cell's world whose weights are at hand; `places` are the configuration's `judge_weights`. `features` are records
    of the references' features, `statistics` a file of their means and covariances.
    """
    clock = Clock()
    spec = read_record(spec_path, "spec")
    need_images(spec)
    need_one_weights(spec, [read_record(path, "shard") for path in shard_jsons])
    given: Given = "moments" if statistics else "images" if references_json else "none"
    names = judges or default_judges(spec["world"], places, given)
    chosen = [get_judge(name, device, places) for name in names]
    with clock("load"):
        for member in chosen:
            member.load()
        entries = read_record(captions_path, "captions")["captions"]
        captions = {entry["id"]: entry["text"] for entry in entries}
        rate = get_world(spec["world"]).frames_per_second
        pictures = Pictures.read(_zips(shard_jsons, "shard"), captions, rate)
        references = read_references(references_json, features, statistics)
        check_networks(chosen, features)
        full = None
        if full_shard_jsons:
            full = Pictures.read(_zips(full_shard_jsons, "shard"), captions, rate)
            _check_pairs(pictures, full)
    with clock("compute"):
        results, differences, seconds = judge(chosen, pictures, references, full)
    with clock("write"):
        samples = out.with_name("samples.parquet")
        _write_samples(samples, pictures.ids, results)
    body = {
        "spec_hash": spec["hash"],
        "n": len(pictures),
        "references": len(references),
        "reference_set": _reference_set(references_json),
        "measures": [_measure(result) for result in results],
        "paired": differences,
        "samples_sha256": hash_file(samples),
        "judge_seconds": seconds,
        "judge_weights": {key: digest for member in chosen for key, digest in member.weights_read().items()},
    }
    write_record(out, "scores", body, timings=clock.seconds, code=code)


def _reference_set(record_path: Path | None) -> dict[str, Any] | None:
    """What tells the references from others."""
    if record_path is None:
        return None
    record = read_record(record_path, "references")
    return {name: record.get(name) for name in ("name", "sha256", "count", "preprocessing")}


def judge(
    judges: Sequence[Judge], pictures: Pictures, references: Pictures, full: Pictures | None
) -> tuple[list[Result], list[dict[str, Any]], dict[str, float]]:
    """Every judge's results, the paired differences to `full`, and the seconds each judge took."""
    results: list[Result] = []
    differences: list[dict[str, Any]] = []
    seconds: dict[str, float] = {}
    for member in judges:
        if member.needs_full and full is None:
            continue
        progress()
        began = time.perf_counter()
        mine = member.measure(pictures, references, full)
        unknown = [result.name for result in mine if result.name not in member.measures()]
        if unknown:
            raise ValueError(f"judge {member.name} gives {unknown[0]!r}, which its `measures` do not name")
        results += mine
        # A measure that is itself a comparison with the full arm has no difference to it.
        if full is not None and not member.needs_full:
            theirs = {result.name: result for result in member.measure(full, references)}
            differences += [_difference(result, theirs[result.name]) for result in mine]
        seconds[member.name] = round(time.perf_counter() - began, 3)
        said = ", ".join(f"{r.name} {r.estimate.value:.4g}{f' {r.unit}' if r.unit else ''}" for r in mine)
        print(f"judges: {said} ({seconds[member.name]:.1f} s)", file=sys.stderr, flush=True)
    return results, differences, seconds


def _zips(records: Sequence[Path], kind: str) -> list[Path]:
    """The image files that records describe, in the order of their first caption."""
    bodies = [(Path(path), read_record(path, kind)) for path in records]
    bodies.sort(key=lambda pair: pair[1].get("first", 0))
    return [images_of(path, body) for path, body in bodies]


def _check_pairs(pictures: Pictures, full: Pictures) -> None:
    if pictures.ids != full.ids:
        raise Fault(
            f"{len(pictures)} images cannot be paired with the full arm's {len(full)}: their captions or order differ; "
            "run the full arm with the same captions and number of images"
        )


def _measure(result: Result) -> dict[str, Any]:
    estimate = result.estimate
    return {
        "name": result.name,
        "value": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "n": estimate.n,
        "unit": result.unit,
        "direction": result.direction,
        "method_of_interval": estimate.method,
        # What a difference to any other arm's needs, where no table of single pictures has it.
        **({} if result.left_out is None else {"left_out": result.left_out.tolist()}),
    }


def _difference(result: Result, baseline: Result) -> dict[str, Any]:
    estimate = result.minus(baseline)
    return {
        "name": result.name,
        "difference": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "n": estimate.n,
        "against": "full",
        "method_of_interval": estimate.method,
    }


def _write_samples(path: Path, ids: Sequence[str], results: Sequence[Result]) -> None:
    """One row per picture: its caption id and every measure that has a value for single pictures."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Sequence[str] | np.ndarray] = {"caption_id": list(ids)}
    columns |= {result.name: result.per_sample for result in results if result.per_sample is not None}
    with replacing(path) as partial:
        # NaN says "does not concern this picture": a null in the table.
        pq.write_table(pa.table({name: pa.array(v, from_pandas=True) for name, v in columns.items()}), partial)
