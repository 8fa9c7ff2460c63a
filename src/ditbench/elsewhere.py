"""Cells that were finished elsewhere: their records in one file, which other runs show beside cells of their own.

`ditbench pack` writes such a file; the setting `elsewhere` names some. A cell is known by the hash of its spec: what
is asked of it must be the same to the last knob, whatever its arm is called. Pictures are not packed.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import os
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditbench.commits import Asked, known_at
from ditbench.faults import Fault
from ditbench.storage import check_contents, hash_file, partial_of, replacing

if TYPE_CHECKING:
    from ditbench.cells import Spec
    from ditbench.report.results import Cell, Results

KIND, INDEX = "pack", "pack.json"
# Where results keep what was unpacked, a folder for each file.
FOLDER = "elsewhere"
# The record of a cell's first images has the price list of its network, which figures need besides.
FIRST_SHARD = "shard.json"
NAMES = ("spec.json", "plan.json", "cost.json", "scores.json", "latency.json", "trace.json", "samples.parquet")
# No record of a cell is as large, nor all of them together; a file that says so is none of ours.
LARGEST, MOST = 1 << 28, 1 << 32
_CELL = re.compile(r"[a-z0-9][a-z0-9._-]*/[a-z0-9][a-z0-9._-]*/seed[0-9]+")


@dataclass(frozen=True)
class Pack:
    """A file of finished cells. `root` is laid out as a results folder; `cells` are folders in it by spec hash."""

    path: Path
    root: Path
    cells: Mapping[str, Path]


def pack(results: Results, cells: Sequence[Cell], out: Path) -> int:
    """Writes the records of finished cells as one file; how many cells."""
    from ditbench.records import write_record

    if not cells:
        raise Fault(f"no cell in {results.root} is finished: there is nothing to pack yet")
    for cell in cells:
        if cell.state != "done":
            raise Fault(f"{cell.world}/{cell.arm}/seed{cell.seed} is not finished ({cell.state_text})")
    weights = _weights_with(cells)
    index: list[dict[str, Any]] = []
    with replacing(out) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_LZMA) as archive:
        for cell in sorted(cells, key=lambda cell: (cell.world, cell.arm, cell.seed)):
            place = f"{cell.world}/{cell.arm}/seed{cell.seed}"
            files = dict(_files(cell, results.root))
            for name, data in files.items():
                _add(archive, f"{place}/{name}", data)
            hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
            index.append({"cell": place, "hash": cell.hash, "files": hashes})
        written = partial_of(out)
        try:
            write_record(written, KIND, {"cells": index, "weights": weights})
            _add(archive, INDEX, written.read_bytes())
        finally:
            written.unlink(missing_ok=True)
    return len(index)


def made_otherwise(cell: Cell) -> list[str]:
    """What of a cell was made by other code, or with other weights that ship with its world, than are here now."""
    from ditbench.report.results import STAGES

    return [STAGES[kind] for kind, (asked, code) in _made_by(cell).items() if code != _code(*asked)]


def _made_by(cell: Cell) -> dict[str, tuple[Asked, str]]:
    """By kind of record, which code it says to be made by, and of which stage that is the hash."""
    stages = {"shard": "generate", "cost": "cost", "scores": "score", "latency": "time"}
    known = {kind: made.get("code") for kind, made in cell.provenance.items()}
    if cell.elsewhere is not None and cell.traced:
        known["shard"] = _first_shard(cell.traced[0]).get("code")
    methods = {kind: None if kind == "scores" else str(cell.spec["method"]) for kind in stages}  # judges know none
    return {
        kind: ((stage, cell.world, methods[kind]), str(known[kind]))
        for kind, stage in stages.items()
        if known.get(kind)
    }


def _weights_with(cells: Sequence[Cell]) -> dict[str, dict[str, str]]:
    """The weights that ship with the cells' worlds, as they were when the cells were made.

    What was not made by the code that is here is held against the commit that its records name.
    """
    found: dict[str, dict[str, str]] = {}
    older: dict[str, list[Cell]] = {}
    for cell in cells:
        if made_otherwise(cell):
            older.setdefault(_commit(cell), []).append(cell)
        else:
            found[cell.world] = _weights_of(cell.world)
    for commit, own in older.items():
        asked = {asked for cell in own for asked, _ in _made_by(cell).values()}
        known = known_at(commit, asked) if commit else None
        for cell in own:
            if known is None or any(known.codes[asked] != code for asked, code in _made_by(cell).values()):
                what = f"that of commit {commit[:12]}, which they name" if commit else "that of one commit"
                raise Fault(
                    f"{cell.world}/{cell.arm}/seed{cell.seed} was made by other code or weights than are here "
                    f"({', '.join(made_otherwise(cell))}), and not by {what}; run the workflow again, and pack then"
                )
            if found.setdefault(cell.world, known.weights[cell.world]) != known.weights[cell.world]:
                raise Fault(f"cells of world {cell.world} were made with several sets of weights; pack them apart")
    return found


def _commit(cell: Cell) -> str:
    """The one commit that all of a cell's records name; empty where they name several, or changed files."""
    named = {None if made.get("dirty") else made.get("git") for made in cell.provenance.values()}
    return str(named.pop() or "") if len(named) == 1 else ""


def _first_shard(path: Path) -> Mapping[str, Any]:
    from ditbench.records import read_record

    return dict(read_record(path, "shard").get("provenance") or {})


@lru_cache(maxsize=4096)
def _code(stage: str, world: str, method: str | None) -> str:
    from ditbench.codehash import code_hash

    return code_hash(stage, world, method)


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))  # equal records make equal files
    entry.external_attr = 0o644 << 16
    entry.compress_type = archive.compression
    archive.writestr(entry, data)


def _files(cell: Cell, root: Path) -> Iterable[tuple[str, bytes]]:
    """The names and contents of what is kept of a cell."""
    from ditbench.report.plans import trace_of

    folder = root / cell.folder
    for name in NAMES:
        path = folder / name
        if name == "trace.json" and cell.traced:
            trace = trace_of(cell)
            if trace is not None:
                yield name, json.dumps(trace.summary()).encode("utf-8")
        elif path.is_file():
            yield name, path.read_bytes()
    if cell.traced:
        yield FIRST_SHARD, cell.traced[0].read_bytes()


def _weights_of(world: str) -> dict[str, str]:
    """The hashes of the weights that ship with a world, its judges' among them: cells of others do not compare."""
    from ditbench.worlds import get_world

    files = {path for stage in ("generate", "score") for path in get_world(world).sources(stage)}
    return {path.name: hash_file(path) for path in sorted(files) if path.suffix == ".safetensors" and path.is_file()}


def _check_weights(path: Path, packed: Mapping[str, Mapping[str, str]]) -> None:
    from ditbench.worlds import world_names

    for world, known in packed.items():
        here = _weights_of(world) if world in world_names() else {}
        if other := sorted(name for name in {*known, *here} if known.get(name) != here.get(name)):
            raise Fault(
                f"elsewhere: the cells of world {world} in {path} were made with other weights ({', '.join(other)}): "
                "they do not compare; leave the file out, and they are run anew"
            )


def packs_of(files: Sequence[str], results: str | Path) -> tuple[Pack, ...]:
    """The files of finished cells that a configuration names, unpacked in a results folder where they were not yet."""
    return tuple(_unpacked(Path(file), Path(results)) for file in files)


def finished_elsewhere(packs: Sequence[Pack], specs: Sequence[Spec]) -> dict[str, Pack]:
    """The file that each cell is taken from, by the hash of its spec; those of this run itself are not among them.

    What an arm has learned is not in the file. One whose plan or weights another arm of this run takes is trained here,
    and its cells are this run's: in a table both are of one training.
    """
    from ditbench.cells import lenders_of

    found = {spec.hash: pack for pack in reversed(packs) for spec in specs if spec.hash in pack.cells}
    while found:
        lenders = {place for spec in specs if spec.hash not in found for place in lenders_of(spec)}
        lent = [spec.hash for spec in specs if spec.hash in found and (spec.world, spec.arm) in lenders]
        if not lent:
            break
        for mark in lent:
            found.pop(mark, None)
    return found


def _unpacked(path: Path, results: Path) -> Pack:
    try:
        known = path.stat()
    except OSError as error:
        raise Fault(f"elsewhere: {path}: {str(error.strerror).lower()}") from error
    return _unpacked_as_it_is(path, results.absolute(), known.st_mtime_ns, known.st_size)


@lru_cache(maxsize=16)
def _unpacked_as_it_is(path: Path, results: Path, changed: int, size: int) -> Pack:
    """Read once in a process: the file has hundreds of records, and each stage of a report asks."""
    from ditbench.records import read_record

    try:
        digest = hash_file(path)
    except OSError as error:
        raise Fault(f"elsewhere: {path}: {str(error.strerror).lower()}") from error
    root = results / FOLDER / digest[:16]
    if not (root / INDEX).is_file():
        _unpack(path, root)
    index = read_record(root / INDEX, KIND)
    _check_weights(path, index["weights"])
    cells: dict[str, Path] = {}
    for entry in index["cells"]:
        folder = root / "cells" / entry["cell"]
        for name, sha256 in entry["files"].items():
            check_contents(folder / name, sha256, f"delete {root} and run again")
        cells[str(entry["hash"])] = folder
    return Pack(path, root, cells)


def _unpack(path: Path, root: Path) -> None:
    """Writes what a file holds beneath a folder, which is there whole or not at all."""
    partial = partial_of(root)
    try:
        with zipfile.ZipFile(path) as archive:
            names = {entry.filename: entry.file_size for entry in archive.infolist()}
            if INDEX not in names:
                raise Fault(f"elsewhere: {path} has no {INDEX}: `ditbench pack` writes files that have")
            for name, size in names.items():
                place, _, file = name.rpartition("/")
                ours = name == INDEX or (_CELL.fullmatch(place) and file in (*NAMES, FIRST_SHARD))
                if not ours or size > LARGEST or sum(names.values()) > MOST:
                    raise Fault(f"elsewhere: {path} has {name!r}, which is no record of a cell")
                to = partial / (INDEX if name == INDEX else f"cells/{name}")
                to.parent.mkdir(parents=True, exist_ok=True)
                to.write_bytes(archive.read(name))
        _check_index(partial / INDEX, path)
        os.replace(partial, root)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RuntimeError) as error:
        raise Fault(f"elsewhere: {path} is no file of `ditbench pack`, or damaged ({error})") from error
    except OSError as error:
        if not (root / INDEX).is_file():  # else another process has unpacked it meanwhile
            raise Fault(f"elsewhere: {path} cannot be unpacked in {root} ({error.strerror or error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_index(written: Path, path: Path) -> None:
    """A Fault where a file's list of cells is not what `pack` writes: paths in it are taken at their word later."""
    from ditbench.records import read_record

    index = read_record(written, KIND)
    weights = index["weights"]
    if not isinstance(weights, dict) or not all(isinstance(known, dict) for known in weights.values()):
        raise Fault(f"elsewhere: {path}: its list of weights is not as `ditbench pack` writes it")
    if not isinstance(index["cells"], list):
        raise Fault(f"elsewhere: {path}: its list of cells is not as `ditbench pack` writes it")
    for entry in index["cells"]:
        whole = isinstance(entry, dict) and {"cell", "hash", "files"} <= set(entry)
        if (
            not whole
            or not _CELL.fullmatch(str(entry["cell"]))
            or not isinstance(entry["files"], dict)
            or not {"spec.json", "cost.json", "latency.json"} <= set(entry["files"]) <= {*NAMES, FIRST_SHARD}
        ):
            raise Fault(f"elsewhere: {path}: its list of cells is not as `ditbench pack` writes it")
