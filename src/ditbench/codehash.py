"""Which code a stage uses: Snakemake sees no edit in src/, so every rule carries this hash as a parameter."""

from __future__ import annotations

import ast
import hashlib
import importlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from ditbench.faults import Fault

PACKAGE = Path(__file__).parent

# What each stage runs, relative to the package; a folder stands for all its modules. The files of a world, its block
# family and its weights are the world's to name (`World.sources`), and a method's file counts only for its own cells.
_ENGINE = (
    *("layout", "plan", "rows", "run", "merging", "trace", "costs"),
    *("fills", "forecasts", "trajectory", "selectors", "scores", "scored", "watch", "chance", "deciders", "changes"),
    *("guidance", "drafts", "keys", "recall", "joint", "outfit"),
)
# Parts of the engine that only the methods run which import them.
_PARTS = {
    f"ditbench.engine.{name}"
    for name in ("dynamic", "each_image", "facility", "matching", "predicted", "ranked", "routing", "widths")
}
_LOOP = tuple(f"engine/{name}.py" for name in _ENGINE)
_LEDGER = tuple(f"engine/{name}.py" for name in ("ledger", "costs", "layout", "plan", "trace"))
_AUDIT_TEMPLATES = tuple(f"report/templates/{name}.html.j2" for name in ("audit", "audit_macros", "audit_table"))
_NETWORKS = (
    *("worlds/base.py", "gradients.py", "worlds/real"),
    *(f"worlds/scenes/{name}.py" for name in ("world", "model", "mmdit", "settings")),
)
_AUDIT_PAGES = ("report/audit.py", "report/audit_texts.py", *_AUDIT_TEMPLATES)
_PAGES = ("report/escapes.py", "report/templating.py", "report/templates/style.css")
# The engine and what counts by it are no part of them: what changes there makes the cells anew, and so the report.
_STUDIES = (
    "report",
    "elsewhere.py",
    "commits.py",
    "study.py",
    "study_figures.py",
    "traits.py",
    "sweeps.py",
    "runs.py",
    "shapes.py",
    "clocks.py",
    "macs.py",
)
_SCENES = tuple(f"worlds/scenes/{name}.py" for name in ("grammar", "renderer", "settings", "model"))
_RECIPE = "worlds/scenes/recipe"
STAGES: dict[str, tuple[str, ...]] = {
    "captions": ("caption_sets.py",),
    "caption_files": ("caption_sets.py", "caption_files"),
    "overlap": ("caption_files",),
    "references": ("caption_sets.py", "storage.py"),
    "reference_set": ("reference_sets.py", "pictures.py"),
    "features": ("reference_sets.py", "pictures.py", "storage.py", "judges/networks", "judges/weights.py"),
    "embed": ("generate.py", "heap.py"),
    "learn": (
        *("learn/lesson.py", "learn/job.py", "learn/processes.py", "learn/sources.py", "learn/states.py"),
        *("generate.py", "heap.py", "sampling.py", "noise.py", "storage.py", *_LOOP, *_LEDGER, "methods/base.py"),
    ),
    "spec": ("engine/layout.py", "engine/plan.py", "methods/base.py"),
    "generate": (
        "generate.py",
        "begun.py",
        "heap.py",
        "sampling.py",
        "noise.py",
        "storage.py",
        *_LOOP,
        "methods/base.py",
    ),
    "cost": ("generate.py", "heap.py", *_LEDGER),
    "score": ("score.py", "statistics.py", "reference_sets.py", "pictures.py", "judges"),
    "time": (
        "stopwatch.py",
        "stopwatch_modes.py",
        "energy.py",
        "engine/compiling.py",
        "engine/graphs.py",
        "neighbours.py",
        "heap.py",
        "generate.py",
        "sampling.py",
        "noise.py",
        *_LOOP,
        "methods/base.py",
    ),
    "audit": (
        "audit",
        "macs.py",
        "toca_flops.py",
        "sampling.py",
        "study.py",
        "study_figures.py",
        "traits.py",
        "engine",
        "backbones",
        "methods",
        *_NETWORKS,
        *_AUDIT_PAGES,
        *_PAGES,
    ),
    "look": (
        *("inspect/look.py", "inspect/routers.py", "inspect/redundancy.py"),
        *(f"report/drawn/{name}.py" for name in ("looked", "router_maps", "redundancy_curves")),
        *("generate.py", "heap.py", "sampling.py", "noise.py", "storage.py", *_LOOP, "methods/base.py"),
        *("engine/routing.py", "methods/tuned.py", "study.py", "study_figures.py", "traits.py"),
    ),
    "publish": _STUDIES,
    "report": _STUDIES,
    # How the embedded world's weights are made: what `recipe_hash` counts, and what writes the files.
    "backbone": (*_SCENES, *(f"{_RECIPE}/{name}.py" for name in ("lesson", "backbone", "export"))),
    "mmdit": (
        *_SCENES,
        *(f"worlds/scenes/{name}.py" for name in ("mmdit", "pipeline")),
        *(f"{_RECIPE}/{name}.py" for name in ("lesson", "backbone", "mmdit", "export")),
    ),
    "judge_weights": (
        "worlds/scenes/grammar.py",
        "worlds/scenes/renderer.py",
        "worlds/scenes/judges",
        *(f"{_RECIPE}/{name}.py" for name in ("judges", "changes", "defects", "training")),
        *(f"{_RECIPE}/{name}_task.py" for name in ("reader", "dual", "preference")),
    ),
    "model_card": (f"{_RECIPE}/card.py", "worlds/scenes/settings.py"),
}
# Modules of those folders that the stage does not run.
_APART = {
    "report": ("report/tracking", *_AUDIT_PAGES),
    "publish": _AUDIT_PAGES,
}


def code_hash(stage: str, world: str | None = None, method: str | None = None) -> str:
    """Sixteen hex digits over the bytes of everything a stage runs."""
    if stage not in STAGES:
        raise Fault(f"no stage {stage!r}; possible: {', '.join(STAGES)}")
    digest = hashlib.sha256()
    for path in source_files(stage, world, method):
        digest.update(path.name.encode() + b"\0" + (path.read_bytes() if path.exists() else b"missing") + b"\0")
    return digest.hexdigest()[:16]


def source_files(stage: str, world: str | None = None, method: str | None = None) -> list[Path]:
    """The files that a stage runs, for a world and a method; some may be missing (weights that are not there yet)."""
    apart = set(_expanded(_APART.get(stage, ())))
    return sorted(set(_files(stage, world, method)) - apart)


def _files(stage: str, world: str | None, method: str | None) -> Iterator[Path]:
    yield from _expanded(STAGES[stage])
    if world is not None:
        from ditbench.worlds import get_world

        yield from get_world(world).sources(stage)
    if method is not None:
        yield from _method_files(method)
        if stage == "learn":
            yield from _learner_files(method)


def _expanded(names: Iterable[str]) -> Iterator[Path]:
    """Files of the package, those of its folders among them."""
    for place in (PACKAGE / name for name in names):
        if place.is_dir():
            yield from (p for p in place.rglob("*") if p.suffix in (".py", ".yaml", ".css", ".html", ".js", ".j2"))
        else:
            yield place


# What learners use beside the loop that all methods run in.
_PLANS = (
    *(f"learn/{name}.py" for name in ("budget", "gates", "losses", "optimisers", "relaxed", "site_times", "teacher")),
    *("solve", "gradients.py", "macs.py", "methods/full.py"),
    *("judges/base.py", "judges/lpips.py", "judges/weights.py"),
)
_LEARNERS = {
    "calibration": ("engine/observer.py",),
    "dynamic": (
        *(f"learn/{name}.py" for name in ("adapters", "diffusion", "routed", "shared", "tuning")),
        *("engine/routing.py", "methods/diffcr.py", "pairs", "pictures.py"),
    ),
    "merging": (),
    "routers": ("macs.py",),
    "tuning": (
        *(f"learn/{name}.py" for name in ("adapters", "diffusion", "routed", "shared")),
        "engine/routing.py",
        *("methods/diffcr.py", "pairs", "pictures.py"),
    ),
    "predictor": ("learn/mixed.py", "learn/adapters.py"),
    "sparsity": _PLANS,
    "search": (
        *("learn/sparsity.py", "learn/real.py", "methods/diffsparse.py", "statistics.py", *_PLANS),
        *("judges/inception_fid.py", "judges/references.py", "judges/sets.py", "judges/networks"),
        *("reference_sets.py", "pictures.py"),
    ),
}


def _learner_files(method: str) -> Iterator[Path]:
    """The learner of a method, and what it looks with."""
    from ditbench.methods.registry import method_class

    learner = method_class(method).learner
    if learner is not None:
        yield from _expanded([f"learn/{learner}.py", *_LEARNERS[learner]])


def _method_files(method: str) -> Iterator[Path]:
    """A method's file, other methods' files that it imports, and parts of the engine that few methods have."""
    from ditbench.methods.registry import method_class

    waiting, seen = [method_class(method).__module__], set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        path = Path(str(importlib.import_module(name).__file__))
        yield path
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        imported = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
        waiting += [module for module in imported if module.startswith("ditbench.methods.") or module in _PARTS]
