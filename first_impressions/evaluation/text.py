"""Figures as text, and the templates that show them: terminal, page, model card, LaTeX."""
import math
import sys
from collections.abc import Callable
from pathlib import Path

import jinja2
import pandas

from first_impressions.common.command_line import counted, printable
from first_impressions.common.constants import TRAITS
from first_impressions.data.splits import LEAST_SPEAKERS
from first_impressions.evaluation.measure import PARTS
from first_impressions.evaluation.metrics import PUBLISHED, ROWS

# Title and form of each figure.
FIGURES = {"accuracy": ("accuracy", ".4f"), "constant": ("constant", ".4f"), "gain": ("gain", "+.4f"),
           "pearson": ("Pearson r", ".3f"), "ccc": ("CCC", ".3f"), "r2": ("R2", ".3f"), "slope": ("slope", ".2f"),
           "mse": ("MSE", ".4f"), "sd_ratio": ("SD ratio", ".2f"), "bias": ("signed error", "+.3f"),
           "first": ("this", ".4f"), "second": ("other", ".4f"), "difference": ("difference", "+.4f"),
           "p": ("p", "p"), "bias_p": ("p", "p")}
NO_TEST = f"fewer than {LEAST_SPEAKERS} speakers tell nothing from chance"


def format_number(value: float | None, form: str = ".4f") -> str:
    """Return a figure as text; - if there is none."""
    return "-" if value is None or math.isnan(value) else format(value, form)


def format_p(value: float | None) -> str:
    """Return a p value as text; - if there is none."""
    return "<.001" if value is not None and value < 0.001 else format_number(value, ".3f").removeprefix("0")


def format_figure(row: dict, name: str, interval: bool = True) -> str:
    """Return a figure of a row as text, nothing if the row has none: with its standard deviation over experiments if it
    has one, else with its interval if it has one and interval is True."""
    if name not in row:
        return ""
    form, bounds = FIGURES[name][1], "" if name == "difference" else f"{name}_"
    text = format_p(row[name]) if form == "p" else format_number(row[name], form)
    if f"{name}_sd" in row:
        return f"{text} ± {format_number(row[f'{name}_sd'], form.lstrip('+'))}"
    if interval and f"{bounds}low" in row:
        return f"{text} [{format_number(row[f'{bounds}low'], form)}, {format_number(row[f'{bounds}high'], form)}]"
    return text


def format_table(table: dict[str, dict], names: tuple[str, ...] = ()) -> str:
    """Return figures {"mean" or trait: {figure: value}} as text, one line per trait; names: of the figures, by default
    those of an evaluation. A group's table shows the signed error and its p instead of MSE and calibration."""
    if not names:
        names = ("accuracy", "constant", "gain", "pearson", "ccc", "r2", *(
            ("bias", "bias_p") if "bias_p" in table[TRAITS[0]] else
            ("slope",) if "accuracy_sd" in table["mean"] else ("mse", "slope", "sd_ratio")))
    with_intervals = ("accuracy", "bias", "difference")     # of all the lines would be too long
    return pandas.DataFrame({FIGURES[name][0]: [format_figure(table[row], name, name in with_intervals) for row in ROWS]
                             for name in names}, index=list(ROWS)).to_string()


def render(template: str, content: dict, **filters: Callable) -> str:
    """Return a template of this folder filled with content: .html, .md, .txt, or .tex, whose marks are << and <%.

    filters: more of them, beside those here. Raises jinja2.TemplateError if the content lacks something.
    """
    marks = {"variable_start_string": "<<", "variable_end_string": ">>", "block_start_string": "<%",
             "block_end_string": "%>"} if template.endswith(".tex") else {}
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), trim_blocks=True,
                                     lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined,
                                     autoescape=template.endswith(".html"), **marks)
    environment.filters.update(number=format_number, p=format_p, figure=format_figure, table=format_table,
                               counted=counted, printable=printable, **filters)
    environment.globals.update(TRAITS=TRAITS, PARTS=PARTS, PUBLISHED=PUBLISHED, NO_TEST=NO_TEST)
    return environment.get_template(template).render(content)


def print_results(metrics: dict, notes: list[str]) -> None:
    """Print all figures (what metrics.json holds); notes and warnings to stderr."""
    print(render("console_template.txt", {"metrics": metrics}), end="")
    for kind, lines in (("note", notes), ("warning", metrics["warnings"])):
        for line in lines:
            print(f"{kind}: {printable(line)}", file=sys.stderr)
