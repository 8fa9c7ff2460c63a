"""ditbench: reproducible benchmarking of methods that accelerate diffusion transformers."""

from ditbench.accelerate import Accelerated, accelerate
from ditbench.faults import Fault

__version__ = "0.1.0"
__all__ = ["Accelerated", "Fault", "__version__", "accelerate"]
