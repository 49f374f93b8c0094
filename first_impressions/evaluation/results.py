"""The files of an evaluation: metrics.json, predictions.csv, plots, report.html, TensorBoard, the model card."""
import json
import os
import sys
from pathlib import Path

import numpy as np
import pandas

from first_impressions.common.command_line import UserError
from first_impressions.common.experiment import TRAINING_RECORD
from first_impressions.common.files import atomic_write, folder_lock
from first_impressions.evaluation.logs import log_evaluation
from first_impressions.evaluation.measure import keep_earlier
from first_impressions.evaluation.metrics import Evaluation
from first_impressions.evaluation.model_card import write_model_card
from first_impressions.evaluation.paper import write_tables
from first_impressions.evaluation.plots import save_figures
from first_impressions.evaluation.report import write_report, write_summary_report

METRICS = "metrics.json"
LONGEST_WAIT = 600  # seconds, for another evaluation of the same experiment to write its files


def check_folder(folder: Path) -> None:
    """Make the folder of the results. Raises UserError, before hours of scoring, if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK)
    except OSError:
        writable = False
    if not writable:
        raise UserError(f"{folder}: cannot be written; --out names another folder for the results")


def write_results(evaluation: Evaluation) -> None:
    """Write all files of an evaluation and say where they are; those of an experiment also to TensorBoard and into its
    model card, if they lie in its folder."""
    folder, run_dir = evaluation.folder, evaluation.run_dir
    own = run_dir is not None and folder.parent == run_dir
    # One evaluation at a time writes; of an experiment they share the model card. Another one waits.
    with folder_lock(run_dir if own else folder, LONGEST_WAIT, ".report.lock"):
        _keep_earlier(evaluation)
        pictures = _write_figures(evaluation)
        if own:
            table = pandas.DataFrame(evaluation.metrics["traits"]).T
            log_evaluation(run_dir, folder, evaluation.metrics, table, pictures)
        print(f"figures, tables, predictions and plots: {folder}; all of it on one page: {write_report(evaluation)}")
        if own and (run_dir / TRAINING_RECORD).exists():
            try:
                print(f"model card: {write_model_card(run_dir)}")
            except UserError as error:
                print(f"warning: no model card: {error}", file=sys.stderr)


def write_summary(folder: Path, metrics: dict) -> None:
    """Write the figures of several experiments together: metrics.json, results.csv, results.tex, report.html."""
    with folder_lock(folder, LONGEST_WAIT, ".report.lock"):
        _write_json(folder, metrics)
        write_tables(folder, metrics)
        print(f"figures and tables: {folder}; on one page: {write_summary_report(folder, metrics)}")


def _keep_earlier(evaluation):
    def with_nan(content):
        return {key: float("nan") if value is None else value for key, value in content.items()}

    try:
        text = (evaluation.folder / METRICS).read_text(encoding="utf-8")
        lost = keep_earlier(evaluation, json.loads(text, object_hook=with_nan))
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return  # none, or of an older version
    if lost:
        print(f"note: the {' and the '.join(lost)} of the earlier evaluation in {evaluation.folder} are replaced",
              file=sys.stderr)


def _write_figures(evaluation):
    """Write metrics.json, the tables, predictions.csv and the plots; return {trait: picture}."""
    folder, labels, predictions = evaluation.folder, evaluation.labels, evaluation.predictions
    _write_json(folder, evaluation.metrics)
    write_tables(folder, evaluation.metrics)
    with atomic_write(folder / "predictions.csv") as partial:
        rows = predictions.loc[labels.index].join(labels.add_prefix("label_"))
        rows.to_csv(partial, float_format="%.6f", index_label="clip")
    return save_figures(folder, labels, predictions)


def _write_json(folder, metrics):
    with atomic_write(folder / METRICS) as partial:
        partial.write_text(json.dumps(_without_nan(metrics), indent=2) + "\n")


def _without_nan(value):
    """Return the value with NaN as None, since JSON has no NaN."""
    if isinstance(value, dict):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return None if np.isnan(value) else float(value)
    return int(value) if isinstance(value, np.integer) else value
