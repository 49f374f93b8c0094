"""The model card of an experiment, MODEL_CARD.md: what is known of a trained network, for those who are to use it.

train.py writes it, evaluate.py adds its figures. The text is model_card_template.md.
"""
from pathlib import Path

import jinja2

from first_impressions.common.command_line import VERSION, UserError, printable
from first_impressions.common.constants import ANNOTATION_FILES, TRAITS
from first_impressions.common.experiment import MODEL_CARD, TRAINING_RECORD
from first_impressions.common.files import atomic_write, read_json
from first_impressions.evaluation.measure import PARTS
from first_impressions.evaluation.text import format_figure

KEEPS = {
    "exact": "A row of every training clip, with dlib's descriptor of the face, **by which people can be recognised**. "
             "Do not publish it without the consent of these people.",
    "centres": "Centres, each the mean of at least 10 clips of at least 5 speakers; no row and no descriptor of a "
               "single clip. The training's own checkpoints also hold the names of the training clips and of their "
               "speakers; `export.py --format checkpoint` leaves them out.",
    "none": "No row and no descriptor of a clip. The training's own checkpoints hold the names of the training clips "
            "and of their speakers; `export.py --format checkpoint` leaves them out.",
}
LICENCE = ("## Licence\n\nThe suite's code has the MIT licence. A model follows the terms of the data that it was "
           "trained on, and of the weights that it started from.")


def render_model_card(content: dict) -> str:
    """Return the text of a model card, Markdown. content: the variables of model_card_template.md but for traits."""
    template = Path(__file__).with_name("model_card_template.md").read_text(encoding="utf-8")
    form = jinja2.Template(template, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    return form.render(content, traits=TRAITS)


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
            figures[f"{metrics['split'].capitalize()} clips ({metrics['clips']})"] = figures_of(metrics)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # an evaluation of an older version
    is_chalearn = (Path(record["data_dir"]) / "train" / ANNOTATION_FILES["train"]).exists()
    text = render_model_card({
        "title": folder.name, "written_by": f"Written by version {VERSION} of the suite.", "model": model,
        "preprocessing": preprocessing, "trained_on": trained_on, "is_chalearn": is_chalearn, "figures": figures,
        "keeps": KEEPS[settings["memory"]], "licence": LICENCE})
    with atomic_write(folder / MODEL_CARD) as partial:
        partial.write_text(text)
    return folder / MODEL_CARD


def figures_of(metrics: dict) -> str:
    """Return the figures of an evaluation (what metrics.json holds) as Markdown: two tables and some lines."""
    lines = _table(["", "clips", "accuracy", "constant", "gain, 95 % interval", "Pearson r"], [
        [title, f"{metrics[part]['mean']['clips']:.0f}", *_figures(metrics[part]["mean"], ("accuracy", "constant")),
         format_figure(metrics[part]["mean"], "gain"), *_figures(metrics[part]["mean"], ("pearson",))]
        for part, title in PARTS.items() if part in metrics])
    lines += ["", *_table(["trait", "accuracy", "gain", "Pearson r"], [
        [trait, *_figures(metrics["traits"][trait], ("accuracy", "gain", "pearson"))] for trait in TRAITS])]
    if "per_frame" in metrics:
        lines += ["", f"One frame alone: accuracy {metrics['per_frame']['accuracy']['mean']:.4f}."]
    if "intervals" in metrics:
        intervals = metrics["intervals"]
        lines += ["", f"Intervals of {100 * intervals['level']:.0f} %: score ± {intervals['mean_half_width']:.3f} on "
                  f"average; they hold {100 * intervals['coverage']['all']['mean']:.1f} % of the labels."]
    if "groups" in metrics:
        lines += ["", groups_of(metrics["groups"])]
    return "\n".join(lines)


def groups_of(groups: dict) -> str:
    """Return the figures of groups (what metrics.json holds) as Markdown: the signed error of each trait, bold if it
    differs from that of the other groups (p < .05, corrected by Holm over traits and groups)."""
    rows = []
    for name, table in groups.items():
        marks = ["**" if (table[trait].get("bias_p") or 1) < 0.05 else "" for trait in TRAITS]
        errors = [f"{mark}{table[trait]['bias']:+.3f}{mark}" for trait, mark in zip(TRAITS, marks, strict=True)]
        rows.append([printable(name).replace("|", "\\|"), f"{table['mean']['clips']:.0f}",
                     *_figures(table["mean"], ("accuracy", "gain")), *errors])
    return "\n".join([
        "Signed error (prediction - label); bold: differs from the other groups, p < .05 after Holm's correction.", "",
        *_table(["group", "clips", "accuracy", "gain", *TRAITS], rows)])


def _figures(row, names):
    return [format_figure(row, name, False) for name in names]


def _table(header, rows):
    """Return the lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
