"""Figures as text, for the terminal, TensorBoard, the model card and LaTeX; and all that evaluate.py prints of them."""
import math
import sys

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


# ---------------------------------------------------------------- what evaluate.py prints

def print_results(metrics: dict, notes: list[str]) -> None:
    """Print all figures (what metrics.json holds); notes and warnings to stderr."""
    if "experiments" in metrics:
        print(f"\n==== mean ± standard deviation over {printable(', '.join(metrics['experiments']))}")
    print(f"\n{format_table(metrics['traits'])}\n\nconstant: the {printable(metrics['constant_of'])}")
    if "bootstrap" in metrics:
        _print_details(metrics)
    for part, title in PARTS.items():
        if part in metrics and part != "traits":
            row = metrics[part]["mean"]
            print(f"{title:<25} {row['clips']:>6.0f} clips  accuracy {format_figure(row, 'accuracy')}  "
                  f"constant {row['constant']:.4f}  gain {format_figure(row, 'gain')}")
    for group, table in metrics.get("groups", {}).items():
        print(f"\ngroup {printable(group)}, {counted(int(table['mean']['clips']), 'clip')}\n{format_table(table)}")
    if "groups" in metrics:
        print("\nsigned error: prediction - label; p: that it is the same in the other groups, corrected by Holm over "
              f"traits and groups (-: {NO_TEST})")
    if "comparison" in metrics:
        _print_comparison(metrics["comparison"])
    if metrics["is_chalearn"]:  # other people's data do not compare with them
        print("\npublished, on the official 2,000 test clips (standard error about 0.001); their predictions of single "
              "clips are not at hand, so no difference from them can be tested\n"
              f"{PUBLISHED.to_string(float_format='{:.4f}'.format)}\n")
    for kind, lines in (("note", notes), ("warning", metrics["warnings"])):
        for line in lines:
            print(f"{kind}: {printable(line)}", file=sys.stderr)


def _print_details(metrics):
    """Print what is known of one experiment alone: bootstrap, correlations, single frames, intervals of scores."""
    mean, bootstrap, correlations = metrics["traits"]["mean"], metrics["bootstrap"], metrics["correlations"]
    print(f"95 % intervals: percentile bootstrap over {counted(bootstrap['speakers'], 'speaker')}, "
          f"{bootstrap['resamples']:,} resamples\n"
          f"correlation of two traits on average: labels {correlations['labels']['mean']:.2f}, predictions "
          f"{correlations['predictions']['mean']:.2f} (higher: a halo)")
    if "per_frame" in metrics:
        one = metrics["per_frame"]
        print(f"one frame alone: accuracy {one['accuracy']['mean']:.4f}, Pearson r {one['pearson']['mean']:.3f}; mean "
              f"over a clip's {metrics['frames_per_clip']['mean']:.1f} frames: {mean['accuracy']:.4f}, "
              f"{mean['pearson']:.3f}")
    if "intervals" in metrics:
        intervals = metrics["intervals"]
        print(f"intervals of {100 * intervals['level']:.0f} %: score ± {intervals['mean_half_width']:.3f} on average; "
              "they hold " + ", ".join(f"{100 * value['mean']:.1f} % of the labels of {name} speakers"
                                  for name, value in intervals["coverage"].items()))


def _print_comparison(comparison):
    several = f" (errors averaged over {len(comparison['others'])})" if len(comparison["others"]) > 1 else ""
    print(f"\nagainst {printable(comparison['with'])}{several} on "
          f"{counted(int(comparison['mean']['clips']), 'common clip')} (positive: better; p: that there is no "
          f"difference, corrected by Holm over the traits; -: {NO_TEST})\n"
          f"{format_table(comparison, ('first', 'second', 'difference', 'p'))}")
