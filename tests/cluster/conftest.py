from collections.abc import Iterator

import pytest

from tests.cluster.slurm import Slurm, lacking, slurm
from tests.workflow.conftest import Tree, tree

__all__ = ["Tree", "tree"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A Slurm of one node, for as long as the tests of a file take."""
    reason = lacking()
    if reason:
        pytest.skip(reason)
    with slurm(tmp_path_factory.mktemp("slurm")) as made:
        yield made
