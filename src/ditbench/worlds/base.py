"""What a world offers to the stages of the workflow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from ditbench.backbones import Backbone
    from ditbench.engine.layout import Shape


@dataclass
class Handle:
    """A loaded world: its pipeline, and the pipeline's network as units."""

    pipeline: Any
    backbone: Backbone


class World(ABC):
    """A backbone with its sampler, a source of captions, reference images and judges."""

    name: ClassVar[str]
    summary: ClassVar[str]
    default_steps: ClassVar[int]
    guidance: ClassVar[float]
    dtype: ClassVar[str]
    image_size: ClassVar[int]
    judge_names: ClassVar[tuple[str, ...]]

    @property
    def cfg_branches(self) -> int:
        """How often the network sees each image in a step: twice under classifier-free guidance."""
        return 2 if self.guidance > 1 else 1

    @abstractmethod
    def sources(self, stage: str) -> list[Path]:
        """The world's own files that a stage of the workflow uses, weights included."""

    def measured_speed(self) -> tuple[float, str] | None:
        """Images per second of the full model on one worker, as measured once, and on what; None where nobody did."""
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
    def load(self, device: str = "cpu") -> Handle:
        """The pipeline with its weights, on `device`."""

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
        """Images [n, height, width, 3] from embeddings and noise, through the pipeline's own sampling loop."""
