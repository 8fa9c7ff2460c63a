"""Where tokens are alike: sub-bands and most similar tokens of pictures that can be checked by eye."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ditbench.cli import main
from ditbench.faults import Fault
from ditbench.inspect.redundancy import band_norms, measure, most_similar


def test_a_wavelet_tells_structure_from_detail() -> None:
    flat, rows, columns = torch.ones(4, 6), torch.ones(4, 6), torch.ones(4, 6)
    rows[1::2], columns[:, 1::2] = -1, -1
    pictures = torch.stack([flat, rows, columns, rows * columns]).reshape(4, 24, 1)
    norms = band_norms(pictures, (4, 6))
    assert torch.allclose(norms, torch.eye(4) * 24**0.5)


def test_bands_hold_all_there_is() -> None:
    tokens = torch.randn(2, 48, 5)
    assert torch.allclose(band_norms(tokens, (6, 8)).norm(dim=1), tokens.flatten(1).norm(dim=1))
    # An odd row has no other to be told from.
    assert torch.allclose(band_norms(tokens[:, :40], (5, 8)), band_norms(tokens[:, :32], (4, 8)))


def test_the_most_similar_token_is_another_one_wherever_it_lies() -> None:
    tokens = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [-1.0, 0.0], [0.0, 5.0], [2.0, 0.1]]])
    cosines, distances = most_similar(tokens, (2, 3))
    # 0 and 5, 1 and 4; 2 is most like 5's opposite of nothing: at best at right angles, to 0 (the first of equals).
    near = 2 / (4 + 0.01) ** 0.5
    assert cosines.item() == pytest.approx((near + 1 + 0 + 0 + 1 + near) / 6, abs=1e-6)
    pairs = [(0, 5), (1, 4), (2, 0), (3, 1), (4, 1), (5, 0)]
    apart = [((a // 3 - b // 3) ** 2 + (a % 3 - b % 3) ** 2) ** 0.5 for a, b in pairs]
    assert distances.item() == pytest.approx(sum(apart) / 6, abs=1e-6)


def test_every_block_and_step_of_a_world_is_looked_at(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = measure("scenes", 3, 0, batch=2)
    assert found.bands.shape == (10, 8, 3, 4)
    assert found.cosines.shape == found.distances.shape == (10, 8, 3)
    assert (found.cosines <= 1 + 1e-6).all()
    assert (found.distances >= 1).all()
    # Late in denoising tokens are more alike than at the start, as SDTM has it.
    assert found.cosines[-1].mean() > found.cosines[0].mean()
    words = ["redundancy", "scenes", "--captions", "1", "--out"]
    assert main([*words, str(tmp_path / "r.png"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["by_step"]["cosine"]) == 10
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


def test_videos_have_no_grid_of_an_image() -> None:
    with pytest.raises(Fault, match="draws videos"):
        measure("wan2.1-1.3b-256", 1, 0, 1)
