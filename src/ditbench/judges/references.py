"""What is known of reference images: themselves, features of them, or their means and covariances alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ditbench.faults import Fault
from ditbench.judges.base import Judge, Pictures
from ditbench.judges.sets import SetJudge
from ditbench.records import read_record
from ditbench.reference_sets import ReferenceSet
from ditbench.storage import check_contents, images_of


def read_references(
    record_path: Path | None, features: Sequence[Path] = (), statistics: Path | None = None
) -> Pictures:
    """What is known of the reference images: themselves, if they lie beside their record, features and moments."""
    from safetensors.numpy import load_file

    if record_path is None:
        return Pictures.none()
    record = read_record(record_path, "references")
    archive = record_path.with_suffix(".zip")
    names = [f"reference{i}" for i in range(record["count"] or 0)]
    if archive.is_file():
        seen = Pictures.read([images_of(record_path, record)])
    else:
        seen = replace(Pictures.none(), ids=names)
    kept = {}
    for path in features:
        body = read_record(path, "features")
        if body["references"] != record["sha256"]:
            raise Fault(f"{path} is of other references than {record_path}; delete it and run again")
        remedy = f"delete {path} and run again to make it anew"
        kept[body["network"]] = load_file(check_contents(path.with_name(body["file"]), body.get("sha256"), remedy))
    moments = ReferenceSet(statistics=statistics).moments() if statistics is not None else {}
    return replace(seen, kept=kept, moments=moments, mark=record["sha256"])


def check_networks(judges: Sequence[Judge], features: Sequence[Path]) -> None:
    """A Fault where features of the references are of another file of weights than those of the pictures will be."""
    weights = {body["network"]: body["weights"] for body in (read_record(path, "features") for path in features)}
    for member in judges:
        if not isinstance(member, SetJudge) or member.network_name not in weights:
            continue
        if member.network.identity != weights[member.network_name]:
            raise Fault(
                f"judge {member.name}: the references' features are of other weights than {member.network.place}; "
                f"delete the references' {member.network_name}.json and run again"
            )
