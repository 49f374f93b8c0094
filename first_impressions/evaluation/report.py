"""The page report.html that evaluate.py writes: all figures of an evaluation, plots, best and worst clips.

    python evaluate.py EXPERIMENT                writes runs/EXPERIMENT/evaluation_test/report.html

One file that needs no network and no server: pictures and the plotting library lie inside it. The page itself is
report_template.html.
"""
import base64
import contextlib
import html
import json
from pathlib import Path

import jinja2
import numpy as np
import pandas
import plotly.graph_objects as plots
from plotly.offline import get_plotlyjs

from first_impressions.common.command_line import UserError
from first_impressions.common.constants import TRAITS
from first_impressions.common.experiment import TRAINING_RECORD, TRAINING_TABLE
from first_impressions.common.files import atomic_write, read_json
from first_impressions.data.chips import read_chip
from first_impressions.evaluation.measure import PARTS, Evaluation
from first_impressions.evaluation.metrics import PUBLISHED, ROWS, reliability
from first_impressions.evaluation.plots import gain_errors
from first_impressions.evaluation.text import format_number, format_p
from first_impressions.extraction.sources import encode_jpeg

CLIPS_SHOWN = 6         # best ones, and as many worst ones
CHIP_SIZE_SHOWN = 160   # pixels: sharp at 80 CSS pixels on a phone
DIAGONAL = [{"type": "line", "x0": 0, "y0": 0, "x1": 1, "y1": 1, "layer": "below", "line": {"dash": "dot"}}]
MOST_POINTS = 4000      # a scatter of more clips shows a random part of them, so that the page stays quick


def write_report(evaluation: Evaluation) -> Path:
    """Write report.html into the evaluation's folder and return its path.

    What its metrics lack (seen, unseen, groups, comparison) the page leaves out. Without an experiment the page shows
    no pictures and no training curves.
    """
    metrics, labels, split = evaluation.metrics, evaluation.labels, evaluation.split
    predictions, warnings = evaluation.predictions.loc[labels.index], list(metrics["warnings"])
    training, curves = _training_of(evaluation.run_dir, warnings)
    tables = {title: metrics[part] for part, title in PARTS.items() if part in metrics}
    if len(tables) == 2:    # all clips are of one kind: one table says it
        title, table = tables.popitem()
        tables = {f"{PARTS['traits']}: {title}": table}
    groups = {f"group {name}": table for name, table in metrics.get("groups", {}).items()}
    best, worst = _best_and_worst(labels, predictions, None if split is None else split.faces)
    figures = {"gain": [_gain_figure({**tables, **groups})], "training": curves,
               "traits": {trait: _trait_figures(trait, labels[trait], predictions[trait]) for trait in TRAITS}}
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
                                     lstrip_blocks=True)
    environment.filters.update(number=format_number, p=format_p)
    template = Path(__file__).with_name("report_template.html").read_text(encoding="utf-8")
    page = environment.from_string(template).render(
        metrics=metrics, traits=TRAITS, published=PUBLISHED.to_dict("index") if metrics["is_chalearn"] else {},
        plotly=jinja2.utils.markupsafe.Markup(get_plotlyjs()), warnings=warnings, tables=tables, groups=groups,
        best=best, worst=worst, figures=figures, **training)
    path = evaluation.folder / "report.html"
    # A clip's name may contain bytes that are not UTF-8; they are shown as question marks.
    with atomic_write(path) as partial:
        partial.write_text(page, encoding="utf-8", errors="replace")
    return path


def _training_of(run_dir, warnings):
    """Return (command and settings that an experiment's training really used, plots of its training.csv); empty for one
    that was given away. Adds a warning if its files are damaged."""
    empty = {"training_command": None, "settings": {}}, []
    if run_dir is None or not (run_dir / TRAINING_RECORD).exists():
        return empty
    try:
        record = read_json(run_dir / TRAINING_RECORD)
        settings = {name: value for name, value in {**record["used"], **record["used"]["settings"]}.items()
                    if isinstance(value, (int, float, str, bool))}
        return ({"training_command": record["command"], "settings": settings},
                _training_figures(pandas.read_csv(run_dir / TRAINING_TABLE)))
    except (OSError, ValueError, LookupError, TypeError) as error:
        warnings.append(f"{run_dir}: {TRAINING_RECORD} or {TRAINING_TABLE} cannot be read ({error}); the page does not "
                        "show the training")
        return empty


# ---------------------------------------------------------------- clips

def _best_and_worst(labels, predictions, faces):
    """Return the clips with the smallest and with the largest error, mean over the traits, as lists for the page."""
    error = (labels[list(TRAITS)] - predictions[list(TRAITS)]).abs().mean(axis=1)
    order = error.sort_values(kind="stable").index
    shown = min(CLIPS_SHOWN, len(order) // 2) or 1
    paths = {} if faces is None else faces.groupby("clip")["path"].apply(list).to_dict()
    cards = [[{"clip": str(clip), "error": float(error[clip]), "chip": _chip_picture(paths.get(clip, ())),
               "scores": [(trait, float(labels.loc[clip, trait]), float(predictions.loc[clip, trait]))
                          for trait in TRAITS]}
              for clip in clips] for clips in (order[:shown], order[::-1][:shown])]
    return cards[0], cards[1] if len(order) > 1 else []


def _chip_picture(paths):
    """Return the first readable face chip as data URI, or None."""
    for path in paths:
        with contextlib.suppress(UserError):  # the evaluation has named it already
            jpeg = encode_jpeg(read_chip(path, CHIP_SIZE_SHOWN).permute(1, 2, 0).numpy(), 85)
            return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()
    return None


# ---------------------------------------------------------------- plots

def _figure(alt, traces, **layout):
    """Return {"alt", "data", "layout"}: what the page hands to plotly. Colours come from the page's theme."""
    return {"alt": alt, **json.loads(plots.Figure(traces, {"template": "none", **layout}).to_json())}


def _trait_figures(trait, true, predicted):
    """Return the plots of a trait: predictions over labels, both distributions, errors beside random guesses',
    reliability."""
    scores = pandas.DataFrame({"label": true, "prediction": predicted}, dtype=float)
    scores["error"] = (scores["label"] - scores["prediction"]).abs()
    scores["guess"] = (scores["label"] - np.random.default_rng(0).permutation(scores["label"])).abs()
    shown = scores.sample(min(len(scores), MOST_POINTS), random_state=0).round(4)
    part = f", {len(shown)} of them drawn" if len(shown) < len(scores) else ""
    # plotly reads a small part of HTML in hover texts, so the names are escaped there too.
    names = [html.escape(str(clip), quote=False) for clip in shown.index]
    mean, deviation, calibrated = scores.mean(), scores.std(ddof=0), reliability(true, predicted)
    bins = np.linspace(0, 1, 31)

    def points(column, opacity, name=None):
        return plots.Scatter(x=shown["label"], y=shown[column], mode="markers", text=names, name=name,
                             hovertemplate=f"%{{text}}<br>label %{{x:.3f}}, {column} %{{y:.3f}}<extra></extra>",
                             marker={"size": 6, "opacity": opacity})

    def axis(title):
        return {"range": [0, 1], "title": title}

    return [
        _figure(f"Scatter plot of the predicted over the true {trait} of {len(scores)} clips{part}. Means: labels "
                f"{mean['label']:.3f}, predictions {mean['prediction']:.3f}.", [points("prediction", 0.6)],
                title="Prediction over label", xaxis=axis("label"), yaxis=axis("prediction"), shapes=DIAGONAL),
        _figure(f"Histograms of {trait}: the labels' standard deviation is {deviation['label']:.3f}, the predictions' "
                f"{deviation['prediction']:.3f}.",
                [plots.Bar(x=(bins[:-1] + bins[1:]) / 2, y=np.histogram(scores[column], bins)[0], name=f"{column}s",
                           opacity=0.6, width=1 / 30) for column in ("label", "prediction")],
                title="Distributions", barmode="overlay", xaxis=axis("score"), yaxis={"title": "clips"}),
        _figure(f"Absolute errors of {trait} over the label: mean {mean['error']:.3f}; guesses drawn at random from "
                f"the labels would have {mean['guess']:.3f}.",
                [points("error", 0.7, f"predictions, mean {mean['error']:.3f}"),
                 points("guess", 0.35, f"random guesses, mean {mean['guess']:.3f}")],
                title="Error over label", xaxis=axis("label"), yaxis={"title": "absolute error"}),
        _figure(f"Reliability of {trait}: mean label over mean prediction of {len(calibrated)} bins of as many clips "
                "each; on the dotted line predictions are right on average.",
                [plots.Scatter(x=calibrated["prediction"].round(4), y=calibrated["label"].round(4),
                               mode="lines+markers", error_y={"type": "data", "array": 1.96 * calibrated["error"]},
                               hovertemplate="prediction %{x:.3f}, label %{y:.3f}<extra></extra>")],
                title="Reliability", xaxis=axis("mean prediction"), yaxis=axis("mean label"), shapes=DIAGONAL)]


def _gain_figure(tables):
    """Return the plot of the gain over the constant prediction with its intervals: one series for each table."""
    traces = []
    for name, table in tables.items():
        down, up = gain_errors(table)
        traces.append(plots.Bar(x=ROWS, y=[table[row]["gain"] for row in ROWS],
                                name=html.escape(f"{name} ({table['mean']['clips']:.0f})", quote=False),
                                error_y={"type": "data", "symmetric": False, "array": up, "arrayminus": down},
                                hovertemplate="%{x}: %{y:+.4f}<extra>%{fullData.name}</extra>"))
    mean = next(iter(tables.values()))["mean"]  # of all clips
    return _figure("Bars of the gain in accuracy over the constant prediction for each trait; its mean over all clips "
                   f"is {mean['gain']:+.4f}. The numbers are in the tables.", traces, barmode="group",
                   title="Gain over the constant prediction", yaxis={"title": "gain in accuracy", "zeroline": True})


def _training_figures(history):
    """Return the plots of training.csv: losses, and its accuracies if there was a validation."""
    epochs, figures = {"title": "epoch", "tickformat": "d", **({"dtick": 1} if len(history) <= 10 else {})}, []
    for title, axis, names in (
            ("Loss", {"title": "loss", "rangemode": "tozero"},
             {"loss_train": "training", "loss_valid": "validation"}),
            ("Validation accuracy", {"title": "accuracy"},
             {"accuracy_mean": "mean", **{f"accuracy_{trait}": trait for trait in TRAITS}})):
        curves = history[[column for column in names if column in history]].rename(columns=names)
        if len(curves.columns):
            figures.append(_figure(
                f"{title} over {len(history)} epochs: " + ", ".join(
                    f"{name} from {curve.iat[0]:.4f} to {curve.iat[-1]:.4f}" for name, curve in curves.items()) + ".",
                [plots.Scatter(x=history["epoch"], y=curve.round(6), name=name, mode="lines+markers",
                               marker={"size": 5}, line={"width": 4} if name == "mean" else {})
                 for name, curve in curves.items()], title=title, xaxis=epochs, yaxis=axis))
    return figures
