"""Plots of an evaluation for papers and TensorBoard, drawn by matplotlib."""
from pathlib import Path

import matplotlib
import numpy as np
import pandas
from matplotlib import pyplot
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from first_impressions.common.constants import TRAITS
from first_impressions.common.files import atomic_write
from first_impressions.evaluation.measure import PARTS
from first_impressions.evaluation.metrics import ROWS, reliability

matplotlib.use("Agg")  # draws without a display
BINS = np.linspace(0, 1, 31)
POINTS = {"s": 10, "linewidths": 0, "rasterized": True}     # thousands of points stay small in a PDF
ABOVE, BELOW = 0.35, 0.5    # inches above and below a row of panels


def save_figures(folder: Path, labels: pandas.DataFrame, predictions: pandas.DataFrame, metrics: dict) -> None:
    """Write each trait, all_traits, reliability, correlations and gain, all as PNG and PDF.

    labels, predictions: columns TRAITS in [0, 1], index clip; metrics: the figures, what metrics.json holds.
    """
    whose = f"mean of {len(metrics['experiments'])} predictions" if "experiments" in metrics else "predictions"
    _save_traits(folder, labels, predictions, whose)
    _save(_reliability_figure(labels, predictions), folder, "reliability")
    _save(_correlation_figure(labels, predictions, whose), folder, "correlations")
    _save(_gain_figure(metrics), folder, "gain")
    pyplot.close("all")


def save_curves(folder: Path, curves: dict[str, pandas.DataFrame]) -> None:
    """Write training as PNG and PDF. curves: {title of a panel: its curves, a column each, index epoch}."""
    figure, panels = _panels(len(curves), 13)
    for panel, (title, table) in zip(panels, curves.items(), strict=True):
        table.plot(ax=panel, title=title, linewidth=1.2, marker=".")
        panel.xaxis.get_major_locator().set_params(integer=True)
    _save(figure, folder, "training")
    pyplot.close(figure)


def random_guesses(labels: pandas.DataFrame) -> pandas.DataFrame:
    """Return the labels shuffled over the clips, the same in each call: guesses that know nothing but their spread."""
    return labels.sample(frac=1, random_state=0).set_axis(labels.index)


def _save(figure, folder, name, **options):
    # Without a date: same clips, same bytes.
    for suffix, more in ((".png", {"dpi": 150}), (".pdf", {"dpi": 200, "metadata": {"CreationDate": None}})):
        with atomic_write(folder / f"{name}{suffix}") as partial:
            figure.savefig(partial, **more, **options)


def _save_traits(folder, labels, predictions, whose):
    """Write a figure with a row of four panels for each trait, whole and row by row: labels, predictions, one against
    the other, and the error over the label beside that of random guesses drawn from the labels (red)."""
    width, height = 13, 3.15 * len(TRAITS) + ABOVE + BELOW
    figure, panels = pyplot.subplots(len(TRAITS), 4, figsize=(width, height))
    guesses = random_guesses(labels)
    for row, trait in zip(panels, TRAITS, strict=True):
        _draw_trait(row, labels[trait], predictions[trait], guesses[trait], whose)
    figure.subplots_adjust(left=0.075, right=0.99, top=1 - ABOVE / height, bottom=BELOW / height, wspace=0.26,
                           hspace=0.36)
    _save(figure, folder, "all_traits")
    for row, trait in zip(panels, TRAITS, strict=True):
        for axes in panels.flat:
            axes.set_visible(axes in row)
        place = row[0].get_position()
        box = Bbox([[0, place.y0 * height - BELOW], [width, place.y1 * height + ABOVE]])
        _save(figure, folder, trait, bbox_inches=box)


def _draw_trait(row: np.ndarray, true: pandas.Series, predicted: pandas.Series, guessed: pandas.Series,
                whose: str) -> None:
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


def _panels(number: int, width: float) -> tuple[Figure, np.ndarray]:
    figure, panels = pyplot.subplots(1, number, figsize=(width, 3.1), squeeze=False)
    figure.subplots_adjust(left=0.05, right=0.99, top=0.88, bottom=0.17, wspace=0.25)
    return figure, panels[0]


def _reliability_figure(labels, predictions) -> Figure:
    """Return the reliability picture: mean label over mean prediction of ten bins with as many clips each."""
    figure, panels = _panels(len(TRAITS), 3 * len(TRAITS))
    for panel, trait in zip(panels, TRAITS, strict=True):
        bins = reliability(labels[trait], predictions[trait])
        panel.plot([0, 1], [0, 1], color="0.6", linewidth=1)
        panel.errorbar(bins["prediction"], bins["label"], yerr=1.96 * bins["error"], marker="o", markersize=4,
                       linewidth=1, capsize=2, color="tab:blue")
        panel.set(title=trait, xlabel="mean prediction", xlim=(0, 1), ylim=(0, 1))
    panels[0].set_ylabel("mean label")
    return figure


def _correlation_figure(labels, predictions, whose) -> Figure:
    """Return the correlations of the traits with each other, of the labels beside the predictions."""
    figure, panels = _panels(2, 8)
    for panel, title, scores in zip(panels, ("labels", whose), (labels, predictions), strict=True):
        matrix, places = scores[list(TRAITS)].corr().to_numpy(), range(len(TRAITS))
        panel.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu_r")
        for (row, column), value in np.ndenumerate(matrix):
            panel.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize="small",
                       color="white" if abs(value) > 0.6 else "black")
        panel.set(title=title, xticks=places, yticks=places, xticklabels=[trait[0].upper() for trait in TRAITS],
                  yticklabels=TRAITS)
    figure.subplots_adjust(left=0.17, bottom=0.12, wspace=0.6)
    return figure


def _gain_figure(metrics) -> Figure:
    """Return bars of the gain over the constant prediction with 95 % intervals or, of several experiments, standard
    deviations, for all clips and for speakers in training and others."""
    figure, (panel,) = _panels(1, 8)
    parts = {title: metrics[part] for part, title in PARTS.items() if part in metrics}
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
    figure.subplots_adjust(left=0.08, bottom=0.2)
    return figure
