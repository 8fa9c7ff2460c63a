"""The model card of the shipped weights: written from records, never by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ditbench.faults import Fault

if TYPE_CHECKING:
    from ditbench.config import Config

MEASURES = ("attributes/scenes", "objects/scenes", "relations/scenes", "fid/scenes", "hps/scenes")
SHEET = 36
JUDGES = ("reader", "dual", "preference")

CARD = """# Weights of the world `scenes`

A text-to-image diffusion transformer (`PixArtTransformer2DModel`, {parameters:.1f} M parameters, 256 image tokens), its
T5 text encoder, and the judges of this world. Made by `snakemake assets`; this page is written by
`ditbench assets model-card` from the records beside it.

![Rows in turn: a render of the caption, and what the network drew from it](samples.png)

## How the backbone was made

| | |
|---|---|
{making}

{notes}

The default sampler is DPM-Solver++ (second order, {steps} steps, flow shift {shift:g}, guidance {guidance:g}).

## What it draws

{count} held-out captions, judged by the attribute reader, 95 % intervals. Records: `{source}`, made with {drawn_by}.

| arm | {heads} |
|---|{rules}
{rows}

Differences to `full` on the same captions and noise:

| arm | {heads} |
|---|{rules}
{paired_rows}

## What the judges are worth

Measured on held-out renders when they were trained (`judges.json`): recipe hash `{judge_hash}`, {judge_hardware},
{judge_versions}.

| judge | seed | captions seen | wall time | held-out accuracy |
|---|---|---|---|---|
{judges}

## Files

| file | bytes | sha256 |
|---|---|---|
{files}
"""


def _making(account: dict[str, Any]) -> str:
    recipe = account["recipe"]
    stages = ", then ".join(f"{s['images']:,} at {s['size']} px" for s in recipe["stages"])
    rows = {
        "images seen": f"{account['images_seen']:,} ({stages})",
        "wall time": f"{account['seconds'] / 3600:.1f} h",
        "hardware": _hardware(account),
        "seed": recipe["seed"],
        "lesson in reading": f"after {recipe['lesson_at']:,} images (recipe/lesson.py says why; 0 is better)",
        "optimiser": f"Muon {recipe['muon_rate']:g} for the blocks, AdamW {recipe['adam_rate']:g} for the rest",
        "recipe hash": f"`{account['recipe_hash']}`{_code_since(account)}",
        "versions": _versions(account),
    }
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def _hardware(account: dict[str, Any]) -> str:
    hardware = account["hardware"]
    return str(hardware["accelerator"] or f"{hardware['processor']}, {hardware['cores']} cores")


def _versions(account: dict[str, Any]) -> str:
    return ", ".join(f"{name} {number}" for name, number in account["versions"].items())


def _code_since(account: dict[str, Any]) -> str:
    """What has become of the recipe's code since training, where a person has looked at it and said so."""
    since = account.get("code_since")
    if since is None:
        return ""
    return (
        f", the code of commit `{since['made_with']}`. The recipe's code has changed since, to "
        f"`{since['recipe_hash']}`, but not what it computes: {since['changes']}"
    )


def _judge(name: str, account: dict[str, Any]) -> str:
    """A judge's line: what it learned from, for how long, and how good it is."""
    cells = [name, account["schedule"]["seed"], f"{account['captions_seen']:,}", f"{account['seconds']:.0f} s"]
    cells += [_accuracies(account["held_out"])]
    return "| " + " | ".join(map(str, cells)) + " |"


def _accuracies(held_out: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in held_out.items() if isinstance(value, float))


def _drawn_by(quality: dict[str, Any]) -> str:
    """Which code drew and judged the pictures of the table, and on what."""
    made = next(iter(quality["arms"].values()))["provenance"]
    hardware = made["hardware"]
    where = hardware["gpu"] or f"{hardware['cpu']}, {hardware['cores']} cores"
    dirty = " with uncommitted changes" if made["dirty"] else ""
    return f"ditbench {made['ditbench']}, commit `{str(made['git'])[:12]}`{dirty}, code hash `{made['code']}`, {where}"


def keep_quality(assets: Path, scores: Sequence[tuple[str, Path]]) -> None:
    """Writes quality.json, what the card shows of the score records of some arms [(label, scores.json)]."""
    from ditbench.records import read_record

    if not scores:
        raise Fault("a model card needs the scores of at least one arm: run the study `scenes_quality` first")
    kept: dict[str, Any] = {"schema": "ditbench/scenes-quality@1", "arms": {}}
    for label, path in scores:
        record = read_record(path, "scores")
        kept["arms"][label] = {key: record[key] for key in ("n", "measures", "paired", "provenance")}
        shards = [read_record(shard, "shard") for shard in sorted(path.parent.glob("shards/*.json"))]
        rate = sum(shard["images_per_second"] for shard in shards) / len(shards)
        kept["arms"][label]["images_per_second"] = round(rate, 3)
    (assets / "quality.json").write_text(json.dumps(kept, indent=1) + "\n")


def _values(label: str, arm: dict[str, Any]) -> str:
    """An arm's line of the table of quality."""
    values = {m["name"]: m for m in arm["measures"]}
    cells = [f"{values[m]['value']:.3f} [{values[m]['low']:.3f}, {values[m]['high']:.3f}]" for m in MEASURES]
    return f"| {label} | " + " | ".join(cells) + " |"


def _differences(label: str, arm: dict[str, Any]) -> str:
    """An arm's line of the table of differences."""
    apart = {p["name"]: f"{p['difference']:+.3f} [{p['low']:+.3f}, {p['high']:+.3f}]" for p in arm["paired"]}
    return f"| {label} | " + " | ".join(apart.get(m, "") for m in MEASURES) + " |"


def _account(assets: Path, name: str, remedy: str) -> dict[str, Any]:
    path = assets / name
    if not path.exists():
        raise Fault(f"{assets} holds no {name} yet: {remedy}")
    body: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return body


def write_card(assets: Path) -> None:
    """Writes README.md from the records beside it: backbone.json, judges.json and quality.json."""
    from ditbench.worlds.scenes import settings
    from ditbench.worlds.scenes.pipeline import load_weights

    account, judges = (_account(assets, f"{name}.json", "run `snakemake assets`") for name in ("backbone", "judges"))
    quality = _account(assets, "quality.json", "run the study `scenes_quality` and write the card from its results")
    arms = quality["arms"]
    files = [
        f"| `{p.name}` | {p.stat().st_size:,} | `{hashlib.sha256(p.read_bytes()).hexdigest()[:16]}…` |"
        for p in sorted(assets.glob("*.safetensors"))
    ]
    weights = load_weights(assets / "transformer.safetensors")
    card = CARD.format(
        parameters=sum(t.numel() for t in weights.values()) / 1e6,
        making=_making(account),
        notes=account.get("notes", ""),
        steps=settings.STEPS,
        shift=settings.FLOW_SHIFT,
        guidance=settings.GUIDANCE,
        count=f"{next(iter(arms.values()))['n']:,}",
        source="quality.json",
        drawn_by=_drawn_by(quality),
        heads=" | ".join(MEASURES),
        rules="---|" * len(MEASURES),
        rows="\n".join(_values(label, arm) for label, arm in arms.items()),
        paired_rows="\n".join(_differences(label, arm) for label, arm in arms.items() if arm["paired"]),
        judge_hash=judges["recipe_hash"],
        judge_hardware=_hardware(judges),
        judge_versions=_versions(judges),
        judges="\n".join(_judge(name, judges[name]) for name in JUDGES),
        files="\n".join(files),
    )
    (assets / "README.md").write_text(card, encoding="utf-8")


def sample_sheet(real: np.ndarray, drawn: np.ndarray, columns: int = 12, zoom: int = 2) -> Image.Image:
    """Renders and drawings of the same captions, in alternating rows."""
    rows = []
    for start in range(0, len(real) - columns + 1, columns):
        rows += [np.hstack(list(pictures[start : start + columns])) for pictures in (real, drawn)]
    sheet = Image.fromarray(np.vstack(rows))
    return sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST)


def card_from_results(assets: Path, config: Config, results: Path | None = None) -> None:
    """Writes the card from a finished run's records, with a sheet of the full arm's first pictures."""
    from ditbench.cells import cell_table, shard_ranges
    from ditbench.records import read_record
    from ditbench.storage import read_shard
    from ditbench.worlds.scenes.grammar import parse
    from ditbench.worlds.scenes.renderer import render

    root = Path(results or config.results)
    specs = cell_table(config)
    full = next((spec for spec in specs if spec.method == "full"), None)
    if full is None:
        raise Fault("the model card needs the full arm: name a study that has it in the configuration")
    first, last = shard_ranges(config)[0]
    _, drawn = read_shard(full.folder(root) / "shards" / f"{first:05d}-{last:05d}.zip")
    captions = read_record(root / "captions" / full.world / f"{full.captions}.json", "captions")["captions"]
    drawn = drawn[:SHEET]
    real = np.stack([render(parse(entry["text"]), 0, i) for i, entry in enumerate(captions[: len(drawn)])])
    sheet = assets / "samples.png"
    sample_sheet(real, drawn).save(sheet, optimize=True)
    keep_quality(assets, [(spec.arm, spec.folder(root) / "scores.json") for spec in specs])
    write_card(assets)
