"""What was measured on GPUs once and lies under `measured/`: how fast a world's network is there."""

from __future__ import annotations

import json
from pathlib import Path

RECORDS = Path(__file__).resolve().parents[2] / "measured"


def forward_seconds(world: str) -> tuple[float, str] | None:
    """Seconds of a forward for one row of a batch of sixteen (or of as many as fit), and the GPU.

    The network is that of diffusers, in bfloat16 and eager. None where nobody measured it, or its records are not here.
    """
    path = RECORDS / f"{world}-cuda-bfloat16.json"
    if not path.exists():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    rows = {int(batch): body for batch, body in record["batches"].items() if "seconds" in body}
    most = max(rows)
    return rows[most]["seconds"]["unpatched"] / most, record["provenance"]["hardware"]["gpu"]
