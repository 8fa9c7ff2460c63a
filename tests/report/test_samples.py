from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from ditbench.records import write_record
from ditbench.report import samples
from ditbench.storage import write_shard


def test_a_video_is_shown_by_the_frame_in_its_middle(tmp_path: Path) -> None:
    videos = np.random.default_rng(0).integers(0, 256, (2, 5, 8, 6, 3), dtype=np.uint8)
    write_shard(tmp_path / "s.zip", videos, ["a", "b"])
    write_record(tmp_path / "s.json", "shard", {"file": "s.zip"})
    cell: Any = SimpleNamespace(shards=[tmp_path / "s.json"])
    shown = samples._images(cell, 8)
    assert list(shown) == ["a", "b"]
    assert np.array_equal(shown["b"], videos[1, 2])
