"""What a run will take: arms, images, disk and time, said before anything starts."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from ditbench.cells import Spec, cell_table, shard_ranges
from ditbench.config import Config
from ditbench.elsewhere import finished_elsewhere, packs_of
from ditbench.faults import Fault
from ditbench.study import BASELINE

if TYPE_CHECKING:
    from ditbench.worlds import World

# A stored PNG of the embedded world is a few kilobytes; other worlds' are estimated from their pixels.
BYTES_PER_PIXEL = 1.2


# Images of the full arm a second on one worker, and by what that is known.
Speed = tuple[float, str]


@dataclass
class _Work:
    """What is done and left of one world's images, and what earlier shards say of the rest."""

    waiting: dict[str, int] = field(default_factory=dict)  # images to draw, by arm
    speeds: dict[str, list[float]] = field(default_factory=dict)  # images a second of earlier shards, by arm
    sizes: list[float] = field(default_factory=list)  # bytes an image
    arms: dict[str, Spec] = field(default_factory=dict)  # one cell of each
    done: int = 0

    @property
    def missing(self) -> int:
        return sum(self.waiting.values())


def forecast(
    config: Config, results: Path | None = None, stated: Speed | Mapping[str, Speed] | None = None
) -> dict[str, Any]:
    """Counts, disk need and, where the speed of every world that is to be drawn is known, seconds.

    The speed is what is `stated`, of each world where a run has several, else that of the world's earlier shards, else
    one that was measured once.
    """
    from ditbench.worlds import get_world

    root = Path(results or config.results)
    asked, ranges = cell_table(config), shard_ranges(config)
    taken = finished_elsewhere(packs_of(config.elsewhere, root), asked)
    specs = [spec for spec in asked if spec.hash not in taken]
    # Others are compared with the pictures of the full model, even where its numbers are there already.
    own, there = {(spec.world, spec.seed) for spec in specs}, {spec.hash for spec in specs}
    specs += [s for s in asked if s.arm == BASELINE and (s.world, s.seed) in own and s.hash not in there]
    drawing = [spec for spec in specs if get_world(spec.world).no_images(spec.weights) is None]
    works = _works(drawing, ranges, root)
    times: list[Speed | None] = []
    for name, work in works.items():
        known = stated.get(name) if isinstance(stated, Mapping) else stated
        times.append(_seconds(get_world(name), work, known, config.device))
    every = [time for time in times if time is not None]
    seconds = sum(seconds for seconds, _ in every) if every and len(every) == len(times) else None
    return {
        "arms": len({(spec.world, spec.arm) for spec in asked}),
        "seeds": len(config.seeds),
        "cells": len(asked),
        "cells_finished_elsewhere": len(asked) - sum(spec.hash not in taken for spec in asked),
        "shards": len(drawing) * len(ranges),
        "images": len(drawing) * config.images,
        "images_done": sum(work.done for work in works.values()),
        "images_to_draw": sum(work.missing for work in works.values()),
        "disk_bytes_to_write": round(sum(work.missing * _bytes(name, work) for name, work in works.items())),
        "disk_bytes_free": _free(root),
        "generation_seconds_on_one_worker": None if seconds is None else round(seconds),
        "worker": "core" if config.device == "cpu" else "GPU",
        "estimated_from": None if seconds is None else "; ".join(dict.fromkeys(source for _, source in every)),
    }


def _works(specs: Sequence[Spec], ranges: Sequence[tuple[int, int]], root: Path) -> dict[str, _Work]:
    """The work of each world that draws."""
    from ditbench.records import read_record

    works: dict[str, _Work] = {}
    for spec in specs:
        work = works.setdefault(spec.world, _Work())
        work.arms[spec.arm] = spec
        for first, last in ranges:
            path = spec.folder(root) / "shards" / f"{first:05d}-{last:05d}.json"
            try:
                record = read_record(path, "shard")
            except Fault:
                record = None
            if record and record["spec_hash"] == spec.hash:
                work.done += record["count"]
                work.sizes.append(record["bytes"] / record["count"])
            else:
                work.waiting[spec.arm] = work.waiting.get(spec.arm, 0) + last - first + 1
            if record:
                work.speeds.setdefault(spec.arm, []).append(record["images_per_second"])
    return works


def _bytes(world_name: str, work: _Work) -> float:
    """What an image of a world takes on the disk."""
    from ditbench.worlds import get_world

    world = get_world(world_name)
    return fmean(work.sizes) if work.sizes else world.image_size**2 * (world.frames or 1) * BYTES_PER_PIXEL


def _seconds(world: World, work: _Work, stated: Speed | None, device: str) -> Speed | None:
    """How long a world's images take on one worker, and by what; None where nothing says so."""
    if work.speeds and stated is None:
        slowest = min(value for values in work.speeds.values() for value in values)
        speeds = {arm: fmean(values) for arm, values in work.speeds.items()}
        time = sum(number / speeds.get(arm, slowest) for arm, number in work.waiting.items())
        return time, "earlier shards of this run"
    known = stated or measured_speed(world, device)
    if known is None:
        return None
    return sum(number * effort(work.arms[arm]) / known[0] for arm, number in work.waiting.items()), known[1]


def measured_speed(world: World, device: str) -> Speed | None:
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


def speed_of_macs(world: str, tmacs: float) -> Speed:
    """Images of a world's full arm a second on a device that computes so many tera-MACs a second, by the ledger."""
    from ditbench.macs import count_macs
    from ditbench.methods import get_method

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
    elsewhere = outlook["cells_finished_elsewhere"]
    time = (
        "unknown until the first shard is drawn; `ditbench plan --images-per-second` or `--tmacs-per-second` states it"
        if seconds is None
        else f"{f'{seconds / 3600:,.1f} GPU hours' if gpu else _duration(seconds)}, from {outlook['estimated_from']}"
    )
    return "\n".join(
        [
            f"{outlook['cells']} cells ({outlook['arms']} arms x {outlook['seeds']} seeds), "
            f"{outlook['images']:,} images in {outlook['shards']:,} shards",
            *([f"finished elsewhere: {elsewhere} of these cells"] if elsewhere else []),
            f"to draw: {outlook['images_to_draw']:,} images, {outlook['images_done']:,} are there already",
            f"disk: about {need / 1e6:,.1f} MB more, {free / 1e6:,.0f} MB are free{enough}",
            f"time to draw on one {outlook['worker'] if gpu else 'worker'}: {time}",
        ]
    )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
