"""The table of what each stage runs must not forget a file: results would then be stale and look fresh."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from ditbench.codehash import PACKAGE, STAGES, code_hash, source_files
from ditbench.faults import Fault

# What stages import without their results depending on it: messages, records' form, and finding things by name.
PLUMBING = {
    "__init__.py",
    "registry.py",
    "faults.py",
    "records.py",
    *("record.py", "forms.py"),  # of learning: they refuse, and change nothing
    "config.py",
    "cells.py",
    "failures.py",
    "mistakes.py",
    "patience.py",
    "watchdog.py",
    "weights.py",
}
# Modules that hold several stages' functions import, inside those functions, what other stages need.
_EYES = {"worlds/scenes/judges/perceptual.py", "worlds/scenes/judges/reader.py"}
# Of the world beside `scenes`, which names them itself.
_MMDIT = {"worlds/scenes/mmdit.py", "backbones/mmdit.py"}
_WORLD = {
    *("worlds/scenes/understanding.py", "engine/ledger.py", "worlds/base.py", "worlds/scenes/renderer.py"),
    "worlds/scenes/pairs.py",  # of trainings
    *_EYES,
    *_MMDIT,
}
_LOOP = {
    f"engine/{name}.py"
    for name in ("costs", "deciders", "fills", "layout", "merging", "outfit", "plan", "run", "selectors", "trace")
}
_DRAWING = {*_LOOP, "backbones/pixart.py", "noise.py", "sampling.py", "storage.py"}
_CAPTION_FILES = {"caption_files/choose.py", "caption_files/options.py"}
_DRAWN = ("grammar", "pairs", "pipeline", "renderer", "understanding")
# What counts the MACs of figures makes cells anew where it changes, and the report with them; the rest is `look`'s.
_FIGURES = {
    *(f"engine/{name}.py" for name in ("costs", "fills", "layout", "ledger", "plan", "routing", "run", "selectors")),
    *("engine/trace.py", "methods/base.py", "methods/tuned.py", "sampling.py"),
    *("generate.py", "learn/job.py", "toca_flops.py"),
}
OTHERS = {
    "captions": {"storage.py", *_CAPTION_FILES},  # of the world's own captions, which need no file
    "caption_files": {"storage.py"},
    "overlap": {"storage.py"},
    "references": _CAPTION_FILES,
    "reference_set": {"generate.py", "storage.py", "judges/networks/base.py"},
    "features": {"generate.py"},  # what names the devices there are
    "embed": _WORLD | _DRAWING | {"begun.py"},
    "spec": {
        f"engine/{name}.py" for name in ("deciders", "fills", "merging", "selectors")
    },  # a plan is made without them
    "generate": _WORLD,
    "learn": {
        *("worlds/base.py", "backbones/pixart.py", "worlds/scenes/renderer.py", "worlds/scenes/understanding.py"),
        *_MMDIT,
        "toca_flops.py",  # of `ditbench macs` alone
        "begun.py",  # of shards
        "learn/real.py",  # of searches alone
        *("judges/networks/base.py", "judges/packages.py", "statistics.py"),  # what a loss that is a judge is made with
    },
    "cost": _DRAWING | _MMDIT | {"worlds/base.py", "begun.py"},
    # Pictures that a new renderer draws are new references, which make new scores by themselves.
    "score": {"storage.py", "generate.py", "worlds/scenes/renderer.py", "worlds/scenes/world.py"},
    "time": _WORLD | {"storage.py", "begun.py"},
    # A count needs a world's network; its pictures, captions and files are other stages'.
    "audit": {"storage.py", "pairs/reading.py", "noise.py", *(f"worlds/scenes/{name}.py" for name in _DRAWN), *_EYES},
    # Of the drawing of figures it needs the places of files alone.
    "look": {
        "begun.py",
        *("backbones/stream.py", "engine/ledger.py", "learn/job.py"),
        *("report/drawn/drawing.py", "report/figures.py", "report/results.py"),
    },
    "publish": {"storage.py", "codehash.py", *_FIGURES},
    "report": {"storage.py", "codehash.py", *_FIGURES},
    "backbone": {"worlds/scenes/recipe/mmdit.py"},
    # The pipeline is read for how it loads the text encoder.
    "mmdit": {"gradients.py", "worlds/scenes/pipeline.py"},
    "judge_weights": {"storage.py", "worlds/scenes/recipe/export.py"},  # for the name of the accelerator
    # The card shows what other stages made: weights, scores and pictures.
    "model_card": {"storage.py", *(f"worlds/scenes/{name}.py" for name in ("grammar", "pipeline", "renderer"))},
}


def module_files(node: ast.ImportFrom) -> list[Path]:
    """The files of this package that an import statement may load."""
    places = [PACKAGE.parent.joinpath(*str(node.module).split("."))]
    places += [places[0] / alias.name for alias in node.names]
    files = [place.with_suffix(".py") for place in places] + [place / "__init__.py" for place in places]
    return [file for file in files if file.exists()]


def imported(path: Path) -> set[Path]:
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    own = [node for node in nodes if isinstance(node, ast.ImportFrom) and str(node.module).startswith("ditbench")]
    return {file for node in own for file in module_files(node)}


OF_METHODS = [("spec", "fora"), ("generate", "fora"), ("cost", "fora"), ("time", "fora"), ("generate", "speca")]
OF_METHODS += [("generate", name) for name in ("tomesd", "sdtm", "toma", "at-edm", "diffcr", "tokencache", "dydit")]
LEARNED = [("learn", name) for name in ("teacache", "l2c", "diffsparse", "plan-search", "diffcr", "full-finetuned")]
LEARNED += [("learn", name) for name in ("tokencache", "dydit")]


@pytest.mark.parametrize(
    ("stage", "method"),
    [*OF_METHODS, *LEARNED, *((stage, None) for stage in STAGES if stage not in dict(OF_METHODS + LEARNED))],
)
def test_the_table_names_what_the_stages_files_import(stage: str, method: str | None) -> None:
    named = {path for path in source_files(stage, "scenes", method) if path.suffix == ".py"}
    needed = {file for path in named for file in imported(path)} - named
    forgotten = {str(file.relative_to(PACKAGE)) for file in needed if file.name not in PLUMBING}
    assert forgotten - OTHERS[stage] == set()


def test_what_decides_the_shipped_weights_is_in_the_hash_of_their_stage() -> None:
    from ditbench.worlds.scenes.recipe import export, judges

    for stage, recipe in (("backbone", export.RECIPE_FILES), ("judge_weights", judges.RECIPE_FILES)):
        assert {PACKAGE / "worlds" / "scenes" / name for name in recipe} <= set(source_files(stage))


def test_weights_count_for_the_stages_that_load_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITBENCH_SCENES_ASSETS", str(tmp_path))
    before = {stage: code_hash(stage, "scenes") for stage in STAGES}
    (tmp_path / "transformer.safetensors").write_bytes(b"other weights")
    changed = {stage for stage in STAGES if code_hash(stage, "scenes") != before[stage]}
    assert changed == {"embed", "learn", "generate", "time"}


def test_an_unknown_stage_is_a_fault() -> None:
    with pytest.raises(Fault, match="no stage 'generat'"):
        code_hash("generat")
