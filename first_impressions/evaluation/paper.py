"""Tables of an evaluation for papers: results.csv with all figures, comparison.csv, and results.tex, groups.tex,
comparison.tex (LaTeX with booktabs, for \\input inside a table)."""
import re
from pathlib import Path

import pandas

from first_impressions.common.command_line import printable
from first_impressions.common.constants import MEANS_COLUMN, TRAITS
from first_impressions.common.files import atomic_write
from first_impressions.evaluation.measure import PARTS
from first_impressions.evaluation.text import format_figure, render

ROWS = (*TRAITS, "mean")
ESCAPES = str.maketrans({**{mark: f"\\{mark}" for mark in "&%$#_{}"}, "~": r"\textasciitilde{}",
                         "^": r"\textasciicircum{}", "\\": r"\textbackslash{}"})


def write_tables(folder: Path, metrics: dict) -> None:
    """Write the tables of what metrics.json holds; with groups and a comparison theirs, too."""
    parts = {"all" if part == "traits" else part: metrics[part] for part in PARTS if part in metrics}
    groups, comparison = metrics.get("groups"), metrics.get("comparison")
    of_groups = {f"group {name}": table for name, table in (groups or {}).items()}
    texts = {"results.csv": _rows_of({**parts, **of_groups}, "clips_of", metrics),
             "results.tex": latex_table("results", metrics, parts=parts),
             "groups.tex": groups and latex_table("groups", metrics),
             "comparison.csv": comparison and _rows_of({comparison["with"]: comparison}, "compared_with", metrics),
             "comparison.tex": comparison and latex_table("comparison", metrics,
                                                          other=escape(Path(comparison["with"]).name))}
    for name, text in texts.items():
        if text:
            with atomic_write(folder / name) as partial:
                partial.write_text(text, encoding="utf-8", errors="replace")
        else:
            (folder / name).unlink(missing_ok=True)  # of an earlier evaluation


def _rows_of(tables, title, metrics):
    """Return tables of figures as CSV, a row per table and trait."""
    rows = [{title: name, "trait": trait, **table[trait], MEANS_COLUMN: metrics[MEANS_COLUMN]}
            for name, table in tables.items() for trait in ROWS]
    return pandas.DataFrame(rows).convert_dtypes().to_csv(index=False, float_format="%.6f")


def latex_table(name: str, metrics: dict, **content) -> str:
    """Return the LaTeX table `results`, `groups` or `comparison` of what metrics.json holds, by its template."""
    return render(f"{name}_template.tex", {"metrics": metrics, "rows": ROWS, **content}, cell=_cell, escape=escape)


def _cell(row, name, interval=False):
    """Return a figure of a row, in LaTeX's mathematical mode for the sake of the minus sign; two dashes if there is
    none."""
    cell = format_figure(row, name, interval)
    cell = re.sub(r"<?[+-]?[0-9]*\.[0-9]+( ± [0-9.]+)?", r"$\g<0>$", cell).replace("±", r"\pm")
    return re.sub(r"-(?=$|,|\])", "--", cell)


def escape(text: str) -> str:
    """Return text with the characters that LaTeX reads as commands escaped."""
    return printable(text).translate(ESCAPES)
