"""ToMeSD's own package on the same features and the same destinations: the same groups and means (`--group peers`)."""

from __future__ import annotations

import pytest
import torch

from ditbench.engine.matching import bipartite
from ditbench.engine.merging import Groups

merge = pytest.importorskip("tomesd.merge", reason="tomesd comes with `uv sync --group peers`")


@pytest.mark.parametrize(("rows", "columns", "gone"), [(8, 8, 20), (8, 8, 48), (6, 10, 30), (5, 7, 9)])
def test_the_same_tokens_are_merged_into_the_same_means(rows: int, columns: int, gone: int) -> None:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(2, rows * columns, 12, generator=generator, dtype=torch.float64)
    read = torch.randn(2, rows * columns, 5, generator=generator, dtype=torch.float64)
    down, across = rows // 2, columns // 2
    state = generator.get_state()
    merging, unmerging = merge.bipartite_soft_matching_random2d(
        features, columns, rows, 2, 2, gone, generator=generator
    )
    # The destinations that it has just drawn: one place of each square.
    generator.set_state(state)
    place = torch.randint(4, size=(down, across, 1), generator=generator)[..., 0]
    row = 2 * torch.arange(down)[:, None] + place // 2
    destinations = (row * columns + 2 * torch.arange(across) + place % 2).flatten().expand(2, -1)
    groups = Groups.of(*bipartite(features, destinations).closest(gone), rows * columns)
    ours, theirs = groups.before(read), merging(read)
    assert ours.shape == theirs.shape
    # Its tokens come in another order; spread again they come in the image's.
    torch.testing.assert_close(groups.after(ours), unmerging(theirs))
