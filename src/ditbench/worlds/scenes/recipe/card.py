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

{count} held-out captions, judged by the attribute reader, 95 % intervals. Records: `{source}`.

| arm | {heads} |
|---|{rules}|
{rows}

Differences to `full` on the same captions and noise:

| arm | {paired_heads} |
|---|{paired_rules}|
{paired_rows}

## What the judges are worth

Measured on held-out renders when they were trained (`judges.json`).

| judge | held-out accuracy |
|---|---|
{judges}

## Files

| file | bytes | sha256 |
|---|---|---|
{files}
"""


def _making(account: dict[str, Any]) -> str:
    recipe = account["recipe"]
    stages = ", then ".join(f"{s['images']:,} at {s['size']} px" for s in recipe["stages"])
    hardware = account["hardware"]
    rows = {
        "images seen": f"{account['images_seen']:,} ({stages})",
        "wall time": f"{account['seconds'] / 3600:.1f} h",
        "hardware": hardware["accelerator"] or f"{hardware['processor']}, {hardware['cores']} cores",
        "seed": recipe["seed"],
        "lesson in reading": f"after {recipe['lesson_at']:,} images (recipe/lesson.py says why; 0 is better)",
        "optimiser": f"Muon {recipe['muon_rate']:g} for the blocks, AdamW {recipe['adam_rate']:g} for the rest",
        "recipe hash": f"`{account['recipe_hash']}`",
        "versions": ", ".join(f"{name} {number}" for name, number in account["versions"].items()),
    }
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def _accuracies(held_out: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in held_out.items() if isinstance(value, float))


def write_card(assets: Path, quality: Sequence[tuple[str, Path]], measures: Sequence[str]) -> None:
    """Writes README.md and quality.json from the score records of some arms [(label, scores.json)]."""
    from ditbench.records import read_record
    from ditbench.worlds.scenes import settings
    from ditbench.worlds.scenes.pipeline import load_weights

    account_path, judges_path = assets / "backbone.json", assets / "judges.json"
    if not account_path.exists() or not judges_path.exists():
        raise Fault(f"{assets} holds no backbone.json and judges.json yet: run `snakemake assets` first")
    if not quality:
        raise Fault("a model card needs the scores of at least one arm: run the study `scenes_quality` first")
    account, judges = json.loads(account_path.read_text()), json.loads(judges_path.read_text())
    kept: dict[str, Any] = {"schema": "ditbench/scenes-quality@1", "arms": {}}
    rows, paired = [], []
    for label, path in quality:
        record = read_record(path, "scores")
        values = {m["name"]: m for m in record["measures"]}
        kept["arms"][label] = {key: record[key] for key in ("n", "measures", "paired", "provenance")}
        shards = [read_record(shard, "shard") for shard in sorted(path.parent.glob("shards/*.json"))]
        rate = sum(shard["images_per_second"] for shard in shards) / len(shards)
        kept["arms"][label]["images_per_second"] = round(rate, 3)
        cells = [f"{values[m]['value']:.3f} [{values[m]['low']:.3f}, {values[m]['high']:.3f}]" for m in measures]
        rows.append(f"| {label} | " + " | ".join(cells) + " |")
        apart = {p["name"]: f"{p['difference']:+.3f} [{p['low']:+.3f}, {p['high']:+.3f}]" for p in record["paired"]}
        if apart:
            paired.append(f"| {label} | " + " | ".join(apart.get(m, "") for m in measures) + " |")
    (assets / "quality.json").write_text(json.dumps(kept, indent=1) + "\n")
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
        count=f"{next(iter(kept['arms'].values()))['n']:,}",
        source="quality.json",
        heads=" | ".join(measures),
        rules="---|" * (len(measures) - 1) + "---",
        rows="\n".join(rows),
        paired_heads=" | ".join(measures),
        paired_rules="---|" * (len(measures) - 1) + "---",
        paired_rows="\n".join(paired),
        judges="\n".join(f"| {name} | {_accuracies(judges[name]['held_out'])} |" for name in JUDGES),
        files="\n".join(files),
    )
    (assets / "README.md").write_text(card)


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
    write_card(assets, [(spec.arm, spec.folder(root) / "scores.json") for spec in specs], MEASURES)
