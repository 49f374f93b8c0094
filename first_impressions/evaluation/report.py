"""The page report.html that evaluate.py writes: all figures of an evaluation, plots, best and worst clips.

    python evaluate.py EXPERIMENT                writes runs/EXPERIMENT/evaluation_test/report.html

One file that needs no network and no server: its pictures lie inside it. The page itself is report_template.html.
"""
import base64
import contextlib
from pathlib import Path

import pandas

from first_impressions.common.command_line import UserError
from first_impressions.common.constants import TRAITS
from first_impressions.common.experiment import TRAINING_RECORD, TRAINING_TABLE
from first_impressions.common.files import atomic_write, read_json
from first_impressions.data.chips import read_chip
from first_impressions.evaluation.measure import Evaluation
from first_impressions.evaluation.plots import random_guesses, save_curves
from first_impressions.evaluation.text import render
from first_impressions.extraction.sources import encode_jpeg

CLIPS_SHOWN = 6         # best ones, and as many worst ones
CHIP_SIZE_SHOWN = 160   # pixels: sharp at 80 CSS pixels on a phone


def write_report(evaluation: Evaluation) -> Path:
    """Write report.html into the evaluation's folder, in which the plots of plots.save_figures lie; return its path.

    What its metrics lack (seen, unseen, groups, comparison) the page leaves out. Without an experiment the page shows
    no pictures of faces and no training curves.
    """
    metrics, labels, folder = evaluation.metrics, evaluation.labels, evaluation.folder
    predictions, warnings = evaluation.predictions.loc[labels.index, list(TRAITS)], list(metrics["warnings"])
    training = _training_of(evaluation.run_dir, warnings)
    if training:
        save_curves(folder, training["curves"])
    best, worst = _best_and_worst(labels, predictions, None if evaluation.split is None else evaluation.split.faces)
    errors = {"error": (labels - predictions).abs(), "guess": (labels - random_guesses(labels)).abs()}
    page = render("report_template.html", {
        "metrics": metrics, "warnings": warnings, "best": best, "worst": worst, "training": training,
        "means": {name: some.mean() for name, some in {"label": labels, "prediction": predictions, **errors}.items()},
        "deviations": {"label": labels.std(ddof=0), "prediction": predictions.std(ddof=0)}},
        picture=lambda name: _data_uri("png", (folder / f"{name}.png").read_bytes()))
    path = folder / "report.html"
    # A clip's name may contain bytes that are not UTF-8; they are shown as question marks.
    with atomic_write(path) as partial:
        partial.write_text(page, encoding="utf-8", errors="replace")
    return path


def _training_of(run_dir, warnings):
    """Return the command, settings and curves of an experiment's training run; nothing if it was given away. Adds a
    warning if its files are damaged."""
    if run_dir is None or not (run_dir / TRAINING_RECORD).exists():
        return {}
    try:
        record = read_json(run_dir / TRAINING_RECORD)
        settings = {name: value for name, value in {**record["used"], **record["used"]["settings"]}.items()
                    if isinstance(value, (int, float, str, bool))}
        history = pandas.read_csv(run_dir / TRAINING_TABLE, index_col="epoch").astype(float)
        curves = {title: table.rename(columns=lambda name: name.partition("_")[2])
                  for start, title in (("loss_", "loss"), ("accuracy_", "validation accuracy"))
                  if len((table := history.filter(like=start)).columns)}
        ends = [f"{title} over {len(history)} epochs: " + ", ".join(
            f"{name} from {curve.iat[0]:.4f} to {curve.iat[-1]:.4f}" for name, curve in table.items())
            for title, table in curves.items()]
        return {"command": record["command"], "settings": settings, "curves": curves, "ends": ends}
    except (OSError, ValueError, LookupError, TypeError) as error:
        warnings.append(f"{run_dir}: {TRAINING_RECORD} or {TRAINING_TABLE} cannot be read ({error}); the page does not "
                        "show the training")
        return {}


def _best_and_worst(labels, predictions, faces):
    """Return the clips with the smallest and with the largest error, mean over the traits, as lists for the page."""
    error = (labels - predictions).abs().mean(axis=1)
    order = error.sort_values(kind="stable").index
    shown = min(CLIPS_SHOWN, len(order) // 2) or 1
    paths = {} if faces is None else faces.groupby("clip")["path"].apply(list).to_dict()
    cards = [[{"clip": str(clip), "error": error[clip], "chip": _chip_picture(paths.get(clip, ())),
               "scores": list(zip(TRAITS, labels.loc[clip], predictions.loc[clip]))}
              for clip in clips] for clips in (order[:shown], order[::-1][:shown])]
    return cards[0], cards[1] if len(order) > 1 else []


def _chip_picture(paths):
    """Return the first readable face chip as data URI, or None."""
    for path in paths:
        with contextlib.suppress(UserError):  # the evaluation has named it already
            return _data_uri("jpeg", encode_jpeg(read_chip(path, CHIP_SIZE_SHOWN).permute(1, 2, 0).numpy(), 85))
    return None


def _data_uri(kind, data):
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
