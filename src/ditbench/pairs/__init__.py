"""Images with captions to fine-tune on, wherever they lie: a folder, webdataset shards, or parquet files.

A source knows its pairs by number, so that what a step of training sees is a function of its number alone, whatever
process asks and however often training was stopped.
"""

from ditbench.pairs.places import FORMS, PairSource, open_pairs

__all__ = ["FORMS", "PairSource", "open_pairs"]
