"""A caption file and which of its captions are taken: as settings, as words of a command, and as a name has it."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditbench.caption_files.choose import Choice, Chosen, choose, wording
from ditbench.caption_files.formats import Entry, Format, detect, format_names, get_format
from ditbench.caption_files.place import Place
from ditbench.faults import Fault
from ditbench.mistakes import possible

if TYPE_CHECKING:
    from ditbench.config import CaptionsConfig, Config


@dataclass(frozen=True)
class CaptionFile:
    """A file of captions, its format (detected if None), and the column that holds them where there are columns."""

    path: Path
    format: str | None = None
    column: str | None = None

    @cached_property
    def place(self) -> Place:
        """The file as formats see it, read once."""
        return Place(self.path)

    def kind(self) -> type[Format]:
        """The file's format; a Fault where that does not go with the other knobs."""
        kind = detect(self.place) if self.format is None else get_format(self.format)
        if self.column is not None and not kind.columns:
            raise Fault(f"captions.column: {self.column!r} has no meaning for {self.path}, whose format is {kind.name}")
        if self.place.is_folder and not kind.folders:
            raise Fault(f"{self.path} is a folder; the format {kind.name} reads one file")
        return kind

    def entries(self) -> list[Entry]:
        """All captions of the file."""
        return self.kind().read(self.place, self.column)


@dataclass(frozen=True)
class Selection:
    """A caption file, which of its captions are taken, and the file whose captions are not."""

    file: CaptionFile
    choice: Choice = field(default_factory=Choice)
    without: CaptionFile | None = None

    def check(self) -> None:
        """A Fault where a knob has no meaning for the file, told before anything runs."""
        kind = self.file.kind()
        if self.choice.per_image is not None and not kind.images:
            raise Fault(
                f"captions.per_image: {self.choice.per_image!r} has no meaning for {self.file.path}, "
                f"whose format {kind.name} does not say which image a caption describes"
            )
        if self.without is not None:
            self.without.kind()

    def take(self, count: int | None) -> Chosen:
        """`count` captions of the file."""
        self.check()
        avoid = {wording(entry.text) for entry in self.without.entries()} if self.without else frozenset()
        try:
            return choose(self.file.entries(), count, self.choice, avoid)
        except Fault as fault:
            said = str(fault)
            names_its_place = said.startswith(("captions.", *map(str, self.file.place.parts), str(self.file.path)))
            raise Fault(said if names_its_place else f"{self.file.path} {said}") from None

    def source(self, chosen: Chosen) -> dict[str, Any]:
        """Where the captions come from, for their record: no paths, which other machines do not have."""
        file, kind = self.file, self.file.kind()
        return {
            "name": file.path.name,
            "sha256": file.place.sha256,
            "format": kind.name,
            "column": file.column,
            "found": chosen.found,
            "dropped": chosen.dropped,
            "sample": self.choice.sample,
            "per_image": (self.choice.per_image or "first") if kind.images else None,
            "duplicates": self.choice.duplicates,
            "without": None
            if self.without is None
            else {"name": self.without.path.name, "sha256": self.without.place.sha256},
        }

    @property
    def mark(self) -> str:
        """What tells this selection from the file's first captions as they are: eight hex digits, or nothing for those.

        A knob at its default counts as one that is not given, and a seed only where something is drawn with it.
        """
        self.check()
        choice, body = self.choice, dict[str, Any]()
        if self.file.format is not None and not _detected(self.file):
            body["format"] = self.file.format
        if self.file.column is not None:
            body["column"] = self.file.column
        body |= {key: value for key, value in _knobs(choice).items() if value != getattr(Choice(), key)}
        if body.get("per_image") == "first":
            del body["per_image"]
        if "random" in (choice.sample, choice.per_image):
            body["seed"] = choice.seed
        if self.without is not None:
            # How a file is read is part of what it holds.
            body["without"] = [self.without.place.sha256, self.without.kind().name, self.without.column]
        text = json.dumps(body, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8] if body else ""


def _detected(file: CaptionFile) -> bool:
    """Whether a file's format would be found without being told."""
    try:
        return detect(file.place).name == file.format
    except Fault:
        return False


def _knobs(choice: Choice) -> dict[str, Any]:
    return {"sample": choice.sample, "per_image": choice.per_image, "duplicates": choice.duplicates}


def selection_of(config: CaptionsConfig) -> Selection | None:
    """What the settings `captions` say of a file; None where the world's own captions are drawn."""
    if config.file is None:
        return None
    choice = Choice(config.sample, config.per_image, config.duplicates, config.seed)
    without = training_of(config) if config.overlap == "drop" else None
    return Selection(CaptionFile(Path(config.file), config.format, config.column), choice, without)


def training_of(config: CaptionsConfig) -> CaptionFile | None:
    """The file of training captions that the settings name."""
    train = config.train
    return None if train is None else CaptionFile(Path(train.file), train.format, train.column)


def training_words(config: CaptionsConfig) -> list[str]:
    """The training captions as the command line of `ditbench overlap` takes them."""
    train = training_of(config)
    if train is None:
        return []
    given = {"--train": train.path, "--train-format": train.format, "--train-column": train.column}
    return [str(word) for key, value in given.items() if value is not None for word in (key, value)]


def learning_words(config: Config) -> list[str]:
    """The captions that methods learn from, as the command line of `ditbench captions` takes them."""
    seed, train = ["--seed", str(config.learning.seed)], training_of(config.captions)
    if train is None:
        return [*seed, "--split", "train"]
    given = {"--file": train.path, "--format": train.format, "--column": train.column}
    words = [str(word) for key, value in given.items() if value is not None for word in (key, value)]
    return [*words, "--sample", "random", *seed]


def words_of(config: CaptionsConfig) -> list[str]:
    """Where captions come from, as the command line of `ditbench captions` takes it."""
    selection = selection_of(config)
    if selection is None:
        return ["--seed", str(config.seed)]
    file, choice, without = selection.file, selection.choice, selection.without
    given: dict[str, Any] = {"--file": file.path, "--format": file.format, "--column": file.column}
    given |= {f"--{key.replace('_', '-')}": v for key, v in _knobs(choice).items() if v != getattr(Choice(), key)}
    if "random" in (choice.sample, choice.per_image):
        given["--seed"] = choice.seed
    if without is not None:
        given |= {"--without": without.path, "--without-format": without.format, "--without-column": without.column}
    return [str(word) for key, value in given.items() if value is not None for word in (key, value)]


def training_from(options: argparse.Namespace) -> CaptionFile:
    """What `words.add_training` read."""
    return CaptionFile(options.train, options.train_format, options.train_column)


def selection_from(options: argparse.Namespace) -> Selection | None:
    """What `words.add_words` read."""
    if options.file is None:
        return None
    choice = Choice(options.sample, options.per_image, options.duplicates, options.seed)
    without = options.without and CaptionFile(options.without, options.without_format, options.without_column)
    return Selection(CaptionFile(options.file, options.format, options.column), choice, without)


def mistakes_in(captions: Any) -> Iterator[str]:
    """What is wrong with the settings `captions` beyond types: unknown formats, knobs without what they work on."""
    if not isinstance(captions, Mapping):
        return
    train = captions.get("train")
    parts = (("captions", captions), ("captions.train", train if isinstance(train, Mapping) else {}))
    for name, part in parts:
        wanted = part.get("format")
        if isinstance(wanted, str) and wanted not in format_names():
            yield f"{name}.format: no format of captions {wanted!r}{possible(wanted, format_names())}"
    if captions.get("file") is None:
        for key, default in (
            ("format", None),
            ("column", None),
            ("sample", "first"),
            ("per_image", None),
            ("duplicates", "keep"),
        ):
            if captions.get(key, default) != default:
                yield f"captions.{key}: {captions[key]!r} needs captions.file, whose captions it chooses"
        if captions.get("overlap") == "drop":
            yield "captions.overlap: 'drop' needs captions.file, whose captions it leaves out; possible: refuse, report"
    if captions.get("overlap", "refuse") != "refuse" and train is None:
        yield f"captions.overlap: {captions['overlap']!r} needs captions.train, with which it compares"
