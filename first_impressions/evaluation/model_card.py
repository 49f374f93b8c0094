"""The model card of an experiment, MODEL_CARD.md: what is known of a trained network, for those who are to use it.

train.py writes it, evaluate.py adds its figures. The texts are model_card_template.md and figures_template.md.
"""
from pathlib import Path

import jinja2

from first_impressions.common.command_line import VERSION, UserError
from first_impressions.common.constants import ANNOTATION_FILES
from first_impressions.common.experiment import MODEL_CARD, TRAINING_RECORD
from first_impressions.common.files import atomic_write, read_json
from first_impressions.evaluation.text import render


def write_model_card(folder: Path) -> Path:
    """Write the card of an experiment from its args.json and the metrics.json of its evaluations; return its path.

    Raises UserError if args.json is missing or damaged.
    """
    try:
        record = read_json(folder / TRAINING_RECORD)
        used, settings = record["used"], record["used"]["settings"]
        model = {"network": used["model"], "backbone starts from": used["weights"],
                 "regression beside the heads": settings["memory"], "epochs": used["num_epochs"],
                 "batch size": used["batch_size"], "seed": used["seed"], "command": f"`{record['command']}`"}
        trained_on, preprocessing = f"{record['training_data']}.", record["preprocessing"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / TRAINING_RECORD}: is missing or damaged ({type(error).__name__}); "
                        "train again") from None
    figures = {}
    for path in sorted(folder.glob("evaluation_*/metrics.json")):
        try:
            metrics = read_json(path)
            title = f"{metrics['split'].capitalize()} clips ({metrics['clips']})"
            figures[title] = render("figures_template.md", {"metrics": metrics})
        except (OSError, ValueError, KeyError, TypeError, AttributeError, jinja2.TemplateError):
            continue  # an evaluation of an older version
    is_chalearn = (Path(record["data_dir"]) / "train" / ANNOTATION_FILES["train"]).exists()
    text = render("model_card_template.md", {
        "title": folder.name, "written_by": f"Written by version {VERSION} of the suite.", "model": model,
        "preprocessing": preprocessing, "trained_on": trained_on, "is_chalearn": is_chalearn, "figures": figures,
        "memory": settings["memory"]})
    with atomic_write(folder / MODEL_CARD) as partial:
        partial.write_text(text)
    return folder / MODEL_CARD
