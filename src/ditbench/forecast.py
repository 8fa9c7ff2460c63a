"""What a run will take: arms, images, disk and time, said before anything starts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from ditbench.cells import Spec, cell_table, shard_ranges
from ditbench.config import Config
from ditbench.faults import Fault

# A stored PNG of the embedded world is a few kilobytes; other worlds' are estimated from their pixels.
BYTES_PER_PIXEL = 1.2


def forecast(config: Config, results: Path | None = None) -> dict[str, Any]:
    """Counts, disk need and, where an earlier shard tells the speed, seconds."""
    from ditbench.records import read_record
    from ditbench.worlds import get_world

    root = Path(results or config.results)
    specs, ranges = cell_table(config), shard_ranges(config)
    missing, done, sizes = 0, 0, []
    speeds: dict[str, list[float]] = {}
    waiting: dict[str, int] = {}
    for spec in specs:
        if get_world(spec.world).no_images(spec.weights):
            continue
        for first, last in ranges:
            path = spec.folder(root) / "shards" / f"{first:05d}-{last:05d}.json"
            try:
                record = read_record(path, "shard")
            except Fault:
                record = None
            if record and record["spec_hash"] == spec.hash:
                done += record["count"]
                sizes.append(record["bytes"] / record["count"])
            else:
                missing += last - first + 1
                waiting[spec.arm] = waiting.get(spec.arm, 0) + last - first + 1
            if record:
                speeds.setdefault(spec.arm, []).append(record["images_per_second"])
    world = get_world(specs[0].world)
    size, source = world.image_size, "earlier shards of this run"
    per_image = sum(sizes) / len(sizes) if sizes else size * size * (world.frames or 1) * BYTES_PER_PIXEL
    every = [value for values in speeds.values() for value in values]
    seconds: float | None = None
    known = world.measured_speed()
    if every:
        slowest = min(every)
        seconds = sum(n / (sum(v) / len(v) if (v := speeds.get(arm)) else slowest) for arm, n in waiting.items())
    elif known is not None:
        rate, source = known[0], f"a measurement on {known[1]}"
        efforts = {spec.arm: effort(spec) for spec in specs}
        seconds = sum(n * efforts[arm] / rate for arm, n in waiting.items())
    drawing = sum(get_world(spec.world).no_images(spec.weights) is None for spec in specs)
    return {
        "arms": len({spec.arm for spec in specs}),
        "seeds": len(config.seeds),
        "cells": len(specs),
        "shards": drawing * len(ranges),
        "images": drawing * config.images,
        "images_done": done,
        "images_to_draw": missing,
        "disk_bytes_to_write": round(missing * per_image),
        "disk_bytes_free": _free(root),
        "generation_seconds_on_one_worker": None if seconds is None else round(seconds),
        "estimated_from": source if seconds is not None else None,
    }


def effort(spec: Spec) -> float:
    """What an arm's plan computes, as a share of a full run of the world's own steps."""
    from ditbench.methods import get_method
    from ditbench.worlds import get_world

    world, method = get_world(spec.world), get_method(spec.method, spec.knobs)
    steps = method.steps(spec.steps or world.default_steps)
    # What is learned first, or decided by sampling, may be everything.
    ratio = None if method.waits() else method.plan(world.shape(steps)).nominal_ratio
    return steps / world.default_steps * (1 - (ratio or 0.0))


def _free(folder: Path) -> int:
    """Bytes free where a folder is, or will be."""
    while not folder.exists():
        folder = folder.absolute().parent
    return shutil.disk_usage(folder).free


def told(outlook: dict[str, Any]) -> str:
    """The forecast in a few lines for a person."""
    seconds = outlook["generation_seconds_on_one_worker"]
    need, free = outlook["disk_bytes_to_write"], outlook["disk_bytes_free"]
    enough = "" if need < free else ": NOT ENOUGH, make room or set another `results`"
    time = (
        "unknown until the first shard is drawn"
        if seconds is None
        else f"{_duration(seconds)}, from {outlook['estimated_from']}"
    )
    return "\n".join(
        [
            f"{outlook['cells']} cells ({outlook['arms']} arms x {outlook['seeds']} seeds), "
            f"{outlook['images']:,} images in {outlook['shards']:,} shards",
            f"to draw: {outlook['images_to_draw']:,} images, {outlook['images_done']:,} are there already",
            f"disk: about {need / 1e6:,.1f} MB more, {free / 1e6:,.0f} MB are free{enough}",
            f"time to draw on one worker: {time}",
        ]
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
