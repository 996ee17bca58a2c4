"""One table, three ways to write it: Markdown, LaTeX and rich for the terminal; and CSV, of plain numbers."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.table import Table as RichTable

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "[": "{[}",  # at the head of a row or a note it would be an option of the command before it
    "]": "{]}",
    "*": "{*}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
}
_MATHS = {
    **dict(
        zip("±−×·√⊙⊗∘∗‖ℓ∞", "pm - times cdot surd odot otimes circ ast Vert ell infty".split(), strict=True)
    ),
    **dict(zip("≥≤≈∝→←↑↓", "geq leq approx propto to gets uparrow downarrow".split(), strict=True)),
    **dict(zip("⌊⌋⌈⌉", "lfloor rfloor lceil rceil".split(), strict=True)),
    **dict(
        zip("αβγδεηθκλμ", "alpha beta gamma delta epsilon eta theta kappa lambda mu".split(), strict=True)
    ),
    **dict(zip("νπρστφω", "nu pi rho sigma tau phi omega".split(), strict=True)),
    **dict(zip("ΓΔΘΛΣΦΩ", "Gamma Delta Theta Lambda Sigma Phi Omega".split(), strict=True)),
    **{c: f"^{n}" for n, c in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
    **{c: f"_{n}" for n, c in enumerate("₀₁₂₃₄₅₆₇₈₉")},
    "ᵀ": "^T",
    "⁻": "^-",
}
"""What stands between dollars: the name of a command, or a script."""
_NOT_IN_T1 = "ĦħĸĿŀŉŦŧſ"
"""The letters below U+0180 that its encoding neither has nor composes."""
PACKAGES = (r"\usepackage[utf8]{inputenc}", r"\usepackage[T1]{fontenc}", r"\usepackage{booktabs,graphicx}")
"""What a table needs in the preamble of the document that it is lifted into."""


@dataclass(frozen=True)
class Column:
    """A heading, and whether its cells are words (left) or numbers (right)."""

    name: str
    kind: Literal["words", "number"] = "number"


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table of text cells; `notes` stand below it."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        assert all(len(row) == len(self.columns) for row in self.rows), self.title


def markdown(sheet: Sheet) -> str:
    """A pipe table under a heading."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    rule = [":--" if column.kind == "words" else "--:" for column in sheet.columns]
    table = [line([column.name for column in sheet.columns]), line(rule), *map(line, sheet.rows)]
    notes = [f"- {note}" for note in sheet.notes]
    return "\n".join([f"## {sheet.title}", "", *table, *(["", *notes] if notes else []), ""])


def latex(sheet: Sheet) -> str:
    """A table environment with booktabs rules."""

    def line(cells: Sequence[str]) -> str:
        return "    " + " & ".join(escape(cell) for cell in cells) + r" \\"

    alignment = "".join("l" if column.kind == "words" else "r" for column in sheet.columns)
    return "\n".join(
        [
            r"\begin{table}[htbp]",
            r"  \centering\small",
            rf"  \caption{{{escape(sheet.title)}}}",
            r"  \resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"  \begin{{tabular}}{{{alignment}}}",
            r"    \toprule",
            line([column.name for column in sheet.columns]),
            r"    \midrule",
            *map(line, sheet.rows),
            r"    \bottomrule",
            r"  \end{tabular}}",
            r"\end{table}",
            "",
        ]
    )


def latex_document(title: str, sheets: Sequence[Sheet]) -> str:
    """A document that compiles as it is; each table can be lifted out of it into one that has PACKAGES."""
    notes = [note for sheet in sheets for note in sheet.notes]
    items = [r"\begin{itemize}", *(rf"  \item {escape(note)}" for note in notes), r"\end{itemize}"]
    return "\n".join(
        [
            "% Each table can be lifted into another document, whose preamble needs for it:",
            *(f"%   {package}" for package in PACKAGES),
            r"\documentclass{article}",
            r"\usepackage[margin=2cm]{geometry}",
            *PACKAGES,
            r"\begin{document}",
            rf"\section*{{{escape(title)}}}",
            *map(latex, sheets),
            *(items if notes else []),
            r"\end{document}",
            "",
        ]
    )


def escape(text: str) -> str:
    """Text that LaTeX prints as it stands; a character that it has no way to print becomes '?'."""
    return "".join(map(_escaped, unicodedata.normalize("NFC", text)))


def _escaped(c: str) -> str:
    if command := _MATHS.get(c):
        return f"${command}$" if command[0] in "^_-" else rf"$\{command}$"
    printable = c.isascii() or c.isalpha() and ord(c) < 0x180 and c not in _NOT_IN_T1
    return _LATEX.get(c) or (c if printable else "?")


def comma_separated(rows: Sequence[Mapping[str, Any]]) -> str:
    """CSV with a heading line: numbers as they are, in full; what is None is left empty."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def terminal(sheet: Sheet, width: int) -> RichTable:
    """For a console of `width` characters: columns that do not fit are left out, last first, and named."""
    sizes = [max(len(cell) for cell in cells) for cells in zip(_names(sheet), *sheet.rows, strict=True)]
    shown = len(sizes)
    while shown > 2 and sum(sizes[:shown]) + 3 * shown > width:
        shown -= 1
    left_out = ", ".join(_names(sheet)[shown:])
    caption = f"Not shown here: {left_out}." if left_out else None
    table = RichTable(
        title=sheet.title, title_justify="left", title_style="bold", caption=caption, caption_justify="left"
    )
    table.show_edge = False
    for column in sheet.columns[:shown]:
        table.add_column(column.name, justify="left" if column.kind == "words" else "right", overflow="fold")
    for row in sheet.rows:
        table.add_row(*(cell.replace("[", r"\[") for cell in row[:shown]))
    return table


def _names(sheet: Sheet) -> list[str]:
    return [column.name for column in sheet.columns]
