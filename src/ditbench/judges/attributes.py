"""Did the picture show what was asked? Read by the attribute reader of scenes; the counterpart of GenEval."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from ditbench.faults import Fault
from ditbench.judges.base import SCENES, Judge, Pictures, Result, share_result

if TYPE_CHECKING:
    import numpy as np

    from ditbench.worlds.scenes.judges.reader import Reader, Verdict


class Attributes(Judge):
    """Shares of pictures: everything right; every object's colour and shape right; relation right (of two objects)."""

    name: ClassVar[str] = "attributes"
    summary: ClassVar[str] = "shares of pictures that show all, the objects, the relation that the caption asks for"
    worlds: ClassVar[tuple[str, ...]] = SCENES
    needs_grammar: ClassVar[bool] = True

    @cached_property
    def reader(self) -> Reader:
        from ditbench.worlds.scenes.judges.reader import load_reader
        from ditbench.worlds.scenes.world import shipped

        return load_reader(shipped("reader"), self.device)

    @classmethod
    def measures(cls) -> tuple[str, ...]:
        return ("attributes/scenes", "objects/scenes", "relations/scenes")

    def load(self) -> None:
        _ = self.reader

    def measure(self, pictures: Pictures, references: Pictures, full: Pictures | None = None) -> list[Result]:
        import numpy as np

        verdicts = self.verdicts(pictures.images, pictures.captions)
        related = [v.relation_right for v in verdicts]
        measures = {
            "attributes/scenes": np.array([v.everything_right for v in verdicts], dtype=float),
            "objects/scenes": np.array([v.objects_right for v in verdicts], dtype=float),
            "relations/scenes": np.array([np.nan if right is None else right for right in related], dtype=float),
        }
        results = [share_result(name, flags) for name, flags in measures.items()]
        return [result for result in results if result is not None]

    def verdicts(self, images: np.ndarray, captions: list[str]) -> list[Verdict]:
        """What of each caption its picture shows."""
        from ditbench.worlds.scenes.grammar import CaptionError, parse
        from ditbench.worlds.scenes.judges.reader import check

        try:
            scenes = [parse(caption) for caption in captions]
        except CaptionError as error:
            raise Fault(
                f"the judge `attributes` reads captions of the scenes grammar only: {error}; leave it out of `judges`"
            ) from error
        readings = self.reader.readings(images)
        return [check(s, r.objects, r.background) for s, r in zip(scenes, readings, strict=True)]
