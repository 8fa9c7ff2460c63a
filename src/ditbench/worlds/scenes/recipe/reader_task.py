"""What the attribute reader learns: to mark objects and to name them, on slightly imperfect renders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from ditbench.worlds.scenes.grammar import (
    BACKGROUND_COLOURS,
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIZES,
    Scene,
    draw_scene,
    draw_scenes,
)
from ditbench.worlds.scenes.judges.reader import GRID, Reader, to_pixels
from ditbench.worlds.scenes.recipe.defects import imperfect, shifted
from ditbench.worlds.scenes.recipe.training import Schedule, Task, stacked
from ditbench.worlds.scenes.renderer import layout, render, render_batch

# The width of an object's mark on the grid, in cells.
MARK_WIDTH = 0.8
WHITENING_SEED = 3


@dataclass
class Marks:
    """What the reader should say of a batch: per cell, per picture."""

    centre: np.ndarray  # [n, GRID, GRID], 1 at objects' cells, falling off around them
    shape: np.ndarray  # [n, GRID, GRID, len(SHAPES)], a share where two shapes were blended
    colour: np.ndarray  # [n, GRID, GRID]
    size: np.ndarray  # [n, GRID, GRID]
    background: np.ndarray  # [n, 3]: kind, first colour, second colour

    @classmethod
    def empty(cls, count: int) -> Marks:
        grid = (count, GRID, GRID)
        return cls(
            np.zeros(grid, np.float32),
            np.zeros((*grid, len(SHAPES)), np.float32),
            np.zeros(grid, np.int64),
            np.zeros(grid, np.int64),
            np.zeros((count, 3), np.int64),
        )

    def put(self, row: int, scene: Scene, places: Sequence[tuple[float, float]], blend: tuple[int, str, float]) -> None:
        """Marks a scene whose objects' centres are `places`; `blend`: (object, its second shape, that one's share)."""
        steps = np.arange(GRID, dtype=np.float32)
        for i, (thing, (x, y)) in enumerate(zip(scene.things, places, strict=True)):
            column, line = (int(np.clip(v * GRID, 0, GRID - 1)) for v in (x, y))
            distance = (steps[None, :] - column) ** 2 + (steps[:, None] - line) ** 2
            mark = np.exp(-distance / (2 * MARK_WIDTH**2)).astype(np.float32)
            nearer = mark > np.maximum(self.centre[row], 0.05)
            self.centre[row] = np.maximum(self.centre[row], mark)
            shape = np.zeros(len(SHAPES), np.float32)
            chosen, other, share = blend
            shape[SHAPES.index(thing.shape)] = 1 - share if i == chosen else 1
            if i == chosen:
                shape[SHAPES.index(other)] += share
            self.shape[row][nearer] = shape
            self.colour[row][nearer] = COLOURS.index(thing.colour)
            self.size[row][nearer] = SIZES.index(thing.size)
        first, second = scene.background.colours
        self.background[row] = (
            BACKGROUNDS.index(scene.background.kind),
            BACKGROUND_COLOURS.index(first),
            BACKGROUND_COLOURS.index(second),
        )


class ReaderTask(Task):
    """Marks and names; where an object is a blend of two shapes, the reader learns to be unsure: so it is strict."""

    name = "reader"
    blended_share = 0.1
    schedule = Schedule(steps=1200, batch=96, rate=3e-3)

    def __init__(self, device: str = "cpu") -> None:
        torch.manual_seed(self.schedule.seed)
        self.network: Reader = Reader()
        # Cells without an object are the rule: start from there.
        with torch.no_grad():
            self.network.grid.get_parameter("bias")[0] = -3.0
        self.device = device

    def batch(self, step: int) -> tuple[np.ndarray, Marks]:
        """Float pictures [n, height, width, 3] and their marks."""
        rng, count, seed = self.rng(step), self.schedule.batch, self.schedule.seed
        marks, pictures = Marks.empty(count), []
        for row in range(count):
            index = step * count + row
            scene = draw_scene(rng)
            picture = render(scene, seed, index).astype(np.float32)
            blend = (-1, "", 0.0)
            if rng.random() < self.blended_share:
                chosen, share = int(rng.integers(len(scene.things))), float(rng.uniform(0, 0.5))
                shape = SHAPES[int(rng.integers(len(SHAPES)))]
                things = list(scene.things)
                things[chosen] = replace(things[chosen], shape=shape)
                other = render(replace(scene, things=tuple(things)), seed, index)
                picture += np.float32(share) * (other - picture)
                blend = (chosen, shape, share)
            right, down = (int(v) for v in rng.integers(-2, 3, 2))
            height, width, _ = picture.shape
            boxes, _ = layout(scene, seed, index)
            marks.put(row, scene, [(x + right / width, y + down / height) for x, y, _ in boxes], blend)
            pictures.append(imperfect(shifted(picture, right, down), rng))
        return np.stack(pictures), marks

    def loss(self, step: int) -> torch.Tensor:
        pictures, marks = self.batch(step)
        target = {name: torch.from_numpy(value).to(self.device) for name, value in vars(marks).items()}
        cells, words = self.network(stacked(list(pictures), self.device))
        loss = centre_loss(cells["centre"][:, 0], target["centre"])
        # Words are learned where an object is marked, most of all at its middle.
        weight = target["centre"] * (target["centre"] > 0.4)
        total = weight.sum()
        for part, wanted in (
            ("shape", target["shape"].permute(0, 3, 1, 2)),
            ("colour", target["colour"]),
            ("size", target["size"]),
        ):
            loss = loss + (F.cross_entropy(cells[part], wanted, reduction="none") * weight).sum() / total
        for i, part in enumerate(("kind", "first", "second")):
            loss = loss + 0.3 * F.cross_entropy(words[part], target["background"][:, i])
        return loss


@torch.inference_mode()
def whiten(reader: Reader, count: int = 4000, shrink: float = 0.01) -> None:
    """Sets the map that makes the features of `count` training renders white; `shrink` keeps faint directions faint."""
    reader.eval()
    device = reader.feature_mean.device
    images = render_batch(draw_scenes(count, WHITENING_SEED, "train"), WHITENING_SEED)
    pooled = [reader.trunk(to_pixels(images[i : i + 256], device)).pooled().cpu() for i in range(0, count, 256)]
    features = torch.cat(pooled).double()
    spread = features.std(0).clamp(min=1e-6)
    values, vectors = torch.linalg.eigh(torch.cov((features / spread).T))
    reader.feature_mean.copy_(features.mean(0))
    reader.feature_map.copy_(vectors / (values.clamp(min=0) + shrink).sqrt() / spread[:, None])


def centre_loss(logits: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
    """The focal loss of centre maps: cells near a centre are punished less for being marked."""
    chance = logits.sigmoid().clamp(1e-5, 1 - 1e-5)
    at_centre = marks == 1
    hit = -((1 - chance) ** 2) * chance.log() * at_centre
    miss = -((1 - marks) ** 4) * chance**2 * (1 - chance).log() * ~at_centre
    return (hit + miss).sum() / at_centre.sum().clamp(min=1)
