"""What methods have learned and ditbench ships: plans and routers of the embedded world, `shipped:NAME` in a knob.

They were learned by runs whose configurations are in `configs/`; `ditbench assets ship-learned` took them over.
"""

from __future__ import annotations

from pathlib import Path

from ditbench.faults import Fault

MARK = "shipped:"
RECORD = "learned.json"


def place_of(text: str) -> Path:
    """The record of learning that a knob names: `shipped:NAME`, or a file."""
    if not text.startswith(MARK):
        return Path(text)
    from ditbench.worlds.scenes.world import assets_folder

    folder = assets_folder() / "learned"
    path = folder / text.removeprefix(MARK) / RECORD
    if not path.is_file():
        there = ", ".join(f"{MARK}{found.parent.name}" for found in sorted(folder.glob(f"*/{RECORD}")))
        raise Fault(f"{text!r} is not among what ships with ditbench ({there or f'nothing, in {folder}'})")
    return path


def ship(record: Path, folder: Path) -> Path:
    """Copies what an arm has learned, with its weights, to where `shipped:ARM` is looked for.

    How training went is left in its run: here is what sampling needs, and where it came from.
    """
    import json
    import shutil

    from ditbench.records import SEAL, read_record, seal
    from ditbench.storage import check_contents, replacing

    body = read_record(record, "learned")
    found = {name: value for name, value in body["found"].items() if name not in ("on_the_way", "trajectory")}
    place = folder / "learned" / body["arm"] / RECORD
    if "file" in found:
        source = check_contents(record.parent / found["file"], found["sha256"], "ship it from the run that made it")
        with replacing(place.parent / found["file"]) as partial:
            shutil.copyfile(source, partial)
    kept = {name: value for name, value in body.items() if name != SEAL} | {"found": found}
    with replacing(place) as partial:
        partial.write_text(json.dumps({**kept, SEAL: seal(kept)}, indent=1), encoding="utf-8")
    return place
