"""The record of a campaign of faults as the table of docs/reliability.md.

    uv run tools/page_of_faults.py [measured/faults-cpu.json] [docs/reliability.md]

Everything between the page's two marks is made anew; nothing of it is typed in.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ditbench.records import read_record

FIRST, LAST = "<!-- faults: made by tools/page_of_faults.py -->", "<!-- faults end -->"
HEADS = ("fault", "tried", "survived", "told", "what the user reads", "mended")


def table(record: dict[str, Any]) -> Iterator[str]:
    """The lines between the marks."""
    found: dict[str, list[dict[str, Any]]] = {}
    for outcome in record["outcomes"]:
        found.setdefault(outcome["fault"], []).append(outcome)
    tried = [o for o in record["outcomes"] if not o["untried"]]
    made, hardware = record["provenance"]["created"][:10], record["provenance"]["hardware"]
    whole = sum(o["survived"] and o["told"] for o in tried)
    yield (
        f"{len(tried)} faults of {len(found)} kinds were tried by {made} with seed {record['seed']}, on "
        f"{hardware['cores']} cores of {hardware['cpu']}; {whole} were survived and told. {_commits(tried)}"
    )
    yield ""
    yield f"| {' | '.join(HEADS)} |"
    yield "| --- | --: | --: | --: | --- | --- |"
    for outcomes in found.values():
        had = [o for o in outcomes if not o["untried"]]
        first = outcomes[0]
        says = next((o["sentence"] for o in had if o["sentence"]), "") or (first["untried"] if not had else "")
        counts = [len(had), sum(o["survived"] for o in had), sum(o["told"] for o in had)]
        yield f"| {first['what']} | {' | '.join(map(str, counts))} | {escaped(says)} | {escaped(first['mended'])} |"
    for outcome in tried:
        if not (outcome["survived"] and outcome["told"]):
            why = "; ".join(outcome["differences"])[:300] or "no sentence told of it"
            yield f"\nNot survived or not told: {outcome['fault']}, seed {outcome['seed']}: {escaped(why)}."


def _commits(tried: list[dict[str, Any]]) -> str:
    """How many faults were tried at which commits, oldest outcomes first."""
    counts = Counter(outcome["commit"][:12] for outcome in tried)
    return f"Commits: {', '.join(f'{commit} ({count})' for commit, count in counts.items())}."


def escaped(text: str) -> str:
    """A text that stays in its cell."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def main(record: Path = Path("measured/faults-cpu.json"), page: Path = Path("docs/reliability.md")) -> None:
    """Writes the table into the page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(FIRST)
    _, _, after = rest.partition(LAST)
    lines = "\n".join(table(read_record(record, "faults")))
    page.write_text(f"{before}{FIRST}\n{lines}\n{LAST}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
