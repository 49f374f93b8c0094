"""Make pretrained/: the model that comes with the suite, and its model card with figures.

    python benchmarks/pretrained.py PORTRAITS_ZIP... ANNOTATION_PKL WORK_DIR
    python benchmarks/pretrained.py PORTRAITS_ZIP... ANNOTATION_PKL WORK_DIR --clips CLIPS_DIR     whole clips, too

The model is what train.py makes of all portraits, in the form that stores no data of individuals, made small by
export.py.
The figures are of a second one, trained without the clips that are set aside for evaluation (as by accuracy.py).
CLIPS_DIR is a data folder with whole clips, some of them of the portraits' clips: their scores are compared.
"""
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import first_impressions.common.startup  # noqa: F401  (before torch)

import numpy as np
import pandas
from portraits import (
    BATCH_SIZE,
    EPOCHS,
    MODEL,
    REPOSITORY,
    SET_ASIDE_SEED,
    Portraits,
    load_portraits,
    measure_part,
    prepare_data,
    set_aside,
    train_once,
)
from scipy.stats import mannwhitneyu

from first_impressions.common.command_line import VERSION, make_parser, run_script
from first_impressions.common.constants import TRAITS, clip_name
from first_impressions.common.experiment import MODEL_CARD
from first_impressions.common.files import atomic_write
from first_impressions.data.labels import read_groups
from first_impressions.data.splits import describe
from first_impressions.evaluation.measure import Evaluation, add_groups
from first_impressions.evaluation.metrics import scores_of_clips
from first_impressions.evaluation.text import render
from first_impressions.networks.checkpoint import load_experiment
from first_impressions.training.inputs import score_rows

SETTINGS = {"memory": "centres", "components": 256}     # 256: with 512 the file is over 6 MB
TARGET = REPOSITORY / "pretrained"
NAME = "shipped"
LEAST_IN_GROUP = 20     # clips; smaller age groups are joined
LICENCE = """This model (`model.pt`) is made from the ChaLearn First Impressions V2 data, which are licensed CC BY-NC
4.0, and so is the model: not for commercial use, with attribution (see LICENSE in this folder). The suite's code has
the MIT licence. dlib's face network, on whose features it works, is in the public domain (CC0)."""


# ---------------------------------------------------------------- the model

def make_model(work_dir: Path) -> None:
    """Train on all portraits and write pretrained/model.pt, by the suite's own scripts."""
    options = [word for name, value in SETTINGS.items() for word in (f"--{name}", str(value))]
    subprocess.run([sys.executable, REPOSITORY / "train.py", str(EPOCHS), NAME, MODEL, "true", str(BATCH_SIZE),
                    *options, "--data-dir", work_dir, "--runs-dir", work_dir / "runs", "--overwrite"], check=True)
    subprocess.run([sys.executable, REPOSITORY / "export.py", NAME, "--format", "checkpoint", "--runs-dir",
                    work_dir / "runs", "--out", TARGET / "model.pt"], check=True)


# ---------------------------------------------------------------- figures

def accuracy_table(portraits: Portraits, folds: tuple[list[str], list[str], list[str]]) -> tuple[str, object]:
    """Return (Markdown of the gains on the clips set aside, the network evaluated, trained without them)."""
    training, at_random, unseen = folds
    network = train_once(portraits, training, SETTINGS, 0)
    constant = portraits.split.labels.loc[training].mean()
    lines = [f"Of a model trained in the same way on {len(training)} of the clips, evaluated once on clips set aside.",
             "Gain is the accuracy (1 - mean absolute error) above that of the mean label of the training clips.", "",
             "| | clips | accuracy | constant | gain, 95 % interval over speakers |", "| --- | --- | --- | --- | --- |"]
    for title, clips in (("at random, most of their speakers known", at_random), ("unknown speakers", unseen)):
        for alone in (False, True):
            row = measure_part(network, portraits, clips, constant, alone)
            what = "one picture" if alone else "all pictures of a clip"
            lines.append(f"| {title}: {what} | {len(clips)} | {row['accuracy']:.4f} | {row['constant']:.4f} | "
                         f"{row['gain']:+.4f} [{row['gain_low']:+.4f}, {row['gain_high']:+.4f}] |")
    return "\n".join(lines), network


def errors_by_age(network, portraits: Portraits, folds: tuple[list[str], list[str], list[str]], ages: Path) -> str:
    """Return Markdown: accuracy and signed error per age group of the clips set aside. ages: the challenge's table."""
    training, *others = folds
    faces = portraits.part(sorted(sum(others, [])))
    scores, split = scores_of_clips(faces.clips, score_rows(network, faces)), faces.split
    evaluation = Evaluation(split.labels.loc[scores.index], scores, split.speakers,
                            portraits.split.labels.loc[training].mean(), Path(), {})
    add_groups(evaluation, read_groups(ages), str(ages), LEAST_IN_GROUP)
    return f"Of the same model on the same clips, groups of fewer than {LEAST_IN_GROUP} clips joined.\n" + render(
        "figures_template.md", {"metrics": evaluation.metrics})


def membership(network, portraits: Portraits, training: list[str], others: list[str]) -> float:
    """Return how well the error tells training clips from others: the area under the curve, 0.5 if it tells nothing.

    The attack by the loss of Yeom et al., Privacy Risk in Machine Learning (CSF 2018).
    """
    errors = []
    for clips in (training, others):
        faces = portraits.part(clips)
        scores = scores_of_clips(faces.clips, score_rows(network, faces))[list(TRAITS)]
        errors.append((scores - faces.split.labels.loc[scores.index]).abs().mean(axis=1).to_numpy())
    statistic = mannwhitneyu(errors[1], errors[0]).statistic
    return float(statistic / (len(errors[0]) * len(errors[1])))


def whole_clips(clips_dir: Path, portraits: Portraits, work_dir: Path) -> str:
    """Return Markdown on the shipped model's scores of whole clips beside those of the portraits of the same clips."""
    table = work_dir / "whole_clips.csv"
    folders = [path for path in sorted(clips_dir.glob("*/videos")) if path.is_dir()]
    subprocess.run([sys.executable, REPOSITORY / "predict.py", "pretrained", *folders, "--out", table], check=True)
    scores = pandas.read_csv(table)
    scores = scores.set_index(scores["clip"].map(clip_name))[list(TRAITS)].dropna()
    scores = scores[scores.index.isin(portraits.split.labels.index)]
    network, _ = load_experiment("pretrained", work_dir / "runs", portraits.source.machine)
    faces = portraits.part(list(scores.index))
    of_portraits = scores_of_clips(faces.clips, score_rows(network, faces))
    of_portraits = of_portraits.loc[scores.index, list(TRAITS)]
    r = np.corrcoef(scores.to_numpy().ravel(), of_portraits.to_numpy().ravel())[0, 1]
    difference = (scores - of_portraits).to_numpy()
    return (f"`predict.py` on {len(scores)} whole clips, ten frames of each, mostly 1280 x 720 px, beside this model's "
            f"scores of the portraits of the same clips: mean difference {difference.mean():+.3f}, mean absolute "
            f"difference {np.abs(difference).mean():.3f}, Pearson r {r:.3f}. The model knows these clips from its "
            "training.")


# ---------------------------------------------------------------- command line

def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("portraits", metavar="PORTRAITS_ZIP", type=Path, nargs="+")
    parser.add_argument("labels", metavar="ANNOTATION_PKL", type=Path)
    parser.add_argument("work_dir", metavar="WORK_DIR", type=Path, help="pictures, faces and features are kept here")
    parser.add_argument("--ages", metavar="FILE.csv", type=Path, help="age_anno_train.csv: errors by age")
    parser.add_argument("--clips", metavar="CLIPS_DIR", type=Path, help="data folder with whole clips to compare")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    prepare_data(args.portraits, args.labels, args.work_dir)
    make_model(args.work_dir)
    portraits = load_portraits(args.work_dir)
    split = portraits.split
    folds = set_aside(list(split.labels.index), split.speakers.tolist(), SET_ASIDE_SEED)
    table, network = accuracy_table(portraits, folds)
    exact = train_once(portraits, folds[0], {}, 0)
    areas = [membership(some, portraits, folds[0], [*folds[1], *folds[2]]) for some in (network, exact)]
    figures = {"Clips set aside": table, "Membership inference": (
        "How well the error of a clip's scores tells clips that it was trained on from clips set aside (membership "
        f"inference by the loss), area under the curve, 0.5: not at all. This form: {areas[0]:.3f}. The form that "
        f"stores data of every clip (`--memory exact`), for comparison: {areas[1]:.3f}.")}
    if args.ages:
        figures["Errors by age"] = errors_by_age(network, portraits, folds, args.ages)
    if args.clips:
        figures["Whole clips"] = whole_clips(args.clips, portraits, args.work_dir)
    content = {"title": "pretrained", "written_by": f"Written by `pretrained/make.sh`, version {VERSION} of the suite.",
               "model": {"network": MODEL, "regression beside the heads": "centres, 0.3 of the score",
                         "components": SETTINGS["components"], "epochs": EPOCHS, "batch size": BATCH_SIZE, "seed": 0},
               "preprocessing": split.preprocessing, "is_chalearn": True, "figures": figures,
               "trained_on": f"Head-and-shoulder pictures cut from ChaLearn's training clips. {describe(split)}.",
               "memory": "centres", "licence": LICENCE}
    with atomic_write(TARGET / MODEL_CARD) as partial:
        partial.write_text(render("model_card_template.md", content))
    print(f"{TARGET / 'model.pt'}: {(TARGET / 'model.pt').stat().st_size / 1e6:.2f} MB; figures: {TARGET / MODEL_CARD}")


if __name__ == "__main__":
    run_script(main)
