"""World files of the pipelines in miniature, so that tests take the road of the real worlds with weights on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from diffusers import DiffusionPipeline

from ditbench.backbones.families import families
from tests.tiny_pipelines import FRAMES, RECIPES, SIZE, TEXT_LENGTH, build

# What world of the package each is the miniature of.
MODELS = {
    "pixart-alpha": "pixart-alpha-512",
    "pixart-sigma": "pixart-sigma-512",
    "dit": "dit-xl-2-256",
    "sd3": "sd3-medium-512",
    "sd3.5-large": "sd3.5-large-1024",
    "flux-schnell": "flux-schnell-256",
    "flux-dev": "flux-dev-1024",
    "wan": "wan2.1-1.3b-256",
}
NAMES = tuple(MODELS)


def need_family(network_class: str) -> None:
    """Skips a test whose network no block family of this checkout takes apart."""
    if network_class not in families():
        pytest.skip(f"no block family for {network_class}")


def packaged(name: str) -> dict[str, Any]:
    """The file of a world of the package."""
    import ditbench.worlds.real

    body: dict[str, Any] = yaml.safe_load((Path(ditbench.worlds.real.__path__[0]) / f"{name}.yaml").read_text())
    return body


def world_body(name: str) -> dict[str, Any]:
    """The world file of a miniature: that of the published model, with the miniature's sizes."""
    pipeline, body = build(name), packaged(MODELS[name])
    config = pipeline.transformer.config
    body["network"]["config"] = {
        key: list(value) if isinstance(value, tuple) else value for key, value in config.items() if key[0] != "_"
    }
    body["units"] = [{**units, "blocks": 2} for units in body["units"]]
    height, width = (64, 64) if name == "dit" else SIZE
    rows, columns = height // 4, width // 4  # the VAEs in miniature shrink by 4
    body |= {"size": [height, width], "latent": [rows, columns], "tokens": rows * columns // 4}
    if name == "wan":
        frames = (FRAMES - 1) // 4 + 1
        body |= {"frames": FRAMES, "latent": [frames, rows, columns], "tokens": frames * rows * columns // 4}
    if name != "dit":
        body["text_tokens"] = TEXT_LENGTH + (77 if name.startswith("sd3") else 0)
    body |= {"dtype": "float32", "steps": 4}
    body["sampler"] = {"class": type(pipeline.scheduler).__name__}  # with its published settings
    body["guidance"]["scale"] = RECIPES[name].guidance
    return body


def write_world(folder: Path, name: str, **changes: Any) -> str:
    """Writes `worlds/tiny-NAME.yaml` into a working folder; the world's name."""
    path = folder / "worlds" / f"tiny-{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump({**world_body(name), **changes}))
    return path.stem


def reference(pipeline: DiffusionPipeline, name: str, **arguments: Any) -> Any:
    """Pixels of a pipeline that is called as its owner's page shows it, with captions for texts."""
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(**RECIPES[name].arguments, guidance_scale=RECIPES[name].guidance, output_type="np", **arguments)
