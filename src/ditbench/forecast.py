"""What a run will take: arms, images, disk and time, said before anything starts."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditbench.cells import Spec, cell_table, shard_ranges
from ditbench.config import Config
from ditbench.faults import Fault

if TYPE_CHECKING:
    from ditbench.worlds import World

# A stored PNG of the embedded world is a few kilobytes; other worlds' are estimated from their pixels.
BYTES_PER_PIXEL = 1.2


def forecast(config: Config, results: Path | None = None, stated: tuple[float, str] | None = None) -> dict[str, Any]:
    """Counts, disk need and, where the speed is known, seconds.

    The speed is what is `stated` (images of the full arm a second on one worker, and by what), else that of earlier
    shards, else one that was measured once.
    """
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
    known = stated or measured_speed(world, config.device)
    if every and stated is None:
        slowest = min(every)
        seconds = sum(n / (sum(v) / len(v) if (v := speeds.get(arm)) else slowest) for arm, n in waiting.items())
    elif known is not None:
        rate, source = known
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
        "worker": "core" if config.device == "cpu" else "GPU",
        "estimated_from": source if seconds is not None else None,
    }


def measured_speed(world: World, device: str) -> tuple[float, str] | None:
    """Images of the full model a second on one worker, as measured once, and by what; None where nobody did.

    On a GPU it is that of the network alone: text encoders, VAE and writing come on top.
    """
    from ditbench.measured import forward_seconds

    if (found := world.measured_speed()) is not None:
        return found[0], f"a measurement on {found[1]}"
    if device == "cpu" or (forward := forward_seconds(world.name)) is None:
        return None
    seconds = world.default_steps * world.cfg_branches * forward[0]
    return 1 / seconds, f"a measurement of the network alone on {forward[1]}"


def speed_of_macs(config: Config, tmacs: float) -> tuple[float, str]:
    """Images of the full arm a second on a device that computes so many tera-MACs a second, by the ledger."""
    from ditbench.macs import count_macs
    from ditbench.methods import get_method

    world = cell_table(config)[0].world
    counted = count_macs(world, get_method("full", {}))
    whole = counted["total"] * counted["cfg_branches"]
    return tmacs * 1e12 / whole, f"{whole / 1e12:.3g} T MACs an image of full at {tmacs:g} T a second, as stated"


def effort(spec: Spec) -> float:
    """What an arm's plan computes, as a share of a full run of the world's own steps."""
    from ditbench.methods import get_method
    from ditbench.worlds import get_world

    world, method = get_world(spec.world), get_method(spec.method, spec.knobs)
    steps = method.steps(spec.steps or world.default_steps)
    # What is learned first, or decided by sampling, may be everything.
    ratio = None
    if not method.waits():
        try:
            ratio = method.plan(world.shape(steps)).nominal_ratio
        except Fault:
            raise
        except Exception:  # a mistake in a method is its own arm's failure, told by the job that makes the plan
            pass
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
    gpu = outlook["worker"] == "GPU"
    time = (
        "unknown until the first shard is drawn; `ditbench plan --images-per-second` or `--tmacs-per-second` states it"
        if seconds is None
        else f"{f'{seconds / 3600:,.1f} GPU hours' if gpu else _duration(seconds)}, from {outlook['estimated_from']}"
    )
    return "\n".join(
        [
            f"{outlook['cells']} cells ({outlook['arms']} arms x {outlook['seeds']} seeds), "
            f"{outlook['images']:,} images in {outlook['shards']:,} shards",
            f"to draw: {outlook['images_to_draw']:,} images, {outlook['images_done']:,} are there already",
            f"disk: about {need / 1e6:,.1f} MB more, {free / 1e6:,.0f} MB are free{enough}",
            f"time to draw on one {outlook['worker'] if gpu else 'worker'}: {time}",
        ]
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
