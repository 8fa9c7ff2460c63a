"""What an audit says in sentences, about each table, each paper and all of them: computed from its figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ditbench.audit.sheet import half_unit
from ditbench.audit.verdicts import KINDS, judge

Body = Mapping[str, Any]
REPRODUCED = ("exact", "within rounding")
_WORDS = {"linear": "linear layers", "thop": "linear layers and LayerNorms", "total": "linear layers and attention"}


def tally(figures: Sequence[Body]) -> dict[str, int]:
    """How many figures have each verdict."""
    found = Counter(figure["verdict"] for figure in figures)
    return {kind: found[kind] for kind in KINDS}


def tally_told(figures: Sequence[Body]) -> str:
    """The same in words: 3 exact, 1 waits."""
    return ", ".join(f"{n} {'waiting' if kind == 'waits' else kind}" for kind, n in tally(figures).items() if n)


def reproduced(figures: Sequence[Body]) -> list[Body]:
    """Figures whose reading is known to be theirs."""
    return [figure for figure in figures if figure["verdict"] in REPRODUCED]


def branches_told(figures: Sequence[Body]) -> str:
    """How many of the branches that run the reproduced figures count."""
    pairs = sorted({(f["reading"]["branches"], f["cfg_branches"]) for f in reproduced(figures)})
    return " and ".join("the only one" if run == 1 else f"{counted} of {run}" for counted, run in pairs)


def per_told(figures: Sequence[Body]) -> str:
    """What the reproduced figures are for: a run or a call, and of how many images."""
    kinds = {f["reading"]["per"] for f in reproduced(figures)}
    images = sorted({f["reading"]["images"] for f in reproduced(figures)})
    words = " and ".join({"run": "a sampling run", "call": "one call"}[kind] for kind in sorted(kinds))
    if not words or images == [1]:
        return words
    return f"{words}, {' or '.join(map(str, images))} images"


def attention_range(figures: Sequence[Body]) -> tuple[float, float] | None:
    """The least and the most that attention's products would add to reproduced figures."""
    added = [figure["attention_adds"] for figure in reproduced(figures)]
    return (min(added), max(added)) if added else None


def percent_range(low: float, high: float) -> str:
    """5 %, or 5 to 12 %."""
    ends = dict.fromkeys((f"{low:.0%}"[:-1], f"{high:.0%}"[:-1]))
    return f"{' to '.join(ends)} %"


def of_table(figures: Sequence[Body]) -> list[str]:
    """The sentences of one table."""
    return list(_of_table(figures))


def _of_table(figures: Sequence[Body]) -> Iterator[str]:
    yield f"{len(figures)} figures: {tally_told(figures)}."
    known = reproduced(figures)
    if not known:
        yield "No reading of this table is known, so it cannot be said what it counts."
    else:
        yield _branches(known)
        yield _attention(known)
        yield from _layer_norms(known)
    yield from _ratios(figures)


def _branches(known: Sequence[Body]) -> str:
    half = [f for f in known if f["reading"]["branches"] < f["cfg_branches"]]
    whole = [f for f in known if 1 < f["reading"]["branches"] == f["cfg_branches"]]
    if half and whole:
        return (
            f"This one table mixes conventions: {_rows(half)} {_counts(half)} one of the two branches of guidance, "
            f"{_rows(whole)} both. Its rows do not compare."
        )
    if half:
        return (
            "Every figure that is reproduced counts one of the two branches of guidance: sampling with guidance costs "
            "twice as much."
        )
    if whole:
        return "Every figure that is reproduced counts both branches of guidance, as the network computes them."
    return "The networks run without a second branch of guidance; nothing is doubled or halved."


def _rows(figures: Sequence[Body]) -> str:
    return ", ".join(dict.fromkeys(f["row"] for f in figures))


def _counts(figures: Sequence[Body]) -> str:
    return "counts" if len({f["row"] for f in figures}) == 1 else "count"


def _attention(known: Sequence[Body]) -> str:
    counting = [f for f in known if f["reading"]["count"] in ("attention", "total")]
    fitting = [f for f in known if any("total" in other for other in f["also_exact"])]
    if counting:
        return f"{_rows(counting)} {_counts(counting)} attention's products."
    low_high = attention_range(known)
    assert low_high is not None
    also = f"; with them no figure would be reproduced to the digit{f' but {_rows(fitting)}' if fitting else ''}"
    return f"None of them counts attention's products, which would add {percent_range(*low_high)}{also}."


def _layer_norms(known: Sequence[Body]) -> Iterator[str]:
    """Figures that only one of the two ways to count without attention gives."""
    exact = [f for f in known if f["verdict"] == "exact"]
    only = [f for f in exact if f["reading"]["count"] == "thop" and not _also(f, "linear")]
    if only:
        yield (
            f"{len(only)} of {len(exact)} exact {'figures are' if len(exact) > 1 else 'figure is'} exact only with "
            f"LayerNorms counted as thop does: {_rows(only)}."
        )


def _also(figure: Body, count: str) -> bool:
    return f"{count}, {figure['reading']['branches']}" in figure["also_exact"]


def _ratios(figures: Sequence[Body]) -> Iterator[str]:
    """Rows that are called by a ratio, and save another one by the printed figures themselves."""
    off: dict[str, list[str]] = {}
    for figure in figures:
        if figure["ratio"] and figure["saved"]:
            middle = sum(figure["saved"]) / 2
            # A point is what whole tokens and blocks can be off; more is another ratio.
            if abs(middle - float(half_unit(figure["ratio"])[0])) > 0.01:
                off.setdefault(figure["row"], []).append(f"{middle:.1%}"[:-1])
    if off:
        rows = (f"{row} {' and '.join(dict.fromkeys(shares))} %" for row, shares in off.items())
        yield f"Rows save other shares than their labels say, by the printed figures themselves: {'; '.join(rows)}."


def of_paper(tables: Sequence[Body], figures: Sequence[Body]) -> list[str]:
    """What a paper's tables are to each other."""
    return list(_of_paper(tables, figures))


def _of_paper(tables: Sequence[Body], figures: Sequence[Body]) -> Iterator[str]:
    sides: dict[str, list[str]] = {"one of the two branches": [], "both branches": [], "the only branch": []}
    spans: dict[str, list[str]] = {"a sampling run": [], "one call of the network": []}
    for table in tables:
        known = reproduced([figure for figure in figures if figure["table"] == table["id"]])
        for side in {_side(f) for f in known}:
            sides[side].append(table["place"])
        for span in {f["reading"]["per"] for f in known}:
            spans["a sampling run" if span == "run" else "one call of the network"].append(table["place"])
    if sides["one of the two branches"] and sides["both branches"]:
        yield (
            f"One paper, two conventions: {_listed(sides['one of the two branches'])} "
            f"{_verb(sides['one of the two branches'])} one of the two branches of guidance, "
            f"{_listed(sides['both branches'])} {_verb(sides['both branches'])} both. Between them figures are off by "
            "a factor of two."
        )
    if all(spans.values()):
        yield (
            f"{_listed(spans['a sampling run'])} {_verb(spans['a sampling run'])} a whole sampling run, "
            f"{_listed(spans['one call of the network'])} one call of the network."
        )


def _side(figure: Body) -> str:
    counted, run = figure["reading"]["branches"], figure["cfg_branches"]
    if run == 1:
        return "the only branch"
    return "both branches" if counted == run else "one of the two branches"


def _listed(places: Sequence[str]) -> str:
    numbers = [place.removeprefix("Table ") for place in places]
    if len(numbers) == 1:
        return f"Table {numbers[0]}"
    return f"Tables {', '.join(numbers[:-1])} and {numbers[-1]}"


def _verb(places: Sequence[str]) -> str:
    return "counts" if len(places) == 1 else "count"


def of_all(figures: Sequence[Body]) -> list[str]:
    """The audit in a few sentences."""
    return list(_of_all(figures))


def _of_all(figures: Sequence[Body]) -> Iterator[str]:
    yield f"{len(figures)} printed figures of {len({f['paper'] for f in figures})} papers: {tally_told(figures)}."
    known = reproduced(figures)
    added = attention_range(known)
    if added and all(f["reading"]["count"] in ("linear", "thop") for f in known):
        yield (
            f"No figure that is reproduced counts the products of attention; they would add {percent_range(*added)}. "
            "What they count is linear layers, and LayerNorms where the digits can tell."
        )
    single = [f for f in known if f["reading"]["branches"] < f["cfg_branches"]]
    double = [f for f in known if 1 < f["reading"]["branches"] == f["cfg_branches"]]
    if single and double:
        yield (
            f"{len(single)} reproduced figures count one of the two branches of guidance and {len(double)} both: "
            "beside each other they are off by a factor of two."
        )


def also_exact(printed: str, values: Mapping[str, float]) -> list[str]:
    """Which of our figures, by what is counted and for how many branches, round to the printed one."""
    return [name for name, value in values.items() if judge(printed, value).kind == "exact"]
