"""Improved precision and recall: how much of one set lies within the other's neighbourhoods (arXiv 1904.06991)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ditbench.judges.base import Pictures, Result
from ditbench.judges.sets import SetJudge, weights_of
from ditbench.judges.weights import Weights
from ditbench.statistics import wilson

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

NEIGHBOURS, ROWS = 3, 1024


class PrecisionRecall(SetJudge):
    """In Inception's pooled features with the third neighbour, as ADM's evaluator has it."""

    name: ClassVar[str] = "precision-recall"
    summary: ClassVar[str] = "share of pictures among the references (precision), and of references among them (recall)"
    network_name: ClassVar[str | None] = "inception"
    part: ClassVar[str] = "pool"
    least: ClassVar[int] = NEIGHBOURS + 1
    needs: ClassVar[tuple[Weights, ...]] = weights_of("inception")

    @classmethod
    def measures(cls) -> tuple[str, ...]:
        return ("precision", "recall")

    def measure(self, pictures: Pictures, references: Pictures, full: Pictures | None = None) -> list[Result]:
        mine, real = self.features(pictures, "pictures"), self.features(references, "references")
        precise, recalled = coverage(mine, real, self.device)
        return [
            Result("precision", "", "higher", wilson(precise), precise, is_share=True),
            Result("recall", "", "higher", wilson(recalled), of_references=recalled, is_share=True),
        ]


def coverage(
    mine: NDArray[np.float32], real: NDArray[np.float32], device: str = "cpu"
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """1 for each of `mine` within the neighbourhood of any of `real`, and the other way round."""
    import torch

    x, y = (torch.from_numpy(np.ascontiguousarray(f)).to(device).double() for f in (mine, real))
    # Distances do not change with a common shift, and lose fewer digits around zero.
    x, y = x - y.mean(0), y - y.mean(0)
    return _within(x, y, _radii(y)), _within(y, x, _radii(x))


def _squares(x: Tensor, y: Tensor) -> Tensor:
    return (x * x).sum(1)[:, None] + (y * y).sum(1)[None] - 2 * (x @ y.T)


def _radii(x: Tensor) -> Tensor:
    """The squared distance of each row to its third neighbour, itself not counted."""
    import torch

    found = []
    for start in range(0, len(x), ROWS):
        squares = _squares(x[start : start + ROWS], x)
        number = torch.arange(len(squares), device=x.device)
        squares[number, start + number] = -1.0  # itself comes first, whatever rounding says
        found.append(squares.kthvalue(NEIGHBOURS + 1, dim=1).values)
    return torch.cat(found)


def _within(x: Tensor, y: Tensor, radii: Tensor) -> NDArray[np.float64]:
    parts = [(_squares(x[s : s + ROWS], y) <= radii[None]).any(1).double() for s in range(0, len(x), ROWS)]
    return np.concatenate([part.cpu().numpy() for part in parts])
