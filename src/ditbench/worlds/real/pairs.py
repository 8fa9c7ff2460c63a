"""Pairs of a real world: images as its VAE encodes them, captions as its text encoders do, for its network to read."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ditbench.faults import Fault
from ditbench.pairs.reading import cropped

if TYPE_CHECKING:
    from ditbench.pairs import PairSource
    from ditbench.worlds.base import Handle
    from ditbench.worlds.real.world import DiffusersWorld

# Families whose inputs are made here.
TRAINABLE = {"PixArtTransformer2DModel": "PixArt", "DiTTransformer2DModel": "DiT", "SD3Transformer2DModel": "SD3"}
# As PixArt, DiT and SD3 were trained: the share of captions that are the empty one.
DROPPED_CAPTIONS = 0.1


class EncodedPairs:
    """Batches from a source, each epoch in another order: a function of the seed and the step's number."""

    def __init__(self, world: DiffusersWorld, handle: Handle, reading: Handle, source: PairSource, seed: int) -> None:
        if world.family not in TRAINABLE:
            can = " and ".join([", ".join([*TRAINABLE.values()][:-1]), [*TRAINABLE.values()][-1]])
            raise Fault(f"world {world.name}: networks of class {world.family} cannot be fine-tuned yet; {can} can")
        self.world, self.handle, self.reading, self.source, self.seed = world, handle, reading, source, seed
        self._epoch, self._order = -1, list(range(len(source)))

    def batch(self, step: int, count: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Latents [count, channels, height, width], and encoded captions."""
        pairs = [self.source.at(self._number(step * count + i)) for i in range(count)]
        chance = random.Random(f"{self.seed} {step}")
        captions = ["" if chance.random() < DROPPED_CAPTIONS else pair.caption for pair in pairs]
        images = torch.stack([cropped(pair.image, *self.world.file.size) for pair in pairs])
        return self._latents(images, step), self._texts(captions)

    def _number(self, place: int) -> int:
        """Which pair has a place in the long row of all epochs."""
        epoch, within = divmod(place, len(self.source))
        if epoch != self._epoch:
            self._order = list(range(len(self.source)))
            random.Random(f"{self.seed} epoch {epoch}").shuffle(self._order)
            self._epoch = epoch
        return self._order[within]

    @torch.no_grad()
    def _latents(self, images: Tensor, step: int) -> Tensor:
        vae = self.handle.pipeline.vae
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        encoded = vae.encode(images.to(vae.device, vae.dtype)).latent_dist
        drawn = encoded.mean.float().cpu()
        drawn = drawn + encoded.std.float().cpu() * torch.randn(drawn.shape, generator=generator)
        shift = getattr(vae.config, "shift_factor", None) or 0.0
        return (drawn - shift) * float(vae.config.scaling_factor)

    def _texts(self, captions: list[str]) -> dict[str, Tensor]:
        if self.world.file.pipeline == "DiTPipeline":
            from ditbench.worlds.real.classes import class_of

            # The class beyond the last stands for none.
            classes = self.world.classes
            return {"class_labels": torch.tensor([class_of(text, classes) if text else classes for text in captions])}
        texts = self.world.embed(self.reading, captions)
        return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in texts.items()}


def network_inputs(world: DiffusersWorld, noisy: Tensor, texts: dict[str, Tensor], times: Tensor) -> dict[str, Any]:
    """What the forward of the world's network takes."""
    family = world.file.network.class_
    inputs: dict[str, Any] = {"hidden_states": noisy, "timestep": times}
    if family == "PixArtTransformer2DModel":
        conditions: dict[str, Tensor | None] = {"resolution": None, "aspect_ratio": None}
        if world.file.network.config.get("use_additional_conditions", world.file.network.config["sample_size"] == 128):
            height, width = world.file.size
            size = torch.tensor([[height, width]], dtype=noisy.dtype, device=noisy.device)
            conditions = {
                "resolution": size.expand(len(noisy), -1),
                "aspect_ratio": (size[:, :1] / size[:, 1:]).expand(len(noisy), -1),
            }
        return inputs | {
            "encoder_hidden_states": texts["prompt_embeds"],
            "encoder_attention_mask": texts["prompt_attention_mask"].to(noisy.dtype),
            "added_cond_kwargs": conditions,
        }
    if family == "DiTTransformer2DModel":
        return inputs | {"timestep": times.long(), "class_labels": texts["class_labels"]}
    assert family in TRAINABLE
    return inputs | {
        "encoder_hidden_states": texts["prompt_embeds"],
        "pooled_projections": texts["pooled_prompt_embeds"],
    }
