"""Plots of an evaluation for papers, TensorBoard and the report, drawn by matplotlib."""
import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from first_impressions.common.constants import TRAITS
from first_impressions.common.files import atomic_write
from first_impressions.evaluation.measure import PARTS
from first_impressions.evaluation.metrics import ROWS, reliability

BINS = np.linspace(0, 1, 31)
POINTS = {"s": 10, "linewidths": 0, "rasterized": True}     # thousands of points stay small in a PDF


def save_figures(folder: Path, labels: pandas.DataFrame, predictions: pandas.DataFrame, metrics: dict) -> None:
    """Write each trait, all_traits, reliability, correlations and gain, all as PNG and PDF.

    labels, predictions: columns TRAITS in [0, 1], index clip; metrics: the figures, what metrics.json holds.
    """
    whose = f"mean of {len(metrics['experiments'])} predictions" if "experiments" in metrics else "predictions"
    guesses = random_guesses(labels)
    for name, traits in (("all_traits", TRAITS), *((trait, (trait,)) for trait in TRAITS)):
        with _panels(folder, name, len(traits), 4, 13) as panels:
            for row, trait in zip(panels, traits, strict=True):
                _draw_trait(row, labels[trait], predictions[trait], guesses[trait], whose)
    with _panels(folder, "reliability", 1, len(TRAITS), 15) as (panels,):
        for panel, trait in zip(panels, TRAITS, strict=True):
            _draw_reliability(panel, reliability(labels[trait], predictions[trait]))
            panel.set_title(trait)
        panels[0].set_ylabel("mean label")
    with _panels(folder, "correlations", 1, 2, 9, 0.6) as (panels,):
        for panel, title, scores in zip(panels, ("labels", whose), (labels, predictions), strict=True):
            _draw_correlations(panel, scores[list(TRAITS)].corr().to_numpy())
            panel.set_title(title)
    with _panels(folder, "gain", 1, 1, 9.5) as ((panel,),):
        _draw_gains(panel, {title: metrics[part] for part, title in PARTS.items() if part in metrics})


def save_curves(folder: Path, curves: dict[str, pandas.DataFrame]) -> None:
    """Write training as PNG and PDF. curves: {title of a panel: its curves, a column each, index epoch}."""
    with _panels(folder, "training", 1, len(curves), 13) as (panels,):
        for panel, (title, table) in zip(panels, curves.items(), strict=True):
            panel.plot(table.index, table, linewidth=1.2, marker=".", label=list(table))
            panel.set(title=title, xlabel="epoch")
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.legend()


def random_guesses(labels: pandas.DataFrame) -> pandas.DataFrame:
    """Return the labels shuffled over the clips, the same in each call: guesses that know nothing but their spread."""
    return labels.sample(frac=1, random_state=0).set_axis(labels.index)


@contextlib.contextmanager
def _panels(folder: Path, name: str, rows: int, columns: int, width: float, between: float = 0.26,
            ) -> Iterator[np.ndarray]:
    """Yield the panels of a figure, rows x columns, width in inches; then write it as PNG and PDF. between: two panels,
    in parts of a panel's width; as much as that is for their labels."""
    figure = Figure((width, 3.15 * rows))
    # Not matplotlib's own layout, which draws every figure three times.
    figure.subplots_adjust(left=0.9 / width + (between - 0.26) / columns, right=1 - 0.15 / width, wspace=between,
                           top=1 - 0.35 / (3.15 * rows), bottom=0.6 / (3.15 * rows), hspace=0.42)
    yield figure.subplots(rows, columns, squeeze=False)
    # Without a date: same clips, same bytes.
    for suffix, options in ((".png", {"dpi": 150}), (".pdf", {"dpi": 200, "metadata": {"CreationDate": None}})):
        with atomic_write(folder / f"{name}{suffix}") as partial:
            figure.savefig(partial, **options)


def _draw_trait(row: np.ndarray, true: pandas.Series, predicted: pandas.Series, guessed: pandas.Series,
                whose: str) -> None:
    """Draw in a row of four panels labels, predictions, one against the other, and the error over the label beside that
    of random guesses (red)."""
    errors, guesses = (true - predicted).abs(), (true - guessed).abs()
    for panel, values, title, colour in ((row[0], true, "labels", "tab:blue"),
                                         (row[1], predicted, whose, "tab:orange")):
        panel.hist(values, BINS, color=colour)
        panel.set(title=title, xlabel="score", ylabel="clips", xlim=(0, 1))
        panel.yaxis.get_major_locator().set_params(integer=True)
    row[0].set_ylabel(f"{true.name}\n\nclips")
    row[2].plot([0, 1], [0, 1], color="0.6", linewidth=1)
    row[2].scatter(true, predicted, alpha=0.5, color="tab:blue", **POINTS)
    of_mean = "" if whose == "predictions" else " (of the mean)"
    row[2].set(title=f"accuracy {1 - errors.mean():.4f}{of_mean}", xlabel="label", ylabel="prediction", xlim=(0, 1),
               ylim=(0, 1))
    for values, name, colour, alpha in ((guesses, "random guesses", "tab:red", 0.35),
                                        (errors, "predictions", "tab:blue", 0.6)):
        row[3].scatter(true, values, alpha=alpha, color=colour, label=f"{name}, mean {values.mean():.3f}", **POINTS)
    row[3].set(title="absolute error over labels", xlabel="label", ylabel="|error|", xlim=(0, 1), ylim=(0, 1))
    row[3].legend(loc="upper center", framealpha=0.6, fontsize="small")


def _draw_reliability(panel: Axes, bins: pandas.DataFrame) -> None:
    panel.plot([0, 1], [0, 1], color="0.6", linewidth=1)
    panel.errorbar(bins["prediction"], bins["label"], yerr=1.96 * bins["error"], marker="o", markersize=4, linewidth=1,
                   capsize=2, color="tab:blue")
    panel.set(xlabel="mean prediction", xlim=(0, 1), ylim=(0, 1))


def _draw_correlations(panel: Axes, matrix: np.ndarray) -> None:
    panel.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r")
    for (row, column), value in np.ndenumerate(matrix):
        panel.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize="small",
                   color="white" if abs(value) > 0.6 else "black")
    panel.set(xticks=range(len(TRAITS)), xticklabels=[trait[0].upper() for trait in TRAITS],
              yticks=range(len(TRAITS)), yticklabels=TRAITS)


def _draw_gains(panel: Axes, parts: dict[str, dict]) -> None:
    """Draw bars of the gain over the constant prediction with 95 % intervals or, of several experiments, standard
    deviations. parts: {name: table of figures}."""
    width = 0.8 / len(parts)
    for number, (title, table) in enumerate(parts.items()):
        rows = pandas.DataFrame([table[name] for name in ROWS], dtype=float)
        errors = ([rows["gain_sd"]] * 2 if "gain_sd" in rows else
                  [rows["gain"] - rows["gain_low"], rows["gain_high"] - rows["gain"]])
        places = np.arange(len(ROWS)) + (number - (len(parts) - 1) / 2) * width
        # A single speaker has no interval.
        panel.bar(places, rows["gain"], width, yerr=np.nan_to_num(np.array(errors)), capsize=2,
                  error_kw={"linewidth": 1}, label=f"{title} ({table['mean']['clips']:.0f})")
    panel.axhline(0, color="0.3", linewidth=0.8)
    panel.set(title="gain in accuracy over the constant prediction", xticks=range(len(ROWS)), xticklabels=ROWS)
    panel.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=len(parts), frameon=False, fontsize="small")
