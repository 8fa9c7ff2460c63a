"""Trains the backbone and its text encoder on renders: flow matching, small pictures first.

The caption decides a shape only while noise still hides it, and a large flat object shows through much noise:
the noise levels of training are therefore shifted towards the noisy end, more so for larger pictures (more
pixels average more noise away). Muon drives the matrices of the blocks, AdamW the rest. The run resumes from
its checkpoint at any time; what it sees is a function of (seed, image number) alone.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import PixArtTransformer2DModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn

from ditbench.faults import Fault
from ditbench.worlds.scenes import model as networks
from ditbench.worlds.scenes.grammar import draw_scene
from ditbench.worlds.scenes.recipe.lesson import refit, teach
from ditbench.worlds.scenes.renderer import render_batch


@dataclass(frozen=True)
class Stage:
    """A run of images of one size.

    `shift` moves noise levels towards the noisy end (1 = uniform); `average` is the decay of the averaged weights.
    """

    size: int
    images: int
    batch: int
    shift: float
    average: float = 0.9985

    @property
    def pixels(self) -> int:
        """What the stage computes, in pixels."""
        return self.images * self.size**2


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the trained weights."""

    seed: int = 0
    stages: tuple[Stage, ...] = (Stage(32, 230_400, 64, 2.5), Stage(64, 40_000, 32, 4.0, 0.995))
    muon_rate: float = 3e-3
    adam_rate: float = 2e-3
    muon_decay: float = 0.02
    warmup_images: int = 6_000
    # The learning rate falls linearly to zero over the last part of the computation.
    cooldown_share: float = 0.3
    drop_caption: float = 0.1
    # After this many images the text encoder is taught which word belongs to which object (lesson.py). 0 is best; the
    # shipped weights were taught this late, when it was seen that pictures alone do not teach it.
    lesson_at: int = 211_200

    @property
    def images(self) -> int:
        return sum(stage.images for stage in self.stages)

    def stage_at(self, seen: int) -> Stage:
        for stage in self.stages:
            if seen < stage.images:
                return stage
            seen -= stage.images
        return self.stages[-1]

    def rate_at(self, seen: int) -> float:
        """The share of the full learning rate after `seen` images."""
        done, earlier = 0, 0
        for stage in self.stages:
            done += min(max(seen - earlier, 0), stage.images) * stage.size**2
            earlier += stage.images
        work = sum(stage.pixels for stage in self.stages)
        left = (1 - done / work) / self.cooldown_share
        return min(1.0, (seen + 1) / self.warmup_images, max(left, 0.0))


class Pair(nn.Module):
    """The transformer and the text encoder, trained together."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer: PixArtTransformer2DModel = networks.build_transformer()
        self.text_encoder = networks.build_text_encoder()
        self.transformer.set_attn_processor(AttnProcessor())

    def forward(self, noisy: torch.Tensor, sigma: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        text = self.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        return self.transformer(
            noisy,
            encoder_hidden_states=text.to(noisy.dtype),
            encoder_attention_mask=mask.to(noisy.dtype),
            timestep=sigma * 1000,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]


@dataclass
class Progress:
    """Where a run stands."""

    seen: int = 0
    seconds: float = 0.0
    taught: bool = False
    history: list[dict[str, float]] = field(default_factory=list)


class Training:
    """A resumable training run in `folder`."""

    def __init__(self, recipe: Recipe, folder: Path, device: str = "cpu") -> None:
        self.recipe, self.folder, self.device = recipe, folder, device
        folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(recipe.seed)
        self.tokenizer = networks.build_tokenizer()
        self.pair: Any = self.make_pair().to(device)
        self.average = {name: p.detach().clone() for name, p in self.pair.named_parameters()}
        matrices, rest = self.split_parameters()
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                matrices,
                lr=recipe.muon_rate,
                weight_decay=recipe.muon_decay,
                momentum=0.95,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(rest, lr=recipe.adam_rate, betas=(0.9, 0.98), weight_decay=0.0),
        ]
        self.full_rates = [recipe.muon_rate, recipe.adam_rate]
        self.progress = Progress()
        if self.checkpoint.exists():
            self.load()

    def make_pair(self) -> nn.Module:
        """The networks that learn: `transformer` and `text_encoder`, called as `Pair` is."""
        return Pair()

    def split_parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The matrices of the blocks (for Muon) and all the rest (for AdamW)."""
        blocks = self.pair.transformer.transformer_blocks
        matrices = [p for p in blocks.parameters() if p.ndim == 2 and min(p.shape) > 16]
        chosen = {id(p) for p in matrices}
        return matrices, [p for p in self.pair.parameters() if id(p) not in chosen]

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.pt"

    def load(self) -> None:
        state: dict[str, Any] = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        if state["recipe"] != repr(self.recipe):
            raise Fault(
                f"{self.checkpoint} was trained by another recipe; remove it to train anew, or name another folder"
            )
        self.pair.load_state_dict(state["pair"])
        self.average = state["average"]
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.progress = Progress(**state["progress"])

    def save(self) -> None:
        state = {
            "pair": self.pair.state_dict(),
            "average": self.average,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": asdict(self.progress),
            "recipe": repr(self.recipe),
        }
        partial = self.checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.checkpoint)

    def batch(self, stage: Stage) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pictures in [-1, 1], noise levels, token ids, masks: a function of (seed, images seen)."""
        rng = np.random.default_rng([self.recipe.seed, self.progress.seen])
        scenes = [draw_scene(rng) for _ in range(stage.batch)]
        pixels = render_batch(scenes, self.recipe.seed, self.progress.seen, stage.size)
        captions = [scene.caption() if rng.random() >= self.recipe.drop_caption else "" for scene in scenes]
        # Levels in equal strata: less variance between batches than independent draws.
        level = (rng.permutation(stage.batch) + rng.random(stage.batch)) / stage.batch
        sigma = stage.shift * level / (1 + (stage.shift - 1) * level)
        ids, mask = networks.tokenize(self.tokenizer, captions)
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        return (
            images.to(self.device),
            torch.from_numpy(sigma).float().to(self.device),
            ids.to(self.device),
            mask.to(self.device),
        )

    def loss(self, stage: Stage) -> torch.Tensor:
        images, sigma, ids, mask = self.batch(stage)
        generator = torch.Generator(self.device).manual_seed(self.progress.seen * 7919 + self.recipe.seed)
        noise = torch.randn(images.shape, generator=generator, device=self.device)
        level = sigma[:, None, None, None]
        noisy = (1 - level) * images + level * noise
        flow = torch.func.functional_call(self.pair, self.computing(stage), (noisy.bfloat16(), sigma, ids, mask))
        return F.mse_loss(flow.float(), noise - images)

    def computing(self, stage: Stage) -> dict[str, torch.Tensor]:
        """What a step computes with: weights stay in fp32, the transformer's are bf16 copies."""
        return {
            name: tensor.bfloat16() if name.startswith("transformer.") else tensor
            for name, tensor in [*self.pair.named_parameters(), *self.pair.named_buffers()]
        }

    def lesson(self) -> None:
        """Replaces the text encoder by a taught one, and fits the transformer's projection of text to it."""
        transformer, former = self.pair.transformer, self.pair.text_encoder
        encoder = networks.build_text_encoder().to(self.device)
        teach(encoder, self.tokenizer, self.recipe.seed)
        if self.progress.seen > 0:
            refit(transformer.caption_projection, encoder, former, self.tokenizer, self.recipe.seed)
        former.load_state_dict(encoder.state_dict())
        for name, parameter in self.pair.named_parameters():
            if name.startswith(("text_encoder.", "transformer.caption_projection.")):
                self.average[name].copy_(parameter.detach())
                self.optimizers[1].state.pop(parameter, None)
        self.progress.taught = True

    def step(self) -> float:
        recipe, progress = self.recipe, self.progress
        if progress.seen >= recipe.lesson_at and not progress.taught:
            self.lesson()
        stage = recipe.stage_at(progress.seen)
        for optimizer, rate in zip(self.optimizers, self.full_rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * recipe.rate_at(progress.seen)
        loss = self.loss(stage)
        loss.backward()
        nn.utils.clip_grad_norm_(self.pair.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        progress.seen += stage.batch
        decay = min(stage.average, progress.seen / (progress.seen + 20 * stage.batch))
        with torch.no_grad():
            for name, parameter in self.pair.named_parameters():
                self.average[name].lerp_(parameter, 1 - decay)
        return loss.item()

    def run(self, save_every: float = 300.0) -> None:
        """Trains to the end of the recipe, saving every `save_every` seconds."""
        began, saved, losses = time.monotonic(), time.monotonic(), []
        while self.progress.seen < self.recipe.images:
            losses.append(self.step())
            if len(losses) == 100 or self.progress.seen >= self.recipe.images:
                now = time.monotonic()
                self.progress.seconds += now - began
                rate = len(losses) * self.recipe.stage_at(self.progress.seen - 1).batch / (now - began)
                row = {
                    "seen": self.progress.seen,
                    "seconds": round(self.progress.seconds, 1),
                    "loss": float(np.mean(losses)),
                    "images_per_second": round(rate, 1),
                }
                self.progress.history.append(row)
                print(json.dumps(row), flush=True)
                began, losses = now, []
                if now - saved > save_every:
                    self.save()
                    saved = now
        self.save()
