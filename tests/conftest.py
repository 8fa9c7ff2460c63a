"""What holds for every test: nothing is downloaded, examples are the same in every run, no screen is needed."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tests.workflow.conftest import Tree
    from tests.workflow.small_run import SmallRun

os.environ["HF_HUB_OFFLINE"] = "1"  # a weight that is missing must be a clear message, never a download
os.environ["MPLBACKEND"] = "Agg"
if "PYTEST_XDIST_WORKER" in os.environ:
    # Read once, when torch is loaded: processes side by side with a thread for each core wait for one another.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Derandomised: a red test stays red. No deadline: a busy machine is not a bug.
settings.register_profile("ditbench", derandomize=True, deadline=None)
settings.load_profile("ditbench")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """One process more than cores: tests of schedulers and servers mostly wait, and would leave a core idle."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return cores + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs come first, for they take longest; tests marked `gpu` are skipped where there is no CUDA device."""
    # Files go to processes whole and in this order; what is long must not be left for the end.
    first = ("test_run", "test_dag", "test_real_worlds", "test_backbone", "test_contract", "test_tutorial")
    items.sort(key=lambda item: first.index(item.path.stem) if item.path.stem in first else len(first))
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if not wanting:
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def fresh_copy(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Tree]:
    """Makes copies of the repository's workflow whose stages are the real ones."""
    from tests.workflow.conftest import copy_tree

    return lambda: copy_tree(tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory, fresh_copy: Callable[[], Tree]) -> SmallRun:
    """A small run of the default study, the same one in all processes of the session. It is to be left as it is."""
    from tests.workflow.small_run import shared

    folder = tmp_path_factory.getbasetemp()
    return shared(folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder, fresh_copy)
