from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ditbench.records import write_record
from ditbench.report import samples
from ditbench.storage import write_shard
from ditbench.study import Study


def test_a_video_is_shown_by_the_frame_in_its_middle(tmp_path: Path) -> None:
    videos = np.random.default_rng(0).integers(0, 256, (2, 5, 8, 6, 3), dtype=np.uint8)
    write_shard(tmp_path / "s.zip", videos, ["a", "b"])
    write_record(tmp_path / "s.json", "shard", {"file": "s.zip"})
    cell: Any = SimpleNamespace(shards=[tmp_path / "s.json"])
    shown = samples._images(cell, 8)
    assert list(shown) == ["a", "b"]
    assert np.array_equal(shown["b"], videos[1, 2])


def test_a_caption_set_is_read_once_and_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    write_record(path, "captions", {"sha256": "a"})
    assert samples.caption_record(path) is samples.caption_record(path)
    write_record(path, "captions", {"sha256": "b"})
    os.utime(path, ns=(1, 1))
    assert samples.caption_record(path)["sha256"] == "b"


def test_of_many_arms_fewer_captions_are_shown(tree: Any, embedded: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tree.read()
    assert len(samples.collect(embedded, results).captions) == samples.COUNT
    monkeypatch.setattr(samples, "PICTURES", 12)  # for four arms
    shown = samples.collect(embedded, results)
    assert len(shown.captions) == len(shown.images) == 3
    monkeypatch.setattr(samples, "PICTURES", 1)
    assert len(samples.collect(embedded, results).captions) == 1
