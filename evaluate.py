"""Evaluate experiments on the test clips, as the challenge does: per clip, 1 - mean absolute error.

    python evaluate.py EXPERIMENT                                  the test clips of data/
    python evaluate.py EXPERIMENT --split valid                    the validation clips
    python evaluate.py final_seed0 final_seed1 final_seed2         and the mean ± standard deviation over them
    python evaluate.py 'final_seed*'                               the same
    python evaluate.py EXPERIMENT --compare OTHER_EXPERIMENT       is the difference statistically significant?
    python evaluate.py 'a_seed*' --compare 'b_seed*'               the same of several seeds each
    python evaluate.py EXPERIMENT --group-by groups.csv            the same figures for each group (columns clip,group)
    python evaluate.py --predictions mine.csv --labels data/test/annotation_test.pkl     external predictions

Writes runs/EXPERIMENT/evaluation_<split>/: metrics.json, predictions.csv (one row per clip), results.csv, results.tex,
plots as PNG and PDF, and report.html; with --predictions a folder beside the file, <name>_evaluation/; of several
experiments, named alike as above, their figures together in runs/final_seed/evaluation_<split>/.
"""
import first_impressions.common.startup  # noqa: F401  (before torch)

import argparse
import os
import shlex
import sys
from pathlib import Path

import pandas

from dataset import FaceDataset
from first_impressions.common.command_line import (
    UserError,
    folder_options,
    make_parser,
    positive_int,
    printable,
    run_script,
    seed_number,
)
from first_impressions.common.constants import TRAITS
from first_impressions.common.device import Machine, add_machine_options
from first_impressions.common.experiment import experiment_folder, has_training
from first_impressions.common.files import make_folder
from first_impressions.data.labels import SPEAKER_REGEX, SUFFIXES, read_groups, read_scores
from first_impressions.data.splits import Split, add_speaker_option, check_same_faces, describe, load_split
from first_impressions.evaluation import measure
from first_impressions.evaluation.metrics import group_order, scores_of_clips
from first_impressions.evaluation.results import write_results
from first_impressions.evaluation.text import print_results
from first_impressions.networks.checkpoint import Checkpoint, find_checkpoint, read_experiment, versions
from first_impressions.training.inputs import make_samples, score_rows


def score_split(path: Path, checkpoint: Checkpoint, split: Split,
                machine: Machine) -> tuple[pandas.DataFrame, pandas.DataFrame]:
    """Return a checkpoint's predictions of a split's clips (index clip, columns TRAITS, faces and perhaps
    spread_<trait>), and its scores of single faces (index clip, columns TRAITS), one per clip of a frozen network.

    path: of its file. Raises UserError if the faces were made in another way than those that it was trained on.
    """
    check_same_faces(split.preprocessing, checkpoint.preprocessing, f"the faces of {split.name}",
                     "those that the network was trained on")
    network = machine.place(checkpoint.build(path))
    samples = make_samples(network, FaceDataset(split), machine)
    scores = score_rows(network, samples, title=f"scores of {split.name}")
    predictions = scores_of_clips(samples.clips, scores)
    if samples.of_clips:
        predictions = predictions[list(TRAITS)].assign(faces=pandas.Series(samples.faces, index=samples.clips))
        scores = score_rows(network, samples, alone=True)
    if checkpoint.intervals:
        widths = checkpoint.intervals.half_widths(predictions["faces"].to_numpy())
        widths = pandas.DataFrame(widths, index=predictions.index, columns=list(TRAITS))
        predictions = predictions.join(widths.add_prefix("half_width_"))
    return predictions, pandas.DataFrame(scores, index=samples.clips, columns=list(TRAITS)).dropna()


def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("experiments", metavar="EXPERIMENT", nargs="*", help="name of a folder in --runs-dir, or a "
                        "quoted pattern, 'final_seed*'; of several also the mean and standard deviation")
    data = parser.add_argument_group("data and results")
    data.add_argument("--split", choices=("test", "valid"), default="test", help="which clips are evaluated")
    data.add_argument("--data-dir", default="data", help="data folder")
    data.add_argument("--runs-dir", default="runs", help="folder of the experiments")
    data.add_argument("--out", metavar="DIR", help="folder of the results (default: in the experiment's, or beside "
                      "--predictions); TensorBoard and the model card are then left as they are")
    add_speaker_option(data)
    tests = parser.add_argument_group("comparison and groups")
    tests.add_argument("--compare", metavar="OTHER", help="another experiment, a quoted pattern (errors of a clip are "
                       "averaged over several), or a CSV file of predictions")
    tests.add_argument("--group-by", metavar="FILE.csv", help="figures of each group: a column clip (or VideoName), "
                       "and a column per grouping; the challenge's files of ethnicity, gender and age are known")
    tests.add_argument("--groups-of", type=positive_int, default=1, metavar="N",
                       help="join groups of fewer than N clips into one, other")
    tests.add_argument("--seed", type=seed_number, default=0, help="of the bootstrap")
    foreign = parser.add_argument_group("external predictions")
    foreign.add_argument("--predictions", metavar="FILE.csv", help="columns clip or VideoName and the traits, "
                         "as also predict.py --out writes them")
    foreign.add_argument("--labels", metavar="FILE", help=f"the labels of these clips ({', '.join(SUFFIXES)})")
    foreign.add_argument("--train-labels", metavar="FILE",
                         help="the training labels: their speakers are the known ones, also for an EXPERIMENT that "
                         "stores no names; their mean is the constant (without it that of --labels)")
    add_machine_options(parser, precision="float32")
    parser.set_defaults(speaker_regex=None)     # that of the experiment
    args = parser.parse_args(argv)
    if bool(args.experiments) == bool(args.predictions):
        parser.error("give an EXPERIMENT, or --predictions FILE.csv with --labels FILE")
    if bool(args.predictions) != bool(args.labels):
        parser.error("--predictions and --labels go together")
    args.experiments = experiment_names(args.experiments, args.runs_dir)
    args.others = []    # experiments to compare with
    if args.compare and not Path(args.compare).is_file():
        if args.predictions:
            raise UserError(f"--compare {args.compare}: no such file")
        args.others = experiment_names([args.compare], args.runs_dir)
    args.command = shlex.join([Path(sys.argv[0]).name, *(argv if argv is not None else sys.argv[1:])])
    return args


def experiment_names(words: list[str], runs_dir: str) -> list[str]:
    """Return the experiments that names and patterns stand for, each once. Raises UserError if one does not exist."""
    names, folder = [], Path(runs_dir)
    for word in map(os.path.normpath, words):
        if os.path.dirname(word) and Path(word).parent.resolve() == folder.resolve():
            word = os.path.basename(word)   # runs/NAME is NAME
        found = [word]
        if any(mark in word for mark in "*?["):
            found = group_order(path.name for path in folder.glob(word) if has_training(path))
            if not found:
                raise UserError(f"{word}: no experiment in {runs_dir} has such a name; --runs-dir names another folder")
        names += found
    for name in names:
        find_checkpoint(experiment_folder(runs_dir, name))
    return list(dict.fromkeys(names))


def common_name(names: list[str]) -> str:
    """Return a name for the folder of several experiments: `final_seed` of final_seed0 and final_seed1."""
    start = os.path.commonprefix(names).rstrip("0123456789").rstrip("_-. ")
    return start if start and start not in names else f"{names[0]}_and_{len(names) - 1}_more"


def results_folder(args: argparse.Namespace, name: str | None, within: str = "") -> Path:
    """Return the folder of the results, after checking that it can be written. name: of an experiment or of several
    together, None for --predictions; within: a folder in --out."""
    remedy = "--out names another folder for the results"
    if args.out:
        folder = Path(args.out, within)
    elif name is None:
        folder = Path(args.predictions).with_name(Path(args.predictions).stem + "_evaluation")
    else:
        folder = experiment_folder(args.runs_dir, name) / f"evaluation_{args.split}"
        make_folder(folder.parent, remedy)  # where the lock and TensorBoard's log lie
    make_folder(folder, remedy)
    return folder


def evaluate_experiment(args: argparse.Namespace, experiment: str, folder: Path) -> measure.Evaluation:
    """Return the Evaluation of an experiment on the clips of --split, without any figure."""
    run_dir = experiment_folder(args.runs_dir, experiment)
    path, checkpoint = read_experiment(run_dir)
    # The rule for speakers that the experiment was trained with: another one would take known people for unknown.
    rule = args.speaker_regex or checkpoint.speaker_regex or SPEAKER_REGEX
    split = load_split(args.data_dir, args.split, rule)
    print(describe(split))
    scores = score_split(path, checkpoint, split, Machine.from_options(args))
    return measure.evaluate_experiment(args, run_dir, checkpoint, split, scores, folder)


def finish(evaluation: measure.Evaluation, members: list[measure.Evaluation], compared: str | None,
           others: dict[str, pandas.DataFrame]) -> None:
    """Compare, print and write an evaluation. members: itself, or the experiments that it sums up; compared: the name
    of the others together; others: their predictions."""
    if others:
        measure.add_comparison(evaluation, [one.predictions for one in members], compared, others)
    measure.add_warnings(evaluation)
    print_results(evaluation.metrics, evaluation.notes)
    write_results(evaluation)


def main(argv=None):
    args = parse_args(argv)
    # Read before hours of scoring.
    groups = read_groups(args.group_by) if args.group_by else None
    others = {args.compare: read_scores(args.compare)} if args.compare and not args.others else {}
    several, evaluations = len(args.experiments) > 1, []
    if several:
        name = common_name(args.experiments)
        together = results_folder(args, name)
    for experiment in args.experiments or [None]:
        if several:
            print(f"\n==== {printable(experiment)}")
        folder = results_folder(args, experiment, experiment if several else "")
        evaluation = (evaluate_experiment(args, experiment, folder) if experiment else
                      measure.evaluate_file(args, folder))
        evaluation.metrics.update(command=args.command, split=args.split if experiment else "given",
                                  versions=versions())
        measure.add_figures(evaluation)
        if groups is not None:
            measure.add_groups(evaluation, groups, args.group_by, args.groups_of)
        for other in args.others if not others else ():
            path, checkpoint = read_experiment(experiment_folder(args.runs_dir, other))
            others[other], _ = score_split(path, checkpoint, evaluation.split, Machine.from_options(args))
        finish(evaluation, [evaluation], args.compare, others)
        evaluations.append(evaluation)
    if several:
        finish(measure.summarise(evaluations, name, together), evaluations, args.compare, others)
    if args.experiments:
        print(f"next: tensorboard --logdir {shlex.quote(args.runs_dir)} --host 127.0.0.1, or python predict.py "
              f"{printable(shlex.quote(args.experiments[-1]))} CLIP.mp4{folder_options(args, ['runs_dir'])}")


if __name__ == "__main__":
    run_script(main)
