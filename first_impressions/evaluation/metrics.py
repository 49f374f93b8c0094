"""Figures of predictions: accuracy as the challenge measures it, intervals over speakers, comparisons.

The challenge's accuracy is per clip: a clip's predictions are averaged over its frames, then 1 - mean |error| over
clips for each trait, then the mean of the five.
"""
import functools
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas

from first_impressions.common.command_line import UserError
from first_impressions.common.constants import TRAITS
from first_impressions.data.splits import LEAST_SPEAKERS

# Accuracies on the official test clips, index system; the file names their sources.
PUBLISHED = pandas.read_csv(Path(__file__).with_name("published.csv"), comment="#", index_col=0).rename_axis(None)
PUBLISHED.insert(1, "gain", PUBLISHED["mean"] - PUBLISHED["mean"].iat[0])   # over the constant: compares across clips
RESAMPLES = 2000  # of the bootstrap
ROWS = ("mean", *TRAITS)    # of a table of figures


def scores_of_clips(clips: Iterable[str], scores: np.ndarray) -> pandas.DataFrame:
    """Return the mean over the frames of each clip: DataFrame, index clip, columns TRAITS, faces, and spread_<trait>
    (standard deviation over the frames). Faces without a score (NaN) are left out."""
    table = pandas.DataFrame(scores, columns=list(TRAITS)).assign(clip=list(clips)).dropna()
    groups = table.groupby("clip")[list(TRAITS)]
    spread = groups.std(ddof=0).add_prefix("spread_")
    return pandas.concat([groups.mean(), groups.size().rename("faces"), spread], axis=1)


def _with_mean(values):
    """Return values of clips, columns TRAITS, with the mean of the five as a column before them."""
    return pandas.concat([values.mean(axis=1).rename("mean"), values], axis=1)


def accuracies_of_clips(labels: pandas.DataFrame, predictions: pandas.DataFrame) -> pandas.DataFrame:
    """Return 1 - |error| of each clip of the labels, columns ROWS."""
    return _with_mean(1 - (labels[list(TRAITS)] - predictions.loc[labels.index, list(TRAITS)]).abs())


def basic_figures(labels: pandas.DataFrame, predictions: pandas.DataFrame) -> pandas.DataFrame:
    """Return accuracy (1 - mean |error|) and pearson of two DataFrames of the same clips: DataFrame, index ROWS. If
    predictions or labels of a trait are constant, its r is NaN, and so is the mean: a network that has given up a trait
    must not look better for it."""
    return pandas.DataFrame({"accuracy": accuracies_of_clips(labels, predictions).mean(),
                             "pearson": _column_measures(labels, predictions)["pearson"]}, index=list(ROWS))


def _column_measures(labels, predictions):
    """Return a DataFrame, index TRAITS and mean, of each column: pearson, ccc (Lin, Biometrics 45, 1989), r2, mse;
    slope (of the regression of labels on predictions; 1: calibrated, less: predictions too extreme) and sd_ratio
    (standard deviation of the predictions over that of the labels).

    NaN is what is not defined: pearson and slope of constant predictions, whose ccc is 0; all but mse of one clip.
    """
    true, predicted = labels[list(TRAITS)], predictions.loc[labels.index, list(TRAITS)].astype(float)
    error, sd_true, sd_predicted = predicted - true, true.std(ddof=0), predicted.std(ddof=0)
    sd_true, sd_predicted = sd_true.where(sd_true > 1e-6, 0), sd_predicted.where(sd_predicted > 1e-6, 0)
    covariance = ((true - true.mean()) * (predicted - predicted.mean())).mean()
    covariance[(sd_true == 0) | (sd_predicted == 0)] = 0
    mse = (error ** 2).mean()
    table = pandas.DataFrame({
        "pearson": covariance / (sd_true * sd_predicted),
        "ccc": 2 * covariance / (sd_true ** 2 + sd_predicted ** 2 + error.mean() ** 2),
        "r2": (1 - mse / true.var(ddof=0)).where(sd_true > 0), "mse": mse, "slope": covariance / sd_predicted ** 2,
        "sd_ratio": (sd_predicted / sd_true).where(sd_true > 0)})
    if len(true) < 2:
        table.loc[:, table.columns != "mse"] = np.nan
    table.loc["mean"] = table.mean(skipna=False)
    return table


def speaker_intervals(values: pandas.DataFrame, speakers: pandas.Series, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (low, high), the 95 % percentile intervals of the means of the columns, bootstrapped over speakers.

    values: of clips; speakers: of the same clips. Clips of one speaker are not independent, so whole speakers are drawn
    with replacement (the cluster bootstrap of Davison and Hinkley 1997, section 3.8). NaN for a single speaker.
    """
    groups = values.groupby(speakers.to_numpy())
    sums, counts = groups.sum().to_numpy().T, groups.size().to_numpy()
    if len(counts) < 2:
        return (np.full(len(sums), np.nan),) * 2
    import scipy.stats  # here, since it takes a second, which training and prediction can do without

    def means(sums, counts, axis):
        return np.ascontiguousarray(sums).sum(axis) / counts.sum(axis)  # the same bits for any number of columns

    interval = scipy.stats.bootstrap((sums, counts[None]), means, axis=1, paired=True, vectorized=True,
                                     n_resamples=RESAMPLES, method="percentile", batch=200,
                                     rng=np.random.default_rng(seed)).confidence_interval
    return interval.low, interval.high


def clustered_test(values: Iterable[float], speakers: Iterable[str],
                   members: Iterable[bool] | None = None) -> tuple[float, float]:
    """Return (mean, p) of per-clip values: two-sided t-test that their mean is 0; or with members, True for the clips
    of a group, (difference, p) that the group's mean equals the others'.

    The standard error is robust to clips of one speaker being alike (CR1 of Cameron and Miller, A Practitioner's Guide
    to Cluster-Robust Inference, Journal of Human Resources 50, 2015; speakers of the smaller side - 1 degrees of
    freedom). p is NaN for fewer than LEAST_SPEAKERS speakers on a side: too few to tell anything from chance.
    """
    values, speakers = np.asarray(values, dtype=float), np.asarray(speakers)
    sides = [np.ones(len(values), bool)] if members is None else [np.asarray(members), ~np.asarray(members)]
    means = [values[side].mean() if side.any() else np.nan for side in sides]
    difference, numbers = means[0] - sum(means[1:]), [len(set(speakers[side])) for side in sides]
    if min(numbers) < LEAST_SPEAKERS:
        return float(difference), float("nan")
    influence = np.zeros(len(values))
    for side, mean, sign in zip(sides, means, (1, -1)[:len(sides)], strict=True):
        influence[side] = sign * (values[side] - mean) / side.sum()
    sums = pandas.Series(influence).groupby(speakers).sum().to_numpy()
    error = np.sqrt(len(sums) / (len(sums) - 1) * (sums ** 2).sum())
    if error == 0:
        return float(difference), float(difference == 0)
    import scipy.stats

    return float(difference), float(2 * scipy.stats.t.sf(abs(difference) / error, min(numbers) - 1))


def holm(p_values: Iterable[float]) -> np.ndarray:
    """Return p values corrected for their number (Holm, Scandinavian Journal of Statistics 6, 1979); NaN stays NaN and
    does not count."""
    p_values = np.asarray(list(p_values), dtype=float)
    corrected, order = p_values.copy(), np.argsort(p_values)[:int(np.isfinite(p_values).sum())]
    corrected[order] = np.minimum(np.maximum.accumulate(p_values[order] * np.arange(len(order), 0, -1)), 1)
    return corrected


def figure_table(labels: pandas.DataFrame, predictions: pandas.DataFrame, constant: pandas.Series,
                 speakers: pandas.Series, seed: int = 0) -> pandas.DataFrame:
    """Return all figures of some clips: DataFrame, index ROWS.

    labels, predictions: columns TRAITS, index clip; constant: index TRAITS, what the constant prediction says (the
    training labels' mean); speakers: index clip. Columns: clips, speakers (their numbers), accuracy (1 - mean |error|),
    constant (its accuracy), gain (accuracy - constant), bias (mean of prediction - label), 95 % intervals of these
    three over speakers (accuracy_low, accuracy_high and so on), and the columns of _column_measures.
    """
    labels, speakers = labels[list(TRAITS)], speakers.loc[labels.index]
    of_clips = {"accuracy": accuracies_of_clips(labels, predictions),
                "constant": _with_mean(1 - (labels - constant).abs())}
    of_clips["gain"] = of_clips["accuracy"] - of_clips["constant"]
    of_clips["bias"] = _with_mean(predictions.loc[labels.index, list(TRAITS)] - labels)
    columns = {"clips": len(labels), "speakers": speakers.nunique()}
    for figure, values in of_clips.items():
        columns[figure] = values.mean()
        if figure != "constant":
            columns[f"{figure}_low"], columns[f"{figure}_high"] = speaker_intervals(values, speakers, seed)
    return pandas.DataFrame(columns, index=list(ROWS)).join(_column_measures(labels, predictions))


def compare(labels: pandas.DataFrame, ours: list[pandas.DataFrame], theirs: list[pandas.DataFrame],
            speakers: pandas.Series, seed: int = 0) -> pandas.DataFrame:
    """Return how much better some networks' predictions are than others', on the clips that all of them have.

    ours, theirs: predictions of one or more networks (seeds) each, whose errors of a clip are averaged. The predictions
    are not: the mean prediction is an ensemble, which is better than each of its members. DataFrame, index ROWS,
    columns clips, speakers, first, second (accuracies), of several networks first_sd, second_sd (standard deviation
    over them), difference, low, high (95 % interval, paired bootstrap over speakers), p (see clustered_test; of the
    five traits corrected by Holm). Raises UserError if no clip is common.
    """
    clips = functools.reduce(pandas.Index.intersection, [some.index for some in (*ours, *theirs)], labels.index)
    if clips.empty:
        raise UserError("--compare: the two have no clip in common")
    accuracies = {name: [accuracies_of_clips(labels.loc[clips], some) for some in side]
                  for name, side in (("first", ours), ("second", theirs))}
    first, second = (sum(side) / len(side) for side in accuracies.values())
    difference, speakers = first - second, speakers.loc[clips]
    low, high = speaker_intervals(difference, speakers, seed)
    table = pandas.DataFrame({
        "clips": len(clips), "speakers": speakers.nunique(), "first": first.mean(), "second": second.mean(),
        "difference": difference.mean(), "low": low, "high": high,
        "p": [clustered_test(difference[name], speakers)[1] for name in ROWS]}, index=list(ROWS))
    for name, side in accuracies.items():
        if len(side) > 1:
            table[f"{name}_sd"] = pandas.DataFrame([some.mean() for some in side]).std()
    table.loc[list(TRAITS), "p"] = holm(table.loc[list(TRAITS), "p"])
    return table


def bias_tests(labels: pandas.DataFrame, predictions: pandas.DataFrame, groups: pandas.Series,
               speakers: pandas.Series) -> pandas.DataFrame:
    """Return p values, index group, columns TRAITS: is the mean of prediction - label in a group that of the clips in
    the other groups? Corrected by Holm over groups and traits; of two groups, whose tests are the same, one counts.

    groups: the group of each clip, index a part of that of labels.
    """
    error = predictions.loc[groups.index, list(TRAITS)] - labels.loc[groups.index, list(TRAITS)]
    names, speakers = group_order(groups), speakers.loc[groups.index]
    tested = names if len(names) > 2 else names[:1]
    p_values = [clustered_test(error[trait], speakers, groups == group)[1] for group in tested for trait in TRAITS]
    return pandas.DataFrame(np.resize(holm(p_values), (len(names), len(TRAITS))), index=names, columns=list(TRAITS))


def reliability(labels: pandas.Series, predictions: pandas.Series) -> pandas.DataFrame:
    """Return the means of predictions and labels of one trait in ten bins of as many clips each (fewer for few clips),
    in order of the predictions: columns clips, prediction, label and error (standard error of the mean label)."""
    number = max(1, min(10, len(labels) // 2))
    place = predictions.rank(method="first").sub(1).mul(number).div(len(labels)).astype(int)
    groups = pandas.DataFrame({"prediction": predictions, "label": labels}).groupby(place)
    return groups.mean().assign(clips=groups.size(), error=groups["label"].sem())


def correlations(scores: pandas.DataFrame) -> dict:
    """Return Pearson's r between each two of the five traits, {trait: {trait: r}}, and under "mean" its mean over the
    ten pairs: of predictions higher than of labels is a halo, every trait moves with the others."""
    matrix = scores[list(TRAITS)].corr()
    pairs = matrix.to_numpy()[np.triu_indices(len(TRAITS), 1)]
    return {"mean": float(pairs.mean()), **matrix.to_dict()}


def group_order(names: Iterable[str]) -> list[str]:
    """Return the names of groups in order, numbers in them by value: `7 to 13` before `14 to 18`."""
    return sorted(set(names), key=lambda name: [int(part) if part.isdecimal() else part
                                                for part in re.split(r"([0-9]+)", name)])
