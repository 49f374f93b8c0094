"""Measure an experiment on the test clips, as the challenge does: per clip, 1 - mean absolute error.

    python evaluate.py EXPERIMENT                                  the test clips of data/
    python evaluate.py EXPERIMENT --split valid                    the validation clips
    python evaluate.py EXPERIMENT --compare OTHER_EXPERIMENT       is the difference more than chance?
    python evaluate.py EXPERIMENT --group-by groups.csv            the same figures for each group (columns clip,group)
    python evaluate.py --predictions mine.csv --labels data/test/annotation_test.pkl     anybody's predictions

Writes runs/EXPERIMENT/evaluation_<split>/: metrics.json, predictions.csv (one row a clip), one picture a trait and
report.html; with --predictions a folder beside the file, <name>_evaluation/.
"""
import json
import platform
import shlex
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

from command_line import (UserError, VERSION, folder_options, make_parser, printable, progress_bar, run_script,
                          whole_number)

import matplotlib

import numpy as np
import pandas
import scipy.stats
import torch
from torchmetrics import functional as measures

from dataset import (SPEAKER_REGEX, TRAITS, FaceDataset, Features, cached_features, chip_loader, clip_name, describe, load_split,
                     read_labels, read_scores, read_speakers, row_batches, speakers_of)
from model_architectures import (autocast_dtype, backbone_key, find_checkpoint, git_commit, load_checkpoint,
                                 network_from_checkpoint, pick_device)

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402  (the backend without a display has to be chosen first)

# Accuracies on the official 2,000 test clips; sources in the README.
PUBLISHED = pandas.DataFrame(
    [("constant: training mean", 0.8814, 0.8833, 0.8746, 0.8781, 0.8935, 0.8773),
     ("original repository, one face picture", 0.8972, 0.8984, 0.8950, 0.8965, 0.9028, 0.8933),
     ("NJU-LAMDA (2016 winner), frames + sound", 0.9130, 0.9123, 0.9166, 0.9133, 0.9126, 0.9100),
     ("BU-NKU, faces of a clip", 0.9133, 0.9138, 0.9151, 0.9191, 0.9075, 0.9108),
     ("OCEAN-AI, faces of a clip", 0.9152, 0.9128, 0.9179, 0.9195, 0.9130, 0.9128)],
    columns=["system", "mean", *TRAITS]).set_index("system")
RESAMPLES = 2000
FEW_SPEAKERS = 30  # fewer, and the interval by bootstrap over them is itself too narrow


# ---------------------------------------------------------------- predictions

@torch.inference_mode()
def predict_faces(network, source, device, batch_size=256, num_workers=0, title=None):
    """Return float32 scores N x 5 in [0, 1] of N faces, each the mean of the picture's and its mirror image's.

    source: a FaceDataset or Features. Rows of chips that cannot be read are NaN. title: name of the progress bar.
    """
    network.eval()
    scores = np.full((len(source), len(TRAITS)), np.nan, dtype=np.float32)
    batches = row_batches(len(source), batch_size)
    with progress_bar(total=len(source), desc=title, unit="face", disable=None if title else True) as bar:
        if isinstance(source, Features):
            for rows in batches:
                rows = np.array(rows)
                mirrored = np.zeros(len(rows), dtype=bool)
                both = [source.rows(rows, side).to(device) for side in (mirrored, ~mirrored)]
                scores[rows] = network.scores_of_both(*both).cpu().numpy()
                bar.update(len(rows))
        else:
            for chips, rows in chip_loader(source, batches, num_workers, device):
                if len(rows):
                    scores[rows.numpy()] = score_chips(network, chips.to(device, non_blocking=True)).cpu().numpy()
                bar.update(len(rows))
    return scores


def score_chips(network, chips):
    """Return scores B x 5 of uint8 chips B x 3 x H x W, of each picture and its mirror image."""
    return network.scores_of_both(chips, chips.flip(-1))


def scores_of_clips(clips, scores):
    """Return the mean over the frames of each clip: DataFrame, index clip, columns TRAITS, faces, and spread_<trait>
    (standard deviation over the frames). Faces without a score (NaN) are left out."""
    table = pandas.DataFrame(scores, columns=list(TRAITS)).assign(clip=list(clips)).dropna()
    groups = table.groupby("clip")[list(TRAITS)]
    spread = groups.std(ddof=0).add_prefix("spread_")
    return pandas.concat([groups.mean(), groups.size().rename("faces"), spread], axis=1)


# ---------------------------------------------------------------- figures

def trait_accuracies(labels, predictions):
    """Return {trait: 1 - mean |error|} and their mean under "mean", for two DataFrames of the same clips."""
    accuracy = 1 - (labels[list(TRAITS)] - predictions.loc[labels.index, list(TRAITS)]).abs().mean()
    return {"mean": float(accuracy.mean()), **{trait: float(accuracy[trait]) for trait in TRAITS}}


def trait_correlations(labels, predictions):
    """Return {trait: Pearson r} and their mean under "mean"; NaN where predictions or labels are constant."""
    r = _column_measures(labels, predictions)["pearson"]
    return {"mean": float(r.mean()), **{trait: float(r[trait]) for trait in TRAITS}}


def _column_measures(labels, predictions):
    """Return the DataFrame, index TRAITS: pearson, ccc, r2 and mse of each column by torchmetrics."""
    true = torch.tensor(labels[list(TRAITS)].to_numpy(), dtype=torch.float64)
    predicted = torch.tensor(predictions.loc[labels.index, list(TRAITS)].to_numpy(), dtype=torch.float64)
    result = pandas.DataFrame(np.nan, index=list(TRAITS), columns=["pearson", "ccc", "r2", "mse"])
    result["mse"] = ((true - predicted) ** 2).mean(0).numpy()
    if len(true) > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchmetrics warns of constant columns; the caller says so in one line
            result["pearson"] = measures.pearson_corrcoef(predicted, true).numpy()
            result["ccc"] = measures.concordance_corrcoef(predicted, true).numpy()
            result["r2"] = measures.r2_score(predicted, true, multioutput="raw_values").numpy()
        flat = (predicted.std(0) < 1e-6) | (true.std(0) < 1e-6)
        result.loc[flat.numpy(), ["pearson", "ccc"]] = np.nan
    return result


def speaker_interval(values, speakers, seed=0, resamples=RESAMPLES):
    """Return (low, high), the 95 % percentile interval of the mean of per-clip values, bootstrapped over speakers.

    Clips of one speaker are not independent, so whole speakers are drawn with replacement (the cluster bootstrap of
    Davison and Hinkley 1997, section 3.8). (NaN, NaN) for a single speaker.
    """
    groups = pandas.Series(np.asarray(values, dtype=float)).groupby(np.asarray(speakers))
    sums, counts = groups.sum().to_numpy(), groups.size().to_numpy()
    if len(sums) < 2:
        return float("nan"), float("nan")
    interval = scipy.stats.bootstrap((sums, counts), lambda s, n, axis: s.sum(axis) / n.sum(axis), paired=True,
                                     vectorized=True, n_resamples=resamples, method="percentile", batch=200,
                                     rng=np.random.default_rng(seed)).confidence_interval
    return float(interval.low), float(interval.high)


def measure(labels, predictions, constant, speakers, seed=0):
    """Return all figures of some clips: DataFrame, index "mean" and TRAITS.

    labels, predictions: DataFrames with the columns TRAITS, index clip. constant: Series, index TRAITS, what the constant
    prediction says (the training labels' mean). speakers: Series, index clip. Columns: clips, accuracy (1 - mean |error|),
    accuracy_low and _high (95 % interval over speakers), constant (its accuracy), gain (accuracy - constant) with gain_low
    and gain_high, pearson, ccc, r2, mse.
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
                      "constant": base.mean(), "gain": (ours - base).mean(), "gain_low": gain_low, "gain_high": gain_high}
    return pandas.DataFrame(rows).T.join(table)


def compare(labels, first, second, speakers, seed=0):
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


def warnings_about(table, labels, predictions, speakers):
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
        lines.append(f"only {number} speakers: all figures are rough, and comparing them with published ones means nothing")
    return lines


def format_table(table):
    """Return the figures as text, one line a trait, intervals in brackets."""
    shown = pandas.DataFrame({
        "accuracy": table["accuracy"].map("{:.4f}".format),
        "95 % interval": [f"[{low:.4f}, {high:.4f}]" for low, high in zip(table["accuracy_low"], table["accuracy_high"])],
        "constant": table["constant"].map("{:.4f}".format),
        "gain": table["gain"].map("{:+.4f}".format),
        "Pearson r": table["pearson"].map("{:.3f}".format),
        "CCC": table["ccc"].map("{:.3f}".format),
        "R2": table["r2"].map("{:.3f}".format),
        "MSE": table["mse"].map("{:.4f}".format),
    })
    return shown.to_string()


# ---------------------------------------------------------------- pictures

def trait_figure(trait, labels, predictions):
    """Return the four-panel matplotlib figure of a trait: labels, predictions, one against the other, and the error over
    the label beside that of random guesses drawn from the labels (red)."""
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


# ---------------------------------------------------------------- one experiment

def _trained_in(run_dir):
    """Return the data folder that args.json of an experiment names, None where it names none."""
    try:
        return json.loads((run_dir / "args.json").read_text()).get("data_dir")
    except (OSError, ValueError, AttributeError):
        return None


def versions():
    """Return the versions that a result depends on."""
    return {"suite": VERSION, "commit": git_commit(), "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "torchvision", "numpy", "pandas", "scipy", "torchmetrics")}}


def predict_split(network, checkpoint, split, device, cache="float16", num_workers=0):
    """Return float32 scores N x 5 of a split's faces; the features of a frozen backbone come from the cache."""
    for key in ("size", "padding"):
        if split.preprocessing[key] != checkpoint["preprocessing"][key]:
            raise UserError(f"the faces of {split.name} were made with --{key} {split.preprocessing[key]}, the network was "
                            f"trained on {checkpoint['preprocessing'][key]}; make the faces again with "
                            f"--{key} {checkpoint['preprocessing'][key]}")
    if network.frozen and cache != "off":
        source = cached_features(split, network.features, backbone_key(network, checkpoint["architecture"]), device, cache,
                                 num_workers=num_workers)
    else:
        source = FaceDataset(split)
    return predict_faces(network, source, device, num_workers=num_workers, title=f"scores of {split.name}")


def load_experiment(experiment, runs_dir, precision="auto"):
    """Return (network in evaluation mode on the best device, checkpoint, device) of an experiment's name."""
    path = find_checkpoint(Path(runs_dir) / experiment)
    checkpoint = load_checkpoint(path)
    device = pick_device()
    network = network_from_checkpoint(checkpoint, path).to(device)
    network.compute_dtype = autocast_dtype(precision, device)
    return network, checkpoint, device


def predictions_of(experiment, args, split):
    """Return the per-clip predictions of an experiment, and its checkpoint, per-face scores beside them."""
    network, checkpoint, device = load_experiment(experiment, args.runs_dir, args.precision)
    scores = predict_split(network, checkpoint, split, device, args.cache, args.num_workers)
    return scores_of_clips(split.faces["clip"], scores), checkpoint, scores


def write_evaluation(folder, labels, predictions, table, metrics, run_dir=None):
    """Write metrics.json, predictions.csv and the pictures of the traits; with run_dir, an experiment's folder, also to
    TensorBoard, in place of what an earlier evaluation wrote there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(_without_nan(metrics), indent=2) + "\n")
    rows = predictions.join(labels.add_prefix("label_"))
    rows.to_csv(folder / "predictions.csv", float_format="%.6f", index_label="clip")
    writer = None
    if run_dir is not None:
        from torch.utils.tensorboard import SummaryWriter
        mark = f".evaluation_{metrics['split']}"
        for old in (*folder.glob("events.out.tfevents.*"), *run_dir.glob(f"events.out.tfevents.*{mark}")):
            old.unlink()
        writer = SummaryWriter(folder)
        # In the run itself, where TensorBoard's table of hyperparameters looks for it.
        with SummaryWriter(run_dir, filename_suffix=mark) as of_run:
            of_run.add_scalar(f"hparam/accuracy_{metrics['split']}", table.loc["mean", "accuracy"], metrics["epoch"])
    for trait in TRAITS:
        figure = trait_figure(trait, labels, predictions)
        figure.savefig(folder / f"{trait}.png", dpi=110)
        if writer:
            writer.add_figure(f"evaluation_{metrics['split']}/{trait}", figure, close=False)
        pyplot.close(figure)
    if writer:
        for name in ("mean", *TRAITS):
            writer.add_scalar(f"accuracy_{metrics['split']}/{name}", table.loc[name, "accuracy"])
        writer.add_text(f"evaluation_{metrics['split']}", f"```\n{format_table(table)}\n```")
        writer.close()


def _without_nan(value):
    """Return the value with NaN as None, since JSON knows no NaN."""
    if isinstance(value, dict):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return None if np.isnan(value) else float(value)
    return int(value) if isinstance(value, np.integer) else value


def _group_tables(path, labels, predictions, constant, speakers, seed):
    """Return {group: measure(...)} by a CSV file with the columns clip and group."""
    try:
        groups = pandas.read_csv(path, encoding="utf-8-sig", dtype=str)
    except (OSError, ValueError, pandas.errors.ParserError) as error:
        raise UserError(f"{path}: cannot be read as a table ({error})") from None
    if not {"clip", "group"} <= set(groups.columns):
        raise UserError(f"{path}: needs the columns clip and group; it has {', '.join(groups.columns)}")
    groups["clip"] = groups["clip"].map(clip_name)
    tables = {}
    for group, members in groups.groupby("group")["clip"]:
        clips = labels.index[labels.index.isin(members)]
        if len(clips):
            tables[group] = measure(labels.loc[clips], predictions, constant, speakers, seed)
    if not tables:
        raise UserError(f"{path}: names none of the clips measured; its column clip starts with {groups['clip'].iat[0]}")
    return tables


# ---------------------------------------------------------------- command line

def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("experiment", metavar="EXPERIMENT", nargs="?", help="name of a folder in --runs-dir")
    parser.add_argument("--split", choices=("test", "valid"), default="test", help="which clips are measured")
    parser.add_argument("--data-dir", default="data", help="data folder")
    parser.add_argument("--runs-dir", default="runs", help="folder of the experiments")
    parser.add_argument("--compare", metavar="OTHER", help="another experiment, or a CSV file of predictions")
    parser.add_argument("--group-by", metavar="FILE.csv", help="figures for each group: columns clip and group")
    parser.add_argument("--speaker-regex", default=SPEAKER_REGEX, help="its first group is the speaker in a clip's name "
                        "(a column `speaker` in labels.csv comes first)")
    parser.add_argument("--seed", type=whole_number, default=0, help="of the bootstrap")
    foreign = parser.add_argument_group("anybody's predictions")
    foreign.add_argument("--predictions", metavar="FILE.csv", help="columns clip or VideoName and the five traits")
    foreign.add_argument("--labels", metavar="FILE", help="the labels of these clips (.pkl or .csv)")
    foreign.add_argument("--train-labels", metavar="FILE", help="the training labels: their mean is the constant, their "
                         "speakers the seen ones (without it the constant is the mean of --labels)")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--num-workers", type=whole_number, default=0, help="processes that read pictures")
    machine.add_argument("--precision", choices=("auto", "bfloat16", "float32"), default="auto", help="of the backbone")
    machine.add_argument("--cache", choices=("float16", "float32", "off"), default="float16",
                         help="features of a frozen backbone")
    args = parser.parse_args(argv)
    if bool(args.experiment) == bool(args.predictions):
        parser.error("give an EXPERIMENT, or --predictions FILE.csv with --labels FILE")
    if bool(args.predictions) != bool(args.labels):
        parser.error("--predictions and --labels go together")
    return args


def main(argv=None):
    args = parse_args(argv)
    metrics = {"command": shlex.join([Path(sys.argv[0]).name, *(argv if argv is not None else sys.argv[1:])]),
               "split": args.split, "versions": versions()}
    face_scores = split = None
    if args.predictions:
        metrics["split"] = "given"
        labels, predictions = read_labels(args.labels), read_scores(args.predictions)
        speakers = read_speakers(args.labels, labels.index, args.speaker_regex)
        unknown = predictions.index.difference(labels.index)
        if len(unknown) == len(predictions):
            raise UserError(f"{args.predictions}: none of its clips is in {args.labels}; its first is {unknown[0]}, theirs "
                            f"{labels.index[0]}")
        constant, seen = labels.mean(), None
        if args.train_labels:
            training_labels = read_labels(args.train_labels)
            constant = training_labels.mean()
            seen = set(read_speakers(args.train_labels, training_labels.index, args.speaker_regex))
        folder = Path(args.predictions).with_suffix("").with_name(Path(args.predictions).stem + "_evaluation")
        run_dir = None
        predictions = predictions.loc[predictions.index.isin(labels.index)]
    else:
        run_dir = Path(args.runs_dir) / args.experiment
        find_checkpoint(run_dir)
        split = load_split(args.data_dir, args.split, args.speaker_regex)
        print(describe(split))
        predictions, checkpoint, face_scores = predictions_of(args.experiment, args, split)
        labels, speakers = split.labels, split.speakers
        constant = pandas.Series(checkpoint["constant"])
        seen = set(speakers_of(checkpoint["clips"], args.speaker_regex)) | set(checkpoint["speakers"])
        metrics.update(experiment=args.experiment, architecture=checkpoint["architecture"], epoch=checkpoint["epoch"],
                       data_fingerprint=split.fingerprint(), trained_on=checkpoint["trained_on"])
        if args.split == "valid" and set(labels.index) & set(checkpoint["clips"]):
            print("warning: this experiment was trained on validation clips too; these figures say nothing about new clips",
                  file=sys.stderr)
        folder = run_dir / f"evaluation_{args.split}"

    missing = labels.index.difference(predictions.index)
    measured = labels.drop(missing)
    if measured.empty:
        raise UserError("no clip has a prediction; nothing to measure")
    table = measure(measured, predictions, constant, speakers, args.seed)
    metrics.update(clips=len(measured), clips_without_prediction=list(missing), traits=table.T.to_dict())
    if "faces" in predictions:
        counts = predictions.loc[measured.index, "faces"]
        metrics["frames_per_clip"] = {"mean": counts.mean(), "least": int(counts.min()), "most": int(counts.max())}
    print(f"\n{format_table(table)}\n")

    if face_scores is not None:
        readable = ~np.isnan(face_scores[:, 0])
        per_frame = pandas.DataFrame(face_scores[readable], columns=list(TRAITS))
        frame_labels = labels.loc[split.faces["clip"][readable]].reset_index(drop=True)
        metrics["per_frame"] = {"accuracy": trait_accuracies(frame_labels, per_frame),
                                "pearson": trait_correlations(frame_labels, per_frame)}
        print(f"one frame alone: accuracy {metrics['per_frame']['accuracy']['mean']:.4f}, Pearson r "
              f"{metrics['per_frame']['pearson']['mean']:.3f}; mean over a clip's {metrics['frames_per_clip']['mean']:.1f} "
              f"frames: {table.loc['mean', 'accuracy']:.4f}, {table.loc['mean', 'pearson']:.3f}")
    if seen is not None:
        is_seen = speakers.loc[measured.index].isin(seen)
        for name, clips in (("seen", measured[is_seen]), ("unseen", measured[~is_seen])):
            if len(clips):
                part = measure(clips, predictions, constant, speakers, args.seed)
                metrics[name] = part.T.to_dict()
                row = part.loc["mean"]
                print(f"speakers {'in training' if name == 'seen' else 'not in training':<16} {len(clips):>6} clips  accuracy "
                      f"{row['accuracy']:.4f} [{row['accuracy_low']:.4f}, {row['accuracy_high']:.4f}]  constant "
                      f"{row['constant']:.4f}  gain {row['gain']:+.4f} [{row['gain_low']:+.4f}, {row['gain_high']:+.4f}]")
    if args.group_by:
        metrics["groups"] = {}
        for group, part in _group_tables(args.group_by, measured, predictions, constant, speakers, args.seed).items():
            metrics["groups"][group] = part.T.to_dict()
            print(f"\ngroup {printable(group)}, {int(part['clips'].iat[0])} clips\n{format_table(part)}")
    if args.compare:
        if Path(args.compare).is_file():
            other = read_scores(args.compare)
        elif split is not None:
            other = predictions_of(args.compare, args, split)[0]
        else:
            raise UserError(f"--compare {args.compare}: no such file")
        comparison = compare(measured, predictions, other, speakers, args.seed)
        metrics["comparison"] = {"with": args.compare, **comparison.T.to_dict()}
        print(f"\nagainst {printable(args.compare)} on {int(comparison['clips'].iat[0])} common clips (positive: better; an "
              f"interval without 0: more than chance)\n{comparison.drop(columns='clips').to_string(float_format='{:+.4f}'.format)}")

    print(f"\npublished, on the official 2,000 test clips (standard error about 0.001)\n"
          f"{PUBLISHED.rename_axis(None).to_string(float_format='{:.4f}'.format)}\n")
    metrics["warnings"] = warnings_about(table, measured, predictions, speakers)
    if len(missing):
        metrics["warnings"].append(f"{len(missing)} of {len(labels)} clips have no prediction and are left out, the first is "
                                   f"{missing[0]}")
    if split is not None and _trained_in(run_dir) not in (None, str(Path(args.data_dir).resolve())):
        metrics["warnings"].append(f"trained on the clips in {_trained_in(run_dir)}, measured on those in {args.data_dir}; "
                                   "--data-dir names another folder")
    for line in metrics["warnings"]:
        print(f"warning: {printable(line)}", file=sys.stderr)
    write_evaluation(folder, measured, predictions.loc[measured.index], table, metrics, run_dir)
    faces, size = (None, None) if split is None else (split.faces, split.preprocessing["size"])
    from report import write_report  # here, so that training needs neither its plotting nor its template library
    report = write_report(folder, measured, predictions, metrics, PUBLISHED, faces, size, run_dir=run_dir)
    print(f"figures, predictions and plots: {folder}; all of it on one page: {report}")
    if run_dir is not None:
        print(f"next: tensorboard --logdir {shlex.quote(args.runs_dir)} --host 127.0.0.1, or python predict.py {args.experiment} "
              f"CLIP.mp4{folder_options(args, ['runs_dir'])}")


if __name__ == "__main__":
    run_script(main)
