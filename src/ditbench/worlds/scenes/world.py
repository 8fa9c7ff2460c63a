"""The embedded world: captioned pictures of coloured shapes, drawn by a PixArt, or by an MMDiT that reads alike."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditbench.engine.layout import Layout, Shape
from ditbench.faults import Fault
from ditbench.worlds.base import Handle, Pairs, Part, World
from ditbench.worlds.scenes import settings

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from ditbench.backbones import Backbone


def assets_folder() -> Path:
    """Where the shipped weights are: $DITBENCH_SCENES_ASSETS, else assets/scenes of the repository."""
    given = os.environ.get("DITBENCH_SCENES_ASSETS")
    return Path(given) if given else Path(__file__).parents[4] / "assets" / "scenes"


def shipped(judge: str) -> Path:
    """The weights of a judge; a Fault where they are not the file that the account of the judges' making tells of.

    Another network's weights of the same form would load, and judge.
    """
    from ditbench.storage import hash_file

    path = assets_folder() / f"{judge}.safetensors"
    try:
        told = json.loads(path.with_name("judges.json").read_text(encoding="utf-8"))[judge]["sha256"]
    except (OSError, ValueError, LookupError, TypeError):
        return path  # no account of it
    if path.is_file() and hash_file(path) != told:
        raise Fault(
            f"{path} is not the file that judges.json beside it tells of (another hash); restore it from the "
            "repository, or train it anew with `ditbench assets train-judges`"
        )
    return path


class Scenes(World):
    """Ships with the repository and needs no download."""

    name = "scenes"
    summary = "coloured shapes on patterned backgrounds, 64 x 64, a PixArt of 5 M parameters"
    family = "PixArtTransformer2DModel"
    default_steps = settings.STEPS
    guidance = settings.GUIDANCE
    dtype = settings.DTYPE
    image_size = settings.IMAGE_SIZE
    size_text = f"{settings.IMAGE_SIZE}x{settings.IMAGE_SIZE}"
    tokens = settings.TOKENS
    text_tokens = settings.TEXT_LENGTH
    training_shift = 4.0  # of the recipe's last stage
    weights_file = "transformer.safetensors"
    quality_file = "quality.json"  # of what it draws, and how fast
    network_files: tuple[str, ...] = ()  # besides those of the PixArt
    family_file = "pixart"  # of its blocks

    def sources(self, stage: str) -> list[Path]:
        here, assets = Path(__file__).parent, assets_folder()
        drawing = ["world.py", "settings.py", "model.py", "pipeline.py", "grammar.py", *self.network_files]
        looking = ["judges/perceptual.py", "judges/reader.py", "judges/trunk.py", "judges/weights.py"]
        weights = [assets / self.weights_file, assets / "text_encoder.safetensors"]
        files = {
            "captions": ["grammar.py"],
            "references": ["grammar.py", "renderer.py"],
            "embed": drawing,
            "generate": drawing,
            "learn": [*drawing, *looking, "pairs.py", "renderer.py"],
            "time": drawing,
            "score": [
                "grammar.py",
                "renderer.py",
                *sorted(str(p.relative_to(here)) for p in (here / "judges").glob("*.py")),
            ],
        }
        found = [here / name for name in files.get(stage, [])]
        backbones = here.parents[1] / "backbones"
        if stage in ("embed", "learn", "generate", "time"):
            found += [*weights, here.parents[1] / "gradients.py"]
        if stage == "learn":
            found += [assets / "reader.safetensors", here / "renderer.py"]
        if stage in ("learn", "generate", "time"):
            found += [backbones / f"{name}.py" for name in ("base", self.family_file, "stream", "linear")]
        if stage == "score":
            found += [assets / f"{name}.safetensors" for name in ("reader", "dual", "preference")]
        return found

    def measured_speed(self) -> tuple[float, str] | None:
        path = assets_folder() / self.quality_file
        if not path.exists():
            return None
        full = json.loads(path.read_text(encoding="utf-8"))["arms"]["full"]
        hardware = full["provenance"]["hardware"]
        return full["images_per_second"], hardware["gpu"] or hardware["cpu"]

    def weights_place(self, given: str | None) -> tuple[str, bool]:
        return "ships with the repository", (assets_folder() / self.weights_file).exists()

    def shape(self, steps: int) -> Shape:
        return Shape(steps, Layout.regular(settings.BLOCKS, ("self", "cross", "mlp")), settings.TOKENS)

    def backbone(self, device: str, text_tokens: int | None = None) -> tuple[Backbone, dict[str, Any]]:
        import torch

        with torch.device(device):
            backbone = self._units(self._network().eval().requires_grad_(False))
        size = (settings.IMAGE_SIZE, settings.IMAGE_SIZE)
        dtype = getattr(torch, settings.DTYPE)
        # torch's own `to`: diffusers' warns of fp32 modules that this network does not have.
        torch.nn.Module.to(backbone.network, dtype)
        return backbone, backbone.example_inputs(1, size, text_tokens or settings.TEXT_LENGTH, dtype, device)

    def _network(self) -> Any:
        from ditbench.worlds.scenes.model import build_transformer

        return build_transformer()

    def _units(self, network: Any) -> Backbone:
        from ditbench.backbones.pixart import PixArtBackbone

        return PixArtBackbone(network)

    def draw_captions(self, count: int, seed: int, split: str = "evaluation") -> list[str]:
        from ditbench.worlds.scenes.grammar import draw_scenes

        return [scene.caption() for scene in draw_scenes(count, seed, split)]

    def understands(self, caption: str) -> bool:
        from ditbench.worlds.scenes.understanding import understood

        return understood(caption)

    def references(self, count: int, seed: int) -> NDArray[np.uint8]:
        from ditbench.worlds.scenes.grammar import draw_scenes
        from ditbench.worlds.scenes.renderer import render_batch

        return render_batch(draw_scenes(count, seed, "evaluation"), seed, size=self.image_size)

    def load(self, device: str = "cpu", given: str | None = None, part: Part = "all") -> Handle:
        from ditbench.worlds.scenes.pipeline import load_pipeline

        pipeline = load_pipeline(assets_folder(), device)
        return Handle(pipeline, self._units(pipeline.transformer))

    def embed(self, handle: Handle, captions: Sequence[str]) -> dict[str, torch.Tensor]:
        from ditbench.worlds.scenes.pipeline import embed

        return embed(handle.pipeline, captions)

    def noise_shape(self) -> tuple[int, ...]:
        return (settings.CHANNELS, settings.IMAGE_SIZE, settings.IMAGE_SIZE)

    def sample(
        self, handle: Handle, texts: dict[str, torch.Tensor], negative: dict[str, torch.Tensor], noise: Any, steps: int
    ) -> NDArray[np.uint8]:
        from ditbench.worlds.scenes.pipeline import as_bytes

        return as_bytes(self._drawn(handle, texts, negative, noise, steps))

    def draw(
        self, handle: Handle, texts: dict[str, torch.Tensor], negative: dict[str, torch.Tensor], noise: Any, steps: int
    ) -> torch.Tensor:
        return self._drawn(handle, texts, negative, noise, steps).clamp(-1, 1)

    def _drawn(
        self, handle: Handle, texts: dict[str, torch.Tensor], negative: dict[str, torch.Tensor], noise: Any, steps: int
    ) -> torch.Tensor:
        from ditbench.worlds.scenes.pipeline import draw

        return draw(handle.pipeline, texts, negative, noise, steps, self.guidance)

    def pairs(self, handle: Handle, seed: int, place: str | None = None) -> Pairs:
        if place is not None:
            raise Fault(f"learning.pairs: world {self.name} renders its own pairs; remove the key")
        from ditbench.worlds.scenes.pairs import Renders

        return Renders(partial(self.embed, handle), seed)

    def training_inputs(
        self, handle: Handle, noisy: torch.Tensor, texts: dict[str, torch.Tensor], times: torch.Tensor
    ) -> dict[str, Any]:
        return {
            "hidden_states": noisy,
            "encoder_hidden_states": texts["text"],
            "encoder_attention_mask": texts["mask"].to(noisy.dtype),
            "timestep": times,
            "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
        }

    def perceptual(self, device: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        from ditbench.worlds.scenes.judges.perceptual import Perceptual
        from ditbench.worlds.scenes.judges.reader import load_reader

        return Perceptual(load_reader(shipped("reader"), device).trunk)

    def frechet_features(self, device: str) -> Callable[[torch.Tensor], torch.Tensor]:
        from ditbench.worlds.scenes.judges.reader import load_reader

        return load_reader(shipped("reader"), device).features


class ScenesMMDiT(Scenes):
    """The same pictures, captions and judges, drawn by an MMDiT as Stable Diffusion 3's."""

    name = "scenes-mmdit"
    summary = "the pictures of `scenes`, an MMDiT (as SD3) of 6 M parameters"
    family = "SD3Transformer2DModel"
    weights_file = "mmdit.safetensors"
    quality_file = "quality-mmdit.json"
    network_files = ("mmdit.py",)
    family_file = "mmdit"

    @property
    def judged_as(self) -> str:
        return Scenes.name

    def shape(self, steps: int) -> Shape:
        return Shape(steps, Layout.regular(settings.MMDIT_BLOCKS, ("attn", "mlp")), settings.TOKENS)

    def _network(self) -> Any:
        from ditbench.worlds.scenes.mmdit import build_transformer

        return build_transformer()

    def _units(self, network: Any) -> Backbone:
        from ditbench.backbones.mmdit import MMDiTBackbone

        return MMDiTBackbone(network)

    def load(self, device: str = "cpu", given: str | None = None, part: Part = "all") -> Handle:
        from ditbench.worlds.scenes.mmdit import load_pipeline

        pipeline = load_pipeline(assets_folder(), device)
        return Handle(pipeline, self._units(pipeline.transformer))

    def embed(self, handle: Handle, captions: Sequence[str]) -> dict[str, torch.Tensor]:
        from ditbench.worlds.scenes.mmdit import embed

        return embed(handle.pipeline, captions)

    def _drawn(
        self, handle: Handle, texts: dict[str, torch.Tensor], negative: dict[str, torch.Tensor], noise: Any, steps: int
    ) -> torch.Tensor:
        from ditbench.worlds.scenes.mmdit import draw

        return draw(handle.pipeline, texts, negative, noise, steps, self.guidance)

    def training_inputs(
        self, handle: Handle, noisy: torch.Tensor, texts: dict[str, torch.Tensor], times: torch.Tensor
    ) -> dict[str, Any]:
        return {
            "hidden_states": noisy,
            "encoder_hidden_states": texts["text"],
            "pooled_projections": texts["pooled"],
            "timestep": times,
        }
