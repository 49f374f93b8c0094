"""Files of an evaluation: metrics.json, predictions.csv, tables, plots, report.html, TensorBoard, the model card."""
import json
import sys
from pathlib import Path

import numpy as np

from first_impressions.common.command_line import UserError
from first_impressions.common.constants import MEANS_COLUMN, TRAITS
from first_impressions.common.experiment import TRAINING_RECORD
from first_impressions.common.files import atomic_write, folder_lock, read_json
from first_impressions.evaluation.logs import log_evaluation
from first_impressions.evaluation.measure import Evaluation
from first_impressions.evaluation.model_card import write_model_card
from first_impressions.evaluation.paper import write_tables
from first_impressions.evaluation.plots import save_figures
from first_impressions.evaluation.report import write_report

METRICS = "metrics.json"
LONGEST_WAIT = 600  # seconds, for another evaluation of the same experiment to write its files


def write_results(evaluation: Evaluation) -> None:
    """Write all files of an evaluation and say where they are; those of an experiment also to TensorBoard and into its
    model card, if they lie in its folder."""
    folder, run_dir, metrics = evaluation.folder, evaluation.run_dir, evaluation.metrics
    own = run_dir is not None and folder.parent == run_dir
    # One evaluation at a time writes; of an experiment they share the model card. Another one waits.
    with folder_lock(run_dir if own else folder, LONGEST_WAIT, ".report.lock"):
        if lost := keep_earlier(folder, metrics):
            print(f"note: the {' and the '.join(lost)} of the earlier evaluation in {folder} are replaced",
                  file=sys.stderr)
        # JSON has no NaN: null takes its place.
        content = json.loads(json.dumps(metrics, default=np.generic.item), parse_constant=lambda _: None)
        with atomic_write(folder / METRICS) as partial:
            partial.write_text(json.dumps(content, indent=2) + "\n")
        write_tables(folder, metrics)
        labels = evaluation.labels
        predictions = evaluation.predictions.loc[labels.index].assign(**{MEANS_COLUMN: metrics["neuroticism_means"]})
        with atomic_write(folder / "predictions.csv") as partial:
            predictions.join(labels.add_prefix("label_")).to_csv(partial, float_format="%.6f", index_label="clip")
        save_figures(folder, labels, predictions, metrics)
        if own:
            log_evaluation(run_dir, folder, metrics)
        print(f"figures, tables, predictions and plots: {folder}; all of it on one page: {write_report(evaluation)}")
        if own and (run_dir / TRAINING_RECORD).exists():
            try:
                print(f"model card: {write_model_card(run_dir)}")
            except UserError as error:
                print(f"warning: no model card: {error}", file=sys.stderr)


def keep_earlier(folder: Path, metrics: dict) -> list[str]:
    """Take over the comparison and the groups that an earlier evaluation of the very same predictions has and these
    metrics lack; return what is not kept, in words."""
    lost = []
    try:
        earlier = read_json(folder / METRICS)
        same = all(metrics["traits"][trait]["accuracy"] == earlier["traits"][trait]["accuracy"] for trait in TRAITS)
        if same:
            metrics.update({key: earlier[key] for key in ("comparison", "groups") if key in earlier.keys() - metrics})
        if "comparison" in earlier and metrics.get("comparison", {}).get("with") != earlier["comparison"]["with"]:
            lost.append(f"comparison with {earlier['comparison']['with']}")
        if "groups" in earlier and metrics.get("groups", {}).keys() != earlier["groups"].keys():
            lost.append("figures of groups")
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        pass  # none, or of an older version
    return lost
