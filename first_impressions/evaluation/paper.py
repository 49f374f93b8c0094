"""Tables of an evaluation for papers: results.csv with all figures, comparison.csv, and results.tex, groups.tex,
comparison.tex (LaTeX with booktabs, for \\input inside a table)."""
import math
import re
from pathlib import Path

import pandas

from first_impressions.common.command_line import printable
from first_impressions.common.constants import MEANS_COLUMN, TRAITS
from first_impressions.common.files import atomic_write
from first_impressions.evaluation.measure import PARTS
from first_impressions.evaluation.text import NO_TEST, format_figure

ROWS = (*TRAITS, "mean")


def write_tables(folder: Path, metrics: dict) -> None:
    """Write the tables of what metrics.json holds; with groups and a comparison theirs, too."""
    parts = {"all" if part == "traits" else part: metrics[part] for part in PARTS if part in metrics}
    groups = {f"group {name}": table for name, table in metrics.get("groups", {}).items()}
    texts = {"results.csv": _rows_of({**parts, **groups}, "clips_of", metrics), "results.tex": results_table(parts)}
    if "groups" in metrics:
        texts["groups.tex"] = groups_table(metrics["groups"])
    if "comparison" in metrics:
        comparison = metrics["comparison"]
        texts["comparison.csv"] = _rows_of({comparison["with"]: comparison}, "compared_with", metrics)
        texts["comparison.tex"] = comparison_table(comparison)
    for name in ("results.csv", "results.tex", "groups.tex", "comparison.csv", "comparison.tex"):
        if name not in texts:
            (folder / name).unlink(missing_ok=True)  # of an earlier evaluation
            continue
        text = texts[name]
        if name.endswith(".tex"):
            text = f"% python {printable(metrics['command'])}\n% needs \\usepackage{{booktabs}}\n{text}"
        with atomic_write(folder / name) as partial:
            partial.write_text(text, encoding="utf-8", errors="replace")


def _rows_of(tables, title, metrics):
    """Return tables of figures as CSV, a row per table and trait."""
    rows = [{title: name, "trait": trait, **table[trait], MEANS_COLUMN: metrics[MEANS_COLUMN]}
            for name, table in tables.items() for trait in ROWS]
    return pandas.DataFrame(rows).convert_dtypes().to_csv(index=False, float_format="%.6f")


def results_table(parts: dict[str, dict]) -> str:
    """Return the LaTeX table of all clips: accuracy with interval (or mean ± SD over experiments), constant, r, CCC and
    R2, and the gain on all clips, on speakers in training (seen) and on others. parts: {name: table of figures}."""
    gains = [f"{name} ({table['mean']['clips']:.0f})" for name, table in parts.items()]
    rows = []
    for trait in ROWS:
        row = parts["all"][trait]
        rows.append([trait.capitalize(), format_figure(row, "accuracy"),
                     *(format_figure(row, name, False) for name in ("constant", "pearson", "ccc", "r2")),
                     *(format_figure(table[trait], "gain", False) for table in parts.values())])
    above = f" & & & & & & \\multicolumn{{{len(gains)}}}{{c}}{{Gain (clips)}} \\\\"
    return _table(["", "Accuracy", "Constant", "$r$", "CCC", "$R^2$", *gains], rows,
                  {"--": "not defined: constant predictions, one clip, or one speaker"}, above)


def groups_table(groups: dict) -> str:
    """Return the LaTeX table of the groups: clips, accuracy, gain, and of each trait the signed error (prediction -
    label) with a star if it differs from the other groups' (p < .05, corrected by Holm over traits and groups)."""
    rows = []
    for name, table in groups.items():
        p_values = {trait: table[trait].get("bias_p") for trait in TRAITS}
        errors = [format_figure(table[trait], "bias", False)
                  + ("$^{*}$" if (p_values[trait] or 1) < 0.05 else "") for trait in TRAITS]
        mean = table["mean"]
        untested = all(value is None or math.isnan(value) for value in p_values.values())
        rows.append([escape(name) + ("$^{-}$" if untested else ""), f"{mean['clips']:.0f}",
                     format_figure(mean, "accuracy", False), format_figure(mean, "gain", False), *errors])
    return _table(["Group", "Clips", "Accuracy", "Gain", *(trait[0].upper() for trait in TRAITS)], rows,
                  {"$^{*}$": "differs from the other groups, $p < .05$", "$^{-}$": f"not tested, {NO_TEST}"})


def comparison_table(comparison: dict) -> str:
    """Return the LaTeX table of a comparison: both accuracies, their difference with its interval, p."""
    rows = []
    for trait in ROWS:
        rows.append([trait.capitalize(), *(format_figure(comparison[trait], name)
                                           for name in ("first", "second", "difference", "p"))])
    return _table(["", "This", escape(Path(comparison["with"]).name), "Difference", "$p$"], rows, {"--": NO_TEST})


def escape(text: str) -> str:
    """Return text with the characters that LaTeX reads as commands escaped."""
    text = printable(text).replace("\\", "\0")
    text = re.sub(r"([&%$#_{}])", r"\\\1", text).replace("~", r"\textasciitilde{}").replace("^", r"\textasciicircum{}")
    return text.replace("\0", r"\textbackslash{}")


def _in_math(cell):
    """Return a cell with its figures in LaTeX's mathematical mode, for the sake of the minus sign, and two dashes for
    one that is missing."""
    cell = re.sub(r"<?[+-]?[0-9]*\.[0-9]+( ± [0-9.]+)?", r"$\g<0>$", cell).replace("±", r"\pm")
    return re.sub(r"-(?=$|,|\])", "--", cell)


def _table(header, rows, notes, above=None):
    """Return a tabular. notes: {mark: its meaning}, written below if a cell has the mark; above: a line above the
    header. A last row of means is set off."""
    rows = [[name, *map(_in_math, cells)] for name, *cells in rows]
    lines = [f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", "\\toprule", *([above] if above else []),
             " & ".join(header) + r" \\", "\\midrule", *(" & ".join(row) + r" \\" for row in rows), "\\bottomrule"]
    if rows[-1][0] == "Mean":
        lines.insert(-2, "\\midrule")
    for mark, meaning in notes.items():
        if any(mark in cell for row in rows for cell in row):
            lines.append(f"\\multicolumn{{{len(header)}}}{{l}}{{\\footnotesize {mark}: {meaning}}} \\\\")
    return "\n".join([*lines, "\\end{tabular}", ""])
