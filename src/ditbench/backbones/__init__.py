"""Block families as units, one file each, found by themselves: how each diffusion transformer is walked.

A family computes with the network's own submodules and owns no weights. A branch's output before its gate is what
methods cache; `add` applies the current step's gate and the residual sum.
"""

from ditbench.backbones.base import Backbone
from ditbench.backbones.stream import Output, Stream

__all__ = ["Backbone", "Output", "Stream"]
