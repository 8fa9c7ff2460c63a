"""Which arm to take: of the finished cells, those on the Pareto front that are fast enough or good enough."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ditbench.cells import BASELINE
from ditbench.faults import Fault
from ditbench.mistakes import possible
from ditbench.study import is_cost

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ditbench.report.results import Cell, Results, Value


@dataclass(frozen=True)
class Wish:
    """What is asked for: a speed-up of at least `speedup`, a loss of quality of at most `loss` of full's, or both."""

    world: str
    measure: str
    speedup: float | None = None
    loss: float | None = None


@dataclass(frozen=True)
class Choice:
    """An arm with what speaks for it. `loss` is the share of full's quality that it loses; below 0 it gains."""

    arm: str
    method: str
    knobs: dict[str, Any]
    steps: int | None
    speedup: Value
    quality: Value
    loss: float
    same: bool | None  # not distinguishable from full; None where nobody has compared
    on_front: bool = True
    learned: str | None = None  # the record of what its method learned
    weights_of: str | None = None  # the record of the fine-tuned weights that it ran on

    @property
    def line(self) -> str:
        """What applies the arm to a pipeline."""
        words = "".join(f", {name}={_quoted(value)}" for name, value in self.knobs.items())
        given = f"learned={_quoted(self.learned)}" if self.learned else f"{_quoted(self.method)}{words}"
        weights = f", weights_of={_quoted(self.weights_of)}" if self.weights_of else ""
        steps = f"  # with num_inference_steps={self.steps}" if self.steps else ""
        return f"ditbench.accelerate(pipe, {given}{weights}){steps}"


@dataclass(frozen=True)
class Advice:
    """The arms that satisfy a wish, best first; where there are none, the `nearest`."""

    wish: Wish
    full: Value
    choices: list[Choice] = field(default_factory=list)
    nearest: list[Choice] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)  # arms that are not finished
    untimed: dict[str, str] = field(default_factory=dict)  # arms that are judged and have no speed, and why
    seeds: int = 1  # of which the first counts


def _quoted(value: Any) -> str:
    """As Python reads it, texts in the double quotes that the method's name has."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def parse_speedup(text: str) -> float:
    """How many times as fast as the full arm; a ValueError where nothing could be."""
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(text)
    return value


def parse_loss(text: str) -> float:
    """A loss of quality, `1%` or `0.01`, as a share."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(%?)\s*", text)
    if match is None:
        raise Fault(f"--quality-loss: {text!r} must be a percentage such as 1% or a share such as 0.01")
    return float(match[1]) / (100 if match[2] else 1)


def recommend(results: Results, wish: Wish, controls: Iterable[str] = ()) -> Advice:
    """The arms of a world that satisfy a wish. Controls are never recommended; of several seeds the first counts."""
    cells = [cell for cell in results.cells if cell.world == wish.world]
    if not cells:
        worlds = list(dict.fromkeys(cell.world for cell in results.cells))
        raise Fault(f"--world: no cell of world {wish.world!r}{possible(wish.world, worlds)}")
    first: dict[str, Cell] = {}
    for cell in cells:
        first.setdefault(cell.arm, cell)
    baseline = first.get(BASELINE)
    known = [
        name for name, value in (baseline.values if baseline else {}).items() if value.direction and not is_cost(name)
    ]
    if is_cost(wish.measure):
        raise Fault(
            f"--measure: {wish.measure!r} says what an arm costs, not how good its images are"
            f"{possible(wish.measure, known)}"
        )
    if baseline is None or wish.measure not in baseline.values:
        raise Fault(f"--measure: the full arm has no {wish.measure!r}{possible(wish.measure, known)}")
    full = baseline.values[wish.measure]
    if full.value == 0:
        raise Fault(f"--measure: {wish.measure} of the full arm is 0, of which nothing can be lost")
    passed_over = {BASELINE, *controls}
    arms = {arm: cell for arm, cell in first.items() if arm not in passed_over}
    judged = {arm: cell for arm, cell in arms.items() if wish.measure in cell.values}
    there = [_choice(cell, wish, full, results) for cell in judged.values() if "speedup" in cell.values]
    untimed = {arm: why for arm, cell in judged.items() if "speedup" not in cell.values and (why := _refused(cell))}
    waiting = [arm for arm, cell in arms.items() if "speedup" not in cell.values and arm not in untimed]
    waiting += [arm for arm, cell in arms.items() if arm not in judged and "speedup" in cell.values]
    front = _front(there)
    good = [choice for choice in front if _satisfies(choice, wish)]
    # Fast enough: the best one first. Good enough: the fastest one first.
    good.sort(key=lambda c: c.loss if wish.speedup is not None else -c.speedup.value)
    nearest: list[Choice] = []
    if not good and there:
        by_speed = max(there, key=lambda c: c.speedup.value)
        by_quality = min(there, key=lambda c: c.loss)
        nearest = list({c.arm: c for c in (by_speed, by_quality)}.values())
    seeds = len({cell.seed for cell in cells})
    return Advice(wish, full, good, nearest, waiting, untimed, seeds)


def _refused(cell: Cell) -> str:
    """Why the stopwatch gave a finished arm no speed."""
    return str(cell.bodies.get("latency", {}).get("refused") or "")


def _choice(cell: Cell, wish: Wish, full: Value, results: Results) -> Choice:
    quality = cell.values[wish.measure]
    change = (quality.value - full.value) / abs(full.value)
    paired = cell.differences.get(wish.measure)
    spec = cell.spec
    return Choice(
        cell.arm,
        spec["method"],
        dict(spec["knobs"]),
        spec["steps"],
        cell.values["speedup"],
        quality,
        change if full.direction == "lower" else -change,
        None if paired is None else not paired.distinguishable,
        learned=_record(results, cell.world, cell.arm) if spec.get("learning") else None,
        weights_of=_record(results, cell.world, lender.partition("@")[0])
        if (lender := spec.get("weights_of"))
        else None,
    )


def _record(results: Results, world: str, arm: str) -> str:
    """Where the record of an arm's learning is."""
    return (results.root / "learned" / world / arm / "learned.json").as_posix()


def _front(choices: Sequence[Choice]) -> list[Choice]:
    """Those that no other one beats in speed and in quality."""

    def beaten(one: Choice) -> bool:
        return any(
            (other.speedup.value >= one.speedup.value and other.loss <= one.loss)
            and (other.speedup.value > one.speedup.value or other.loss < one.loss)
            for other in choices
        )

    return [choice for choice in choices if not beaten(choice)]


def _satisfies(choice: Choice, wish: Wish) -> bool:
    fast = wish.speedup is None or choice.speedup.value >= wish.speedup
    return fast and (wish.loss is None or choice.loss <= wish.loss)


def as_data(advice: Advice) -> dict[str, Any]:
    """For a program."""

    def shown(choice: Choice) -> dict[str, Any]:
        return {
            "arm": choice.arm,
            "method": choice.method,
            "knobs": choice.knobs,
            "steps": choice.steps,
            "speedup": _ends(choice.speedup),
            "quality": _ends(choice.quality),
            "loss": choice.loss,
            "indistinguishable_from_full": choice.same,
            "apply": choice.line,
        }

    return {
        "world": advice.wish.world,
        "measure": advice.wish.measure,
        "asked": {"speedup": advice.wish.speedup, "quality_loss": advice.wish.loss},
        "full": _ends(advice.full),
        "choices": [shown(choice) for choice in advice.choices],
        "nearest": [shown(choice) for choice in advice.nearest],
        "waiting": advice.waiting,
        "untimed": advice.untimed,
        "seeds": advice.seeds,
    }


def _ends(value: Value) -> dict[str, Any]:
    return {"value": value.value, "low": value.low, "high": value.high, "n": value.n}


def told(advice: Advice) -> str:
    """For a person."""
    from ditbench.inspect.show import decimals, with_interval

    wish, digits = advice.wish, decimals(advice.full.value)
    asked = [f"a speed-up of {wish.speedup:g} or more" if wish.speedup is not None else ""]
    asked.append(f"at most {wish.loss:.1%} of quality lost" if wish.loss is not None else "")
    lines = [f"{wish.world}, {' and '.join(filter(None, asked))}; quality is {wish.measure}"]
    lines.append(f"full: {with_interval(advice.full, digits)}")
    shown = advice.choices or advice.nearest
    if not shown:
        lines += ["", "no other arm has a speed yet" if advice.untimed else "no other arm is finished"]
    elif not advice.choices:
        lines += ["", "no arm satisfies that; the fastest and the best there are:"]
    for choice in shown:
        verdict = {True: ", not distinguishable from full", False: "", None: ", not compared with full in pairs"}
        way = "loses" if choice.loss >= 0 else "gains"
        lines += [
            "",
            f"{choice.arm}: {with_interval(choice.speedup, 2)} times as fast, {wish.measure} "
            f"{with_interval(choice.quality, digits)}, {way} {abs(choice.loss):.1%}{verdict[choice.same]}",
            f"    {choice.line}",
        ]
    if advice.choices:
        asked_speed = wish.speedup
        unsure = [
            c.arm for c in advice.choices if asked_speed and c.speedup.low is not None and c.speedup.low < asked_speed
        ]
        if unsure:
            lines += ["", f"in their slowest round {', '.join(unsure)} fell short of the speed asked for"]
    if advice.untimed:
        for why in dict.fromkeys(advice.untimed.values()):
            arms = ", ".join(arm for arm, reason in advice.untimed.items() if reason == why)
            lines += ["", f"without a speed, and so not considered: {arms} ({why})"]
        lines.append("delete their latency.json and run again to time them, on a machine that does nothing else")
    if advice.seeds > 1:
        lines += ["", f"of {advice.seeds} seeds the first counts here"]
    if advice.waiting:
        lines += ["", f"not finished, and so not considered: {', '.join(advice.waiting)}"]
    return "\n".join(lines)
