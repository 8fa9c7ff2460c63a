from collections.abc import Iterator

import pytest

from tests.cluster.slurm import Slurm, lacking, slurm
from tests.cluster.small_study import STUDY, made, words
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


@pytest.fixture(scope="module")
def local(tree: Tree) -> dict[str, str]:
    """What a run on this machine makes."""
    (tree.root / "studies" / "small.yaml").write_text(STUDY)
    done = tree.snakemake(*words("here"))
    assert done.returncode == 0, done.stderr
    return made(tree, "here")
