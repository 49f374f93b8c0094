"""The page report.html that evaluate.py writes: all figures of an evaluation, plots, best and worst clips.

    python evaluate.py EXPERIMENT                writes runs/EXPERIMENT/evaluation_test/report.html

One file that needs no network and no server: pictures and the plotting library lie inside it. The page itself is
report_template.html.
"""
import base64
import html
import json
from pathlib import Path

import cv2
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
from first_impressions.evaluation.metrics import ROWS, published_table, reliability
from first_impressions.evaluation.plots import gain_errors
from first_impressions.evaluation.text import format_number, format_p

CLIPS_SHOWN = 6         # best ones, and as many worst ones
CHIP_SIZE_SHOWN = 160   # pixels: sharp at 80 CSS pixels on a phone
DIAGONAL = [{"type": "line", "x0": 0, "y0": 0, "x1": 1, "y1": 1, "layer": "below", "line": {"dash": "dot"}}]
MOST_POINTS = 4000      # a scatter of more clips shows a random part of them, so that the page stays quick


def write_report(evaluation: Evaluation) -> Path:
    """Write report.html into the evaluation's folder and return its path.

    What its metrics lack (seen, unseen, groups, comparison) the page leaves out. Without an experiment the page shows
    no pictures and no training curves.
    """
    metrics, labels = evaluation.metrics, evaluation.labels
    predictions = evaluation.predictions.loc[labels.index]
    warnings, history, record = list(metrics["warnings"]), None, {}
    if evaluation.run_dir is not None:
        history, record = _read_training(evaluation.run_dir, warnings)
    tables = _tables(metrics)
    groups = {f"group {name}": table for name, table in metrics.get("groups", {}).items()}
    best, worst = _best_and_worst(labels, predictions, evaluation.split)
    figures = {"gain": _gain_figure({**tables, **groups}),
               "traits": {trait: _trait_figures(trait, labels[trait], predictions[trait]) for trait in TRAITS}}
    if history is not None:
        figures["training"] = _training_figures(history)
    return _write_page(evaluation.folder, metrics, warnings=warnings, tables=tables, groups=groups, best=best,
                       worst=worst, figures=figures, training_command=record.get("command"), settings=_settings(record))


def _tables(metrics):
    """Return {title: table} of all clips and of the known and unknown speakers; if all clips are of one kind, one table
    says it."""
    parts = {title: metrics[part] for part, title in PARTS.items() if part in metrics}
    if len(parts) == 2:
        title, table = parts.popitem()
        return {f"{PARTS['traits']}: {title}": table}
    return parts


def _write_page(folder, metrics, **content):
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).resolve().parent), autoescape=True,
                                     undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=format_number, p=format_p)
    page = environment.get_template("report_template.html").render(
        metrics=metrics, traits=TRAITS, published=published_table().to_dict("index") if metrics["is_chalearn"] else {},
        plotly=jinja2.utils.markupsafe.Markup(get_plotlyjs()), **content)
    path = folder / "report.html"
    # A clip's name may contain bytes that are not UTF-8; they are shown as question marks.
    with atomic_write(path) as partial:
        partial.write_text(page, encoding="utf-8", errors="replace")
    return path


def _read_training(run_dir, warnings):
    """Return (training.csv as DataFrame or None, content of args.json or {}); adds a warning for a file that cannot be
    read."""
    table, record = run_dir / TRAINING_TABLE, run_dir / TRAINING_RECORD
    history, content = None, {}
    try:
        if table.exists():
            history = pandas.read_csv(table)
            history[["epoch", "loss_train"]].iloc[0]
    except (OSError, ValueError, LookupError) as error:
        warnings.append(f"{table}: cannot be read ({error}); the page has no training curves")
        history = None
    try:
        if record.exists():
            content = dict(read_json(record))
    except (OSError, ValueError, TypeError) as error:
        warnings.append(f"{record}: cannot be read ({error}); the page lacks the command and settings of the training")
    return history, content


def _settings(record):
    """Return {name: value} of what a training run really used, its hyperparameters among it."""
    used = record.get("used") if isinstance(record.get("used"), dict) else {}
    settings = used.get("settings") if isinstance(used.get("settings"), dict) else {}
    return {name: value for name, value in {**used, **settings}.items()
            if isinstance(value, (int, float, str, bool))}


# ---------------------------------------------------------------- clips

def _best_and_worst(labels, predictions, split):
    """Return the clips with the smallest and with the largest error, mean over the traits, as lists for the page."""
    error = (labels[list(TRAITS)] - predictions[list(TRAITS)]).abs().mean(axis=1)
    order = error.sort_values(kind="stable").index
    shown = min(CLIPS_SHOWN, len(order) // 2) or 1
    paths, size = ({}, 0) if split is None else (split.faces.groupby("clip")["path"].apply(list).to_dict(),
                                                 split.preprocessing["size"])
    cards = [[{"clip": str(clip), "error": float(error[clip]), "chip": _chip_picture(paths.get(clip, ()), size),
               "scores": [(trait, float(labels.loc[clip, trait]), float(predictions.loc[clip, trait]))
                          for trait in TRAITS]}
              for clip in clips] for clips in (order[:shown], order[::-1][:shown])]
    return cards[0], cards[1] if len(order) > 1 else []


def _chip_picture(paths, chip_size):
    """Return the first readable face chip as data URI, or None."""
    for path in paths:
        try:
            chip = read_chip(path, chip_size).permute(1, 2, 0).numpy()
        except UserError:
            continue  # the evaluation has named it already
        chip = cv2.cvtColor(cv2.resize(chip, (CHIP_SIZE_SHOWN,) * 2, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2BGR)
        jpeg = cv2.imencode(".jpg", chip, [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
        return "data:image/jpeg;base64," + base64.b64encode(jpeg.tobytes()).decode()
    return None


# ---------------------------------------------------------------- plots

def _figure(alt, traces, **layout):
    """Return {"alt", "data", "layout"}: what the page hands to plotly. Colours come from the page's theme."""
    figure = plots.Figure(traces, {"template": "none", **layout})
    content = json.loads(figure.to_json())
    return {"alt": alt, **{key: value for key, value in content.items() if key in ("data", "layout")}}


def _trait_figures(trait, true, predicted):
    """Return the plots of a trait: predictions over labels, both distributions, errors beside random guesses',
    reliability."""
    chosen = np.arange(len(true))
    if len(true) > MOST_POINTS:
        chosen = np.sort(np.random.default_rng(0).choice(len(true), MOST_POINTS, replace=False))
    calibrated = reliability(true, predicted)
    # plotly reads a small part of HTML in hover texts, so the names are escaped there too.
    names = [html.escape(str(clip), quote=False) for clip in true.index[chosen]]
    true, predicted = true.to_numpy(dtype=float), predicted.to_numpy(dtype=float)
    errors, guesses = np.abs(true - predicted), np.abs(true - np.random.default_rng(0).permutation(true))
    bins = np.linspace(0, 1, 31)
    middles = (bins[:-1] + bins[1:]) / 2
    part = f", {len(chosen)} of them drawn" if len(chosen) < len(true) else ""
    score_axis = {"range": [0, 1], "title": "label"}
    return [
        _figure(f"Scatter plot of the predicted over the true {trait} of {len(true)} clips{part}. Means: labels "
                f"{true.mean():.3f}, predictions {predicted.mean():.3f}.",
                [plots.Scatter(x=true[chosen].round(4), y=predicted[chosen].round(4), mode="markers", text=names,
                               hovertemplate="%{text}<br>label %{x:.3f}, prediction %{y:.3f}<extra></extra>",
                               marker={"size": 6, "opacity": 0.6})],
                title="Prediction over label", xaxis=score_axis, yaxis={"range": [0, 1], "title": "prediction"},
                shapes=DIAGONAL),
        _figure(f"Histograms of {trait}: the labels' standard deviation is {true.std():.3f}, the predictions' "
                f"{predicted.std():.3f}.",
                [plots.Bar(x=middles, y=np.histogram(values, bins)[0], name=name, opacity=0.6, width=1 / 30)
                 for name, values in (("labels", true), ("predictions", predicted))],
                title="Distributions", barmode="overlay", xaxis={"range": [0, 1], "title": "score"},
                yaxis={"title": "clips"}),
        _figure(f"Absolute errors of {trait} over the label: mean {errors.mean():.3f}; guesses drawn at random from "
                f"the labels would have {guesses.mean():.3f}.",
                [plots.Scatter(x=true[chosen].round(4), y=values[chosen].round(4), mode="markers", text=names,
                               name=f"{name}, mean {values.mean():.3f}",
                               hovertemplate="%{text}<br>label %{x:.3f}, error %{y:.3f}<extra></extra>",
                               marker={"size": 6, "opacity": opacity})
                 for name, values, opacity in (("predictions", errors, 0.7), ("random guesses", guesses, 0.35))],
                title="Error over label", xaxis=score_axis, yaxis={"range": [0, 1], "title": "absolute error"}),
        _figure(f"Reliability of {trait}: mean label over mean prediction of {len(calibrated)} bins of as many clips "
                "each; on the dotted line predictions are right on average.",
                [plots.Scatter(x=calibrated["prediction"].round(4), y=calibrated["label"].round(4),
                               mode="lines+markers", error_y={"type": "data", "array": 1.96 * calibrated["error"]},
                               hovertemplate="prediction %{x:.3f}, label %{y:.3f}<extra></extra>")],
                title="Reliability", xaxis={"range": [0, 1], "title": "mean prediction"},
                yaxis={"range": [0, 1], "title": "mean label"}, shapes=DIAGONAL)]


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
    epochs = history["epoch"]
    epoch_axis = {"title": "epoch", "tickformat": "d", **({"dtick": 1} if len(history) <= 10 else {})}

    def curve(column, name, **line):
        return plots.Scatter(x=epochs, y=history[column].round(6), name=name, mode="lines+markers", line=line,
                             marker={"size": 5})

    losses = [(column, name) for column, name in (("loss_train", "training"), ("loss_valid", "validation"))
              if column in history]
    figures = [_figure(f"Losses over {len(history)} epochs: "
                       + ", ".join(f"{name} from {history[column].iat[0]:.4f} to {history[column].iat[-1]:.4f}"
                                   for column, name in losses) + ".",
                       [curve(column, name) for column, name in losses], title="Loss",
                       xaxis=epoch_axis, yaxis={"title": "loss", "rangemode": "tozero"})]
    if "accuracy_mean" in history:
        best = history["accuracy_mean"].idxmax()
        figures.append(_figure(f"Validation accuracies over {len(history)} epochs; the best mean, "
                               f"{history['accuracy_mean'][best]:.4f}, is that of epoch {epochs[best]}.",
                               [curve("accuracy_mean", "mean", width=4)]
                               + [curve(f"accuracy_{trait}", trait, dash="dot") for trait in TRAITS
                                  if f"accuracy_{trait}" in history],
                               title="Validation accuracy", xaxis=epoch_axis, yaxis={"title": "accuracy"}))
    return figures
