"""What the papers' tables take on a GPU machine, as docs/reproducing.md shows it.

    uv run tools/estimates.py [--images 5000] [--write docs/reproducing.md]

As many images of each arm as the study's configuration in configs/papers draws, or as were asked for. Hours are those
of the network alone: images x steps x branches of guidance x the time of a forward of sixteen, by the records of
`measured/` (random weights, bfloat16), times what each arm's plan computes. An arm whose plan is learned or made while
sampling is taken for a full one. Disk is what images take by `ditbench plan`'s estimate. With `--write`, the
table of a page is made anew between its two marks.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from ditbench.cells import Spec
from ditbench.config import load_config
from ditbench.faults import Fault
from ditbench.forecast import BYTES_PER_PIXEL, effort
from ditbench.measured import forward_seconds
from ditbench.study import Study, load_study, study_names
from ditbench.worlds import get_world, world_names

MARKS = ("<!-- estimates: made by tools/estimates.py -->", "<!-- estimates end -->")
HEADS = ("study", "world", "arms that run", "images of each", "GPU hours", "GPU", "disk, GB")
PAPERS = Path(__file__).parents[1] / "configs" / "papers"


def images_drawn() -> dict[str, int]:
    """How many images of an arm the papers' configurations draw, by the study's name; the most of several."""
    drawn: dict[str, int] = {}
    for path in sorted(PAPERS.glob("*.yaml")):
        config = load_config(path)
        for name in config.studies:
            study = load_study(name).name
            drawn[study] = max(config.images, drawn.get(study, 0))
    return drawn


def efforts(study: Study) -> Iterator[float]:
    """What each arm that runs computes, as a share of the full model."""
    for row in study.rows:
        if row.method is None:
            continue
        spec = Spec(study.world, row.arm, row.method, row.knobs, row.steps, 0, 1, "some", None, "bfloat16")
        try:
            yield effort(spec)
        except Fault:  # says nothing before it has learned
            yield 1.0


def line(study: Study, images: int | None) -> tuple[str, ...] | None:
    """A study's line; None where no arm of it runs, no configuration draws it, or nothing was measured."""
    if study.world not in world_names() or study.world == "scenes":
        return None
    if study.figures:  # studies of figures run arms of the tables, or need none to be drawn
        return None
    measured, shares = forward_seconds(study.world), list(efforts(study))
    if measured is None or not shares or images is None:
        return None
    world = get_world(study.world)
    seconds, gpu = measured
    hours = images * world.default_steps * world.cfg_branches * seconds * sum(shares) / 3600
    pixels = world.image_size**2 * (world.frames or 1)
    disk = images * pixels * BYTES_PER_PIXEL * len(shares) / 1e9
    return (f"`{study.name}`", study.world, str(len(shares)), f"{images:,}", f"{hours:,.1f}", gpu, f"{disk:,.0f}")


def table(images: int | None) -> str:
    """The table in Markdown, for as many images of each arm, or as the papers' configurations draw."""
    drawn = images_drawn()
    studies = [load_study(name) for name in study_names()]
    lines = [found for study in studies if (found := line(study, images or drawn.get(study.name))) is not None]
    rows = [HEADS, tuple("---" if head in ("study", "world", "GPU") else "--:" for head in HEADS), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    made = table(arguments.images)
    if arguments.write is None:
        print(made)
        return
    text = arguments.write.read_text(encoding="utf-8")
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    arguments.write.write_text(f"{before}{MARKS[0]}\n\n{made}\n\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
