"""What is learned beside the full network's sampling is the same on two processes and on one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ditbench.learn.processes import Team
from tests.learn.launched import found

# Of four captions three are in a batch, of which two processes sample two and one, and the last is sampled by both.
CAPTIONS = 4


@pytest.mark.timeout(400)
def test_routers_of_l2c(captions: Path, tmp_path: Path) -> None:
    knobs = {"epochs": 2, "rate": 0.1}
    alone, together = (found("l2c", knobs, captions, tmp_path / str(count), count, 3) for count in (1, 2))
    assert len(alone["losses"]) == 4 and alone["updates"] == together["updates"] > 0
    assert together["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert np.allclose(together["keep"], alone["keep"], atol=1e-5)
    assert not np.allclose(alone["keep"][2], alone["keep"][2][0]), "nothing was learned"


@pytest.mark.timeout(400)
def test_the_predictor_of_tokencache(captions: Path, tmp_path: Path) -> None:
    alone, together = (
        found("tokencache", {"epochs": 2}, captions, tmp_path / str(count), count, 3) for count in (1, 2)
    )
    for name in ("off", "weight"):
        assert len(alone["history"][name]) == 4
        assert together["history"][name] == pytest.approx(alone["history"][name], rel=1e-5)
    assert together["shares"] == alone["shares"]
    assert np.allclose(together["importance"], alone["importance"], atol=1e-5)


@pytest.mark.parametrize(("size", "count"), [(1, 3), (2, 3), (2, 1), (3, 7), (4, 2)])
def test_portions_weigh_as_much_as_all_of_it(monkeypatch: pytest.MonkeyPatch, size: int, count: int) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setenv("WORLD_SIZE", str(size))
    values, mean = np.arange(1, count + 1) ** 2.0, 0.0
    for rank in range(size):
        monkeypatch.setenv("RANK", str(rank))
        places, weight = Team().portion(count)
        assert places
        mean += weight * values[places].mean()
    assert mean == pytest.approx(values.mean())
