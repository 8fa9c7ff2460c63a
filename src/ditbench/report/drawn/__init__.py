"""The figures that a study asks for under `figures`: a picture, the data behind it, and why what is missing is missing.

Every kind has one function that takes a study, its figure and the results, and returns a `Drawing`.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ditbench.report.drawn.drawing import Drawing
from ditbench.report.figures import INK

if TYPE_CHECKING:
    from ditbench.report.results import Results
    from ditbench.study import Study
    from ditbench.study_figures import Figure

__all__ = ["Drawing", "draw", "drawings", "files_of"]


# Of what was seen of networks, in archives of arrays that have no seal.
_LOOKED = ("routers", "correlation", "redundancy")
_UNREAD = (OSError, EOFError, LookupError, ValueError, zipfile.BadZipFile, zlib.error)


def draw(study: Study, figure: Figure, results: Results) -> Drawing:
    """One figure of a study, all words and lines of it in the page's ink: black would be lost on a dark page."""
    import matplotlib

    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    with matplotlib.rc_context({**dict.fromkeys(inked, INK), "text.parse_math": False}):
        try:
            return _kinds()[figure.kind](study, figure, results)
        except _UNREAD as error:
            if figure.kind not in _LOOKED:
                raise
            said = " ".join(str(error).split()) or type(error).__name__
            why = (
                f"What was seen of the network cannot be read ({said}); delete what is in "
                f"{results.root / 'looked' / study.world} and run `ditbench look {study.name}` again."
            )
            return Drawing(figure, missing=[why])


def drawings(study: Study, results: Results) -> list[Drawing]:
    """All figures that a study asks for, in its order."""
    return [draw(study, figure, results) for figure in study.figures]


def files_of(study: Study, results: Results) -> Iterator[tuple[str, bytes | None]]:
    """The files of all figures of a study; None in place of each that cannot be drawn."""
    for drawing in drawings(study, results):
        yield from drawing.files(study.name)


def _kinds() -> dict[str, Callable[[Study, Figure, Results], Drawing]]:
    from ditbench.report.drawn import billed, learned, looked, plan_maps, trade_off

    return {
        "macs-by-branch": billed.by_branch,
        "macs-by-step": billed.by_step,
        "plan": plan_maps.draw,
        "ratios": learned.ratios,
        "routers": looked.routers,
        "correlation": looked.correlation,
        "redundancy": looked.redundancy,
        "trade-off": trade_off.draw,
    }
