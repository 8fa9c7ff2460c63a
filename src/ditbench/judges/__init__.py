"""Judges: images (with captions, references, the full arm's images) in, numbers with their uncertainty out.

A judge is one file of this package that defines a subclass of `Judge`; nothing else needs to know it.
"""

from ditbench.judges.base import Judge, Pictures, Result
from ditbench.judges.registry import default_judges, get_judge, judge_names, judges_of, networks_of
from ditbench.judges.weights import Weights

__all__ = [
    "Judge",
    "Pictures",
    "Result",
    "Weights",
    "default_judges",
    "get_judge",
    "judge_names",
    "judges_of",
    "networks_of",
]
