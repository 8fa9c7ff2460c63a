"""Which captions of a file are taken, and why the others are not."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass

from ditbench.caption_files.formats import Entry
from ditbench.faults import Fault
from ditbench.mistakes import shown

# Why a caption is not taken, in the order in which captions are left out, as records and messages say it.
EMPTY = "empty"
SAME_IMAGE = "another caption of the same image"
REPEATED = "repeats an earlier one"
IN_TRAINING = "in the training captions"
NOT_DRAWN = "not drawn"


# Terminals would obey them, pages may not hold them; line ends and tabs are spaces of a kind.
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")
_HALF = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Chosen:
    """The captions taken, how many there were, and how many were left out for which reason: the sums agree."""

    entries: list[Entry]
    found: int
    dropped: dict[str, int]

    @property
    def repeated(self) -> int:
        """How many of those taken repeat an earlier one."""
        return len(self.entries) - len({entry.text for entry in self.entries})


@dataclass(frozen=True)
class Choice:
    """How captions are chosen; `per_image` None is the first of each image where the file speaks of images."""

    sample: str = "first"
    per_image: str | None = None
    duplicates: str = "keep"
    seed: int = 0


def tidy(text: str) -> str:
    """A caption in one line and one spelling of its letters; control characters are no letters, and go."""
    return unicodedata.normalize("NFC", re.sub(r"\s*\n\s*", " ", _CONTROL.sub("", text).strip()))


def wording(text: str) -> str:
    """What two captions share that differ in capitals, spaces and punctuation only."""
    return " ".join(re.findall(r"\w+", text.casefold())) or text


def choose(entries: Iterable[Entry], count: int | None, choice: Choice, avoid: Set[str] = frozenset()) -> Chosen:
    """`count` captions (all if None): one per image, then without repetitions and what is to `avoid`, then drawn.

    Raises a Fault that says how many there are where they are too few, or where a knob has nothing to work on.
    """
    pool = [entry._replace(text=tidy(entry.text)) for entry in entries]
    for number, entry in enumerate(pool, start=1):
        if _HALF.search(f"{entry.text}{entry.image}{entry.group}"):
            raise Fault(f"holds half of a character (a lone surrogate) in caption {number}, {shown(entry.text)}")
    found, dropped = len(pool), {}

    def keep(reason: str, kept: list[Entry]) -> None:
        nonlocal pool
        if len(kept) < len(pool):
            dropped[reason] = len(pool) - len(kept)
        pool = kept

    keep(EMPTY, [entry for entry in pool if entry.text])
    speaks = any(entry.image is not None for entry in pool)
    if choice.per_image is not None and pool and not speaks:
        raise Fault(f"captions.per_image: {choice.per_image!r} has no meaning here: nothing says which image is meant")
    if speaks and choice.per_image != "all":
        keep(SAME_IMAGE, _one_per_image(pool, choice.per_image or "first", choice.seed))
    if choice.duplicates == "drop":
        keep(REPEATED, list({entry.text: entry for entry in reversed(pool)}.values())[::-1])
    if avoid:
        keep(IN_TRAINING, [entry for entry in pool if wording(entry.text) not in avoid])
    if count is not None:
        if len(pool) < count:
            raise Fault(_too_few(found, dropped, len(pool), count))
        keep(NOT_DRAWN, _drawn(pool, count, choice))
    return Chosen(pool, found, dropped)


def _one_per_image(pool: list[Entry], which: str, seed: int) -> list[Entry]:
    """One caption of each image, images in the order of their first caption; what has no image stays."""
    pick: dict[str, Callable[[list[Entry]], Entry]] = {
        "first": lambda captions: captions[0],
        "longest": lambda captions: max(captions, key=lambda entry: len(entry.text)),  # the first of equals
        "random": lambda captions: captions[_number(seed, captions[0].image) % len(captions)],
    }
    images: dict[object, list[Entry]] = {}
    for place, entry in enumerate(pool):
        images.setdefault(("none", place) if entry.image is None else entry.image, []).append(entry)
    return [pick[which](captions) for captions in images.values()]


def _number(seed: int, image: object) -> int:
    """A number that hangs on seed and image alone: other images of a file change nothing for this one."""
    return int.from_bytes(hashlib.sha256(f"{seed} {image}".encode()).digest()[:8], "big")


def _drawn(pool: list[Entry], count: int, choice: Choice) -> list[Entry]:
    """The first ones, or a random draw; a longer draw with one seed begins with the shorter one."""
    if choice.sample == "first":
        return pool[:count]
    import numpy as np

    order = np.random.default_rng([choice.seed, *b"captions"]).permutation(len(pool))[:count]
    return [pool[place] for place in order]


def _too_few(found: int, dropped: dict[str, int], left: int, count: int) -> str:
    filled = found - dropped.get(EMPTY, 0)
    reasons = ", ".join(f"{number} {reason}" for reason, number in dropped.items() if reason != EMPTY)
    some = f", {left} of them usable ({reasons})" if reasons else ""
    return f"holds {filled} captions{some}, {count} are asked for; lower `images` or add lines"
