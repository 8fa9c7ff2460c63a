"""A campaign of faults: each disturbs a run, the run is started again, and what is there is compared.

    uv run python tests/faults/campaign.py --seed 0 --faults 40 --out measured/faults-cpu.json

Which faults, and where and when each strikes, is drawn from the seed; what the system does meanwhile is not, so that
two campaigns of a seed are alike and not the same. A fault is survived where the run, started again, ends with every
record, image and MLflow run of a run without it, and no other number was ever shown; it is told where the user read a
sentence of it, and no traceback.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.faults.disturbances import DISTURBANCES, Disturbance, Untried
from tests.faults.essence import differences, wrong_numbers
from tests.faults.station import Said, Station, station

RERUNS = 4  # a user follows a sentence, runs again, and may read another


@dataclass
class Outcome:
    """What became of one fault."""

    fault: str
    what: str
    seed: int
    mended: str = ""
    survived: bool = False
    told: bool = False
    untried: str = ""
    sentence: str = ""
    reruns: int = 0
    seconds: float = 0.0
    differences: list[str] = field(default_factory=list)
    commit: str = ""  # that it was tried at: a record's outcomes may be of several


def disturb(place: Station, fault: Disturbance, seed: int) -> Outcome:
    """One fault, from its state to the comparison with the undisturbed run."""
    outcome, chance, began = Outcome(fault.name, fault.what, seed, fault.mended), random.Random(seed), time.monotonic()
    place.restore(fault.begins)
    try:
        said = fault.do(place, chance)
    except Untried as why:
        outcome.untried = str(why)
        return outcome
    wrong = wrong_numbers(place.undisturbed, place.results)
    texts = [said.text]
    for _ in range(RERUNS):
        follow(said, place.root)
        outcome.reruns += 1
        said = place.run()
        texts.append(said.text)
        if said.status == 0:
            break
    text = "\n".join(texts)
    (place.root.parent / "said.txt").write_text(text)  # for whoever looks into it
    outcome.differences = wrong + differences(place.undisturbed, place.results)
    if said.status:
        outcome.differences.append(f"run again {outcome.reruns} times, it still failed: {said.text[-600:]}")
    elif "Nothing to be done" not in place.run("-n").text:
        outcome.differences.append("a further run would make something anew")
    outcome.survived = not outcome.differences
    outcome.sentence = neutral(_sentence(text, fault.told), place.root)
    outcome.told = bool(outcome.sentence) and "Traceback (most recent call last)" not in text
    outcome.seconds = round(time.monotonic() - began, 1)
    return outcome


def _sentence(text: str, told: str) -> str:
    return next((line.strip() for line in text.splitlines() if re.search(told, line)), "")


def neutral(sentence: str, root: Path) -> str:
    """A sentence without the folder that this campaign ran in."""
    return sentence.replace(f"{root}/", "")


def follow(said: Said, root: Path) -> None:
    """Does what the sentences ask the user to do: deletes what they name."""
    for line in said.sentences:
        for path in asked_to_delete(line):
            (root / path).unlink(missing_ok=True)


def asked_to_delete(sentence: str) -> Iterator[str]:
    """The files that a sentence asks to delete: by name, as `it`, or as what lies beside it."""
    subject = re.search(r"(\S+/\S+\.\w+)", sentence)
    yield from re.findall(r"delete (\S+/\S+\.json)", sentence)
    if subject is None:
        return
    path = subject[1]
    if re.search(r"delete it and its \.json", sentence):
        yield from (path, str(Path(path).with_suffix(".json")))
    elif re.search(r"delete it\b", sentence):
        yield path
    if re.search(r"delete the \.json beside it", sentence):
        yield str(Path(path).with_suffix(".json"))
    if beside := re.search(r"delete (?:the )?(\w+\.json) beside it", sentence):
        yield str(Path(path).with_name(beside[1]))
    if re.search(r"delete its record", sentence):
        yield str(Path(path).with_name("learned.json"))


def drawn(seed: int, count: int, only: Sequence[str] = ()) -> list[tuple[Disturbance, int]]:
    """Faults and their seeds: all kinds in turn, each round in an order of its own; a choice keeps their seeds."""
    chance, found = random.Random(seed), []
    while len(found) < count:
        turn = [(fault, chance.randrange(1 << 30)) for fault in chance.sample(DISTURBANCES, len(DISTURBANCES))]
        found += [each for each in turn if not only or each[0].name in only]
    return found[:count]


def main() -> int:
    """Runs a campaign, writes its record and says what was not survived."""
    from ditbench.records import provenance

    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--faults", type=int, default=len(DISTURBANCES), help="how many (default: each kind once)")
    options.add_argument("--only", nargs="*", default=[], metavar="NAME", help="these kinds")
    options.add_argument("--out", type=Path, help="the record to write after every fault, or to go on with")
    options.add_argument("--again", action="store_true", help="those too that the record has as survived and told")
    options.add_argument("--minutes", type=float, default=1e9, help="begin no fault after so many")
    given = options.parse_args()
    if unknown := set(given.only) - {fault.name for fault in DISTURBANCES}:
        options.error(f"no such fault: {', '.join(unknown)}; possible: {', '.join(f.name for f in DISTURBANCES)}")
    outcomes = [] if given.out is None else kept(given.out, given.seed)
    left = [
        (fault, seed)
        for fault, seed in drawn(given.seed, given.faults, given.only)
        if given.again or not any(is_whole(each, fault, seed) for each in outcomes)
    ]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, station(Path(folder)) as place:
        for fault, seed in left:
            if time.monotonic() - began > 60 * given.minutes:
                break
            outcomes = [each for each in outcomes if (each.fault, each.seed) != (fault.name, seed)]
            outcomes.append(replace(disturb(place, fault, seed), commit=provenance()["git"] or ""))
            print(line(outcomes[-1]), flush=True)
            if given.out is not None:
                write(given.out, given.seed, outcomes)
    return int(any(not (each.untried or (each.survived and each.told)) for each in outcomes))


def is_whole(outcome: Outcome, fault: Disturbance, seed: int) -> bool:
    """Whether an outcome is this fault's as it is tried today, survived and told."""
    same = (outcome.fault, outcome.seed, outcome.what) == (fault.name, seed, fault.what)
    return same and outcome.survived and outcome.told and bool(re.search(fault.told, outcome.sentence))


def kept(out: Path, seed: int) -> list[Outcome]:
    """What a campaign of this seed has found before: what it survived is not tried again, what it did not is."""
    from ditbench.records import read_record

    record = read_record(out, "faults") if out.exists() else {"seed": seed, "outcomes": []}
    # Records from before outcomes named their commit are of one.
    made = record.get("provenance", {}).get("git") or ""
    return [Outcome(**{"commit": made, **each}) for each in record["outcomes"]] if record["seed"] == seed else []


def line(outcome: Outcome) -> str:
    """An outcome for a terminal."""
    if outcome.untried:
        return f"{outcome.fault}: not tried, {outcome.untried}"
    state = "survived" if outcome.survived else f"NOT survived ({'; '.join(outcome.differences)})"
    told = f"told: {outcome.sentence}" if outcome.told else f"NOT told ({outcome.sentence or 'no sentence'})"
    return f"{outcome.fault} (seed {outcome.seed}, {outcome.seconds:.0f} s): {state}; {told}"


def write(out: Path, seed: int, outcomes: Sequence[Outcome]) -> None:
    """The record of a campaign, from which docs/reliability.md is written (tools/page_of_faults.py)."""
    from ditbench.records import write_record

    body = {"program": "tests/faults/campaign.py", "seed": seed, "outcomes": [asdict(each) for each in outcomes]}
    write_record(out, "faults", body)


if __name__ == "__main__":
    sys.exit(main())
