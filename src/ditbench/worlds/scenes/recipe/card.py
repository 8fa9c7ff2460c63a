"""The model card of the shipped weights: written from records, never by hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from PIL import Image

from ditbench.faults import Fault

if TYPE_CHECKING:
    from ditbench.config import Config

MEASURES = ("attributes/scenes", "objects/scenes", "relations/scenes", "fid/scenes", "hps/scenes")
SHEET = 36
JUDGES = ("reader", "dual", "preference")


class Drawer(NamedTuple):
    """A network that draws the scenes, and the files beside the card that tell of it."""

    world: str
    account: str
    quality: str
    samples: str
    weights: str
    heading: str
    about: str


DRAWERS = (
    Drawer(
        *("scenes", "backbone.json", "quality.json", "samples.png", "transformer.safetensors", "PixArt"),
        "`PixArtTransformer2DModel`, and its T5 text encoder, which both networks read by.",
    ),
    Drawer(
        *("scenes-mmdit", "mmdit.json", "quality-mmdit.json", "samples-mmdit.png", "mmdit.safetensors", "MMDiT"),
        "`SD3Transformer2DModel`: image and text in streams of their own, as in Stable Diffusion 3.5.",
    ),
)

CARD = """# Weights of the worlds `scenes` and `scenes-mmdit`

Two text-to-image diffusion transformers of 256 image tokens, a text encoder, and the judges of their pictures. Made by
`snakemake assets`; this page is written by `ditbench assets model-card` from the records beside it.

The default sampler is DPM-Solver++ (second order, {steps} steps, flow shift {shift:g}, guidance {guidance:g}).

{networks}

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

NETWORK = """## {heading}: the world `{world}`

{about} {parameters:.1f} M parameters.

![Rows in turn: a render of the caption, and what the network drew from it]({samples})

### How it was made

| | |
|---|---|
{making}{notes}

### What it draws

{count} held-out captions, judged by the attribute reader, 95 % intervals. Records: `{source}`, made with {drawn_by}.

| arm | {heads} |
|---|{rules}
{rows}

Differences to `full` on the same captions and noise:

| arm | {heads} |
|---|{rules}
{paired_rows}"""


def _making(account: dict[str, Any]) -> str:
    recipe = account["recipe"]
    stages = ", then ".join(f"{s['images']:,} at {s['size']} px" for s in recipe["stages"])
    rows = {
        "images seen": f"{account['images_seen']:,} ({stages})",
        "wall time": f"{account['seconds'] / 3600:.1f} h",
        "hardware": _hardware(account),
        "seed": recipe["seed"],
        "lesson in reading": _lesson(account),
        "optimiser": f"Muon {recipe['muon_rate']:g} for the blocks, AdamW {recipe['adam_rate']:g} for the rest",
        "recipe hash": f"`{account['recipe_hash']}`{_code_since(account)}",
        "versions": _versions(account),
    }
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def _lesson(account: dict[str, Any]) -> str:
    if "text_encoder.safetensors" not in account["sha256"]:
        return "the text encoder's own: it is not trained here"
    return f"after {account['recipe']['lesson_at']:,} images (recipe/lesson.py says why; 0 is better)"


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


def keep_quality(assets: Path, scores: Sequence[tuple[str, Path]], file: str = "quality.json") -> None:
    """Writes to `file` what the card shows of the score records of some arms [(label, scores.json)]."""
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
    (assets / file).write_text(json.dumps(kept, indent=1) + "\n")


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
    """Writes README.md from the records beside it: of the networks, of what they draw, and of the judges."""
    from ditbench.worlds.scenes import settings

    judges = _account(assets, "judges.json", "run `snakemake assets`")
    files = [
        f"| `{p.name}` | {p.stat().st_size:,} | `{hashlib.sha256(p.read_bytes()).hexdigest()[:16]}…` |"
        for p in sorted(assets.glob("*.safetensors"))
    ]
    card = CARD.format(
        steps=settings.STEPS,
        shift=settings.FLOW_SHIFT,
        guidance=settings.GUIDANCE,
        networks="\n\n".join(_network(assets, drawer) for drawer in DRAWERS),
        judge_hash=judges["recipe_hash"],
        judge_hardware=_hardware(judges),
        judge_versions=_versions(judges),
        judges="\n".join(_judge(name, judges[name]) for name in JUDGES),
        files="\n".join(files),
    )
    (assets / "README.md").write_text(card, encoding="utf-8")


def _network(assets: Path, drawer: Drawer) -> str:
    """The card's part about one network."""
    from ditbench.worlds.scenes.pipeline import load_weights

    account = _account(assets, drawer.account, "run `snakemake assets`")
    quality = _account(assets, drawer.quality, "run the study of its quality and write the card from its results")
    arms = quality["arms"]
    notes = account.get("notes", "")
    return NETWORK.format(
        heading=drawer.heading,
        world=drawer.world,
        about=drawer.about,
        parameters=sum(t.numel() for t in load_weights(assets / drawer.weights).values()) / 1e6,
        samples=drawer.samples,
        making=_making(account),
        notes=f"\n\n{notes}" if notes else "",
        count=f"{next(iter(arms.values()))['n']:,}",
        source=drawer.quality,
        drawn_by=_drawn_by(quality),
        heads=" | ".join(MEASURES),
        rules="---|" * len(MEASURES),
        rows="\n".join(_values(label, arm) for label, arm in arms.items()),
        paired_rows="\n".join(_differences(label, arm) for label, arm in arms.items() if arm["paired"]),
    )


def sample_sheet(real: np.ndarray, drawn: np.ndarray, columns: int = 12, zoom: int = 2) -> Image.Image:
    """Renders and drawings of the same captions, in alternating rows."""
    rows = []
    for start in range(0, len(real) - columns + 1, columns):
        rows += [np.hstack(list(pictures[start : start + columns])) for pictures in (real, drawn)]
    sheet = Image.fromarray(np.vstack(rows))
    return sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST)


def keep_results(assets: Path, config: Config, results: Path | None = None) -> None:
    """Keeps what a finished run's records say of a network, with a sheet of the full arm's first pictures."""
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
    drawer = next(drawer for drawer in DRAWERS if drawer.world == full.world)
    sample_sheet(real, drawn).save(assets / drawer.samples, optimize=True)
    keep_quality(assets, [(spec.arm, spec.folder(root) / "scores.json") for spec in specs], drawer.quality)
