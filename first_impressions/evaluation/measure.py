"""Measuring: an experiment's predictions of a split, or those in a file, and all figures of them.

All figures go into Evaluation.metrics, what metrics.json holds; evaluate.py prints them.
"""
import argparse
from pathlib import Path

import pandas

from first_impressions.common.command_line import UserError, counted
from first_impressions.common.constants import ANNOTATION_FILES, SPLITS, TRAITS
from first_impressions.common.experiment import TRAINING_RECORD, experiment_folder
from first_impressions.common.files import read_json
from first_impressions.data.labels import read_labels, read_scores, read_speakers, speakers_of
from first_impressions.data.official_clips import official_clips, official_split_of
from first_impressions.data.splits import Split
from first_impressions.evaluation.metrics import (
    RESAMPLES,
    Evaluation,
    bias_tests,
    compare,
    correlations,
    group_order,
    trait_accuracies,
    trait_correlations,
    warnings_about,
)
from first_impressions.networks.checkpoint import LEVEL, Checkpoint

MOST_GROUPS = 40    # in one column: more are not groups but scores or names
OTHER = "other"     # the group that small groups become

# ---------------------------------------------------------------- predictions

def evaluate_experiment(args: argparse.Namespace, folder: Path, split: Split, predictions: pandas.DataFrame,
                        of_faces: pandas.DataFrame, checkpoint: Checkpoint) -> Evaluation:
    """Return the Evaluation of args.experiment on a split, from what evaluate.score_split returned."""
    run_dir = experiment_folder(args.runs_dir, args.experiment)
    evaluation = Evaluation(
        split.labels, predictions, split.speakers, pandas.Series(checkpoint.constant),
        "mean label of the training clips", folder, {},
        set(speakers_of(checkpoint.clips, args.speaker_regex)) | set(checkpoint.speakers), run_dir, split, of_faces,
        is_chalearn=split.is_chalearn, seed=args.seed)
    if args.train_labels:
        _, evaluation.seen = read_training_labels(args)
    elif not evaluation.seen:
        _note_without_names(evaluation, args, checkpoint)
    evaluation.metrics.update(experiment=args.experiment, architecture=checkpoint.architecture.name,
                              epoch=checkpoint.epoch,
                              data_fingerprint=split.fingerprint(), trained_on=checkpoint.trained_on)
    known = len(set(split.labels.index) & set(checkpoint.clips))
    if known:
        evaluation.warnings.append(f"this experiment was trained on {known} of these "
                                   f"{counted(split.number_with_face, 'clip')}; "
                                   "the figures say nothing about new clips")
    trained_in = _trained_in(run_dir)
    # If that folder is gone, the data were moved: nothing to warn of.
    if trained_in and Path(trained_in).is_dir() and Path(trained_in) != Path(args.data_dir).resolve():
        evaluation.warnings.append(f"trained on the clips in {trained_in}, evaluated on those in {args.data_dir}; "
                                   "--data-dir names another folder")
    return evaluation


def _note_without_names(evaluation, args, checkpoint):
    """Tell the clips and speakers that a checkpoint without names has learned from by the challenge's list of clips, if
    it learned from the challenge and these clips are its, too."""
    evaluation.seen, official = None, official_split_of(evaluation.labels.index)
    if not checkpoint.neuroticism_is_stability or not official.any():
        evaluation.notes.append(f"{args.experiment} stores no names of its training clips; with --train-labels FILE "
                                "the speakers among them are told from others")
        return
    splits = [name for name in SPLITS if name in checkpoint.trained_on]
    table = official_clips()
    evaluation.seen = set(speakers_of(table.index[table["split"].isin(splits)], args.speaker_regex))
    known = int(official.isin(splits).sum())
    if known:
        evaluation.warnings.append(f"{args.experiment} learned from the challenge's clips ({'+'.join(splits)}), and "
                                   f"{known} of these {counted(len(official), 'clip')} are among them: the figures are "
                                   "too good and say nothing about new clips")


def _trained_in(run_dir):
    """Return the data folder that args.json of an experiment names, None if it names none."""
    try:
        return read_json(run_dir / TRAINING_RECORD).get("data_dir")
    except (OSError, ValueError, AttributeError):
        return None


def read_training_labels(args: argparse.Namespace) -> tuple[pandas.DataFrame, set[str]]:
    """Return (the labels in the file of --train-labels, the speakers of their clips)."""
    labels = read_labels(args.train_labels)
    return labels, set(read_speakers(args.train_labels, labels.index, args.speaker_regex))


def evaluate_file(args: argparse.Namespace, folder: Path) -> Evaluation:
    """Return the Evaluation of external predictions in a CSV file."""
    labels, predictions = read_labels(args.labels), read_scores(args.predictions)
    speakers = read_speakers(args.labels, labels.index, args.speaker_regex)
    unknown = predictions.index.difference(labels.index)
    if len(unknown) == len(predictions):
        raise UserError(f"{args.predictions}: none of its clips is in {args.labels}; its first is {unknown[0]}, theirs "
                        f"{labels.index[0]}")
    constant, seen = labels.mean(), None
    constant_of = f"mean of the very labels in {args.labels}; --train-labels FILE takes that of the training clips"
    if args.train_labels:
        training_labels, seen = read_training_labels(args)
        constant, constant_of = training_labels.mean(), f"mean of the labels in {args.train_labels}"
    return Evaluation(labels, predictions.loc[predictions.index.isin(labels.index)], speakers, constant, constant_of,
                      folder, {}, seen, is_chalearn=Path(args.labels).name in ANNOTATION_FILES.values(), seed=args.seed)


# ---------------------------------------------------------------- figures

def add_figures(evaluation: Evaluation) -> None:
    """Measure all clips with a prediction, single faces, known and unknown speakers, intervals; collect the warnings.

    Raises UserError if no clip has a prediction.
    """
    metrics, split = evaluation.metrics, evaluation.split
    missing = evaluation.labels.index.difference(evaluation.predictions.index)
    evaluation.labels = evaluation.labels.drop(missing)
    if evaluation.labels.empty:
        raise UserError("no clip has a prediction; nothing to evaluate" if split is None else
                        f"{split.name}: none of its faces can be read (they are named above); make them again")
    table = evaluation.measure()
    metrics.update(clips=len(evaluation.labels), clips_without_prediction=list(missing), traits=table.T.to_dict(),
                   constant_of=evaluation.constant_of, is_chalearn=evaluation.is_chalearn,
                   bootstrap={"kind": "percentile, over speakers", "resamples": RESAMPLES, "seed": evaluation.seed,
                              "speakers": int(evaluation.speakers.loc[evaluation.labels.index].nunique())},
                   correlations={"labels": correlations(evaluation.labels), "predictions":
                                 correlations(evaluation.predictions.loc[evaluation.labels.index])})
    if "faces" in evaluation.predictions:
        counts = evaluation.predictions.loc[evaluation.labels.index, "faces"]
        metrics["frames_per_clip"] = {"mean": counts.mean(), "least": int(counts.min()), "most": int(counts.max())}
    if evaluation.of_faces is not None:
        labels = split.labels.loc[evaluation.of_faces.index].reset_index(drop=True)
        of_faces = evaluation.of_faces.reset_index(drop=True)
        metrics["per_frame"] = {"accuracy": trait_accuracies(labels, of_faces),
                                "pearson": trait_correlations(labels, of_faces)}
    parts = {}
    if evaluation.seen is not None:
        is_seen = evaluation.speakers.loc[evaluation.labels.index].isin(evaluation.seen)
        parts = {"seen": evaluation.labels[is_seen], "unseen": evaluation.labels[~is_seen]}
        metrics.update({name: evaluation.measure(part).T.to_dict() for name, part in parts.items() if len(part)})
    if "half_width_openness" in evaluation.predictions:
        metrics["intervals"] = coverage(evaluation, {"all": evaluation.labels, **parts})
    metrics["warnings"] = _warnings(evaluation, table, missing)


def coverage(evaluation: Evaluation, parts: dict[str, pandas.DataFrame]) -> dict:
    """Return how many labels lie in the intervals of their scores, of each part of the labelled clips."""
    labels = evaluation.labels
    predictions = evaluation.predictions.loc[labels.index]
    widths = predictions[[f"half_width_{trait}" for trait in TRAITS]].to_numpy()
    inside = (labels[list(TRAITS)] - predictions[list(TRAITS)]).abs() <= widths
    of_parts = {}
    for name, part in parts.items():
        if len(part):
            rows = inside.loc[part.index]
            of_parts[name] = {"mean": float(rows.to_numpy().mean()), **rows.mean().to_dict()}
    return {"level": LEVEL, "coverage": of_parts, "mean_half_width": float(widths.mean())}


def add_groups(evaluation: Evaluation, groupings: dict[str, pandas.Series], path: str, least: int = 1) -> None:
    """Measure each group of clips, and test its signed error. groupings: {column: group of each clip}, read from path;
    groups of fewer than `least` of the evaluated clips are joined.

    Raises UserError if none of the clips was evaluated, or a column has too many groups.
    """
    tables = {}
    for column, groups in groupings.items():
        of_clips = groups[groups.index.isin(evaluation.labels.index)]
        small = of_clips.value_counts().loc[lambda counts: counts < least].index
        of_clips = of_clips.where(~of_clips.isin(small), OTHER)
        names = group_order(of_clips)
        if len(names) > MOST_GROUPS:
            raise UserError(f"{path}: the column {column} has {len(names)} groups; remove it, or join small groups "
                            "with --groups-of")
        without = evaluation.labels.index.difference(of_clips.index)
        if names and len(without):
            evaluation.metrics["clips_in_no_group"] = list(without)
            evaluation.notes.append(f"{counted(len(without), 'clip')} of {len(evaluation.labels)} in no group of "
                                    f"{path}{f', column {column}' if len(groupings) > 1 else ''}, the first: "
                                    f"{without[0]}")
        p_values = bias_tests(evaluation.labels, evaluation.predictions, of_clips, evaluation.speakers)
        for name in names:
            table = evaluation.measure(evaluation.labels.loc[of_clips.index[of_clips == name]])
            tables[f"{column}: {name}" if len(groupings) > 1 else name] = table.assign(bias_p=p_values.loc[name])
    if not tables:
        first = next(iter(groupings.values())).index
        raise UserError(f"{path}: names none of the evaluated clips"
                        + (f"; its first is {first[0]}" if len(first) else ""))
    evaluation.metrics["groups"] = {group: table.T.to_dict() for group, table in tables.items()}


def add_comparison(evaluation: Evaluation, args: argparse.Namespace, other: pandas.DataFrame) -> None:
    """Compare with other predictions."""
    comparison = compare(evaluation.labels, evaluation.predictions, other, evaluation.speakers, args.seed)
    evaluation.metrics["comparison"] = {"with": args.compare, **comparison.T.to_dict()}


def keep_earlier(evaluation: Evaluation, earlier: dict) -> list[str]:
    """Take over the comparison and the groups that an earlier evaluation of the very same predictions has and
    this one lacks; return what is not kept, in words. earlier: content of its metrics.json."""
    metrics, lost = evaluation.metrics, []
    same = all(metrics["traits"][trait]["accuracy"] == earlier["traits"][trait]["accuracy"] for trait in TRAITS)
    if "comparison" in earlier:
        other = earlier["comparison"]["with"]
        if same and "comparison" not in metrics:
            metrics["comparison"] = earlier["comparison"]
        elif metrics.get("comparison", {}).get("with") != other:
            lost.append(f"comparison with {other}")
    if "groups" in earlier:
        if same and "groups" not in metrics:
            metrics["groups"] = earlier["groups"]
        elif metrics.get("groups", {}).keys() != earlier["groups"].keys():
            lost.append("figures of groups")
    return lost


def summarise(experiments: list[dict]) -> dict:
    """Return the metrics of several evaluations of the same clips: of each figure the mean and under <figure>_sd the
    standard deviation over the experiments (n - 1). experiments: their metrics."""
    first = experiments[0]
    if len({content["data_fingerprint"] for content in experiments}) > 1:
        raise UserError("the clips changed between the evaluations; run the same command again")
    metrics = {key: first[key] for key in ("command", "split", "versions", "clips", "constant_of", "is_chalearn",
                                           "data_fingerprint")}
    metrics.update(experiments=[content["experiment"] for content in experiments],
                   warnings=list(dict.fromkeys(line for content in experiments for line in content["warnings"])))
    for part in ("traits", "seen", "unseen"):
        if all(part in content for content in experiments):
            tables = pandas.concat([pandas.DataFrame(content[part]).T for content in experiments])
            figures = [name for name in tables if not name.endswith(("_low", "_high"))]
            grouped = tables[figures].groupby(level=0, sort=False)
            spread = grouped.std().drop(columns=["clips", "constant"]).add_suffix("_sd")
            metrics[part] = grouped.agg(lambda values: values.mean(skipna=False)).join(spread).T.to_dict()
    return metrics


def _warnings(evaluation, table, missing):
    """Return what a reader must know before trusting the figures."""
    lines = [*evaluation.warnings,
             *warnings_about(table, evaluation.labels, evaluation.predictions, evaluation.speakers)]
    if len(missing):
        lines.append(f"{len(missing)} of {len(evaluation.labels) + len(missing)} clips have no prediction and are left "
                     f"out, the first is {missing[0]}")
    outside = (evaluation.predictions[list(TRAITS)] < 0) | (evaluation.predictions[list(TRAITS)] > 1)
    if outside.to_numpy().any():
        lines.append(f"{counted(int(outside.to_numpy().sum()), 'prediction')} outside [0, 1]: "
                     "are they on the labels' scale?")
    return lines
