"""Tables of an evaluation for papers: results.csv with all figures, and results.tex, groups.tex, comparison.tex (LaTeX
with booktabs, for \\input inside a table)."""
import math
import re
from pathlib import Path

import pandas

from first_impressions.common.command_line import printable
from first_impressions.common.constants import TRAITS
from first_impressions.common.files import atomic_write
from first_impressions.evaluation.metrics import format_p

ROWS = (*TRAITS, "mean")


def write_tables(folder: Path, metrics: dict) -> None:
    """Write the tables of what metrics.json holds; with groups and a comparison theirs, too."""
    parts = {"all": metrics["traits"], **{name: metrics[name] for name in ("seen", "unseen") if name in metrics},
             **{f"group {name}": table for name, table in metrics.get("groups", {}).items()}}
    rows = [{"clips_of": part, "trait": trait, **table[trait]} for part, table in parts.items() for trait in ROWS]
    with atomic_write(folder / "results.csv") as partial:
        pandas.DataFrame(rows).to_csv(partial, index=False, float_format="%.6f", errors="replace")
    texts = {"results": results_table(metrics), "groups": "groups" in metrics and groups_table(metrics["groups"]),
             "comparison": "comparison" in metrics and comparison_table(metrics["comparison"])}
    for name, text in texts.items():
        path = folder / f"{name}.tex"
        if not text:
            path.unlink(missing_ok=True)  # of an earlier evaluation
            continue
        with atomic_write(path) as partial:
            partial.write_text(f"% python {printable(metrics['command'])}\n% needs \\usepackage{{booktabs}}\n{text}",
                               encoding="utf-8", errors="replace")


def results_table(metrics: dict) -> str:
    """Return the LaTeX table of all clips: accuracy with interval (or mean ± SD over experiments), constant, r, CCC and
    R2, and the gain on all clips, on speakers in training (seen) and on others."""
    parts = {"all": metrics["traits"], **{name: metrics[name] for name in ("seen", "unseen") if name in metrics}}
    gains = [f"{name} ({table['mean']['clips']:.0f})" for name, table in parts.items()]
    rows = []
    for trait in ROWS:
        row = metrics["traits"][trait]
        rows.append([trait.capitalize(), _spread(row, "accuracy"), _number(row["constant"]),
                     *(_spread(row, name, ".3f", interval=False) for name in ("pearson", "ccc", "r2")),
                     *(_spread(table[trait], "gain", "+.4f", interval=False) for table in parts.values())])
    above = f" & & & & & & \\multicolumn{{{len(gains)}}}{{c}}{{Gain (clips)}} \\\\"
    return _table(["", "Accuracy", "Constant", "$r$", "CCC", "$R^2$", *gains], rows, True, above)


def groups_table(groups: dict) -> str:
    """Return the LaTeX table of the groups: clips, accuracy, gain, and of each trait the signed error (prediction -
    label) with a star if it differs from the other groups' (p < .05, corrected by Holm over traits and groups)."""
    rows = []
    for name, table in groups.items():
        errors = [_number(table[trait]["bias"], "+.3f") + ("$^{*}$" if (table[trait].get("bias_p") or 1) < 0.05 else "")
                  for trait in TRAITS]
        mean = table["mean"]
        rows.append([escape(name), f"{mean['clips']:.0f}", _number(mean["accuracy"]), _number(mean["gain"], "+.4f"),
                     *errors])
    return _table(["Group", "Clips", "Accuracy", "Gain", *(trait[0].upper() for trait in TRAITS)], rows)


def comparison_table(comparison: dict) -> str:
    """Return the LaTeX table of a comparison: both accuracies, their difference with its interval, p."""
    rows = []
    for trait in ROWS:
        row = comparison[trait]
        interval = f" [{_number(row['low'], '+.4f')}, {_number(row['high'], '+.4f')}]"
        rows.append([trait.capitalize(), _number(row["first"]), _number(row["second"]),
                     _number(row["difference"], "+.4f") + interval, format_p(row["p"]).replace("<", "$<$")])
    return _table(["", "This", escape(Path(comparison["with"]).name), "Difference", "$p$"], rows,
                  line_before_last=True)


def escape(text: str) -> str:
    """Return text with the characters that LaTeX reads as commands escaped."""
    text = printable(text).replace("\\", "\0")
    text = re.sub(r"([&%$#_{}])", r"\\\1", text).replace("~", r"\textasciitilde{}").replace("^", r"\textasciicircum{}")
    return text.replace("\0", r"\textbackslash{}")


def _number(value, form=".4f"):
    return "--" if value is None or math.isnan(value) else f"${value:{form}}$"


def _spread(row, name, form=".4f", interval=True):
    """Return a figure, with its standard deviation over experiments if it has one, else with its interval if asked."""
    if f"{name}_sd" in row:
        return f"{_number(row[name], form)[:-1]} \\pm {row[name + '_sd']:{form.lstrip('+')}}$"
    text = _number(row[name], form)
    return f"{text} [{_number(row[f'{name}_low'], form)}, {_number(row[f'{name}_high'], form)}]" if interval else text


def _table(header, rows, line_before_last=False, above=None):
    """Return a tabular; above: a line above the header."""
    lines = [f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}", "\\toprule", *([above] if above else []),
             " & ".join(header) + r" \\", "\\midrule"]
    for number, row in enumerate(rows):
        if line_before_last and number == len(rows) - 1:
            lines.append("\\midrule")
        lines.append(" & ".join(row) + r" \\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", ""])
