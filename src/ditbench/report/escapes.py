"""Text as the source of other formats that print it."""

from __future__ import annotations

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
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "’": "'",
    "‘": "`",
    "“": "``",
    "”": "''",
    "\u00a0": "~",
}


def tex(text: str) -> str:
    """Any text as LaTeX source that prints it; a character that pdfLaTeX lacks is named by its code point."""
    return "".join(_TEX.get(c) or (c if ord(c) < 0x180 else rf"\texttt{{U+{ord(c):04X}}}") for c in text)
