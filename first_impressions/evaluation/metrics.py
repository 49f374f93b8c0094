"""Figures of predictions: accuracy as the challenge measures it, intervals over speakers, comparisons.

The challenge's accuracy is per clip: a clip's predictions are averaged over its frames, then 1 - mean |error| over
clips for each trait, then the mean of the five.
"""
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas

from first_impressions.common.command_line import UserError, counted
from first_impressions.common.constants import TRAITS
from first_impressions.data.splits import Split

# Accuracies on the official 2,000 test clips. Sources: Ponce-Lopez et al., ChaLearn LAP 2016: First Round Challenge on
# First Impressions (NJU-LAMDA); Kaya et al., Multi-modal Score Fusion and Decision Trees for Explainable Automatic Job
# Candidate Screening from Video CVs, CVPR Workshops 2017 (BU-NKU); Ryumina et al., OCEAN-AI Framework with EmoFormer
# Cross-Hemiface Attention Approach for Personality Traits Assessment, Expert Systems with Applications 2024 (OCEAN-AI);
# the README of chalearn_first_impression (the original repository); the mean of the training labels (the constant).
PUBLISHED = pandas.DataFrame(
    [("constant: training mean", 0.8814, 0.8833, 0.8746, 0.8781, 0.8935, 0.8773),
     ("original repository, one face picture", 0.8972, 0.8984, 0.8950, 0.8965, 0.9028, 0.8933),
     ("NJU-LAMDA (2016 winner), frames + sound", 0.9130, 0.9123, 0.9166, 0.9133, 0.9126, 0.9100),
     ("BU-NKU, faces of a clip", 0.9133, 0.9138, 0.9151, 0.9191, 0.9075, 0.9108),
     ("OCEAN-AI, faces of a clip", 0.9152, 0.9128, 0.9179, 0.9195, 0.9130, 0.9128)],
    columns=["system", "mean", *TRAITS]).set_index("system")
RESAMPLES = 2000  # of the bootstrap
FEW_SPEAKERS = 30  # fewer, and the interval by bootstrap over them is itself too narrow


def scores_of_clips(clips: Iterable[str], scores: np.ndarray) -> pandas.DataFrame:
    """Return the mean over the frames of each clip: DataFrame, index clip, columns TRAITS, faces, and spread_<trait>
    (standard deviation over the frames). Faces without a score (NaN) are left out."""
    table = pandas.DataFrame(scores, columns=list(TRAITS)).assign(clip=list(clips)).dropna()
    groups = table.groupby("clip")[list(TRAITS)]
    spread = groups.std(ddof=0).add_prefix("spread_")
    return pandas.concat([groups.mean(), groups.size().rename("faces"), spread], axis=1)


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
    run_dir: Path | None = None         # of an experiment; None: anybody's predictions
    split: Split | None = None          # of an experiment's clips
    of_faces: pandas.DataFrame | None = None    # an experiment's scores of single faces: index clip, columns TRAITS
    notes: list[str] = field(default_factory=list)      # what to know, on stderr
    warnings: list[str] = field(default_factory=list)   # what to know before trusting the figures
    seed: int = 0                       # of the bootstrap

    def measure(self, clips: pandas.DataFrame | None = None) -> pandas.DataFrame:
        """Return the figures of some labelled clips, by default of all, as the function measure does."""
        return measure(self.labels if clips is None else clips, self.predictions, self.constant, self.speakers,
                       self.seed)


# ---------------------------------------------------------------- figures

def trait_accuracies(labels: pandas.DataFrame, predictions: pandas.DataFrame) -> dict[str, float]:
    """Return {trait: 1 - mean |error|} and their mean under "mean", for two DataFrames of the same clips."""
    accuracy = 1 - (labels[list(TRAITS)] - predictions.loc[labels.index, list(TRAITS)]).abs().mean()
    return {"mean": float(accuracy.mean()), **{trait: float(accuracy[trait]) for trait in TRAITS}}


def trait_correlations(labels: pandas.DataFrame, predictions: pandas.DataFrame) -> dict[str, float]:
    """Return {trait: Pearson r} and their mean under "mean"; NaN where predictions or labels are constant."""
    r = _column_measures(labels, predictions)["pearson"]
    return {"mean": float(r.mean()), **{trait: float(r[trait]) for trait in TRAITS}}


def _column_measures(labels, predictions):
    """Return a DataFrame, index TRAITS: pearson, ccc (Lin, Biometrics 45, 1989), r2 and mse of each column.

    NaN where predictions or labels are constant, or there is one clip.
    """
    true = labels[list(TRAITS)].to_numpy(dtype=float)
    predicted = predictions.loc[labels.index, list(TRAITS)].to_numpy(dtype=float)
    mse, variance = ((true - predicted) ** 2).mean(0), true.var(0)
    covariance = ((true - true.mean(0)) * (predicted - predicted.mean(0))).mean(0)
    varies = (true.std(0) > 1e-6) & (predicted.std(0) > 1e-6)
    with np.errstate(divide="ignore", invalid="ignore"):
        pearson = covariance / (true.std(0) * predicted.std(0))
        ccc = 2 * covariance / (variance + predicted.var(0) + (true.mean(0) - predicted.mean(0)) ** 2)
        r2 = np.where(variance > 0, 1 - mse / variance, np.nan)
    return pandas.DataFrame({"pearson": np.where(varies, pearson, np.nan), "ccc": np.where(varies, ccc, np.nan),
                             "r2": r2, "mse": mse}, index=list(TRAITS))


def speaker_interval(values: Iterable[float], speakers: Iterable[str], seed: int = 0,
                     resamples: int = RESAMPLES) -> tuple[float, float]:
    """Return (low, high), the 95 % percentile interval of the mean of per-clip values, bootstrapped over speakers.

    Clips of one speaker are not independent, so whole speakers are drawn with replacement (the cluster bootstrap of
    Davison and Hinkley 1997, section 3.8). (NaN, NaN) for a single speaker.
    """
    groups = pandas.Series(np.asarray(values, dtype=float)).groupby(np.asarray(speakers))
    sums, counts = groups.sum().to_numpy(), groups.size().to_numpy()
    if len(sums) < 2:
        return float("nan"), float("nan")
    import scipy.stats  # here, since it takes a second, which training and prediction can do without

    interval = scipy.stats.bootstrap((sums, counts), lambda s, n, axis: s.sum(axis) / n.sum(axis), paired=True,
                                     vectorized=True, n_resamples=resamples, method="percentile", batch=200,
                                     rng=np.random.default_rng(seed)).confidence_interval
    return float(interval.low), float(interval.high)


def measure(labels: pandas.DataFrame, predictions: pandas.DataFrame, constant: pandas.Series, speakers: pandas.Series,
            seed: int = 0) -> pandas.DataFrame:
    """Return all figures of some clips: DataFrame, index "mean" and TRAITS.

    labels, predictions: DataFrames with the columns TRAITS, index clip. constant: Series, index TRAITS, what the
    constant prediction says (the training labels' mean). speakers: Series, index clip. Columns: clips, accuracy (1 -
    mean |error|), accuracy_low and _high (95 % interval over speakers), constant (its accuracy), gain (accuracy -
    constant) with gain_low and gain_high, pearson, ccc, r2, mse.
    """
    labels = labels[list(TRAITS)]
    predictions = predictions.loc[labels.index, list(TRAITS)]
    accuracy = 1 - (labels - predictions).abs()
    of_constant = 1 - (labels - constant[list(TRAITS)]).abs()
    table = _column_measures(labels, predictions)
    table.loc["mean"] = table.mean()
    rows = {}
    for name in ("mean", *TRAITS):
        ours = accuracy.mean(axis=1) if name == "mean" else accuracy[name]
        base = of_constant.mean(axis=1) if name == "mean" else of_constant[name]
        low, high = speaker_interval(ours, speakers.loc[labels.index], seed)
        gain_low, gain_high = speaker_interval(ours - base, speakers.loc[labels.index], seed)
        rows[name] = {"clips": len(labels), "accuracy": ours.mean(), "accuracy_low": low, "accuracy_high": high,
                      "constant": base.mean(), "gain": (ours - base).mean(), "gain_low": gain_low,
                      "gain_high": gain_high}
    return pandas.DataFrame(rows).T.join(table)


def compare(labels: pandas.DataFrame, first: pandas.DataFrame, second: pandas.DataFrame, speakers: pandas.Series,
            seed: int = 0) -> pandas.DataFrame:
    """Return how much better the first predictions are than the second on the clips that both have.

    DataFrame, index "mean" and TRAITS, columns clips, first, second (accuracies), difference, low, high (95 % interval,
    paired bootstrap over speakers). Raises UserError where no clip is common.
    """
    clips = labels.index.intersection(first.index).intersection(second.index)
    if clips.empty:
        raise UserError("--compare: the two have no clip in common")
    labels = labels.loc[clips, list(TRAITS)]
    ours = 1 - (labels - first.loc[clips, list(TRAITS)]).abs()
    theirs = 1 - (labels - second.loc[clips, list(TRAITS)]).abs()
    rows = {}
    for name in ("mean", *TRAITS):
        a = ours.mean(axis=1) if name == "mean" else ours[name]
        b = theirs.mean(axis=1) if name == "mean" else theirs[name]
        low, high = speaker_interval(a - b, speakers.loc[clips], seed)
        rows[name] = {"clips": len(clips), "first": a.mean(), "second": b.mean(), "difference": (a - b).mean(),
                      "low": low, "high": high}
    return pandas.DataFrame(rows).T


def warnings_about(table: pandas.DataFrame, labels: pandas.DataFrame, predictions: pandas.DataFrame,
                   speakers: pandas.Series) -> list[str]:
    """Return the lines a reader must see before trusting the figures."""
    lines = []
    worse = [trait for trait in TRAITS if table.loc[trait, "gain"] < 0]
    if worse:
        lines.append(f"worse than the constant prediction: {', '.join(worse)}")
    flat = [trait for trait in TRAITS if len(labels) > 1
            and predictions.loc[labels.index, trait].std() < 0.05 * labels[trait].std()]
    if flat:
        lines.append(f"predictions have collapsed to (nearly) a constant: {', '.join(flat)}")
    number = speakers.loc[labels.index].nunique()
    if number < FEW_SPEAKERS:
        lines.append(f"only {counted(number, 'speaker')}: all figures are rough, "
                     "and comparing them with published ones means nothing")
    return lines


def format_table(table: pandas.DataFrame) -> str:
    """Return the figures as text, one line a trait, intervals in brackets."""
    shown = pandas.DataFrame({
        "accuracy": table["accuracy"].map("{:.4f}".format),
        "95 % interval": [f"[{low:.4f}, {high:.4f}]"
                          for low, high in zip(table["accuracy_low"], table["accuracy_high"])],
        "constant": table["constant"].map("{:.4f}".format),
        "gain": table["gain"].map("{:+.4f}".format),
        "Pearson r": table["pearson"].map("{:.3f}".format),
        "CCC": table["ccc"].map("{:.3f}".format),
        "R2": table["r2"].map("{:.3f}".format),
        "MSE": table["mse"].map("{:.4f}".format),
    })
    return shown.to_string()
