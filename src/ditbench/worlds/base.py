"""What a world offers to the stages of the workflow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ditbench.faults import Fault

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from ditbench.backbones import Backbone
    from ditbench.engine.layout import Shape


# What of a world to load: all, what draws images of embedded captions, or what embeds captions.
Part = Literal["all", "sampling", "text"]
# What specs and configurations call weights that nobody trained: for speed, memory and MACs only.
RANDOM = "random"


@dataclass
class Handle:
    """A loaded world: its pipeline, and the pipeline's network as units (None where only `text` was asked for).

    `weights` says which weights they are where a world has no weights of its own, `given` where they were taken from.
    """

    pipeline: Any
    backbone: Backbone | None
    weights: str | None = None
    given: str | None = None


class Pairs(Protocol):
    """Images and captions to train on."""

    def batch(self, step: int, count: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """What one step sees, by its number alone: images as the network draws them, and embeddings of captions.

        As in the network's own training some captions are the empty one, so that it can be guided.
        """


class World(ABC):
    """A backbone with its sampler, a source of captions, reference images and judges."""

    name: str
    summary: str
    family: str  # the diffusers class of its network
    default_steps: int
    guidance: float
    dtype: str
    image_size: int
    size_text: str  # [frames x] height x width, for a person
    frames: int | None = None  # of a video; None where it draws images
    frames_per_second: float | None = None
    tokens: int
    text_tokens: int
    has_captions: bool = True  # of its own, besides those of a file
    has_references: bool = True
    has_pairs: bool = True  # of images and captions, to fine-tune on
    # Of the noise levels its network was trained at, where it learned flows: how they lie, and their shift.
    training_levels: Literal["even", "logit-normal"] = "even"
    training_shift: float = 1.0

    @property
    def judged_as(self) -> str:
        """The world whose name the measures of its judges carry: itself, or another whose pictures it draws."""
        return self.name

    @property
    def cfg_branches(self) -> int:
        """How often the network sees each image in a step: twice under classifier-free guidance."""
        return 2 if self.guidance > 1 else 1

    @property
    def halves(self) -> int:
        """How many branches of guidance the network sees in one batch."""
        return self.cfg_branches

    @abstractmethod
    def sources(self, stage: str) -> list[Path]:
        """The world's own files that a stage of the workflow uses, weights included."""

    def measured_speed(self) -> tuple[float, str] | None:
        """Images per second of the full model on one worker, as measured once, and on what; None where nobody did."""
        return None

    def weights_identity(self, given: str | None) -> str | None:
        """What specs say of the weights that a configuration gives this world; None for its own."""
        if given is not None:
            raise Fault(f"weights.{self.name}: world {self.name} ships with its weights; remove the key")
        return None

    @abstractmethod
    def weights_place(self, given: str | None) -> tuple[str, bool]:
        """Where its weights come from, in a few words, and whether they are there."""

    def need_weights(self, given: str | None) -> None:
        """A Fault where its weights, or the `given` ones, are not on this machine; told before a run starts."""
        return  # what is there, or can be made by the workflow itself

    def no_images(self, weights: str | None) -> str | None:
        """Why no images are drawn or scored of it with such weights (as specs name them); None where they are."""
        return None

    @abstractmethod
    def shape(self, steps: int) -> Shape:
        """The sites of a run of `steps` steps."""

    @abstractmethod
    def backbone(self, device: str, text_tokens: int | None = None) -> tuple[Backbone, dict[str, Any]]:
        """The network as units with random weights, and inputs of its forward for one image.

        On the device `meta` it has no weights at all: enough to count what it costs. `text_tokens` stands for
        another length of the text than the world's.
        """

    @abstractmethod
    def draw_captions(self, count: int, seed: int, split: str = "evaluation") -> list[str]:
        """Distinct captions of a split; a longer list of one seed begins with the shorter one."""

    def understands(self, caption: str) -> bool:
        """Whether the world's network and judges were made for such a caption."""
        return True

    @abstractmethod
    def references(self, count: int, seed: int) -> NDArray[np.uint8]:
        """Real images [count, height, width, 3] that generated ones are compared with."""

    @abstractmethod
    def load(self, device: str = "cpu", given: str | None = None, part: Part = "all") -> Handle:
        """The pipeline on `device`, with the world's own weights or the `given` ones."""

    @abstractmethod
    def embed(self, handle: Handle, captions: Sequence[str]) -> dict[str, torch.Tensor]:
        """Text embeddings and masks of captions, first dimension one row per caption."""

    @abstractmethod
    def noise_shape(self) -> tuple[int, ...]:
        """The shape of one image's starting noise."""

    @abstractmethod
    def sample(
        self, handle: Handle, texts: dict[str, torch.Tensor], negative: dict[str, torch.Tensor], noise: Any, steps: int
    ) -> NDArray[np.uint8]:
        """Images [n, height, width, 3] from embeddings and noise, through the pipeline's own sampling loop.

        A world of videos gives [n, frames, height, width, 3].
        """

    @abstractmethod
    def draw(
        self, handle: Handle, texts: dict[str, torch.Tensor], negative: dict[str, torch.Tensor], noise: Any, steps: int
    ) -> torch.Tensor:
        """As `sample`, but images [n, 3, height, width] from -1 to 1, with the gradients of whatever has some.

        A video's frames are images of their own.
        """

    def pairs(self, handle: Handle, seed: int, place: str | None = None) -> Pairs:
        """Images and captions to fine-tune on: those at a `place`, or the world's own, which no evaluation draws."""
        raise Fault(f"world {self.name} has no pairs of images and captions to fine-tune on")

    def training_inputs(
        self, handle: Handle, noisy: torch.Tensor, texts: dict[str, torch.Tensor], times: torch.Tensor
    ) -> dict[str, Any]:
        """The inputs of the network's forward for noisy images at timesteps from 0 to 1000."""
        raise Fault(f"world {self.name} has no pairs of images and captions to fine-tune on")

    def perceptual(self, device: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
        """A perceptual distance of this world's own, of two batches of images as `draw` gives them; None: LPIPS."""
        return None

    def frechet_features(self, device: str) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """What this world's FID compares: features [n, D] of images [n, 3, height, width] from 0 to 255.

        None where methods cannot be fitted by FID, for want of real images.
        """
        return None
