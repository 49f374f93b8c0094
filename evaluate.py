"""Evaluate experiments on the test clips, as the challenge does: per clip, 1 - mean absolute error.

    python evaluate.py EXPERIMENT                                  the test clips of data/
    python evaluate.py EXPERIMENT --split valid                    the validation clips
    python evaluate.py final_seed0 final_seed1 final_seed2         and the mean ± standard deviation over them
    python evaluate.py 'final_seed*'                               the same
    python evaluate.py EXPERIMENT --compare OTHER_EXPERIMENT       is the difference statistically significant?
    python evaluate.py EXPERIMENT --group-by groups.csv            the same figures for each group (columns clip,group)
    python evaluate.py --predictions mine.csv --labels data/test/annotation_test.pkl     external predictions

Writes runs/EXPERIMENT/evaluation_<split>/: metrics.json, predictions.csv (one row per clip), results.csv, results.tex,
plots as PNG and PDF, and report.html; with --predictions a folder beside the file, <name>_evaluation/; of several
experiments, named alike as above, their figures together in runs/final_seed/evaluation_<split>/.
"""
import first_impressions.common.startup  # noqa: F401  (before torch)

# isort: split
import argparse
import os
import shlex
import sys
from pathlib import Path

import pandas

from dataset import FaceDataset
from first_impressions.common.command_line import (
    UserError,
    counted,
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
from first_impressions.data.labels import SPEAKER_REGEX, read_groups, read_scores
from first_impressions.data.splits import Split, add_speaker_option, check_same_faces, describe, load_split
from first_impressions.evaluation.measure import (
    add_comparison,
    add_figures,
    add_groups,
    evaluate_experiment,
    evaluate_file,
    summarise,
)
from first_impressions.evaluation.metrics import (
    LEAST_SPEAKERS,
    format_p,
    format_summary,
    format_table,
    group_order,
    published_table,
    scores_of_clips,
)
from first_impressions.evaluation.results import check_folder, write_results, write_summary
from first_impressions.networks.checkpoint import (
    Checkpoint,
    Intervals,
    find_checkpoint,
    load_experiment,
    read_experiment,
    versions,
)
from first_impressions.training.inputs import make_source, score_rows

# ---------------------------------------------------------------- scores

def score_split(experiment: str, args: argparse.Namespace,
                split: Split) -> tuple[pandas.DataFrame, pandas.DataFrame, Checkpoint]:
    """Return an experiment's predictions of a split's clips, its scores of single faces, and its checkpoint.

    predictions: index clip, columns TRAITS, faces and perhaps spread_<trait>. Scores of single faces: index clip,
    columns TRAITS; of a frozen network one face per clip, of a trained one all faces.

    Raises UserError if the faces were made in another way than those that the network was trained on.
    """
    machine = Machine.from_options(args)
    network, checkpoint = load_experiment(experiment, args.runs_dir, machine)
    check_same_faces(split.preprocessing, checkpoint.preprocessing, f"the faces of {split.name}",
                     "those that the network was trained on")
    source = make_source(network, FaceDataset(split), machine)
    scores = score_rows(network, source, title=f"scores of {split.name}")
    predictions = scores_of_clips(source.clips, scores)
    if source.of_clips:
        predictions = predictions[list(TRAITS)].assign(faces=pandas.Series(source.faces, index=source.clips))
        scores = score_rows(network, source, alone=True)
    if checkpoint.intervals:
        widths = Intervals(**checkpoint.intervals).half_widths(predictions["faces"].to_numpy())
        widths = pandas.DataFrame(widths, index=predictions.index, columns=list(TRAITS))
        predictions = predictions.join(widths.add_prefix("half_width_"))
    return predictions, pandas.DataFrame(scores, index=source.clips, columns=list(TRAITS)).dropna(), checkpoint


# ---------------------------------------------------------------- what is printed

def print_figures(metrics: dict) -> None:
    """Print the figures of all clips, of single faces, of known and unknown speakers, and the intervals' coverage."""
    print(f"\n{format_table(_table(metrics['traits']))}\n")
    mean, bootstrap = metrics["traits"]["mean"], metrics["bootstrap"]
    print(f"constant: the {printable(metrics['constant_of'])}\n"
          f"95 % intervals: percentile bootstrap over {counted(bootstrap['speakers'], 'speaker')}, "
          f"{bootstrap['resamples']:,} resamples\n"
          f"correlation of two traits on average: labels {metrics['correlations']['labels']['mean']:.2f}, predictions "
          f"{metrics['correlations']['predictions']['mean']:.2f} (higher: a halo)")
    if "per_frame" in metrics:
        one = metrics["per_frame"]
        print(f"one frame alone: accuracy {one['accuracy']['mean']:.4f}, Pearson r {one['pearson']['mean']:.3f}; mean "
              f"over a clip's {metrics['frames_per_clip']['mean']:.1f} frames: {mean['accuracy']:.4f}, "
              f"{mean['pearson']:.3f}")
    for name, title in (("seen", "in training"), ("unseen", "not in training")):
        if name in metrics:
            row = metrics[name]["mean"]
            print(f"speakers {title:<16} {row['clips']:>6.0f} clips  accuracy {row['accuracy']:.4f} "
                  f"[{row['accuracy_low']:.4f}, {row['accuracy_high']:.4f}]  constant {row['constant']:.4f}  "
                  f"gain {row['gain']:+.4f} [{row['gain_low']:+.4f}, {row['gain_high']:+.4f}]")
    if "intervals" in metrics:
        intervals = metrics["intervals"]
        print(f"intervals of {intervals['level']:.0%}: score ± {intervals['mean_half_width']:.3f} on average; they "
              "hold " + ", ".join(f"{value['mean']:.1%} of the labels of {name} speakers"
                                  for name, value in intervals["coverage"].items()))


def print_groups(groups: dict) -> None:
    """Print the figures of each group."""
    for group, content in groups.items():
        table = _table(content)
        print(f"\ngroup {printable(group)}, {counted(int(table['clips'].iat[0]), 'clip')}\n{format_table(table)}")
    print("\nsigned error: prediction - label; p: that it is the same in the other groups, corrected by Holm over "
          f"traits and groups (-: fewer than {LEAST_SPEAKERS} speakers)")


def print_comparison(comparison: dict) -> None:
    """Print the differences from another experiment's predictions."""
    table = _table({name: comparison[name] for name in ("mean", *TRAITS)})
    shown = table[["first", "second"]].map("{:.4f}".format).join(
        table[["difference", "low", "high"]].map("{:+.4f}".format)).assign(p=table["p"].map(format_p))
    print(f"\nagainst {printable(comparison['with'])} on {counted(int(table['clips'].iat[0]), 'common clip')} "
          "(positive: better; p: that there is no difference, of the five traits corrected by Holm; -: fewer than "
          f"{LEAST_SPEAKERS} speakers tell nothing from chance)\n{shown.to_string()}")


def print_summary(metrics: dict) -> None:
    """Print the means and standard deviations over several experiments."""
    print(f"\n==== mean ± standard deviation over {printable(', '.join(metrics['experiments']))}\n"
          f"{format_summary(_table(metrics['traits']))}")
    for name, title in (("seen", "in training"), ("unseen", "not in training")):
        if name in metrics:
            row = metrics[name]["mean"]
            print(f"speakers {title:<16} {row['clips']:>6.0f} clips  accuracy {row['accuracy']:.4f} ± "
                  f"{row['accuracy_sd']:.4f}  gain {row['gain']:+.4f} ± {row['gain_sd']:.4f}")


def print_published(metrics: dict) -> None:
    """Print the published results if the clips are the challenge's; other people's data do not compare with them."""
    if metrics["is_chalearn"]:
        print("\npublished, on the official 2,000 test clips (standard error about 0.001); their predictions of single "
              "clips are not at hand, so no difference from them can be tested\n"
              f"{published_table().to_string(float_format='{:.4f}'.format)}\n")


def _table(content):
    return pandas.DataFrame(content).T


# ---------------------------------------------------------------- command line

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
    tests.add_argument("--compare", metavar="OTHER", help="another experiment, or a CSV file of predictions")
    tests.add_argument("--group-by", metavar="FILE.csv", help="figures of each group: a column clip (or VideoName), "
                       "and a column per grouping; the challenge's files of ethnicity, gender and age are known")
    tests.add_argument("--groups-of", type=positive_int, default=1, metavar="N",
                       help="join groups of fewer than N clips into one, other")
    tests.add_argument("--seed", type=seed_number, default=0, help="of the bootstrap")
    foreign = parser.add_argument_group("external predictions")
    foreign.add_argument("--predictions", metavar="FILE.csv", help="columns clip or VideoName and the five traits, "
                         "as also predict.py --out writes them")
    foreign.add_argument("--labels", metavar="FILE", help="the labels of these clips (.pkl or .csv)")
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
    if args.compare and not Path(args.compare).is_file():
        if args.predictions:
            raise UserError(f"--compare {args.compare}: no such file")
        find_checkpoint(experiment_folder(args.runs_dir, args.compare))
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
                raise UserError(f"{word}: no experiment in {runs_dir} has such a name")
        names += found
    for name in names:
        find_checkpoint(experiment_folder(runs_dir, name))
    return list(dict.fromkeys(names))


def common_name(names: list[str]) -> str:
    """Return a name for the folder of several experiments: `final_seed` of final_seed0 and final_seed1."""
    start = os.path.commonprefix(names).rstrip("0123456789").rstrip("_-. ")
    return start if start and start not in names else f"{names[0]}_and_{len(names) - 1}_more"


def results_folder(args: argparse.Namespace, experiment: str | None) -> Path:
    """Return the folder of the results, after checking that it can be written. experiment: a name in --runs-dir, None
    for --predictions."""
    if experiment is None:
        folder = Path(args.out or Path(args.predictions).with_name(Path(args.predictions).stem + "_evaluation"))
    elif args.out:
        folder = Path(args.out) if len(args.experiments) == 1 else Path(args.out) / experiment
    else:
        folder = experiment_folder(args.runs_dir, experiment) / f"evaluation_{args.split}"
        check_folder(folder.parent)     # where the lock and TensorBoard's log lie
    check_folder(folder)
    return folder


def evaluate_one(args: argparse.Namespace, groups: dict | None, other: pandas.DataFrame | None) -> dict:
    """Evaluate args.experiment, or --predictions if it is None; print and write its figures and return them."""
    if args.experiment is None:
        args.speaker_regex = args.speaker_regex or SPEAKER_REGEX
        evaluation = evaluate_file(args, results_folder(args, None))
    else:
        # The rule for speakers that the experiment was trained with: another one would take known people for unknown.
        rule = args.speaker_regex or read_experiment(
            experiment_folder(args.runs_dir, args.experiment))[1].speaker_regex
        args = argparse.Namespace(**{**vars(args), "speaker_regex": rule or SPEAKER_REGEX})
        split = load_split(args.data_dir, args.split, args.speaker_regex)
        folder = results_folder(args, args.experiment)
        print(describe(split))
        evaluation = evaluate_experiment(args, folder, split, *score_split(args.experiment, args, split))
    evaluation.metrics = metrics = {"command": args.command, "split": "given" if args.predictions else args.split,
                                    "versions": versions(), **evaluation.metrics}
    add_figures(evaluation)
    print_figures(metrics)
    if groups is not None:
        add_groups(evaluation, groups, args.group_by, args.groups_of)
        print_groups(metrics["groups"])
    if args.compare:
        if other is None:
            other, _, _ = score_split(args.compare, args, evaluation.split)
        add_comparison(evaluation, args, other)
        print_comparison(metrics["comparison"])
    print_published(metrics)
    for kind, lines in (("note", evaluation.notes), ("warning", metrics["warnings"])):
        for line in lines:
            print(f"{kind}: {printable(line)}", file=sys.stderr)
    write_results(evaluation)
    return metrics


def main(argv=None):
    args = parse_args(argv)
    # Read before hours of scoring.
    groups = read_groups(args.group_by) if args.group_by else None
    other = read_scores(args.compare) if args.compare and Path(args.compare).is_file() else None
    summary = None
    if len(args.experiments) > 1:
        name = common_name(args.experiments)
        summary = Path(args.out) if args.out else experiment_folder(args.runs_dir, name) / f"evaluation_{args.split}"
        check_folder(summary)
    everything = []
    for experiment in args.experiments or [None]:
        args.experiment = experiment
        if summary:
            print(f"\n==== {printable(experiment)}")
        everything.append(evaluate_one(args, groups, other))
    if summary:
        metrics = {"experiment": name, **summarise(everything)}
        print_summary(metrics)
        write_summary(summary, metrics)
    if args.experiment is not None:
        print(f"next: tensorboard --logdir {shlex.quote(args.runs_dir)} --host 127.0.0.1, or python predict.py "
              f"{printable(shlex.quote(args.experiment))} CLIP.mp4{folder_options(args, ['runs_dir'])}")


if __name__ == "__main__":
    run_script(main)
