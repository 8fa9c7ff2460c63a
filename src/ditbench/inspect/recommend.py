"""Which arm to take: of the finished cells, those on the Pareto front that are fast enough or good enough."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ditbench.faults import Fault
from ditbench.inspect.seeds import mean_difference, mean_quality, mean_speedup
from ditbench.mistakes import possible
from ditbench.report.comparable import refused, timed_otherwise
from ditbench.study import BASELINE, is_cost

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
    """An arm with what speaks for it. `loss` is the share of full's quality that it loses; below 0 it gains.

    Of several seeds, quality and loss are means over `seeds`, those that both the arm and full have a score of.
    """

    arm: str
    method: str
    knobs: dict[str, Any]
    steps: int | None
    speedup: Value
    quality: Value
    loss: float
    same: bool | None  # not distinguishable from full; None where nobody has compared
    loss_ends: tuple[float, float] | None = None  # the 95 % interval of the loss
    contended: str = ""  # what else the machine did while the arm was timed
    seeds: tuple[int, ...] = (0,)
    each: tuple[float, ...] = ()  # the quality of each of these seeds
    learned: str | None = None  # the record of what its method learned
    weights_of: str | None = None  # the record of the fine-tuned weights that it ran on
    trained_elsewhere: str = ""  # the file of finished cells that it was taken from, where it has learned

    @property
    def line(self) -> str:
        """What applies the arm to a pipeline."""
        words = "".join(f", {name}={_quoted(value)}" for name, value in self.knobs.items())
        given = f"learned={_quoted(self.learned)}" if self.learned else f"{_quoted(self.method)}{words}"
        weights = f", weights_of={_quoted(self.weights_of)}" if self.weights_of else ""
        notes = [f"with num_inference_steps={self.steps}"] if self.steps else []
        if self.trained_elsewhere:
            notes.append(f"learn first: {self.trained_elsewhere} has its numbers, not what it learned")
        told = f"  # {'; '.join(notes)}" if notes else ""
        return f"ditbench.accelerate(pipe, {given}{weights}){told}"


@dataclass(frozen=True)
class Advice:
    """The arms that satisfy a wish, best first; where there are none, the `nearest`."""

    wish: Wish
    full: Value
    choices: list[Choice] = field(default_factory=list)
    nearest: list[Choice] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)  # arms that are not finished
    failed: dict[str, str] = field(default_factory=dict)  # arms that failed before they had quality and speed, and why
    untimed: dict[str, str] = field(default_factory=dict)  # arms that are judged and have no speed, and why
    seeds: tuple[int, ...] = (0,)  # all that the configuration asks for
    lacking: dict[str, str] = field(default_factory=dict)  # arms that are judged by some of the seeds only, and why
    apart: dict[str, str] = field(default_factory=dict)  # arms that were timed or judged otherwise than full, and how


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
    """The arms of a world that satisfy a wish, each judged by all its seeds. Controls are never recommended."""
    cells = [cell for cell in results.cells if cell.world == wish.world]
    if not cells:
        worlds = list(dict.fromkeys(cell.world for cell in results.cells))
        raise Fault(f"--world: no cell of world {wish.world!r}{possible(wish.world, worlds)}")
    by_arm: dict[str, list[Cell]] = {}
    for cell in cells:
        by_arm.setdefault(cell.arm, []).append(cell)
    baseline = _baseline(by_arm.get(BASELINE, []), wish)
    full = mean_quality(list(baseline.values()), wish.measure)
    if full.value == 0:
        raise Fault(f"--measure: {wish.measure} of the full arm is 0, of which nothing can be lost")
    passed_over = {BASELINE, *controls}
    there: list[Choice] = []
    waiting: list[str] = []
    untimed: dict[str, str] = {}
    failed: dict[str, str] = {}
    lacking: dict[str, str] = {}
    apart: dict[str, str] = {}
    if missing := sorted({cell.seed for cell in cells} - baseline.keys()):
        lacking[BASELINE] = f"no {wish.measure} of {_named(missing)}"
    for arm, of_seeds in by_arm.items():
        if arm in passed_over:
            continue
        judged = [cell for cell in of_seeds if wish.measure in cell.values and cell.seed in baseline]
        timed = [cell for cell in of_seeds if "speedup" in cell.values]
        if judged and (why := next(filter(None, (_apart(cell, baseline[cell.seed], wish) for cell in judged)), "")):
            apart[arm] = why
        elif judged and timed:
            there.append(_choice(judged, timed, wish, baseline, results))
            if why := _lacking(of_seeds, judged, timed, wish.measure):
                lacking[arm] = why
        elif judged and (why := next(filter(None, map(_refused, judged)), "")):
            untimed[arm] = why
        elif why := next((cell.reason for cell in of_seeds if cell.state == "failed"), ""):
            failed[arm] = why
        else:
            waiting.append(arm)
    front = _front(there)
    good = [choice for choice in front if _satisfies(choice, wish)]
    # Fast enough: the best one first. Good enough: the fastest one first.
    good.sort(key=lambda c: c.loss if wish.speedup is not None else -c.speedup.value)
    nearest: list[Choice] = []
    if not good and there:
        by_speed = max(there, key=lambda c: c.speedup.value)
        by_quality = min(there, key=lambda c: c.loss)
        nearest = list({c.arm: c for c in (by_speed, by_quality)}.values())
    seeds = tuple(sorted({cell.seed for cell in cells}))
    return Advice(wish, full, good, nearest, waiting, failed, untimed, seeds, lacking, apart)


def _apart(cell: Cell, full: Cell, wish: Wish) -> str:
    """Why an arm's cell may not be held against full's: it was finished elsewhere, in other circumstances."""
    why = refused(wish.measure, full, cell)
    if not why and "speedup" in cell.values and "latency" in full.bodies:
        why = timed_otherwise(full, cell)
    return why


def _baseline(cells: Sequence[Cell], wish: Wish) -> dict[int, Cell]:
    """The full arm's cells that have the wish's measure, by seed; a Fault that says what is wrong where none has."""
    if not cells:
        raise Fault(f"--world: the arm full is not asked for in {wish.world}, and all others are compared with it")
    named = [name for cell in cells for name, value in cell.values.items() if value.direction and not is_cost(name)]
    known = list(dict.fromkeys(named))
    if is_cost(wish.measure):
        raise Fault(
            f"--measure: {wish.measure!r} says what an arm costs, not how good its images are"
            f"{possible(wish.measure, known)}"
        )
    if not known:
        states = "; ".join(dict.fromkeys(cell.state_text for cell in cells))
        raise Fault(f"nothing has been scored of the full arm, which all others are compared with ({states})")
    found = {cell.seed: cell for cell in cells if wish.measure in cell.values}
    if not found:
        raise Fault(f"--measure: the full arm has no {wish.measure!r}{possible(wish.measure, known)}")
    return found


def _lacking(cells: Sequence[Cell], judged: Sequence[Cell], timed: Sequence[Cell], measure: str) -> str:
    """Which seeds of an arm say nothing of its quality or of its speed; empty where all do."""
    parts = []
    for what, there in ((measure, judged), ("speed", timed)):
        known = {cell.seed for cell in there}
        if missing := [cell.seed for cell in cells if cell.seed not in known]:
            parts.append(f"no {what} of {_named(missing)}")
    return ", ".join(parts)


def _named(seeds: Sequence[int]) -> str:
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _refused(cell: Cell) -> str:
    """Why the stopwatch gave a finished arm no speed."""
    return str(cell.bodies.get("latency", {}).get("refused") or "")


def _contended(cell: Cell) -> str:
    """What the stopwatch says of others on the machine, where it reported a speed all the same."""
    latency = cell.bodies.get("latency", {})
    return str(latency.get("note") or "others used it") if latency.get("contended") else ""


def _choice(
    judged: Sequence[Cell], timed: Sequence[Cell], wish: Wish, baseline: dict[int, Cell], results: Results
) -> Choice:
    quality = mean_quality(judged, wish.measure)
    # Against full from the same noise, so that a seed that is lucky for all arms favours none.
    full = mean_quality([baseline[cell.seed] for cell in judged], wish.measure)
    change = (quality.value - full.value) / abs(full.value) if full.value else math.inf
    paired = mean_difference(judged, wish.measure)
    first = judged[0]
    spec = first.spec
    ends = None
    if paired is not None and full.value:
        sign = (1 if full.direction == "lower" else -1) / abs(full.value)
        low, high = sorted((sign * paired.low, sign * paired.high))
        ends = (low, high)
    return Choice(
        first.arm,
        spec["method"],
        dict(spec["knobs"]),
        spec["steps"],
        mean_speedup(timed),
        quality,
        change if full.direction == "lower" else -change,
        None if paired is None else not paired.distinguishable,
        loss_ends=ends,
        contended=next(filter(None, map(_contended, timed)), ""),
        seeds=tuple(cell.seed for cell in judged),
        each=tuple(cell.values[wish.measure].value for cell in judged),
        learned=_record(results, first.world, first.arm) if spec.get("learning") and not first.elsewhere else None,
        trained_elsewhere=str(first.elsewhere) if spec.get("learning") and first.elsewhere else "",
        weights_of=_record(results, first.world, lender.partition("@")[0])
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
            "loss_interval": choice.loss_ends,
            "contended": choice.contended or None,
            "indistinguishable_from_full": choice.same,
            "seeds": dict(zip(map(str, choice.seeds), choice.each, strict=True)),
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
        "failed": advice.failed,
        "untimed": advice.untimed,
        "apart": advice.apart,
        "seeds": list(advice.seeds),
        "lacking": advice.lacking,
    }


def _loss_ends(choice: Choice) -> str:
    """The interval of a loss, as what is lost or gained."""
    if choice.loss_ends is None:
        return ""
    low, high = choice.loss_ends if choice.loss >= 0 else (-choice.loss_ends[1], -choice.loss_ends[0])
    return f" [{low:.1%}, {high:.1%}]"


def _why(reasons: dict[str, str]) -> str:
    return "; ".join(f"{arm} ({why})" for arm, why in reasons.items())


def _by_seed(choice: Choice, digits: int) -> list[str]:
    """The quality of each seed, where there are several to be seen apart."""
    if len(choice.each) < 2:
        return []
    apart = (f"{seed}: {value:.{digits}f}" for seed, value in zip(choice.seeds, choice.each, strict=True))
    return [f"    by seed {', '.join(apart)}"]


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
            f"{with_interval(choice.quality, digits)}, {way} {abs(choice.loss):.1%}{_loss_ends(choice)}"
            f"{verdict[choice.same]}",
            *_by_seed(choice, digits),
            f"    {choice.line}",
        ]
    if advice.choices:
        asked_speed = wish.speedup
        unsure = [
            c.arm for c in advice.choices if asked_speed and c.speedup.low is not None and c.speedup.low < asked_speed
        ]
        if unsure:
            lines += ["", f"in their slowest round {', '.join(unsure)} fell short of the speed asked for"]
    if busy := {c.arm: c.contended for c in shown if c.contended}:
        lines += ["", f"timed while the machine was contended, so do not trust these speeds: {_why(busy)}"]
    if advice.untimed:
        for why in dict.fromkeys(advice.untimed.values()):
            arms = ", ".join(arm for arm, reason in advice.untimed.items() if reason == why)
            lines += ["", f"without a speed, and so not considered: {arms} ({why})"]
        lines.append("delete their latency.json and run again to time them, on a machine that does nothing else")
    if len(advice.seeds) > 1:
        lines += ["", f"quality and speed are means over {_named(advice.seeds)}; intervals: {advice.full.interval}"]
    if advice.lacking:
        lines += ["", "judged by some of the seeds only:"]
        lines += [f"    {arm}: {why}" for arm, why in advice.lacking.items()]
    if advice.apart:
        lines += ["", f"not to be compared, and so not considered: {_why(advice.apart)}"]
    if advice.failed:
        lines += ["", "failed, and so not considered:", *(f"    {arm}: {why}" for arm, why in advice.failed.items())]
    if advice.waiting:
        lines += ["", f"not finished, and so not considered: {', '.join(advice.waiting)}"]
    return "\n".join(lines)
