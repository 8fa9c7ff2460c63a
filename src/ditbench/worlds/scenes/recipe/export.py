"""Turns a training checkpoint into the shipped files, and says how they were made."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ditbench.records import processor_name
from ditbench.worlds.scenes.recipe.backbone import Recipe

# Every file whose bytes decide what the recipe makes.
RECIPE_FILES = ("grammar.py", "renderer.py", "settings.py", "model.py", "recipe/lesson.py", "recipe/backbone.py")


# The same of the MMDiT, which reads by the backbone's text encoder.
MMDIT_FILES = (*RECIPE_FILES, "mmdit.py", "recipe/mmdit.py")


def recipe_hash(files: Sequence[str] = RECIPE_FILES) -> str:
    """A hash of the code that decides trained weights."""
    folder = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for name in files:
        digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
    return digest.hexdigest()[:16]


def export_backbone(checkpoint: Path, assets: Path, recipe: Recipe) -> dict[str, Any]:
    """Writes the averaged weights in fp16 and `backbone.json`, the account of their making."""
    parts = {part: f"{part}.safetensors" for part in ("transformer", "text_encoder")}
    return _export(checkpoint, assets, recipe, "backbone", parts, RECIPE_FILES)


def export_mmdit(checkpoint: Path, assets: Path, recipe: Recipe) -> dict[str, Any]:
    """Writes the MMDiT's averaged weights in fp16 and `mmdit.json`, the account of their making."""
    return _export(checkpoint, assets, recipe, "mmdit", {"transformer": "mmdit.safetensors"}, MMDIT_FILES)


def _export(
    checkpoint: Path, assets: Path, recipe: Recipe, name: str, parts: dict[str, str], files: Sequence[str]
) -> dict[str, Any]:
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    assets.mkdir(parents=True, exist_ok=True)
    for part, file in parts.items():
        prefix = part + "."
        # Buffers (sinusoidal positions) are part of the state dict, the average holds parameters only.
        whole = {name: tensor for name, tensor in state["pair"].items() if name.startswith(prefix)}
        whole |= {name: tensor for name, tensor in state["average"].items() if name.startswith(prefix)}
        tensors = _without_shared({name[len(prefix) :]: tensor.half().contiguous() for name, tensor in whole.items()})
        save_file(tensors, assets / file, metadata={"recipe": recipe_hash(files)})
    progress = state["progress"]
    account = {
        "schema": f"ditbench/scenes-{name}@1",
        "recipe": asdict(recipe),
        "recipe_hash": recipe_hash(files),
        "images_seen": progress["seen"],
        "seconds": round(progress["seconds"], 1),
        "complete": progress["seen"] >= recipe.images,
        "final_loss": progress["history"][-1]["loss"],
        "hardware": {"processor": processor_name(), "cores": os.cpu_count(), "accelerator": accelerator_name()},
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "numpy")},
        "sha256": {file: hashlib.sha256((assets / file).read_bytes()).hexdigest() for file in parts.values()},
    }
    (assets / f"{name}.json").write_text(json.dumps(account, indent=2) + "\n")
    return account


def _without_shared(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names that share one tensor (T5's two names for its embedding) get a copy each: safetensors holds no aliases."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


def accelerator_name() -> str | None:
    """The first CUDA device's name, if there is one."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def make_backbone(work: Path, assets: Path, device: str = "cpu") -> dict[str, Any]:
    """Trains the backbone (or continues in `work`) and writes its shipped files to `assets`."""
    from ditbench.worlds.scenes.recipe.backbone import Training

    training = Training(Recipe(), work, device)
    training.run()
    return export_backbone(training.checkpoint, assets, training.recipe)


def make_mmdit(work: Path, assets: Path, device: str = "cpu") -> dict[str, Any]:
    """Trains the MMDiT (or continues in `work`) by the text encoder in `assets`, and writes its shipped files there."""
    from ditbench.worlds.scenes.recipe.mmdit import RECIPE, MMDiTTraining

    training = MMDiTTraining(RECIPE, work, assets, device)
    training.run()
    return export_mmdit(training.checkpoint, assets, training.recipe)
