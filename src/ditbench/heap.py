"""What the C library does with freed memory: kept here, so that timings compare what methods compute.

glibc gives large freed blocks back to the system, which hands them out again a page fault at a time. A network's
activations are such blocks. On two cores that was a quarter of the embedded world's unaccelerated time; but a method
that keeps tensors from step to step holds the top of the heap, less is given back, and it was credited with the
difference (benchmarks/heap.py shows both ways).
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGEST_MAPPED = 32 << 20  # the most that glibc takes on 64 bits
_NEVER = 2**31 - 1


def keep_memory() -> bool:
    """Has this process keep the memory it frees; whether the system's C library could be told so."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        adjust = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    return bool(adjust(_MMAP_THRESHOLD, _LARGEST_MAPPED) and adjust(_TRIM_THRESHOLD, _NEVER))
