"""Does a finished run still hold? A random sample of its images and scores, made again with the code at hand.

Plans and costs are made again whole. Images are drawn again in the batches in which the run drew them, and compared
byte for byte. Scores of single pictures are taken again of the same images that are stored, where a batch of another
size may move the last digits.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ditbench.faults import Fault
from ditbench.inspect.cells import cell_name
from ditbench.study import BASELINE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ditbench.config import Config
    from ditbench.judges import Judge, Pictures
    from ditbench.report.results import Cell, Results

Verdict = Literal["equal", "close", "differs"]
# Scores that differ by no more than this share of their own size are close: networks compute in float32.
CLOSE = 1e-4


@dataclass(frozen=True)
class Check:
    """One thing that was made again; `of` how many, and by how much it differs where it does."""

    what: str
    verdict: Verdict
    of: int
    detail: str = ""


@dataclass(frozen=True)
class CellReport:
    """What became of one cell."""

    cell: str
    hash: str
    checks: tuple[Check, ...]
    passed_over: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """All cells."""

    cells: tuple[CellReport, ...]
    images: int
    seed: int

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return all(check.verdict != "differs" for cell in self.cells for check in cell.checks)


def verify(
    config: Config, results: Results, cells: Sequence[Cell], images: int, seed: int, device: str, sets: bool = False
) -> Report:
    """Makes a sample of some finished cells again; a record `verify.json` lies in the results afterwards.

    With `sets`, judges of whole sets judge all stored images again.
    """
    from ditbench.records import write_record

    if taken := [cell for cell in cells if cell.elsewhere is not None]:
        raise Fault(
            f"{cell_name(taken[0])} was finished elsewhere and taken from {taken[0].elsewhere}: its images are not "
            "here to be compared with"
        )
    unfinished = [cell for cell in cells if cell.state != "done"]
    if unfinished:
        why = f" ({unfinished[0].state_text})" if unfinished[0].reason else ""
        raise Fault(f"{cell_name(unfinished[0])} is not finished{why}: there is nothing to verify yet")
    if not cells:
        raise Fault(f"no cell in {results.root} is finished: there is nothing to verify yet")
    reports = []
    for cell in cells:
        print(f"verify: {cell_name(cell)}", file=sys.stderr, flush=True)
        try:
            reports.append(_Cell(config, results, cell, device, sets).report(images, seed))
        except Fault as fault:
            if len(cells) == 1:
                raise
            # What is wrong with one cell is no reason not to look at the others.
            reports.append(CellReport(cell_name(cell), cell.hash, (Check("records", "differs", 1, str(fault)),)))
    report = Report(tuple(reports), images, seed)
    write_record(results.root / "verify.json", "verify", as_data(report))
    return report


class _Cell:
    """One finished cell, and where its inputs are."""

    def __init__(self, config: Config, results: Results, cell: Cell, device: str, sets: bool) -> None:
        self.config, self.results, self.cell, self.device, self.sets = config, results, cell, device, sets
        self.folder = results.root / cell.folder
        self.given = config.weights.get(cell.world)
        self.captions = results.root / "captions" / cell.world / f"{cell.spec['captions']}.json"
        self.embeddings = results.root / "embeddings" / cell.world / f"{cell.spec['captions']}.json"

    def report(self, images: int, seed: int) -> CellReport:
        checks = [self._plan(), self._cost()]
        passed_over: list[str] = []
        if self.cell.shards:
            count = int(self.cell.spec["images"])
            rows = sorted(np.random.default_rng(seed).choice(count, min(images, count), replace=False).tolist())
            stored = self._stored(self.cell, rows)
            checks.append(self._images(rows, stored))
            of_scores = list(self._scores(rows, stored, passed_over))
            checks += of_scores
        else:
            passed_over.append("images and scores: this cell has none")
        return CellReport(cell_name(self.cell), self.cell.hash, tuple(checks), tuple(passed_over))

    def _plan(self) -> Check:
        from ditbench.methods import method_of
        from ditbench.worlds import get_world

        world, method = get_world(self.cell.world), method_of(self.cell.spec)
        steps = method.steps(self.cell.spec["steps"] or world.default_steps)
        made = json.loads(json.dumps(method.plan(world.shape(steps)).to_json()))
        same = made == self.cell.plan
        return Check("plan", "equal" if same else "differs", 1, "" if same else "this method plans otherwise now")

    def _cost(self) -> Check:
        from ditbench.generate import cost_body

        ran = [*self.cell.shards] or [self.folder / "latency.json"]
        made, kept = cost_body({**self.cell.spec, "hash": self.cell.hash}, ran), self.cell.bodies["cost"]
        # What an older record does not have, it cannot have wrong.
        wrong = [name for name, value in made.items() if name in kept and kept[name] != value]
        detail = f"{wrong[0]}: {kept.get(wrong[0])} then, {made[wrong[0]]} now" if wrong else ""
        return Check("cost", "differs" if wrong else "equal", len(made), detail)

    def _stored(self, cell: Cell, rows: Sequence[int]) -> NDArray[np.uint8]:
        """The stored images at some places of the caption set."""
        from ditbench.records import read_record
        from ditbench.storage import read_shard

        found: dict[int, NDArray[np.uint8]] = {}
        for path in cell.shards:
            record = read_record(path, "shard")
            here = [row for row in rows if record["first"] <= row <= record["last"]]
            if here:
                _, images = read_shard(path.with_name(record["file"]))
                found |= {row: images[row - record["first"]] for row in here}
        return np.stack([found[row] for row in rows])

    def _images(self, rows: Sequence[int], stored: NDArray[np.uint8]) -> Check:
        from ditbench.generate import Sampler, read_batch

        sampler = Sampler(self.cell.world, self.device, self.given)
        again: dict[int, NDArray[np.uint8]] = {}
        for batch in self._batches(rows):
            texts = read_batch(self.captions, self.embeddings, batch, sampler.handle.weights)
            again |= dict(zip(batch, sampler.draw(self.cell.spec, texts)[0], strict=True))
        drawn = np.stack([again[row] for row in rows])
        off = np.abs(drawn.astype(int) - stored.astype(int)).reshape(len(rows), -1).max(axis=1)
        if not off.any():
            return Check("images", "equal", len(rows))
        worst = rows[int(off.argmax())]
        told = f"{int((off > 0).sum())} images differ, number {worst} by up to {off.max()} of 255"
        return Check("images", "differs", len(rows), told)

    def _batches(self, rows: Sequence[int]) -> list[list[int]]:
        """The batches of the run that hold some rows: in another batch the last digit may be another."""
        from ditbench.records import read_record

        found, size = [], self.config.batch
        for path in self.cell.shards:
            record = read_record(path, "shard")
            first, last = record["first"], record["last"]
            for start in range(first, last + 1, size):
                batch = list(range(start, min(start + size, last + 1)))
                if set(batch) & set(rows):
                    found.append(batch)
        return found

    def _scores(self, rows: Sequence[int], stored: NDArray[np.uint8], passed_over: list[str]) -> Iterator[Check]:
        """Scores of single pictures, of the stored images."""
        import pyarrow.parquet as pq

        from ditbench.judges import Pictures, get_judge
        from ditbench.records import read_record
        from ditbench.storage import check_contents

        entries = read_record(self.captions, "captions")["captions"]
        chosen = [entries[row] for row in rows]
        ids, texts = [entry["id"] for entry in chosen], [entry["text"] for entry in chosen]
        pictures, full = self._pictures(ids, stored, texts), self._full(rows, ids, texts)
        remedy = "delete scores.json beside it and run again to judge anew"
        samples = check_contents(
            self.folder / "samples.parquet", self.cell.bodies["scores"].get("samples_sha256"), remedy
        )
        table = pq.read_table(samples).to_pydict()
        place = {name: number for number, name in enumerate(table["caption_id"])}
        for name in self.cell.bodies["scores"]["judge_seconds"]:
            judge = get_judge(name, self.device, self.config.judge_weights)
            if judge.of_sets:
                if self.sets:
                    yield from self._of_set(judge)
                else:
                    passed_over.append(f"{name}: it judges the whole set, with --sets again too")
                continue
            if judge.needs_full and full is None:
                if self.cell.arm != BASELINE:
                    passed_over.append(f"{name}: it compares with the arm {BASELINE}, of which there are no images")
                continue
            for result in judge.measure(pictures, Pictures.none(), full):
                if result.per_sample is None or result.name not in table:
                    continue
                before = [table[result.name][place[name]] for name in ids]
                yield _compared(result.name, before, result.per_sample)

    def _of_set(self, judge: Judge) -> Iterator[Check]:
        """Scores of all stored images."""
        from pathlib import Path

        from ditbench.cells import reference_set
        from ditbench.judges import Pictures
        from ditbench.judges.references import read_references
        from ditbench.records import read_record

        shards = [path.with_name(read_record(path, "shard")["file"]) for path in self.cell.shards]
        record = self.results.root / "references" / self.cell.world / f"{reference_set(self.config)}.json"
        features = sorted(record.with_suffix("").glob("*.json"))
        given = None if isinstance(self.config.references, int) else self.config.references.statistics
        real = read_references(record if record.is_file() else None, features, Path(given) if given else None)
        for result in judge.measure(Pictures.read(shards), real):
            value = self.cell.values.get(result.name)
            if value is not None:
                yield _compared(result.name, [value.value], np.array([result.estimate.value]))

    def _full(self, rows: Sequence[int], ids: list[str], texts: list[str]) -> Pictures | None:
        if self.cell.arm == BASELINE:
            return None
        cells = self.results.of_arm(self.cell.world, BASELINE)
        full = next((cell for cell in cells if cell.seed == self.cell.seed and cell.shards), None)
        return self._pictures(ids, self._stored(full, rows), texts) if full else None

    def _pictures(self, ids: list[str], images: NDArray[np.uint8], texts: list[str]) -> Pictures:
        from ditbench.judges import Pictures
        from ditbench.worlds import get_world

        return Pictures(ids, images, texts, frames_per_second=get_world(self.cell.world).frames_per_second)


def _compared(name: str, before: list[float | None], now: NDArray[np.float64]) -> Check:
    """Scores then and now; a null of the table is a picture that the measure does not concern."""
    old = np.array([np.nan if value is None else value for value in before], dtype=np.float64)
    if not np.array_equal(np.isnan(old), np.isnan(now)):
        return Check(name, "differs", len(old), "it concerns other pictures now")
    both = np.isfinite(old)
    off = np.abs(old[both] - now[both])
    if not off.any():
        return Check(name, "equal", int(both.sum()))
    close = bool((off <= CLOSE * np.maximum(np.abs(old[both]), 1e-3)).all())
    return Check(name, "close" if close else "differs", int(both.sum()), f"by up to {off.max():.2g}")


def as_data(report: Report) -> dict[str, Any]:
    """For a program, and the record."""
    body = asdict(report)
    cells = [
        {**cell, "checks": list(cell["checks"]), "passed_over": list(cell["passed_over"])} for cell in body["cells"]
    ]
    return {"equal": report.equal, "images": report.images, "seed": report.seed, "cells": cells}


def told(report: Report) -> str:
    """For a person."""
    lines = []
    for cell in report.cells:
        lines.append(f"{cell.cell}  {cell.hash}")
        for check in cell.checks:
            detail = f": {check.detail}" if check.detail else ""
            lines.append(f"  {check.what}: {check.verdict} ({check.of}){detail}")
        lines += [f"  not made again, {text}" for text in cell.passed_over]
    lines.append("")
    lines.append("all that was made again is equal or close" if report.equal else "NOT EQUAL: see what differs above")
    return "\n".join(lines)
