"""Checkpoints of trainings, read only where they are as they were written."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from ditbench.faults import Fault


def read_state(path: Path) -> dict[str, Any]:
    """What a training kept; a Fault where the file is damaged, which a person deletes who can spare the training."""
    try:
        check_archive(path)
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Fault(f"{path} cannot be read ({said}); delete it and run again to train anew") from error
    return state


def check_archive(path: Path) -> None:
    """Raises where a file that torch wrote is not as it was written: torch itself does not look at its checksums."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"{damaged} in it is damaged")
