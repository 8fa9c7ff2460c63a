from __future__ import annotations

from pathlib import Path

import pytest

from ditbench.caption_sets import TRAINING_SPLIT, write_captions
from ditbench.generate import embed
from ditbench.worlds import get_world


@pytest.fixture(scope="module")
def captions(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with training captions and their embeddings: two, or as many as a module's CAPTIONS says."""
    folder, count = tmp_path_factory.mktemp("captions"), getattr(request.module, "CAPTIONS", 2)
    write_captions(get_world("scenes"), "training", count, 0, folder / "captions.json", split=TRAINING_SPLIT)
    embed("scenes", folder / "captions.json", folder / "embeddings.json")
    return folder
