"""Trains the judges of scenes on renders: the attribute reader, the dual encoder, the preference model.

The dual encoder's image tower starts from the reader's trunk, the preference model from the whole dual encoder (as
HPS starts from CLIP). Each run resumes from its checkpoint at any time; what it sees at a step is a function of
(seed, step) alone. All train on captions of the training split; the accuracies are of the evaluation split.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ditbench.faults import Fault
from ditbench.records import processor_name
from ditbench.storage import replacing
from ditbench.worlds.scenes.grammar import draw_scenes
from ditbench.worlds.scenes.judges.dual import DualEncoder, load_dual, tokenize
from ditbench.worlds.scenes.judges.preference import Preference, load_preference
from ditbench.worlds.scenes.judges.reader import Reader, check, load_reader, to_pixels
from ditbench.worlds.scenes.judges.weights import save_weights
from ditbench.worlds.scenes.recipe.changes import CHANGES, change, mirrored
from ditbench.worlds.scenes.recipe.defects import DAMAGES
from ditbench.worlds.scenes.recipe.dual_task import DualTask
from ditbench.worlds.scenes.recipe.export import accelerator_name
from ditbench.worlds.scenes.recipe.preference_task import PreferenceTask, draw_choice
from ditbench.worlds.scenes.recipe.reader_task import ReaderTask, whiten
from ditbench.worlds.scenes.recipe.training import Task, Training
from ditbench.worlds.scenes.renderer import render_batch

# Every file whose bytes decide what this recipe makes.
RECIPE_FILES = (
    "grammar.py",
    "renderer.py",
    "judges/trunk.py",
    "judges/reader.py",
    "judges/dual.py",
    "judges/preference.py",
    "recipe/changes.py",
    "recipe/defects.py",
    "recipe/training.py",
    "recipe/reader_task.py",
    "recipe/dual_task.py",
    "recipe/preference_task.py",
)
HELD_OUT_SEED = 1_000_003


def recipe_hash() -> str:
    """A hash of the code that decides the judges' weights."""
    folder = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for name in RECIPE_FILES:
        digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
    return digest.hexdigest()[:16]


def claim(folder: Path) -> None:
    """Marks a working folder as this recipe's; a Fault where its checkpoints are another recipe's."""
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / "recipe.txt"
    if mark.exists() and mark.read_text().strip() != recipe_hash():
        raise Fault(f"{folder} holds checkpoints of another recipe; delete it or train in another folder")
    mark.write_text(recipe_hash() + "\n")


def reader_accuracy(reader: Reader, count: int = 2000) -> dict[str, float]:
    """How often a render is read as what it was drawn from, entirely and by part."""
    scenes = draw_scenes(count, HELD_OUT_SEED)
    readings = reader.readings(render_batch(scenes, HELD_OUT_SEED))
    verdicts = [check(s, r.objects, r.background) for s, r in zip(scenes, readings, strict=True)]
    things = [thing for verdict in verdicts for thing in verdict.objects]
    related = [v.relation_right for v in verdicts if v.relation_right is not None]
    placed = [v.place_right for v in verdicts if v.place_right is not None]
    return {
        "renders": count,
        "everything": float(np.mean([v.everything_right for v in verdicts])),
        "count": float(np.mean([v.count_right for v in verdicts])),
        "objects": float(np.mean([v.objects_right for v in verdicts])),
        "shape": float(np.mean([t.shape for t in things])),
        "colour": float(np.mean([t.colour for t in things])),
        "size": float(np.mean([t.size for t in things])),
        "relation": float(np.mean(related)),
        "place": float(np.mean(placed)),
        "background": float(np.mean([v.background_right for v in verdicts])),
    }


def dual_accuracy(dual: DualEncoder, count: int = 1000) -> dict[str, float]:
    """How often a render is closer to its caption than to the caption with one word changed, by kind of change.

    `all`: closer than to every one of them at once; `opposite`: than to the caption with the relation turned round;
    `retrieval`: than to any other caption of `count`.
    """
    scenes = draw_scenes(count, HELD_OUT_SEED)
    images = render_batch(scenes, HELD_OUT_SEED)
    captions = [scene.caption() for scene in scenes]
    right = dual.similarity(images, captions)
    rng = np.random.default_rng(HELD_OUT_SEED)
    beaten = {
        kind: right > dual.similarity(images, [change(scene, kind, rng).caption() for scene in scenes])
        for kind in CHANGES
    }
    pairs = [i for i, scene in enumerate(scenes) if len(scene.things) == 2]
    opposite = dual.similarity(images[pairs], [mirrored(scenes[i]).caption() for i in pairs])
    every = similarities(dual, images, captions)
    return {
        "renders": count,
        "all": float(np.logical_and.reduce(list(beaten.values())).mean()),
        **{kind: float(won.mean()) for kind, won in beaten.items()},
        "opposite": float((right[pairs] > opposite).mean()),
        "retrieval": float((every.argmax(1) == np.arange(count)).mean()),
    }


@torch.inference_mode()
def similarities(dual: DualEncoder, images: np.ndarray, captions: list[str]) -> np.ndarray:
    """The cosine of every picture with every caption, [pictures, captions]."""
    device = dual.log_scale.device
    towers = (
        torch.cat([dual.image(to_pixels(images[i : i + 256], device)) for i in range(0, len(images), 256)]),
        torch.cat([dual.text(tokenize(captions[i : i + 256]).to(device)) for i in range(0, len(captions), 256)]),
    )
    return (towers[0] @ towers[1].T).cpu().numpy()


def preference_accuracy(preference: Preference, count: int = 300) -> dict[str, float]:
    """How often the better picture of a pair scores higher, by what is wrong with the other; `count` pairs of each."""
    scenes = draw_scenes(count, HELD_OUT_SEED)
    accuracy: dict[str, float] = {"pairs_of_each": count}
    for reason in (*DAMAGES, *CHANGES):
        rng = np.random.default_rng([HELD_OUT_SEED, *reason.encode()])
        choices = [draw_choice(s, HELD_OUT_SEED, i, rng, reason) for i, s in enumerate(scenes)]
        captions = [choice.caption for choice in choices]
        better, worse = (
            preference.score(np.rint(np.stack(half)).astype(np.uint8), captions)
            for half in ([choice.better for choice in choices], [choice.worse for choice in choices])
        )
        accuracy[reason] = float((better > worse).mean())
    accuracy["mean"] = float(np.mean([accuracy[reason] for reason in (*DAMAGES, *CHANGES)]))
    return accuracy


def train_judges(folder: Path, device: str = "cpu", work: Path | None = None) -> dict[str, Any]:
    """Trains all three judges, or goes on where the checkpoints in `work` stand, and ships them to `folder`.

    Each judge's weights, and `judges.json` with the account of their making and their held-out accuracies, are
    written as soon as that judge is ready. Without `work` the checkpoints lie in `folder`/checkpoints. Returns the
    account.
    """
    work = work or folder / "checkpoints"
    claim(work)
    account: dict[str, Any] = {
        "schema": "ditbench/scenes-judges@1",
        "recipe_hash": recipe_hash(),
        "hardware": {"processor": processor_name(), "cores": os.cpu_count(), "accelerator": accelerator_name()},
        "versions": {name: version(name) for name in ("torch", "numpy")},
    }

    def finish(task: Task) -> Path:
        training, path = Training(task, work, device), folder / f"{task.name}.safetensors"
        training.run()
        if isinstance(task, ReaderTask):
            whiten(task.network)
        save_weights(task.network, path, {"recipe": recipe_hash()})
        account[task.name] = {
            "schedule": asdict(task.schedule),
            "parameters": sum(p.numel() for p in task.network.parameters()),
            "captions_seen": task.schedule.steps * task.schedule.batch,
            "seconds": round(training.seconds, 1),
            "final_loss": round(float(np.mean(training.losses[-50:])), 5),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "bytes": path.stat().st_size,
        }
        return path

    def say(name: str, accuracy: dict[str, float]) -> None:
        account[name]["held_out"] = {key: round(value, 4) for key, value in accuracy.items()}
        with replacing(folder / "judges.json") as partial:
            partial.write_text(json.dumps(account, indent=2) + "\n")
        print(json.dumps({"judge": name, "held_out": account[name]["held_out"]}), flush=True)

    # What is measured, and what the next judge starts from, is the file as shipped, half precision and all.
    reader = load_reader(finish(ReaderTask(device)), device)
    say("reader", reader_accuracy(reader))
    dual = load_dual(finish(DualTask(reader.trunk, device)), device)
    say("dual", dual_accuracy(dual))
    preference = load_preference(finish(PreferenceTask(dual, device)), device)
    say("preference", preference_accuracy(preference))
    return account
