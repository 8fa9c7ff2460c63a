"""A real world: a world file, and diffusers' pipeline of a published network."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditbench.engine.layout import Branch, Layout, Shape
from ditbench.faults import Fault
from ditbench.worlds.base import RANDOM, Handle, Pairs, Part, World
from ditbench.worlds.real import weights
from ditbench.worlds.real.worldfile import read_world

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from ditbench.backbones import Backbone

_HERE = Path(__file__).parent
_BACKBONES = Path(__file__).parents[2] / "backbones"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


def offered() -> dict[str, Callable[[], World]]:
    """The worlds of this folder, and those that the working folder has in `worlds/`, each read when it is asked for."""
    found = {path.stem: path for path in sorted(_HERE.glob("*.yaml"))}
    for path in sorted(Path("worlds").resolve().glob("*.yaml")):
        if path.stem in found:
            raise Fault(f"worlds/{path.name}: ditbench has a world {path.stem} already; give the file another name")
        if not _NAME.fullmatch(path.stem):
            raise Fault(f"worlds/{path.name}: a world's name has lower-case letters, digits and . _ - only")
        found[path.stem] = path
    return {name: partial(_read, path) for name, path in found.items()}


@cache
def _read(path: Path) -> DiffusersWorld:
    return DiffusersWorld(path)


class DiffusersWorld(World):
    """A world whose file says all; `weights` is a pipeline's folder, a hub repository or "random"."""

    def __init__(self, path: Path) -> None:
        self.path, self.name, self.file = path, path.stem, read_world(path)
        file = self.file
        self.summary, self.default_steps, self.dtype = file.summary, file.steps, file.dtype
        self.guidance, self.image_size = file.guidance.scale, max(file.size)
        self.family, self.tokens, self.text_tokens = file.network.class_, file.tokens, file.text_tokens
        self.frames, self.frames_per_second = file.frames, file.frames_per_second
        self.size_text = "x".join(map(str, [*([file.frames] if file.frames else []), *file.size]))
        if file.pipeline == "StableDiffusion3Pipeline":
            self.training_levels = "logit-normal"
            self.training_shift = float(file.sampler.settings.get("shift", 1.0))
        # Those who judge any world; reference images, and judges who need them, are still to come.
        self.has_references = self.has_pairs = False
        self.has_captions = file.text_tokens == 0

    @property
    def cfg_branches(self) -> int:
        return 2 if self.guidance > 1 and self.file.guidance.branches in ("batched", "in-turn") else 1

    @property
    def halves(self) -> int:
        return 1 if self.file.guidance.branches == "in-turn" else self.cfg_branches

    def sources(self, stage: str) -> list[Path]:
        if stage == "captions":
            return [_HERE / "classes.py"]
        if stage not in ("embed", "learn", "generate", "time"):
            return []
        own = [self.path, *sorted(_HERE.glob("*.py")), _HERE.parents[1] / "gradients.py"]
        return own if stage == "embed" else [*own, *_family_files(self.file.network.class_)]

    @cached_property
    def layout(self) -> Layout:
        """The network's branches in their order."""
        branches: list[Branch] = []
        first = 0
        for units in self.file.units:
            branches += [Branch(first + block, name) for block in range(units.blocks) for name in units.branches]
            first += units.blocks
        return Layout(tuple(branches))

    def shape(self, steps: int) -> Shape:
        return Shape(steps, self.layout, self.tokens)

    def backbone(self, device: str, text_tokens: int | None = None) -> tuple[Backbone, dict[str, Any]]:
        import torch

        from ditbench.backbones.families import backbone_of
        from ditbench.worlds.real.pipelines import build_network

        backbone = backbone_of(build_network(self.file, device))
        if text_tokens is not None and not self.text_tokens:
            raise Fault(f"world {self.name} reads no text: --text-tokens has no meaning there")
        dtype, length = getattr(torch, self.file.dtype), text_tokens or self.text_tokens
        return backbone, backbone.example_inputs(1, tuple(self.file.latent), length, dtype, device)

    def draw_captions(self, count: int, seed: int, split: str = "evaluation") -> list[str]:
        if not self.has_captions:
            raise Fault(
                f"world {self.name} has no captions of its own: name a UTF-8 text file, one caption a line, "
                "as `captions: {file: FILE}`"
            )
        from ditbench.worlds.real.classes import draw_classes

        return draw_classes(count, seed, split, self.classes)

    @property
    def classes(self) -> int:
        """How many classes the network knows, where classes stand in for captions."""
        return int(self.file.network.config["num_embeds_ada_norm"])

    def references(self, count: int, seed: int) -> NDArray[np.uint8]:
        raise Fault(f"world {self.name} has no reference images yet; judges that need them do not judge it")

    def weights_identity(self, given: str | None) -> str | None:
        return weights.identity(self.name, given)

    def weights_place(self, given: str | None) -> tuple[str, bool]:
        where = weights.told(self.file.hub, given)
        try:
            self.need_weights(given)
        except Fault:
            return where, False
        return where, True

    def need_weights(self, given: str | None) -> None:
        if given != RANDOM:
            weights.find(self.name, self.file.hub, given)

    def no_images(self, given: str | None) -> str | None:
        if given == RANDOM:
            return (
                f"world {self.name} has random weights here: they are for speed, memory and MACs, "
                "images of them mean nothing and are neither drawn nor scored"
            )
        return None

    def load(self, device: str = "cpu", given: str | None = None, part: Part = "all") -> Handle:
        from ditbench.backbones.families import backbone_of
        from ditbench.worlds.real import pipelines

        if given == RANDOM:
            pipeline, name = pipelines.random_pipeline(self.file, device), given
        else:
            found = weights.find(self.name, self.file.hub, given)
            pipeline, name = pipelines.load_pipeline(self.name, self.file, found, device, part), found.name
        if part == "text":
            return Handle(pipeline, None, name)
        backbone = backbone_of(pipeline.transformer)
        if backbone.layout != self.layout:
            has, wants = (f"{each.blocks} blocks of {'/'.join(each.names)}" for each in (backbone.layout, self.layout))
            raise Fault(f"{name} is not of world {self.name}: its network has {has}, the world's {wants}")
        return Handle(pipeline, backbone, name, given)

    def embed(self, handle: Handle, captions: Sequence[str]) -> dict[str, torch.Tensor]:
        from ditbench.worlds.real import texts
        from ditbench.worlds.real.classes import class_of

        if self.file.pipeline == "DiTPipeline":
            return texts.class_tensor([class_of(caption, self.classes) for caption in captions])
        if handle.weights == RANDOM:
            return texts.random_texts(self.file, captions)
        return texts.encode(self.file, handle.pipeline, captions)

    def noise_shape(self) -> tuple[int, ...]:
        channels = int(self.file.network.config["in_channels"])
        # FLUX's pipeline takes latents as tokens, 2 x 2 places of the VAE's in each.
        return (self.tokens, channels) if self.file.pipeline == "FluxPipeline" else (channels, *self.file.latent)

    def sample(
        self, handle: Handle, texts: dict[str, torch.Tensor], negative: dict[str, torch.Tensor], noise: Any, steps: int
    ) -> NDArray[np.uint8]:
        """Images, or videos; none where `no_images` says so, but the network has run all the same."""
        from ditbench.worlds.real.pipelines import sample

        decode = self.no_images(handle.weights) is None
        return sample(self.file, handle.pipeline, texts, negative, noise, steps, decode)

    def draw(
        self, handle: Handle, texts: dict[str, torch.Tensor], negative: dict[str, torch.Tensor], noise: Any, steps: int
    ) -> torch.Tensor:
        from ditbench.worlds.real.pipelines import draw

        return draw(self.file, handle.pipeline, texts, negative, noise, steps)

    def pairs(self, handle: Handle, seed: int, place: str | None = None) -> Pairs:
        from ditbench.pairs import FORMS, open_pairs
        from ditbench.worlds.real.pairs import EncodedPairs

        if handle.weights == RANDOM:
            raise Fault(f"world {self.name} has random weights here: there is nothing to fine-tune")
        if place is None:
            raise Fault(f"world {self.name} has no pairs of its own: name as `learning: {{pairs: PATH}}` {FORMS}")
        reading = handle if not self.text_tokens else self.load(str(handle.pipeline.device), handle.given, "text")
        return EncodedPairs(self, handle, reading, open_pairs(place), seed)

    def training_inputs(
        self, handle: Handle, noisy: torch.Tensor, texts: dict[str, torch.Tensor], times: torch.Tensor
    ) -> dict[str, Any]:
        from ditbench.worlds.real.pairs import network_inputs

        return network_inputs(self, noisy, texts, times)


def _family_files(network_class: str) -> list[Path]:
    """The block family's file and those of its package that it imports, found without importing any."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(_BACKBONES.glob("*.py"))}
    waiting = [name for name, text in texts.items() if f'network_class: ClassVar[str] = "{network_class}"' in text]
    found: set[str] = {"base", "stream"}
    while waiting:
        name = waiting.pop()
        found.add(name)
        imports = [node for node in ast.walk(ast.parse(texts[name])) if isinstance(node, ast.ImportFrom)]
        named = {(node.module or "").removeprefix("ditbench.backbones.") for node in imports}
        waiting += [other for other in named if other in texts and other not in found]
    return [_BACKBONES / f"{name}.py" for name in sorted(found)]
