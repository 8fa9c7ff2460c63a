"""Figures that the report has drawn, for whoever wants the same ones: hundreds of cells take half a minute to draw.

A mark beside them says what they were drawn of. Where a study, its cells or the code that draws is another by now, they
are drawn again.
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

MARK = ".figures.json"


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


def forget(folder: Path) -> None:
    """Takes the mark away: what lies in the folder is about to change."""
    (folder / MARK).unlink(missing_ok=True)


def remember(folder: Path, of: str, names: Sequence[str]) -> None:
    """Marks figures as drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / MARK) as partial:
        Path(partial).write_text(json.dumps({"of": of, "files": list(names)}))


def recall(folder: Path, of: str) -> dict[str, bytes] | None:
    """The figures that lie in a folder, where they are drawn of just that."""
    try:
        mark = json.loads((folder / MARK).read_text())
        if mark["of"] != of:
            return None
        return {name: (folder / name).read_bytes() for name in mark["files"]}
    except (OSError, ValueError, TypeError, KeyError):
        return None
