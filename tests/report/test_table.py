from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from transformer_jax.report import index, measured, table
from transformer_jax.report.measured import results
from transformer_jax.report.results import Results, read
from transformer_jax.report.sheets import sheets
from transformer_jax.report.table import Column, Sheet

SHEET = Sheet(
    title="50% & more_of {it} ~ #1 $2 ^3 \\ x",
    columns=(Column("variant", "words"), Column("τ ± 1")),
    rows=(("a_b|c", "1,000"), ("[red]d[/red]", "–")),
    notes=("one & two",),
)


@pytest.mark.quick
def test_markdown_escapes_pipes():
    lines = table.markdown(SHEET).splitlines()
    assert lines[2:5] == ["| variant | τ ± 1 |", "| :-- | --: |", "| a_b\\|c | 1,000 |"]
    assert lines[-1] == "- one & two"


@pytest.mark.quick
def test_csv_reads_back():
    rows = [{"label": 'a, "b"', "mean": 1 / 3, "n": None}, {"label": "c", "mean": 0.1, "n": 2}]
    found = list(csv.DictReader(io.StringIO(table.comma_separated(rows))))
    assert found[0] == {"label": 'a, "b"', "mean": str(1 / 3), "n": ""} and found[1]["n"] == "2"


@pytest.mark.quick
def test_the_terminal_shows_brackets_as_they_are():
    console = Console(width=80, file=io.StringIO())
    console.print(table.terminal(SHEET, 80))
    assert "[red]d[/red]" in console.file.getvalue()


@pytest.mark.quick
def test_a_narrow_terminal_names_the_columns_that_it_leaves_out():
    columns = tuple(Column(f"column {i}") for i in range(6))
    sheet = Sheet(title="t", columns=columns, rows=(("1",) * 6,))
    console = Console(width=40, file=io.StringIO())
    console.print(table.terminal(sheet, 40))
    assert "column 2" in console.file.getvalue()
    assert "Not shown here: column 3" in console.file.getvalue()


@pytest.mark.quick
def test_latex_leaves_no_special_character_bare():
    escaped = table.escape("a_b & 50% #1 $2 {x} ~ ^ \\ < > | ±")
    assert escaped == (
        r"a\_b \& 50\% \#1 \$2 \{x\} \textasciitilde{} \textasciicircum{} \textbackslash{} "
        r"\textless{} \textgreater{} \textbar{} $\pm$"
    )
    assert table.escape("naïve 漢") == "naïve ?"


@pytest.mark.quick
def test_latex_rows_have_as_many_cells_as_columns():
    body = table.latex(SHEET)
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 3
    assert all(line.replace(r"\&", "").count("&") == 1 for line in rows)
    assert body.count(r"\begin{") == body.count(r"\end{")


PRINTED = "".join(
    map(chr, [*range(32, 127), *range(0xA1, 0x250), *range(0x370, 0x400), *range(0x2010, 0x2300)])
)


def compiles(document: str, folder: Path) -> None:
    """Draft mode: everything is set and nothing drawn, so no font is made. Skips where there is no TeX."""
    tex = shutil.which("pdflatex")
    if tex is None:
        pytest.skip("no pdflatex on this machine: install texlive-latex-base and texlive-latex-recommended")
    folder.mkdir(exist_ok=True)
    (folder / "x.tex").write_text(document)
    flags = ["-draftmode", "-interaction=nonstopmode", "-halt-on-error"]
    done = subprocess.run([tex, *flags, "x.tex"], cwd=folder, capture_output=True, timeout=300)
    log = done.stdout.decode(errors="replace")
    assert done.returncode == 0 and "Missing character" not in log, log[-2000:]


def test_the_document_of_a_table_compiles(tmp_path):
    """Whatever stands in it: every character, and what a command before it could take for its own."""
    columns = (Column("variant", "words"), Column("* τ ± 1"))
    rows = (("[-1, 1]", "[2] 3"), ("*", "–"), (PRINTED, "1"))
    sheet = Sheet(title=SHEET.title, columns=columns, rows=rows, notes=("[1] one", "* two", PRINTED))
    compiles(table.latex_document(SHEET.title, [SHEET, sheet]), tmp_path)


def test_a_table_compiles_with_the_packages_that_the_document_names(tmp_path):
    document = table.latex_document("t", [SHEET])
    packages = re.findall(r"^%   (\\usepackage.*)$", document, re.MULTILINE)
    assert packages == list(table.PACKAGES)
    lifted = "\n".join([r"\documentclass{article}", *packages, r"\begin{document}", table.latex(SHEET)])
    compiles(lifted + r"\end{document}", tmp_path)


def test_the_documents_of_reports_compile(fabricate, tmp_path):
    trained = read(a_report_of_specials(fabricate))
    compiles(table.latex_document(trained.experiment["title"], sheets(trained)), tmp_path / "trained")
    for directory in index.held(Path(__file__).parents[2] / "experiments" / "results"):
        found = results(directory)
        written = sheets(found) if isinstance(found, Results) else measured.sheets(found)
        compiles(table.latex_document(found.experiment["title"], written), tmp_path / directory.name)


@pytest.mark.quick
def test_a_row_of_another_width_is_a_mistake():
    with pytest.raises(AssertionError):
        Sheet(title="x", columns=(Column("a"),), rows=(("1", "2"),))


SPECIAL = re.compile(r"(?<!\\)[_^#%~]|(?<!\\)\$[^$\\]*(?<!\\)\$|[^\x00-\x7f]")
"""What TeX would read otherwise than it stands: bare specials, mathematics beside that of `escape`, and
characters that the input encoding may lack."""


def a_report_of_specials(fabricate):
    """A directory of results whose names and notes hold what TeX reads otherwise."""
    published = {
        "source": "arXiv:1234.5678 & Table_1 (50% #2)",
        "tag": "exact",
        "precision": 0.01,
        "selection": "one recipe",
        "rows": {"a_b^c": {"test": 0.9}, "~x~ \\y {z}": {"test/64": 0.5}},
        "notes": {"a_b^c": "≥ 3 × the $budget$"},
    }
    scores = {"a_b^c": {0.1: [0.9] * 5, 0.2: ["failed"] * 5}, "b & c": {0.1: [0.5, 0.4, 0.5, 0.4, 0.5]}}
    return fabricate(scores, tests={"a_b^c": {"64": 0.5}}, published=published)


@pytest.mark.quick
def test_the_document_of_a_report_is_sound_tex(fabricate):
    """Where no TeX is installed this stands for compiling: environments and braces close in order, each row
    has as many cells as its table has columns, and no special character is bare."""
    found = read(a_report_of_specials(fabricate))
    text = table.latex_document(found.experiment["title"], sheets(found))
    open_ones, columns = [], 0
    for line in text.splitlines():
        for what, name in re.findall(r"\\(begin|end)\{(\w+)\}", line):
            if what == "begin":
                open_ones.append(name)
            else:
                assert open_ones.pop() == name
        if found := re.search(r"\\begin\{tabular\}\{([lr]+)\}", line):
            columns = len(found[1])
        if line.endswith(r" \\"):
            assert open_ones[-1] == "tabular"
            assert len(re.findall(r"(?<!\\)&", line)) == columns - 1, line
            assert not SPECIAL.search(re.sub(r"\$\\\w+\$", "", line)), line
        elif line.lstrip().startswith((r"\item", r"\caption", r"\section")):
            assert not SPECIAL.search(re.sub(r"\$\\\w+\$", "", line)), line
            assert not re.search(r"(?<!\\)&", line), line
    assert open_ones == [] and columns
    bare = re.sub(r"\\[{}\\]", "", text)
    assert bare.count("{") == bare.count("}")
