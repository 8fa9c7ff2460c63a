"""Where a plan or weights are taken from that another training found: what a knob `plan_file` or `weights_file` names.

It is another arm of the run (`arm:NAME`), what ships with ditbench (`shipped:NAME`: plans and routers of the embedded
world, learned by configurations in `configs/`), or a record of learning by its path.
"""

from __future__ import annotations

from pathlib import Path

from ditbench.faults import Fault

ARM, SHIPPED = "arm:", "shipped:"
RECORD = "learned.json"
KNOBS = ("plan_file", "weights_file")


def place_of(text: str, beside: Path | None = None) -> Path:
    """The record of learning that a knob names; `beside` is the folder of the arm that takes it."""
    if text.startswith(SHIPPED):
        return _shipped(text.removeprefix(SHIPPED))
    if not text.startswith(ARM):
        return Path(text)
    if beside is None:
        raise Fault(f"{text!r} is an arm of a run: outside of one, name its record by its path")
    return beside.parent / text.removeprefix(ARM).partition("@")[0] / RECORD


def _shipped(name: str) -> Path:
    from ditbench.worlds.scenes.world import assets_folder

    folder = assets_folder() / "learned"
    there = sorted(found.parent.name for found in folder.glob(f"*/{RECORD}"))
    if name not in there:
        said = ", ".join(f"{SHIPPED}{found}" for found in there) or f"nothing, in {folder}"
        raise Fault(f"'{SHIPPED}{name}' is not among what ships with ditbench ({said})")
    return folder / name / RECORD


def ship(record: Path, folder: Path) -> Path:
    """Copies what an arm has learned, with its weights, to where `shipped:ARM` is looked for.

    How training went is left in its run: here is what sampling needs, and where it came from.
    """
    import json
    import shutil

    from ditbench.learn.record import read_learned
    from ditbench.records import SEAL, seal
    from ditbench.storage import check_contents, replacing

    body = read_learned(record)
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
