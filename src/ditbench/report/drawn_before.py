"""Figures that the report has drawn, for whoever wants the same ones: hundreds of cells take half a minute to draw.

A mark in the report's folder says what they were drawn of. Where a study, its cells or the code that draws is another
by now, they are drawn again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ditbench.codehash import code_hash
from ditbench.records import environment_hash
from ditbench.storage import replacing

if TYPE_CHECKING:
    from ditbench.report.results import Results
    from ditbench.study import Study


def drawn_of(study: Study, results: Results) -> str:
    """The hash of all that a study's figures are drawn of."""
    made_by = f"{code_hash('report')} {environment_hash()}"
    digest = hashlib.sha256(f"{made_by} {study.model_dump_json()}".encode())
    for row in study.rows:
        for cell in results.of_arm(study.world, row.arm) if row.method else []:
            told = [cell.hash, cell.state, cell.bodies]
            digest.update(json.dumps(told, sort_keys=True, default=str).encode())
    looked = results.root / "looked" / study.world
    for path in sorted(looked.glob("*")):
        now = path.stat()
        digest.update(f"{path.name} {now.st_size} {now.st_mtime_ns}".encode())
    return digest.hexdigest()


def mark_of(root: Path, study: str) -> Path:
    """The file that says what a study's figures are drawn of."""
    return root / "report" / "drawn" / f"{study}.json"


def forget(root: Path, study: str) -> None:
    """Takes the mark away: the figures are about to change."""
    mark_of(root, study).unlink(missing_ok=True)


def remember(root: Path, study: str, of: str, names: Sequence[str]) -> None:
    """Marks a study's figures as drawn."""
    mark = mark_of(root, study)
    mark.parent.mkdir(parents=True, exist_ok=True)
    with replacing(mark) as partial:
        Path(partial).write_text(json.dumps({"of": of, "files": list(names)}))


def recall(root: Path, study: str, of: str) -> dict[str, bytes] | None:
    """The figures of a study that lie in the results, where they are drawn of just that."""
    try:
        mark = json.loads(mark_of(root, study).read_text())
        if mark["of"] != of:
            return None
        return {name: (root / "studies" / study / name).read_bytes() for name in mark["files"]}
    except (OSError, ValueError, TypeError, KeyError):
        return None
