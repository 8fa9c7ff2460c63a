"""Methods: one file each, found by themselves. A method makes a plan and names its selector and its fill.

To add one, write a file here with a subclass of `Method`; its dataclass fields (made with `knob`) are its knobs.
Method files import nothing heavy, so that a configuration can be checked without loading torch.
"""

from ditbench.methods.base import Knob, Method, knob
from ditbench.methods.registry import get_method, knob_fields, method_class, method_names, method_of

__all__ = ["Knob", "Method", "get_method", "knob", "knob_fields", "method_class", "method_names", "method_of"]
