"""Figures against independent computations, the bootstrap, and external predictions."""
import json
import pickle
import statistics

import numpy as np
import pandas
import pytest
import scipy.stats

import evaluate
from first_impressions.common.command_line import UserError
from first_impressions.common.constants import TRAITS
from first_impressions.data.labels import speakers_of
from first_impressions.evaluation.measure import Evaluation, add_comparison, add_figures, add_warnings
from first_impressions.evaluation.metrics import (
    basic_figures,
    clustered_test,
    compare,
    correlations,
    figure_table,
    holm,
    reliability,
    scores_of_clips,
    speaker_intervals,
)
from first_impressions.evaluation.paper import escape, latex_table
from first_impressions.evaluation.text import render
from first_impressions.networks.checkpoint import load_checkpoint


def made_up(clips=120, noise=0.08, seed=0):
    generator = np.random.default_rng(seed)
    names = [f"speaker{number // 4:03d}.{number:03d}" for number in range(clips)]
    labels = pandas.DataFrame(generator.uniform(0.2, 0.8, (clips, 5)), index=names, columns=list(TRAITS))
    predictions = (labels + generator.normal(0, noise, labels.shape)).clip(0, 1)
    return labels, predictions, pandas.Series(speakers_of(names), index=names)


def test_figures_against_independent_computations():
    labels, predictions, speakers = made_up()
    constant = labels.mean() + 0.05
    table = figure_table(labels, predictions.sample(frac=1, random_state=1), constant, speakers)
    for trait in TRAITS:
        true, predicted = labels[trait].to_numpy(), predictions[trait].to_numpy()
        row = table.loc[trait]
        assert row["accuracy"] == pytest.approx(1 - np.mean(np.abs(true - predicted)))
        assert row["gain"] == pytest.approx(np.mean(np.abs(true - constant[trait])) - np.mean(np.abs(true - predicted)))
        assert row["pearson"] == pytest.approx(scipy.stats.pearsonr(true, predicted).statistic, abs=1e-6)
        covariance = np.mean((true - true.mean()) * (predicted - predicted.mean()))
        spread = true.var() + predicted.var() + (true.mean() - predicted.mean()) ** 2
        assert row["ccc"] == pytest.approx(2 * covariance / spread)
        unexplained = np.sum((true - predicted) ** 2) / np.sum((true - true.mean()) ** 2)
        assert row["r2"] == pytest.approx(1 - unexplained, abs=1e-6)
        assert row["mse"] == pytest.approx(np.mean((true - predicted) ** 2))
        assert row["accuracy_low"] < row["accuracy"] < row["accuracy_high"]
    assert table.loc["mean", "accuracy"] == pytest.approx(table.loc[list(TRAITS), "accuracy"].mean())


def test_calibration_bias_and_halo_against_independent_computations():
    labels, predictions, speakers = made_up()
    predictions = predictions * 0.5 + 0.3
    table = figure_table(labels, predictions, labels.mean(), speakers)
    for trait in TRAITS:
        row = table.loc[trait]
        assert row["slope"] == pytest.approx(np.polyfit(predictions[trait], labels[trait], 1)[0])
        assert row["sd_ratio"] == pytest.approx(np.std(predictions[trait]) / np.std(labels[trait]))
        assert row["bias"] == pytest.approx(np.mean(predictions[trait]) - np.mean(labels[trait]))
        assert row["bias_low"] < row["bias"] < row["bias_high"]
        bins = reliability(labels[trait], predictions[trait])
        parts = np.array_split(np.argsort(predictions[trait].to_numpy()), 10)
        assert bins["label"].to_numpy() == pytest.approx([labels[trait].to_numpy()[part].mean() for part in parts])
    matrix = np.corrcoef(predictions.to_numpy().T)
    halo = correlations(predictions)
    assert halo["openness"]["extraversion"] == pytest.approx(matrix[0, 2])
    assert halo["mean"] == pytest.approx((matrix.sum() - 5) / 20)


def test_a_trait_that_is_given_up_does_not_raise_the_mean():
    labels, predictions, speakers = made_up()
    predictions[["openness", "neuroticism"]] = 0.5
    table = figure_table(labels, predictions, labels.mean(), speakers)
    assert table.loc["openness", "ccc"] == 0 and np.isnan(table.loc["openness", "pearson"])
    assert table.loc["mean", "ccc"] == pytest.approx(table.loc[list(TRAITS), "ccc"].sum() / 5)
    for some in (table, basic_figures(labels, predictions)):
        assert np.isnan(some.loc["mean", "pearson"])


def test_tests_of_differences_against_independent_computations():
    assert holm([0.01, 0.04, np.nan, 0.03, 0.005]) == pytest.approx([0.03, 0.06, np.nan, 0.06, 0.02], nan_ok=True)
    generator = np.random.default_rng(0)
    values, each = generator.normal(0.3, 1, 60), np.arange(60)
    assert clustered_test(values, each)[1] == pytest.approx(scipy.stats.ttest_1samp(values, 0).pvalue)
    # Four copies of each value by one speaker tell as much as one; of two groups, each speaker is in one of them.
    assert clustered_test(np.repeat(values, 4), np.repeat(each, 4)) == pytest.approx(clustered_test(values, each))
    group = each < 25
    difference, p = clustered_test(values, each, group)
    errors = [values[side].var() / side.sum() for side in (group, ~group)]
    t = (values[group].mean() - values[~group].mean()) / np.sqrt(60 / 59 * sum(errors))
    assert difference == pytest.approx(values[group].mean() - values[~group].mean())
    assert p == pytest.approx(2 * scipy.stats.t.sf(abs(t), 24))
    assert np.isnan(clustered_test(values, each % 19)[1]), "19 speakers tell nothing from chance"


def test_interval_respects_speakers():
    """Four copies of each speaker's value tell no more than one: the interval over speakers must not shrink."""
    values = np.random.default_rng(0).normal(0, 1, 60)
    once, copies, naive = (speaker_intervals(pandas.DataFrame(some), pandas.Series(names), 0) for some, names in (
        (values, np.arange(60)), (np.repeat(values, 4), np.repeat(np.arange(60), 4)),
        (np.repeat(values, 4), np.arange(240))))
    width = [high - low for low, high in (once, copies, naive)]
    assert width[1] == pytest.approx(width[0], rel=0.1) and width[2] < 0.6 * width[0]
    error = values.std(ddof=1) / np.sqrt(60)
    assert width[0] == pytest.approx(2 * 1.96 * error, rel=0.15)


def test_comparison_tells_better_from_chance():
    labels, good, speakers = made_up(noise=0.05)
    _, poor, _ = made_up(noise=0.10)
    better = compare(labels, [good], [poor], speakers).loc["mean"]
    assert better["low"] > 0 and better["difference"] == pytest.approx(better["first"] - better["second"])
    same = compare(labels, [good], [made_up(noise=0.05, seed=0)[1] + 1e-9], speakers).loc["mean"]
    assert better["p"] < 0.001
    assert same["low"] <= 0 <= same["high"] or abs(same["difference"]) < 1e-6
    with pytest.raises(UserError, match="no clip in common"):
        compare(labels, [good], [poor.rename(index=lambda name: name + "x")], speakers)


def test_three_seeds_against_two():
    """The errors of each clip are averaged over seeds, not the predictions: against scipy's t-test of these errors."""
    labels, _, _ = made_up()
    ours, theirs = ([made_up(noise=noise, seed=seed)[1].set_axis(labels.index) for seed in seeds]
                    for noise, seeds in ((0.05, (1, 2, 3)), (0.06, (4, 5))))
    table = compare(labels, ours, theirs, pandas.Series(labels.index, index=labels.index))
    errors = [[np.abs(one.to_numpy() - labels.to_numpy()) for one in side] for side in (ours, theirs)]
    gained = np.mean(errors[1], axis=0) - np.mean(errors[0], axis=0)
    for column, trait in enumerate(TRAITS):
        row = table.loc[trait]
        assert row["difference"] == pytest.approx(gained[:, column].mean())
        assert row["first"] == pytest.approx(statistics.mean(1 - one[:, column].mean() for one in errors[0]))
        assert row["second_sd"] == pytest.approx(statistics.stdev(one[:, column].mean() for one in errors[1]))
    assert table.loc["mean", "p"] == pytest.approx(scipy.stats.ttest_1samp(gained.mean(axis=1), 0).pvalue)
    p_values = scipy.stats.ttest_1samp(gained, 0).pvalue
    assert table.loc[list(TRAITS), "p"].min() == pytest.approx(5 * p_values.min())


def test_clips_are_averaged_over_their_frames():
    scores = np.array([[0.2] * 5, [0.4] * 5, [np.nan] * 5, [0.9] * 5], dtype=np.float32)
    table = scores_of_clips(["a", "a", "a", "b"], scores)
    assert table.loc["a", "openness"] == pytest.approx(0.3) and table.loc["a", "faces"] == 2
    assert table.loc["a", "spread_openness"] == pytest.approx(0.1) and table.loc["b", "faces"] == 1


def warnings_about(labels, predictions, speakers, other=None):
    metrics = {"is_chalearn": False}
    evaluation = Evaluation(labels, predictions, speakers, labels.mean(), None, metrics)
    add_figures(evaluation)
    if other is not None:
        add_comparison(evaluation, [predictions], "other", {"other": other})
    add_warnings(evaluation)
    return metrics["warnings"]


def test_warnings():
    labels, predictions, speakers = made_up()
    predictions["openness"] = 0.95
    lines = " ".join(warnings_about(labels, predictions, speakers))
    assert "worse than the constant prediction: openness" in lines and "collapsed" in lines
    good = made_up()[1]
    assert not warnings_about(labels, good, speakers, predictions)
    assert "only 1 speaker:" in warnings_about(labels, good, speakers.map(lambda _: "one"))[0]
    # Few speakers make intervals too narrow: one that excludes 0 is named.
    few = speakers.map(lambda name: int(name[-3:]) % 19).astype(str)
    rough, narrow = warnings_about(labels, good, few, predictions)
    assert "only 19 speakers:" in rough and narrow.startswith("fewer than 20 speakers make intervals too narrow")
    assert narrow.endswith(": gain of all clips, difference from other")
    twenty = speakers.map(lambda name: int(name[-3:]) % 20).astype(str)
    assert len(warnings_about(labels, good, twenty, predictions)) == 1


def test_anybodys_predictions(run, tmp_path):
    labels, predictions, _ = made_up()
    labels.rename_axis("clip").to_csv(tmp_path / "labels.csv")
    foreign = predictions.drop(index=predictions.index[:3])
    foreign.columns = [f"Value{trait.capitalize()}" for trait in TRAITS]
    foreign.index = foreign.index + ".mp4"
    foreign.rename_axis("VideoName").to_csv(tmp_path / "mine.csv")
    groups = pandas.DataFrame({"clip": labels.index, "group": ["first", "second"] * 60})
    groups.to_csv(tmp_path / "groups.csv", index=False)
    status, _, errors = run(evaluate, "--predictions", "mine.csv", "--labels", "labels.csv",
                            "--train-labels", "labels.csv", "--group-by", "groups.csv", "--compare", "mine.csv")
    assert status == 0, errors
    metrics = json.loads((tmp_path / "mine_evaluation" / "metrics.json").read_text())
    expected = 1 - (labels.iloc[3:] - predictions.iloc[3:]).abs().to_numpy().mean()
    assert metrics["traits"]["mean"]["accuracy"] == pytest.approx(expected, abs=1e-6)
    assert len(metrics["clips_without_prediction"]) == 3 and "3 of 120 clips" in errors
    assert set(metrics["groups"]) == {"first", "second"} and metrics["comparison"]["mean"]["difference"] == 0
    assert metrics["seen"]["mean"]["clips"] == 117

    status, _, errors = run(evaluate, "--predictions", "mine.csv")
    assert status == 2 and "--labels" in errors
    status, _, errors = run(evaluate, "no_such_experiment")
    assert status == 2 and "no_such_experiment" in errors and len(errors.splitlines()) == 1


def test_groups_of_the_challenge_and_a_second_evaluation(run, tmp_path):
    """The challenge's own file of groups; predict.py's table with a failed file; what an earlier evaluation gave
    stays; whose mean the constant is."""
    labels, predictions, _ = made_up()
    labels.rename_axis("clip").to_csv(tmp_path / "labels.csv")
    predictions["openness"] += np.where(np.arange(120) < 60, 0.2, 0)
    table = predictions.rename_axis("clip").assign(problem="").reset_index()
    failed = pandas.DataFrame({"clip": ["broken.mp4"], "problem": ["cannot be read"]})
    pandas.concat([table, failed]).to_csv(tmp_path / "scores.csv", index=False)
    codes = pandas.DataFrame({"VideoName": labels.index + ".mp4", "Ethnicity": [1] * 60 + [2] * 55 + [3] * 5,
                              "Gender": [1, 1, 1, 1, 2, 2, 2, 2] * 15})
    codes.to_csv(tmp_path / "groups.csv", index=False, sep=";")
    common = ("--predictions", "scores.csv", "--labels", "labels.csv")
    status, output, errors = run(evaluate, *common, "--group-by", "groups.csv", "--groups-of", 8, "--compare",
                                 "scores.csv", "--out", "one/two")
    assert status == 0, errors
    assert "--train-labels FILE takes that of the training clips" in output and "NJU" not in output
    folder = tmp_path / "one" / "two"
    first = json.loads((folder / "metrics.json").read_text())
    assert first["clips"] == 120 and first["bootstrap"]["resamples"] == 2000
    assert list(first["groups"]) == ["ethnicity: Asian", "ethnicity: Caucasian", "ethnicity: other", "gender: female",
                                     "gender: male"]
    asian = first["groups"]["ethnicity: Asian"]["openness"]
    expected = (predictions - labels)["openness"].iloc[:60].mean()
    assert asian["bias"] == pytest.approx(expected, abs=1e-6) and asian["bias_p"] is None, "15 speakers"
    for name in (*TRAITS, "all_traits", "reliability", "correlations"):
        assert (folder / f"{name}.png").stat().st_size > 1000 < (folder / f"{name}.pdf").stat().st_size

    assert run(evaluate, *common, "--out", "one/two")[0] == 0
    second = json.loads((folder / "metrics.json").read_text())
    assert second["comparison"]["with"] == "scores.csv" and second["groups"].keys() == first["groups"].keys()
    predictions.clip(0.3).rename_axis("clip").to_csv(tmp_path / "scores.csv")
    (tmp_path / "annotation_test.pkl").write_bytes(pickle.dumps(labels.to_dict(), 2))
    _, output, errors = run(evaluate, *common[:3], "annotation_test.pkl", "--out", "one/two")
    assert "original repository" in output and "no difference from them can be tested" in output
    assert "the comparison with scores.csv and the figures of groups of the earlier evaluation" in errors
    assert "comparison" not in json.loads((folder / "metrics.json").read_text())


def test_a_folder_that_cannot_be_written_is_noticed_first(run, tmp_path):
    labels, predictions, _ = made_up(8)
    labels.rename_axis("clip").to_csv(tmp_path / "labels.csv")
    (tmp_path / "labels_evaluation").touch()
    status, output, errors = run(evaluate, "--predictions", "labels.csv", "--labels", "labels.csv")
    assert status == 2 and "--out names another folder" in errors and not output


def test_several_experiments_and_tables_for_papers(run, tmp_path, trained, chip_data):
    """Mean and standard deviation over experiments that a pattern names; results.csv and LaTeX."""
    (tmp_path / "runs").mkdir()
    for number in (2, 10):
        folder = tmp_path / "runs" / f"final_seed{number}"
        folder.mkdir()
        checkpoint = load_checkpoint(trained / "one" / "checkpoint_last.pt")
        for weights in checkpoint.network.values():
            if weights.ndim == 2 and len(weights) == 5:
                weights += 0.01 * number
        if number == 10:    # its rule for speakers makes one of all
            checkpoint.speaker_regex, checkpoint.speakers = "^(speaker)", ["speaker"]
        checkpoint.save(folder / "checkpoint_last.pt")
    status, output, errors = run(evaluate, "runs/final_seed2", "final_seed*", "--data-dir", chip_data,
                                 "--compare", "final_*")
    assert status == 0, errors
    folders = [tmp_path / "runs" / f"final_seed{number}" / "evaluation_test" for number in (2, 10)]
    single = [json.loads((folder / "metrics.json").read_text())["traits"]["openness"] for folder in folders]
    folder = tmp_path / "runs" / "final_seed" / "evaluation_test"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["experiments"] == ["final_seed2", "final_seed10"]
    for figure in ("accuracy", "gain", "ccc", "slope"):
        values = [row[figure] for row in single]
        assert metrics["traits"]["openness"][figure] == pytest.approx(statistics.mean(values))
        assert metrics["traits"]["openness"][f"{figure}_sd"] == pytest.approx(statistics.stdev(values)) != 0
    assert "unseen" not in json.loads((folders[1] / "metrics.json").read_text()), "the rule is the checkpoint's"
    row = metrics["traits"]["openness"]
    assert f"{row['accuracy']:.4f} ± {row['accuracy_sd']:.4f}" in output
    tex = (folder / "results.tex").read_text()
    assert f"Openness & ${row['accuracy']:.4f} \\pm {row['accuracy_sd']:.4f}$ & " in tex
    assert "± " in (folder / "report.html").read_text(encoding="utf-8")
    table = pandas.read_csv(folders[0] / "results.csv", index_col=["clips_of", "trait"])
    assert table.loc[("all", "mean"), "accuracy"] == pytest.approx(
        json.loads((folders[0] / "metrics.json").read_text())["traits"]["mean"]["accuracy"], abs=1e-6)
    for text in (tex, (folders[0] / "results.tex").read_text()):
        rows = [line for line in text.splitlines() if line.endswith(r"\\")]
        assert len(rows) == 8 and len({row.count("&") for row in rows[1:]}) == 1, "one more above the header"
    # One against both, and both against both: the errors are averaged. The files say that 16 speakers get no p.
    comparison = json.loads((folders[0] / "metrics.json").read_text())["comparison"]
    assert comparison["openness"]["difference"] == pytest.approx(
        (single[0]["accuracy"] - single[1]["accuracy"]) / 2) != 0
    comparison = metrics["comparison"]
    assert comparison["others"] == metrics["experiments"] and comparison["mean"]["difference"] == 0
    assert comparison["openness"]["first_sd"] == pytest.approx(row["accuracy_sd"])
    assert "against final_* (errors averaged over 2) on 16 common clips" in output
    tex = (folder / "comparison.tex").read_text()
    assert f"Openness & ${row['accuracy']:.4f} \\pm {row['accuracy_sd']:.4f}$ & " in tex and "& -- \\\\" in tex
    assert "--: fewer than 20 speakers tell nothing from chance" in tex
    table = pandas.read_csv(folder / "comparison.csv", index_col="trait")
    assert table.loc["openness", "first_sd"] == pytest.approx(row["accuracy_sd"], abs=1e-6)
    # Over several, too, there are all figures, of the mean prediction of each clip.
    scores = [pandas.read_csv(one / "predictions.csv", index_col="clip") for one in (*folders, folder)]
    assert np.allclose(scores[2]["openness"], (scores[0]["openness"] + scores[1]["openness"]) / 2, atol=1e-6)
    assert set(scores[0]["neuroticism_means"]) == set(table["neuroticism_means"]) == {"neuroticism"}
    for name in (*TRAITS, "all_traits", "reliability", "correlations", "gain"):
        assert (folder / f"{name}.png").stat().st_size > 1000 < (folder / f"{name}.pdf").stat().st_size
    status, _, errors = run(evaluate, "other*", "--data-dir", chip_data)
    assert status == 2 and "other*: no experiment in runs has such a name" in errors


def test_groups_in_latex_and_in_the_model_card():
    assert escape("a_b & 50% \\x{~}") == r"a\_b \& 50\% \textbackslash{}x\{\textasciitilde{}\}"
    rows = {trait: {"clips": 3, "accuracy": 0.9, "gain": -0.1, "bias": 0.02, "bias_p": 0.01} for trait in TRAITS}
    rows["mean"] = {**rows["openness"], "bias_p": None}
    metrics = {"groups": {"first_one": rows}, "command": "evaluate.py"}
    assert "| first_one | 3 | 0.9000 | -0.1000 | **+0.020** |" in render(
        "figures_template.md", {"metrics": metrics})
    assert r"first\_one & 3 & $0.9000$ & $-0.1000$ & $+0.020$$^{*}$" in latex_table("groups", metrics)
