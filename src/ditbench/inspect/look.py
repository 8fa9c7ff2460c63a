"""Looks at networks while they draw images, for the figures of a study that show what was seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ditbench.faults import Fault
from ditbench.report.drawn.looked import learned_record, redundancy_file, routers_file
from ditbench.study_figures import LOOKED

if TYPE_CHECKING:
    from ditbench.config import Config
    from ditbench.generate import Texts
    from ditbench.study import Study
    from ditbench.study_figures import Figure


def look(study: Study, config: Config, root: Path, batch: int, device: str) -> Iterator[Path]:
    """Makes what the figures of a study need to be seen, and gives the files as they are finished.

    Captions are the first of the configuration's, where their embeddings are among the results, else the world's own.
    """
    asked = [figure for figure in study.figures if figure.kind in LOOKED]
    if not asked:
        raise Fault(f"no figure of {study.name} needs a look at a network; `ditbench study {study.name}` draws them")
    weights = config.weights.get(study.world)
    done: set[Path] = set()
    for figure in asked:
        for path, see in _sights(study, figure, config, root, batch, device, weights):
            if path not in done:
                _write(path, see())
                done.add(path)
                yield path


def write_looked(
    study: Study, config: Config, root: Path, batch: int, device: str, out: Path | None = None, code: str | None = None
) -> list[Path]:
    """Looks for a study, and writes a record of what was made, as the workflow asks for it."""
    from ditbench.records import Clock, write_record

    clock = Clock()
    with clock("compute"):
        paths = list(look(study, config, root, batch, device))
    if out is not None:
        body = {"study": study.name, "files": [path.relative_to(root).as_posix() for path in paths]}
        write_record(out, "looked", body, timings=clock.seconds, code=code)
    return paths


def _sights(
    study: Study, figure: Figure, config: Config, root: Path, batch: int, device: str, weights: str | None
) -> Iterator[tuple[Path, Callable[[], dict[str, Any]]]]:
    """The files of a figure, and what makes the contents of each."""
    if figure.kind == "redundancy":
        seen = partial(_redundancy, study, figure, config, root, batch, device, weights)
        yield redundancy_file(root, study.world, figure), seen
    for arm in figure.drawn_arms(()):
        record = learned_record(root, study.world, arm)
        if not record.is_file() and config.elsewhere:
            continue  # it may have been trained elsewhere: the figure says so, or why else there is nothing to see
        if not record.is_file():
            raise Fault(f"{study.name}: arm {arm} has not been trained: {record} is not there; run the study first")
        yield routers_file(root, study.world, arm, figure), partial(_routers, record, figure, device, weights)


def _routers(record: Path, figure: Figure, device: str, weights: str | None) -> dict[str, Any]:
    from ditbench.inspect.routers import router_maps
    from ditbench.storage import hash_file

    maps = router_maps(record, str(figure.caption), figure.seed, device, weights)
    kept = {"image": maps.image, "scores": maps.scores, "left_out": maps.left_out, "grid": np.array(maps.grid)}
    return kept | {"learned": np.array(hash_file(record))}


def _redundancy(
    study: Study, figure: Figure, config: Config, root: Path, batch: int, device: str, weights: str | None
) -> dict[str, Any]:
    from ditbench.inspect.redundancy import measure

    texts = _embedded(study, figure, config, root)
    found = measure(study.world, figure.captions, figure.seed, batch, device, weights, texts)
    return {"bands": found.bands, "cosines": found.cosines, "distances": found.distances}


def _embedded(study: Study, figure: Figure, config: Config, root: Path) -> Callable[[str | None], Texts] | None:
    """Reads the first captions of the run (all, where it has fewer), as embedded with weights of a name.

    None where no run has embedded any.
    """
    from ditbench.cells import caption_set
    from ditbench.generate import read_batch
    from ditbench.records import read_record

    name = caption_set(config)[0]
    captions, embeddings = (root / kind / study.world / f"{name}.json" for kind in ("captions", "embeddings"))
    if not captions.is_file() or not embeddings.is_file():
        return None
    count = min(figure.captions, len(read_record(captions, "captions")["captions"]))
    return lambda weights: read_batch(captions, embeddings, range(count), weights)


def _write(path: Path, seen: dict[str, Any]) -> None:
    from ditbench.storage import replacing

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as unfinished, Path(unfinished).open("wb") as stream:
        np.savez_compressed(stream, **seen)
