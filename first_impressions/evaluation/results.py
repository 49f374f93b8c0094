"""The files of an evaluation: metrics.json, predictions.csv, plots, report.html, TensorBoard, the model card."""
import json
import sys

import numpy as np
import pandas
from matplotlib import pyplot

from first_impressions.common.command_line import UserError
from first_impressions.common.constants import TRAITS
from first_impressions.common.experiment import TRAINING_RECORD
from first_impressions.common.files import atomic_write, folder_lock
from first_impressions.evaluation.logs import log_evaluation
from first_impressions.evaluation.metrics import Evaluation
from first_impressions.evaluation.model_card import write_model_card
from first_impressions.evaluation.plots import trait_figure
from first_impressions.evaluation.report import write_report

LONGEST_WAIT = 600  # seconds, for another evaluation of the same experiment to write its files


def write_results(evaluation: Evaluation) -> None:
    """Write all files of an evaluation and say where they are."""
    evaluation.folder.mkdir(parents=True, exist_ok=True)
    run_dir = evaluation.run_dir
    # One evaluation at a time writes; of an experiment they share the model card. Another one waits.
    with folder_lock(run_dir or evaluation.folder, LONGEST_WAIT, ".report.lock"):
        _write_figures(evaluation)
        print(f"figures, predictions and plots: {evaluation.folder}; all of it on one page: {write_report(evaluation)}")
        if run_dir is not None and (run_dir / TRAINING_RECORD).exists():
            try:
                print(f"model card: {write_model_card(run_dir)}")
            except UserError as error:
                print(f"warning: no model card: {error}", file=sys.stderr)


def _write_figures(evaluation):
    """Write metrics.json, predictions.csv and the pictures of the traits; for an experiment also to TensorBoard."""
    folder, labels, predictions = evaluation.folder, evaluation.labels, evaluation.predictions
    with atomic_write(folder / "metrics.json") as partial:
        partial.write_text(json.dumps(_without_nan(evaluation.metrics), indent=2) + "\n")
    with atomic_write(folder / "predictions.csv") as partial:
        rows = predictions.loc[labels.index].join(labels.add_prefix("label_"))
        rows.to_csv(partial, float_format="%.6f", index_label="clip")
    figures = {trait: trait_figure(trait, labels, predictions) for trait in TRAITS}
    for trait, figure in figures.items():
        with atomic_write(folder / f"{trait}.png") as partial:
            figure.savefig(partial, dpi=110)
    if evaluation.run_dir is not None:
        table = pandas.DataFrame(evaluation.metrics["traits"]).T
        log_evaluation(evaluation.run_dir, folder, evaluation.metrics, table, figures)
    pyplot.close("all")


def _without_nan(value):
    """Return the value with NaN as None, since JSON knows no NaN."""
    if isinstance(value, dict):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return None if np.isnan(value) else float(value)
    return int(value) if isinstance(value, np.integer) else value
