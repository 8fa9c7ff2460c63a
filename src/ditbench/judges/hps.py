"""HPS/scenes: how much a picture would be preferred, by the preference model of scenes."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from ditbench.judges.base import SCENES, Judge, Pictures, Result, mean_result

if TYPE_CHECKING:
    from ditbench.worlds.scenes.judges.preference import Preference


class Hps(Judge):
    """The mean preference score; its zero has no meaning, differences do."""

    name: ClassVar[str] = "hps"
    summary: ClassVar[str] = "mean score of the preference model of scenes, 100 x cosine (hps/scenes)"
    worlds: ClassVar[tuple[str, ...]] = SCENES

    @cached_property
    def preference(self) -> Preference:
        from ditbench.worlds.scenes.judges.preference import load_preference
        from ditbench.worlds.scenes.world import shipped

        return load_preference(shipped("preference"), self.device)

    @classmethod
    def measures(cls) -> tuple[str, ...]:
        return ("hps/scenes",)

    def load(self) -> None:
        _ = self.preference

    def measure(self, pictures: Pictures, references: Pictures, full: Pictures | None = None) -> list[Result]:
        scores = self.preference.score(pictures.images, pictures.captions)
        return [mean_result("hps/scenes", "", "higher", scores)]
