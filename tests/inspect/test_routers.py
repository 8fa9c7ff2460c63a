"""Pictures of routers: the maps are the scores that the run chose by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ditbench.cli import main
from ditbench.inspect.routers import router_maps
from ditbench.learn.job import arm_hash
from ditbench.methods import get_method
from ditbench.records import write_record
from ditbench.report.drawn.router_maps import Maps, maps_figure
from ditbench.storage import hash_file, write_tensors

CAPTION = "a large red circle in the centre on a plain gray background"


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a learner of routers might have found: block n lets n tenths of the tokens pass by."""
    folder = tmp_path_factory.mktemp("learned")
    torch.manual_seed(0)
    write_tensors(folder / "weights.safetensors", {"routers": 0.1 * torch.randn(8, 192)})
    method = get_method("diffcr", {"variant": "L"})
    found: dict[str, Any] = {"file": "weights.safetensors", "sha256": hash_file(folder / "weights.safetensors")}
    found |= {"ratios": [[n / 10 for n in range(8)]], "times": [999.0, 500.0]}
    body = {"world": "scenes", "method": "diffcr", "knobs": {k: getattr(method, k) for k in method.knobs()}}
    body |= {"steps": 2, "dtype": "float32", "weights": None, "learning": "some", "arm": "arm"}
    training = {"name": "some", "count": 1, "sha256": "0"}
    body |= {"arm_hash": arm_hash(body), "learner": "tuning", "training": training, "found": found}
    write_record(folder / "learned.json", "learned", body)
    return folder / "learned.json"


def test_maps_hold_every_block_and_step(record: Path) -> None:
    maps = router_maps(record, CAPTION, seed=0)
    assert maps.scores.shape == (2, 8, 256)
    assert maps.image.shape == (64, 64, 3)
    assert maps.grid == (16, 16)
    assert ((maps.scores > 0) & (maps.scores < 1)).all()
    assert maps.left_out[0].tolist() == pytest.approx([n / 10 for n in range(8)])
    assert not np.array_equal(maps.scores[0], maps.scores[1])


def test_blocks_that_are_not_routed_have_no_scores_and_no_part_in_the_correlation() -> None:
    ratios = np.array([[0.0, 0.1, 0.0, 0.5], [0.0, 0.3, 0.0, 0.7]])
    scores = np.repeat((1 - ratios)[..., None], 4, axis=2)
    scores[:, ::2] = np.nan
    assert Maps("", np.zeros((4, 4, 3), np.uint8), scores, ratios, (2, 2)).correlation == pytest.approx(-1)


def test_low_scores_where_much_passes_by_are_a_correlation_of_minus_one() -> None:
    ratios = np.array([[0.1, 0.5], [0.3, 0.7]])
    scores = np.repeat((1 - ratios)[..., None], 4, axis=2)
    image = np.zeros((4, 4, 3), np.uint8)
    assert Maps("", image, scores, ratios, (2, 2)).correlation == pytest.approx(-1)
    assert np.isnan(Maps("", image, scores, 0 * ratios, (2, 2)).correlation)
    texts = [
        text.get_text()
        for text in maps_figure(Maps("", image, scores, 0 * ratios, (2, 2))).findobj()
        if hasattr(text, "get_text")
    ]
    assert "the same share everywhere" in " ".join(texts)


def test_the_command_writes_a_picture_or_says_why_not(record: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["routers", str(record), "--caption", CAPTION]
    assert main([*words, "--out", str(tmp_path / "maps.png")]) == 0
    assert (tmp_path / "maps.png").read_bytes().startswith(b"\x89PNG")
    assert "correlation of what passes by with mean scores" in capsys.readouterr().out
    assert main([*words, "--out", str(tmp_path / "maps.doc")]) == 2
    assert "must end in .png, .svg or .pdf" in capsys.readouterr().err
