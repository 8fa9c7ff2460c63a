"""The words of `ditbench captions` and its like: read before anything is loaded."""

from __future__ import annotations

import argparse
from pathlib import Path

SAMPLES = ("first", "random")
PER_IMAGE = ("first", "random", "longest", "all")
DUPLICATES = ("keep", "drop")
RULES = ("refuse", "report", "drop")


def add_words(command: argparse.ArgumentParser) -> None:
    """The options of `ditbench captions` that `words_of` writes, but for the seed."""
    command.add_argument("--file", type=Path, help="captions of a file instead of the world's grammar")
    command.add_argument("--format", help="of the file; found out if not given")
    command.add_argument("--column", help="of a parquet file")
    command.add_argument("--sample", choices=SAMPLES, default="first", help="the file's first captions, or a draw")
    command.add_argument("--per-image", choices=PER_IMAGE, help="which caption of each image; first if not given")
    command.add_argument("--duplicates", choices=DUPLICATES, default="keep", help="what repeats an earlier caption")
    command.add_argument("--without", type=Path, metavar="FILE", help="captions to leave out: those trained with")
    command.add_argument("--without-format", help="of that file; found out if not given")
    command.add_argument("--without-column", help="of that file, where it is parquet")


def add_training(command: argparse.ArgumentParser, required: bool = True) -> None:
    """The options that name training captions."""
    command.add_argument("--train", type=Path, required=required, metavar="FILE", help="the training captions")
    command.add_argument("--train-format", help="of that file; found out if not given")
    command.add_argument("--train-column", help="of that file, where it is parquet")
