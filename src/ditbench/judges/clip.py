"""CLIP/scenes: how well a picture fits its caption, by the dual encoder of scenes."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from ditbench.judges.base import SCENES, Judge, Pictures, Result, mean_result

if TYPE_CHECKING:
    from ditbench.worlds.scenes.judges.dual import DualEncoder


class Clip(Judge):
    """The mean cosine between pictures and their captions, as it is, not times a hundred."""

    name: ClassVar[str] = "clip"
    summary: ClassVar[str] = "mean cosine of picture and caption in the dual encoder of scenes (clip/scenes)"
    worlds: ClassVar[tuple[str, ...]] = SCENES

    @cached_property
    def dual(self) -> DualEncoder:
        from ditbench.worlds.scenes.judges.dual import load_dual
        from ditbench.worlds.scenes.world import shipped

        return load_dual(shipped("dual"), self.device)

    @classmethod
    def measures(cls) -> tuple[str, ...]:
        return ("clip/scenes",)

    def load(self) -> None:
        _ = self.dual

    def measure(self, pictures: Pictures, references: Pictures, full: Pictures | None = None) -> list[Result]:
        cosines = self.dual.similarity(pictures.images, pictures.captions)
        return [mean_result("clip/scenes", "", "higher", cosines)]
