"""Measure an experiment on the test clips, as the challenge does: per clip, 1 - mean absolute error.

    python evaluate.py EXPERIMENT                                  the test clips of data/
    python evaluate.py EXPERIMENT --split valid                    the validation clips
    python evaluate.py EXPERIMENT --compare OTHER_EXPERIMENT       is the difference more than chance?
    python evaluate.py EXPERIMENT --group-by groups.csv            the same figures for each group (columns clip,group)
    python evaluate.py --predictions mine.csv --labels data/test/annotation_test.pkl     anybody's predictions

Writes runs/EXPERIMENT/evaluation_<split>/: metrics.json, predictions.csv (one row a clip), one picture a trait and
report.html; with --predictions a folder beside the file, <name>_evaluation/.
"""
import argparse
import json
import shlex
import sys
from pathlib import Path

from command_line import (
    UserError,
    atomic_write,
    counted,
    folder_lock,
    folder_options,
    make_parser,
    printable,
    run_script,
    seed_number,
)

import matplotlib
import numpy as np
import pandas
from matplotlib import pyplot
from matplotlib.figure import Figure

from checkpoint import Checkpoint, find_checkpoint, load_experiment, versions
from conventions import TRAITS
from dataset import Split, add_speaker_option, describe, load_split
from device import Machine, add_machine_options
from experiment import TRAINING_RECORD, experiment_folder
from features import make_source, score_rows
from intervals import LEVEL, Intervals
from labels import read_groups, read_labels, read_scores, read_speakers, speakers_of
from metrics import (
    PUBLISHED,
    Evaluation,
    compare,
    format_table,
    scores_of_clips,
    trait_accuracies,
    trait_correlations,
    warnings_about,
)
from model_card import write_model_card
from report import write_report
from tensorboard_logs import log_evaluation

matplotlib.use("Agg")  # draws without a display
LONGEST_WAIT = 600  # seconds, for another evaluation of the same experiment to write its files

# ---------------------------------------------------------------- predictions

def score_split(experiment: str, args: argparse.Namespace,
                split: Split) -> tuple[pandas.DataFrame, pandas.DataFrame, Checkpoint]:
    """Return an experiment's predictions of a split's clips, its scores of single faces, and its checkpoint.

    predictions: index clip, columns TRAITS, faces and perhaps spread_<trait>. Scores of single faces: index clip,
    columns TRAITS; of a frozen network one face a clip, of a trained one all faces.

    Raises UserError where the faces were cropped in another way than those that the network was trained on.
    """
    machine = Machine.from_options(args)
    network, checkpoint = load_experiment(experiment, args.runs_dir, machine)
    for key in ("size", "padding"):
        if split.preprocessing[key] != checkpoint.preprocessing[key]:
            raise UserError(f"the faces of {split.name} were made with --{key} {split.preprocessing[key]}, the network "
                            f"was trained on {checkpoint.preprocessing[key]}; make the faces again with "
                            f"--{key} {checkpoint.preprocessing[key]}")
    source = make_source(network, split, machine)
    source.prepare(network)
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


def _trained_in(run_dir):
    """Return the data folder that args.json of an experiment names, None where it names none."""
    try:
        return json.loads((run_dir / TRAINING_RECORD).read_text()).get("data_dir")
    except (OSError, ValueError, AttributeError):
        return None


def evaluate_experiment(args: argparse.Namespace, metrics: dict) -> tuple[Evaluation, pandas.DataFrame]:
    """Return the Evaluation of an experiment on a split, and the scores of single faces."""
    run_dir = experiment_folder(args.runs_dir, args.experiment)
    find_checkpoint(run_dir)
    split = load_split(args.data_dir, args.split, args.speaker_regex)
    print(describe(split))
    predictions, of_faces, checkpoint = score_split(args.experiment, args, split)
    seen = set(speakers_of(checkpoint.clips, args.speaker_regex)) | set(checkpoint.speakers)
    if args.train_labels:
        _, seen = read_training_labels(args)
    elif not seen:
        print(f"note: {args.experiment} keeps no names of its training clips; with --train-labels FILE the speakers "
              "among them are told from others", file=sys.stderr)
    metrics.update(experiment=args.experiment, architecture=checkpoint.architecture, epoch=checkpoint.epoch,
                   data_fingerprint=split.fingerprint(), trained_on=checkpoint.trained_on)
    known = len(set(split.labels.index) & set(checkpoint.clips))
    if known:
        print(f"warning: this experiment was trained on {known} of these {counted(split.number_with_face, 'clip')}; "
              "the figures say nothing about new clips", file=sys.stderr)
    return Evaluation(split.labels, predictions, split.speakers, pandas.Series(checkpoint.constant),
                      run_dir / f"evaluation_{args.split}", metrics, seen or None, run_dir, split, args.seed), of_faces


def read_training_labels(args: argparse.Namespace) -> tuple[pandas.DataFrame, set[str]]:
    """Return (the labels in the file of --train-labels, the speakers of their clips)."""
    labels = read_labels(args.train_labels)
    return labels, set(read_speakers(args.train_labels, labels.index, args.speaker_regex))


def evaluate_file(args: argparse.Namespace, metrics: dict) -> Evaluation:
    """Return the Evaluation of anybody's predictions in a CSV file."""
    labels, predictions = read_labels(args.labels), read_scores(args.predictions)
    speakers = read_speakers(args.labels, labels.index, args.speaker_regex)
    unknown = predictions.index.difference(labels.index)
    if len(unknown) == len(predictions):
        raise UserError(f"{args.predictions}: none of its clips is in {args.labels}; its first is {unknown[0]}, theirs "
                        f"{labels.index[0]}")
    constant, seen = labels.mean(), None
    if args.train_labels:
        training_labels, seen = read_training_labels(args)
        constant = training_labels.mean()
    folder = Path(args.predictions).with_name(Path(args.predictions).stem + "_evaluation")
    return Evaluation(labels, predictions.loc[predictions.index.isin(labels.index)], speakers, constant, folder,
                      {**metrics, "split": "given"}, seen, seed=args.seed)


# ---------------------------------------------------------------- figures

def add_frame_figures(evaluation: Evaluation, of_faces: pandas.DataFrame, table: pandas.DataFrame) -> None:
    """Measure single faces, and print the figures beside those of the clips."""
    labels = evaluation.split.labels.loc[of_faces.index].reset_index(drop=True)
    per_frame, metrics = of_faces.reset_index(drop=True), evaluation.metrics
    metrics["per_frame"] = {"accuracy": trait_accuracies(labels, per_frame),
                            "pearson": trait_correlations(labels, per_frame)}
    print(f"one frame alone: accuracy {metrics['per_frame']['accuracy']['mean']:.4f}, Pearson r "
          f"{metrics['per_frame']['pearson']['mean']:.3f}; mean over a clip's {metrics['frames_per_clip']['mean']:.1f} "
          f"frames: {table.loc['mean', 'accuracy']:.4f}, {table.loc['mean', 'pearson']:.3f}")


def add_speaker_figures(evaluation: Evaluation) -> None:
    """Measure and print the clips of speakers who are in training and of those who are not."""
    is_seen = evaluation.speakers.loc[evaluation.labels.index].isin(evaluation.seen)
    for name, title, clips in (("seen", "in training", evaluation.labels[is_seen]),
                               ("unseen", "not in training", evaluation.labels[~is_seen])):
        if len(clips):
            part = evaluation.measure(clips)
            evaluation.metrics[name] = part.T.to_dict()
            row = part.loc["mean"]
            print(f"speakers {title:<16} {len(clips):>6} clips  accuracy {row['accuracy']:.4f} "
                  f"[{row['accuracy_low']:.4f}, {row['accuracy_high']:.4f}]  "
                  f"constant {row['constant']:.4f}  gain {row['gain']:+.4f} "
                  f"[{row['gain_low']:+.4f}, {row['gain_high']:+.4f}]")


def add_coverage(evaluation: Evaluation, level: float) -> None:
    """Measure and print how many labels lie in the intervals of their scores: of all, known and unknown speakers."""
    labels = evaluation.labels
    predictions = evaluation.predictions.loc[labels.index]
    widths = predictions[[f"half_width_{trait}" for trait in TRAITS]].to_numpy()
    inside = pandas.DataFrame(np.abs(labels.to_numpy() - predictions[list(TRAITS)].to_numpy()) <= widths,
                              index=labels.index, columns=list(TRAITS))
    parts = {"all": inside}
    if evaluation.seen is not None:
        is_seen = evaluation.speakers.loc[labels.index].isin(evaluation.seen).to_numpy()
        parts.update(seen=inside[is_seen], unseen=inside[~is_seen])
    coverage = {name: {"mean": float(part.to_numpy().mean()), **part.mean().to_dict()}
                for name, part in parts.items() if len(part)}
    evaluation.metrics["intervals"] = {"level": level, "coverage": coverage, "mean_half_width": float(widths.mean())}
    print(f"intervals of {level:.0%}: score ± {widths.mean():.3f} on average; they hold "
          + ", ".join(f"{value['mean']:.1%} of the labels of {name} speakers" for name, value in coverage.items()))


def add_group_figures(evaluation: Evaluation, groups: pandas.Series, path: str) -> None:
    """Measure and print each group of clips. groups: of each clip, read from path.

    Raises UserError where none of the clips is measured.
    """
    labels, tables = evaluation.labels, {}
    for group, members in groups.groupby(groups):
        clips = labels.index[labels.index.isin(members.index)]
        if len(clips):
            tables[group] = evaluation.measure(labels.loc[clips])
    if not tables:
        raise UserError(f"{path}: names none of the clips measured"
                        + (f"; its first is {groups.index[0]}" if len(groups) else ""))
    evaluation.metrics["groups"] = {group: table.T.to_dict() for group, table in tables.items()}
    in_no_group = labels.index.difference(groups.index)
    if len(in_no_group):
        evaluation.metrics["clips_in_no_group"] = list(in_no_group)
        print(f"note: {counted(len(in_no_group), 'clip')} of {len(labels)} in no group of {path}, the first: "
              f"{printable(in_no_group[0])}", file=sys.stderr)
    for group, table in tables.items():
        print(f"\ngroup {printable(group)}, {int(table['clips'].iat[0])} clips\n{format_table(table)}")


def add_comparison(evaluation: Evaluation, args: argparse.Namespace, other: pandas.DataFrame | None) -> None:
    """Compare with other predictions, or those of another experiment, and print the differences."""
    if other is None:
        other, _, _ = score_split(args.compare, args, evaluation.split)
    comparison = compare(evaluation.labels, evaluation.predictions, other, evaluation.speakers, args.seed)
    evaluation.metrics["comparison"] = {"with": args.compare, **comparison.T.to_dict()}
    print(f"\nagainst {printable(args.compare)} on {int(comparison['clips'].iat[0])} common clips (positive: better; "
          "an interval without 0: more than chance)\n"
          f"{comparison.drop(columns='clips').to_string(float_format='{:+.4f}'.format)}")


def add_warnings(evaluation: Evaluation, table: pandas.DataFrame, missing: pandas.Index, data_dir: str) -> None:
    """Collect what a reader must know before trusting the figures, and print it on stderr."""
    lines = warnings_about(table, evaluation.labels, evaluation.predictions, evaluation.speakers)
    if len(missing):
        lines.append(f"{len(missing)} of {len(evaluation.labels) + len(missing)} clips have no prediction and are left "
                     f"out, the first is {missing[0]}")
    outside = (evaluation.predictions[list(TRAITS)] < 0) | (evaluation.predictions[list(TRAITS)] > 1)
    if outside.to_numpy().any():
        lines.append(f"{counted(int(outside.to_numpy().sum()), 'prediction')} outside [0, 1]: "
                     "are they on the labels' scale?")
    trained_in = _trained_in(evaluation.run_dir) if evaluation.run_dir else None
    # Where that folder is gone, the data were moved: nothing to warn of.
    if trained_in and Path(trained_in).is_dir() and Path(trained_in) != Path(data_dir).resolve():
        lines.append(f"trained on the clips in {trained_in}, measured on those in {data_dir}; "
                     "--data-dir names another folder")
    evaluation.metrics["warnings"] = lines
    for line in lines:
        print(f"warning: {printable(line)}", file=sys.stderr)


# ---------------------------------------------------------------- results

def trait_figure(trait: str, labels: pandas.DataFrame, predictions: pandas.DataFrame) -> Figure:
    """Return the four-panel matplotlib figure of a trait: labels, predictions, one against the other, and the error
    over the label beside that of random guesses drawn from the labels (red)."""
    true, predicted = labels[trait].to_numpy(), predictions.loc[labels.index, trait].to_numpy()
    guesses = np.random.default_rng(0).permutation(true)
    figure, panels = pyplot.subplots(2, 2, figsize=(9, 8), layout="constrained")
    figure.suptitle(f"{trait.capitalize()}: {len(true)} clips, accuracy {1 - np.abs(true - predicted).mean():.4f}")
    bins = np.linspace(0, 1, 31)
    panels[0, 0].hist(true, bins, color="tab:blue")
    panels[0, 0].set(title="labels", xlabel="score", ylabel="clips", xlim=(0, 1))
    panels[0, 1].hist(predicted, bins, color="tab:orange")
    panels[0, 1].set(title="predictions", xlabel="score", ylabel="clips", xlim=(0, 1))
    for panel in panels[0]:
        panel.yaxis.get_major_locator().set_params(integer=True)
    panels[1, 0].plot([0, 1], [0, 1], color="0.6", linewidth=1)
    panels[1, 0].scatter(true, predicted, s=14, alpha=0.5, color="tab:blue", linewidths=0)
    panels[1, 0].set(title="predictions over labels", xlabel="label", ylabel="prediction", xlim=(0, 1), ylim=(0, 1))
    panels[1, 1].scatter(true, np.abs(true - guesses), s=14, alpha=0.35, color="tab:red", linewidths=0,
                         label=f"random guesses, mean {np.abs(true - guesses).mean():.3f}")
    panels[1, 1].scatter(true, np.abs(true - predicted), s=14, alpha=0.6, color="tab:blue", linewidths=0,
                         label=f"predictions, mean {np.abs(true - predicted).mean():.3f}")
    panels[1, 1].set(title="absolute error over labels", xlabel="label", ylabel="|error|", xlim=(0, 1), ylim=(0, 1))
    panels[1, 1].legend(loc="upper center", framealpha=0.6)
    return figure


def write_evaluation(evaluation: Evaluation, table: pandas.DataFrame) -> None:
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


# ---------------------------------------------------------------- command line

def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("experiment", metavar="EXPERIMENT", nargs="?", help="name of a folder in --runs-dir")
    parser.add_argument("--split", choices=("test", "valid"), default="test", help="which clips are measured")
    parser.add_argument("--data-dir", default="data", help="data folder")
    parser.add_argument("--runs-dir", default="runs", help="folder of the experiments")
    parser.add_argument("--compare", metavar="OTHER", help="another experiment, or a CSV file of predictions")
    parser.add_argument("--group-by", metavar="FILE.csv", help="figures for each group: columns clip and group")
    parser.add_argument("--seed", type=seed_number, default=0, help="of the bootstrap")
    add_speaker_option(parser)
    foreign = parser.add_argument_group("anybody's predictions")
    foreign.add_argument("--predictions", metavar="FILE.csv", help="columns clip or VideoName and the five traits")
    foreign.add_argument("--labels", metavar="FILE", help="the labels of these clips (.pkl or .csv)")
    foreign.add_argument("--train-labels", metavar="FILE",
                         help="the training labels: their speakers are the known ones, also for an EXPERIMENT that "
                         "keeps no names; their mean is the constant (without it that of --labels)")
    add_machine_options(parser)
    args = parser.parse_args(argv)
    if bool(args.experiment) == bool(args.predictions):
        parser.error("give an EXPERIMENT, or --predictions FILE.csv with --labels FILE")
    if bool(args.predictions) != bool(args.labels):
        parser.error("--predictions and --labels go together")
    if args.compare and not Path(args.compare).is_file():
        if args.predictions:
            raise UserError(f"--compare {args.compare}: no such file")
        find_checkpoint(experiment_folder(args.runs_dir, args.compare))
    args.command = shlex.join([Path(sys.argv[0]).name, *(argv if argv is not None else sys.argv[1:])])
    return args


def main(argv=None):
    args = parse_args(argv)
    # Read before hours of scoring.
    groups = read_groups(args.group_by) if args.group_by else None
    other = read_scores(args.compare) if args.compare and Path(args.compare).is_file() else None
    metrics = {"command": args.command, "split": args.split, "versions": versions()}
    of_faces = None
    if args.predictions:
        evaluation = evaluate_file(args, metrics)
    else:
        evaluation, of_faces = evaluate_experiment(args, metrics)
    missing = evaluation.labels.index.difference(evaluation.predictions.index)
    evaluation.labels = evaluation.labels.drop(missing)
    if evaluation.labels.empty:
        raise UserError("no clip has a prediction; nothing to measure" if args.predictions else
                        f"{evaluation.split.name}: none of its faces can be read (they are named above); "
                        "make them again")
    metrics, table = evaluation.metrics, evaluation.measure()
    metrics.update(clips=len(evaluation.labels), clips_without_prediction=list(missing), traits=table.T.to_dict())
    if "faces" in evaluation.predictions:
        counts = evaluation.predictions.loc[evaluation.labels.index, "faces"]
        metrics["frames_per_clip"] = {"mean": counts.mean(), "least": int(counts.min()), "most": int(counts.max())}
    print(f"\n{format_table(table)}\n")
    if of_faces is not None:
        add_frame_figures(evaluation, of_faces, table)
    if evaluation.seen is not None:
        add_speaker_figures(evaluation)
    if "half_width_openness" in evaluation.predictions:
        add_coverage(evaluation, LEVEL)
    if args.group_by:
        add_group_figures(evaluation, groups, args.group_by)
    if args.compare:
        add_comparison(evaluation, args, other)
    print(f"\npublished, on the official 2,000 test clips (standard error about 0.001)\n"
          f"{PUBLISHED.rename_axis(None).to_string(float_format='{:.4f}'.format)}\n")
    add_warnings(evaluation, table, missing, args.data_dir)
    evaluation.folder.mkdir(parents=True, exist_ok=True)
    # One evaluation at a time writes; of an experiment they share the model card. Another one waits.
    with folder_lock(evaluation.run_dir or evaluation.folder, LONGEST_WAIT, ".report.lock"):
        write_evaluation(evaluation, table)
        print(f"figures, predictions and plots: {evaluation.folder}; all of it on one page: {write_report(evaluation)}")
        if evaluation.run_dir is not None and (evaluation.run_dir / TRAINING_RECORD).exists():
            try:
                print(f"model card: {write_model_card(evaluation.run_dir)}")
            except UserError as error:
                print(f"warning: no model card: {error}", file=sys.stderr)
    if evaluation.run_dir is not None:
        print(f"next: tensorboard --logdir {shlex.quote(args.runs_dir)} --host 127.0.0.1, or python predict.py "
              f"{args.experiment} CLIP.mp4{folder_options(args, ['runs_dir'])}")


if __name__ == "__main__":
    run_script(main)
