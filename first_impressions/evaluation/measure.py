"""Measuring: an experiment's predictions of a split, or those in a file, and all figures of them.

All figures go into Evaluation.metrics, what metrics.json holds. text.py prints them, results.py writes them.
"""
import argparse
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas

from first_impressions.common.command_line import UserError, counted
from first_impressions.common.constants import ANNOTATION_FILES, NEUROTICISM_MEANS, SPLITS, TRAITS
from first_impressions.data.labels import SPEAKER_REGEX, read_labels, read_scores, speakers_of
from first_impressions.data.official_clips import official_clips, official_split_of
from first_impressions.data.splits import LEAST_SPEAKERS, Split
from first_impressions.evaluation import metrics as figures
from first_impressions.networks.checkpoint import LEVEL, Checkpoint

FEW_SPEAKERS = 30   # fewer, and all figures are rough
MOST_GROUPS = 40    # in one column: more are not groups but scores or names
OTHER = "other"     # the group that small groups become
# The tables of figures in metrics.json, and how they are called.
PARTS = {"traits": "all clips", "seen": "speakers in training", "unseen": "speakers not in training"}


@dataclass
class Evaluation:
    """Predictions of some clips, with all that their figures need, and where the results go."""
    labels: pandas.DataFrame            # index clip, columns TRAITS
    predictions: pandas.DataFrame       # the same, and what else is known of a clip; some clips may be missing
    speakers: pandas.Series             # index clip
    constant: pandas.Series             # index TRAITS: what the constant prediction says
    folder: Path                        # of the results
    metrics: dict                       # content of metrics.json
    seen: set | None = None             # speakers of the training clips; None: not known
    run_dir: Path | None = None         # of an experiment; None: external predictions, several experiments
    split: Split | None = None          # of an experiment's clips
    of_faces: pandas.DataFrame | None = None    # an experiment's scores of single faces: index clip, columns TRAITS
    notes: list[str] = field(default_factory=list)      # what to know, on stderr
    warnings: list[str] = field(default_factory=list)   # what to know before trusting the figures
    seed: int = 0                       # of the bootstrap

    def figures_of(self, clips: pandas.Index) -> dict[str, dict]:
        """Return the figures of some labelled clips, {"mean" or trait: {figure: value}}, by metrics.figure_table."""
        return figures.figure_table(self.labels.loc[clips], self.predictions, self.constant, self.speakers,
                                    self.seed).T.to_dict()


def evaluate_experiment(args: argparse.Namespace, run_dir: Path, checkpoint: Checkpoint, split: Split,
                        scores: tuple[pandas.DataFrame, pandas.DataFrame], folder: Path) -> Evaluation:
    """Return the Evaluation of the experiment in run_dir on a split. scores: what evaluate.score_split returned."""
    predictions, of_faces = scores
    metrics = {"experiment": run_dir.name, "architecture": checkpoint.architecture.name, "epoch": checkpoint.epoch,
               "trained_on": checkpoint.trained_on, "data_fingerprint": split.fingerprint(),
               "constant_of": "mean label of the training clips", "is_chalearn": split.is_chalearn,
               "neuroticism_means": NEUROTICISM_MEANS[checkpoint.neuroticism_is_stability]}
    learned = _learned_from(checkpoint, split.labels.index)
    seen = set(speakers_of(learned, split.speaker_regex)) | set(checkpoint.speakers)
    if args.train_labels:
        seen = set(read_labels(args.train_labels, split.speaker_regex)[1])
    evaluation = Evaluation(split.labels, predictions, split.speakers, pandas.Series(checkpoint.constant), folder,
                            metrics, seen or None, run_dir, split, of_faces, seed=args.seed)
    if not seen:
        evaluation.notes.append(f"{run_dir.name} stores no names of its training clips; with --train-labels FILE the "
                                "speakers among them are told from others")
    if known := len(learned.intersection(split.labels.index)):
        evaluation.warnings.append(f"{known} of these {counted(len(split.labels), 'clip')} are among those that the "
                                   "experiment learned from: the figures are too good and say nothing about new clips")
    if checkpoint.neuroticism_is_stability != split.is_chalearn:
        evaluation.warnings.append(
            f"trained on labels whose neuroticism means {metrics['neuroticism_means']}, while that of the labels of "
            f"{split.name} is taken for {NEUROTICISM_MEANS[split.is_chalearn]}; if it is, the figures of this trait "
            "say nothing")
    return evaluation


def _learned_from(checkpoint, clips):
    """Return the names of a checkpoint's training clips; if it stores none, has learned from the challenge, and these
    clips are the challenge's, too, by the list of its clips."""
    if checkpoint.clips or not (checkpoint.neuroticism_is_stability and official_split_of(clips).any()):
        return set(checkpoint.clips)
    splits = official_clips()["split"]
    return set(splits.index[splits.isin([name for name in SPLITS if name in checkpoint.trained_on])])


def evaluate_file(args: argparse.Namespace, folder: Path) -> Evaluation:
    """Return the Evaluation of external predictions in a CSV file."""
    rule = args.speaker_regex or SPEAKER_REGEX
    (labels, speakers), predictions = read_labels(args.labels, rule), read_scores(args.predictions)
    unknown = predictions.index.difference(labels.index)
    if len(unknown) == len(predictions):
        raise UserError(f"{args.predictions}: none of its clips is in {args.labels}; its first is {unknown[0]}, theirs "
                        f"{labels.index[0]}")
    is_chalearn, constant, seen = Path(args.labels).name in ANNOTATION_FILES.values(), labels.mean(), None
    constant_of = f"mean of the very labels in {args.labels}; --train-labels FILE takes that of the training clips"
    if args.train_labels:
        training_labels, training_speakers = read_labels(args.train_labels, rule)
        constant, seen = training_labels.mean(), set(training_speakers)
        constant_of = f"mean of the labels in {args.train_labels}"
    metrics = {"constant_of": constant_of, "is_chalearn": is_chalearn,
               "neuroticism_means": NEUROTICISM_MEANS[is_chalearn]}
    return Evaluation(labels, predictions.drop(unknown), speakers, constant, folder, metrics, seen, seed=args.seed)


def add_figures(evaluation: Evaluation) -> None:
    """Measure all clips with a prediction, single faces, known and unknown speakers, intervals. Raises UserError if no
    clip has a prediction."""
    metrics, split = evaluation.metrics, evaluation.split
    missing = evaluation.labels.index.difference(evaluation.predictions.index)
    evaluation.labels = labels = evaluation.labels.drop(missing)
    if labels.empty:
        raise UserError("no clip has a prediction; nothing to evaluate" if split is None else
                        f"{split.name}: none of its faces can be read (they are named above); make them again")
    if len(missing):
        evaluation.warnings.append(f"{len(missing)} of {len(labels) + len(missing)} clips have no prediction and are "
                                   f"left out, the first is {missing[0]}")
    predictions, speakers = evaluation.predictions.loc[labels.index], evaluation.speakers.loc[labels.index]
    is_seen, parts = speakers.isin(evaluation.seen or ()), {"traits": labels.index}
    if evaluation.seen is not None:
        parts |= {"seen": labels.index[is_seen], "unseen": labels.index[~is_seen]}
    parts = {name: clips for name, clips in parts.items() if len(clips)}
    metrics.update(clips=len(labels), clips_without_prediction=list(missing),
                   bootstrap={"kind": "percentile, over speakers", "resamples": figures.RESAMPLES,
                              "seed": evaluation.seed, "speakers": speakers.nunique()},
                   correlations={name: figures.correlations(scores)
                                 for name, scores in (("labels", labels), ("predictions", predictions))},
                   **{name: evaluation.figures_of(clips) for name, clips in parts.items()})
    if "faces" in predictions:
        counts = predictions["faces"]
        metrics["frames_per_clip"] = {"mean": counts.mean(), "least": int(counts.min()), "most": int(counts.max())}
    if evaluation.of_faces is not None:
        of_faces = evaluation.of_faces.reset_index(drop=True)
        true = split.labels.loc[evaluation.of_faces.index].reset_index(drop=True)
        metrics["per_frame"] = figures.basic_figures(true, of_faces).to_dict()
    if "half_width_openness" in predictions:
        metrics["intervals"] = coverage(labels, predictions, parts)


def coverage(labels: pandas.DataFrame, predictions: pandas.DataFrame, parts: dict[str, pandas.Index]) -> dict:
    """Return how many labels lie in the intervals of their scores, of each part of the clips."""
    widths = predictions[[f"half_width_{trait}" for trait in TRAITS]].to_numpy()
    inside = (labels[list(TRAITS)] - predictions[list(TRAITS)]).abs() <= widths
    of_parts = {"all" if name == "traits" else name: inside.loc[clips] for name, clips in parts.items()}
    return {"level": LEVEL, "mean_half_width": float(widths.mean()), "coverage": {
        name: {"mean": float(rows.to_numpy().mean()), **rows.mean().to_dict()} for name, rows in of_parts.items()}}


def add_groups(evaluation: Evaluation, groupings: dict[str, pandas.Series], path: str, least: int = 1) -> None:
    """Measure each group of clips, and test its signed error. groupings: {column: group of each clip}, read from path;
    groups of fewer than `least` of the evaluated clips are joined. Raises UserError if none of the clips was evaluated,
    or a column has too many groups."""
    tables = {}
    for column, groups in groupings.items():
        of_clips = groups[groups.index.isin(evaluation.labels.index)]
        small = of_clips.value_counts().loc[lambda counts: counts < least].index
        of_clips = of_clips.where(~of_clips.isin(small), OTHER)
        names = figures.group_order(of_clips)
        if len(names) > MOST_GROUPS:
            raise UserError(f"{path}: the column {column} has {len(names)} groups; remove it, or join small groups "
                            "with --groups-of")
        without = evaluation.labels.index.difference(of_clips.index)
        if names and len(without):
            evaluation.metrics["clips_in_no_group"] = list(without)
            evaluation.notes.append(f"{counted(len(without), 'clip')} of {len(evaluation.labels)} in no group of "
                                    f"{path}{f', column {column}' if len(groupings) > 1 else ''}, the first: "
                                    f"{without[0]}")
        p_values = figures.bias_tests(evaluation.labels, evaluation.predictions, of_clips, evaluation.speakers)
        for name in names:
            table = evaluation.figures_of(of_clips.index[of_clips == name])
            for trait in TRAITS:
                table[trait]["bias_p"] = p_values.loc[name, trait]
            tables[f"{column}: {name}" if len(groupings) > 1 else name] = table
    if not tables:
        first = next(iter(groupings.values())).index
        raise UserError(f"{path}: names none of the evaluated clips"
                        + (f"; its first is {first[0]}" if len(first) else ""))
    evaluation.metrics["groups"] = tables


def add_comparison(evaluation: Evaluation, ours: list[pandas.DataFrame], name: str,
                   others: dict[str, pandas.DataFrame]) -> None:
    """Compare predictions of the evaluation's clips, of one or more experiments, with those of one or more others.
    name: that of the others together; others: {experiment or file: predictions}."""
    table = figures.compare(evaluation.labels, ours, list(others.values()), evaluation.speakers, evaluation.seed)
    evaluation.metrics["comparison"] = {"with": name, "others": list(others), **table.T.to_dict()}


def summarise(evaluations: list[Evaluation], name: str, folder: Path) -> Evaluation:
    """Return the Evaluation of several experiments together. Its figures are the means, and under <figure>_sd the
    standard deviations (n - 1) over the experiments; its predictions are those of each clip averaged. Raises UserError
    if the clips are not the same."""
    contents = [one.metrics for one in evaluations]
    if len({content["data_fingerprint"] for content in contents}) > 1:
        raise UserError("the clips changed between the evaluations; run the same command again")
    scores = pandas.concat([one.predictions.loc[one.labels.index, list(TRAITS)] for one in evaluations])
    predictions = scores.groupby(level=0).mean()
    metrics = {**{key: contents[0][key] for key in ("command", "split", "versions", "constant_of", "is_chalearn",
                                                    "neuroticism_means", "data_fingerprint")},
               "experiment": name, "experiments": [content["experiment"] for content in contents],
               "clips": len(predictions)}
    for part in PARTS:
        if all(part in content for content in contents):
            tables = pandas.concat([pandas.DataFrame(content[part]).T for content in contents])
            names = [figure for figure in tables if not figure.endswith(("_low", "_high"))]
            grouped = tables[names].groupby(level=0, sort=False)
            spread = grouped.std().drop(columns=["clips", "speakers", "constant"]).add_suffix("_sd")
            metrics[part] = grouped.agg(lambda values: values.mean(skipna=False)).join(spread).T.to_dict()
    labels = evaluations[0].split.labels.loc[predictions.index]
    return replace(evaluations[0], labels=labels, predictions=predictions, folder=folder, metrics=metrics, run_dir=None,
                   notes=[], warnings=list(dict.fromkeys(line for one in evaluations for line in one.warnings)))


def add_warnings(evaluation: Evaluation) -> None:
    """Put into the metrics what a reader must know before trusting the figures."""
    metrics, lines = evaluation.metrics, list(evaluation.warnings)
    labels, predictions = evaluation.labels, evaluation.predictions.loc[evaluation.labels.index, list(TRAITS)]
    if worse := [trait for trait in TRAITS if metrics["traits"][trait]["gain"] < 0]:
        lines.append(f"worse than the constant prediction: {', '.join(worse)}")
    flat = [trait for trait in TRAITS if len(labels) > 1 and predictions[trait].std() < 0.05 * labels[trait].std()]
    if flat:
        lines.append(f"predictions have collapsed to (nearly) a constant: {', '.join(flat)}")
    if (number := evaluation.speakers.loc[labels.index].nunique()) < FEW_SPEAKERS:
        lines.append(f"only {counted(number, 'speaker')}: all figures are rough, and comparing them with published "
                     "ones means nothing")
    if narrow := _excluding_zero(metrics):
        lines.append(f"fewer than {LEAST_SPEAKERS} speakers make intervals too narrow; that they exclude 0 shows "
                     f"nothing here: {', '.join(narrow)}")
    outside = int(((evaluation.predictions[list(TRAITS)] < 0) | (evaluation.predictions[list(TRAITS)] > 1)).sum().sum())
    if outside:
        lines.append(f"{counted(outside, 'prediction')} outside [0, 1]: are they on the labels' scale?")
    metrics["warnings"] = lines


def _excluding_zero(metrics):
    """Return the names of the intervals that exclude 0 although too few speakers stand behind them."""
    tables = [(f"gain of {title}", metrics[part], ("gain_",)) for part, title in PARTS.items() if part in metrics]
    tables += [(f"group {name}", table, ("gain_", "bias_")) for name, table in metrics.get("groups", {}).items()]
    if comparison := metrics.get("comparison"):
        tables.append((f"difference from {comparison['with']}", {row: comparison[row] for row in figures.ROWS}, ("",)))
    return [title for title, table, names in tables if table["mean"]["speakers"] < LEAST_SPEAKERS
            and any(row.get(f"{name}low", 0) > 0 or row.get(f"{name}high", 0) < 0
                    for row in table.values() for name in names)]
