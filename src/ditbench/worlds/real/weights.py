"""Where a real world's weights are: a folder, the hub's cache on this machine, or nowhere, drawn at random.

Nothing is ever downloaded: what is missing is one sentence that says who offers it.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ditbench.faults import Fault
from ditbench.worlds.base import RANDOM
from ditbench.worlds.real.worldfile import Hub

_HUB_ID = re.compile(r"^(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+?)(@(?P<revision>[\w.-]+))?$")
# What a folder is told apart by: small files whole, of large ones this much at so many places.
_SAMPLE, _PLACES = 1 << 16, 8


@dataclass(frozen=True)
class Found:
    """Weights that are on this machine. `name` says in records which; `network` is the folder around `transformer/`."""

    kind: Literal["folder", "hub"]
    name: str
    pipeline: Path
    network: Path


def identity(world: str, given: str | None) -> str | None:
    """What a cell's spec says of its weights: None for the world's own, else the hub's name or a digest of a folder.

    It changes with the weights and not with the folder's place.
    """
    if given is None or given == RANDOM:
        return given
    folder = _folder(given)
    if folder is None:
        return _hub_id(world, given)[0]
    return f"folder:{digest(_checked(world, folder))}"


def find(world: str, hub: Hub, given: str | None) -> Found:
    """The weights that `given` names, or the world's own; a Fault where they are not on this machine."""
    if given is None:
        pipeline = _cached(hub.pipeline, "model_index.json", None)
        network = _cached(hub.transformer, "transformer/config.json", None) if hub.transformer else pipeline
        if pipeline is None or network is None:
            raise Fault(_missing(world, hub))
        own = hub.transformer or hub.pipeline
        return Found("hub", f"{own}@{network.name}", pipeline, network)
    folder = _folder(given)
    if folder is not None:
        folder = _checked(world, folder)
        return Found("folder", f"folder:{digest(folder)}", folder, folder)
    _, name, revision = _hub_id(world, given)
    folder = _cached(name, "model_index.json", revision)
    if folder is None:
        fetch = f"hf download {name}" + (f" --revision {revision}" if revision else "")
        raise Fault(
            f"weights.{world}: there is no folder {given}, nor is {name} in the hub's cache on this machine; "
            f"if it is offered at https://huggingface.co/{name}, `{fetch}` gets it"
        )
    return Found("hub", f"{name}@{folder.name}", folder, folder)


def told(hub: Hub, given: str | None) -> str:
    """Where weights are looked for, in a few words."""
    if given is None:
        return ", ".join(hub.ids)
    return given if given == RANDOM or _folder(given) is None else f"folder {given}"


def _folder(given: str) -> Path | None:
    path = Path(given).expanduser()
    return path if path.is_dir() else None


def _hub_id(world: str, given: str) -> tuple[str, str, str | None]:
    match = _HUB_ID.match(given)
    if match is None:
        raise Fault(
            f"weights.{world}: there is no folder {given}; possible: a pipeline's folder as diffusers writes it, "
            f"the id of a hub repository (owner/name, or owner/name@revision), or {RANDOM}"
        )
    return given, match["name"], match["revision"]


def _checked(world: str, folder: Path) -> Path:
    if not (folder / "model_index.json").is_file():
        raise Fault(
            f"weights.{world}: {folder} holds no model_index.json; it must be a whole pipeline's folder, "
            "as diffusers' save_pretrained or `hf download --local-dir` writes it"
        )
    return folder


def _cached(name: str, file: str, revision: str | None) -> Path | None:
    """The hub's snapshot of a repository on this machine that has `file`."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name, file, revision=revision)
    return Path(path).parents[file.count("/")] if isinstance(path, str) else None


def _missing(world: str, hub: Hub) -> str:
    licence = ", where its licence must be accepted first" if hub.gated else ""
    fetch = " and ".join(f"`hf download {name}`" for name in hub.ids)
    return (
        f"the weights of world {world} are not on this machine: {hub.pages} offers them{licence}; get them with "
        f"{fetch}, or name the folder that holds them as `weights: {{{world}: FOLDER}}` (`{RANDOM}` in its place is "
        "enough for speed, memory and MACs)"
    )


def digest(folder: Path) -> str:
    """Sixteen hex digits over the names and sizes of a folder's files, and over samples of what they hold.

    Reading all of it would take minutes. Weights that differ at all differ at nearly every place; a change of a
    single tensor may go unseen.
    """
    seen = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        place = path.relative_to(folder)
        if any(part.startswith(".") for part in place.parts) or not path.is_file() or path.suffix == ".md":
            continue
        size = path.stat().st_size
        seen.update(f"{place.as_posix()}\0{size}\0".encode())
        with path.open("rb") as stream:
            if size <= _SAMPLE * _PLACES:
                seen.update(stream.read())
            else:
                for number in range(_PLACES):
                    stream.seek((size - _SAMPLE) * number // (_PLACES - 1))
                    seen.update(stream.read(_SAMPLE))
    return seen.hexdigest()[:16]
