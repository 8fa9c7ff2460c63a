"""The formats of caption files: a file each, found by itself."""

from ditbench.caption_files.formats.base import Entry, Format
from ditbench.caption_files.formats.registry import detect, format_names, get_format

__all__ = ["Entry", "Format", "detect", "format_names", "get_format"]
