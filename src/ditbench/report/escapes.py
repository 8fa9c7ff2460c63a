"""Text as the source of other formats that print it."""

from __future__ import annotations

import re

_TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "×": r"$\times$",
    "≈": r"$\approx$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    "→": r"$\rightarrow$",
    "−": r"$-$",
    "±": r"$\pm$",
    "∞": r"$\infty$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "α": r"$\alpha$",
    "Δ": r"$\Delta$",
    "Σ": r"$\Sigma$",
    "†": r"$\dagger$",
    "✓": r"$\surd$",
    "✗": r"$\times$",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "’": "'",
    "‘": "`",
    "“": "``",
    "”": "''",
    "\u00a0": "~",
}


# Of the Latin letters those that no font of pdfLaTeX has in its T1 encoding.
_LACKING = frozenset("ĦħĸĿŀŉŦŧ")


def tex(text: str) -> str:
    """Any text as LaTeX source that prints it, in one line; a character that pdfLaTeX lacks is named by its number."""
    return "".join(_TEX.get(c) or (c if _in_t1(c) else rf"\texttt{{U+{ord(c):04X}}}") for c in one_line(text))


def _in_t1(letter: str) -> bool:
    number = ord(letter)
    return number < 0x180 and number not in range(0x7F, 0xA0) and number >= 0x20 and letter not in _LACKING


def markdown(text: str) -> str:
    """Any text as Markdown that shows it, in a cell of a table too: no markup, no link, no tag, no character entity."""
    return re.sub(r"([\\`*_|<>\[\]&~$])", r"\\\1", one_line(text))


def one_line(text: str) -> str:
    """A text without line ends, tabs and what else would end a line."""
    return re.sub(r"[\t-\r\x1c-\x1f\x85\u2028\u2029 ]+", " ", text).strip(" ")
