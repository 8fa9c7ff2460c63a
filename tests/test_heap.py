"""Freed memory stays with the process."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import numpy as np
from ditbench.heap import keep_memory

if not keep_memory():
    sys.exit(3)
size = 20 << 20
np.ones(size, np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    np.ones(size, np.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_memory_that_was_freed_is_used_again_without_page_faults() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60)
    if done.returncode == 3:
        pytest.skip("this system's C library can't be told to keep memory")
    assert done.returncode == 0, done.stderr
    # Given back, each of the twenty would fault at every page, ten times at least with the largest pages.
    assert int(done.stdout) < 100
