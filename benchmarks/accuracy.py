"""How accurate the recipe is, and what each part of it gives, on portraits of ChaLearn's training clips.

    python benchmarks/accuracy.py portraits_train.zip annotation_training.pkl WORK_DIR              final figures
    python benchmarks/accuracy.py portraits_train.zip annotation_training.pkl WORK_DIR --ablation   each part's gain
    python benchmarks/accuracy.py portraits_train.zip annotation_training.pkl WORK_DIR --learning-curve

Protocol: by a fixed seed about 500 clips of speakers that appear nowhere else and 1,000 clips at random are set aside (the
official splits are like the latter: most of their speakers are also in training). The final figures train on the rest and
look at the clips set aside once for each of three seeds. The ablation and the learning curve never look at them: they set
aside as much again from the rest. Gain = mean accuracy per clip minus that of the constant prediction. Writes
WORK_DIR/accuracy_<kind>.csv; the pictures, faces and features are made once and kept in WORK_DIR.
"""
import statistics
import subprocess
import sys
import time
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from command_line import UserError, make_parser, run_script  # noqa: E402

import numpy as np  # noqa: E402
import pandas  # noqa: E402
import torch  # noqa: E402

from dataset import Split, list_faces, read_labels, read_preprocessing, speakers_of  # noqa: E402
from evaluate import measure, predict_faces, scores_of_clips  # noqa: E402
from model_architectures import autocast_dtype, build_network, pick_device  # noqa: E402
from train import DEFAULTS, fit, make_source, seed_everything  # noqa: E402

EPOCHS, BATCH_SIZE = 30, 128
MODEL = "FaceResNet29_v1.0"
# The recipe is what train.py does without any option.
FINAL = {"the recipe": {}, "without the memory of training faces": {"memory": 0.0}}
VARIANTS = {
    "the recipe": {},
    "three heads averaged": {"heads": 3},
    "no memory of training faces": {"memory": 0.0},
    "the memory alone": {"memory": 1.0},
    "no mirrored pictures in training": {"mirror": False},
    "MSE loss": {"loss": "mse"},
    "smooth L1 loss": {"loss": "smooth_l1"},
    "CCC loss": {"loss": "ccc"},
    "mixup 0.4": {"mixup": 0.4},
    "head 256-64": {"l1": 256, "l2": 64},
    "dropout 0.2": {"dropout": 0.2},
    "weight decay 0.1": {"weight_decay": 0.1},
    "moving average of the weights, 0.99": {"average": 0.99},
    "last stages fine-tuned (v2.0, 6 epochs)": {"model": "FaceResNet29_v2.0", "epochs": 6, "lr": 3e-4},
}


def prepare_faces(portraits, work_dir):
    """Unpack the portraits and find the faces in them with the suite's own script."""
    frames, faces = work_dir / "portraits", work_dir / "faces"
    if not (work_dir / "portraits_are_complete").exists():
        frames.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(portraits) as archive:
            for name in archive.namelist():
                if name.endswith(".jpg"):
                    (frames / Path(name).name).write_bytes(archive.read(name))
        (work_dir / "portraits_are_complete").touch()
    subprocess.run([sys.executable, REPOSITORY / "pre-processing" / "extract_faces_from_frames.py", frames, faces], check=True)
    return faces


def set_aside(clips, speakers, number_unseen, number_random, seed):
    """Return (rest, random, unseen): lists of clips. unseen: of speakers that are nowhere else."""
    generator = np.random.default_rng(seed)
    table = pandas.Series(speakers, index=clips)
    names = np.array(sorted(set(speakers)))
    generator.shuffle(names)
    counts = table.value_counts().reindex(names).cumsum()
    unseen_speakers = set(names[:int((counts < number_unseen).sum()) + 1])
    unseen = [clip for clip in clips if table[clip] in unseen_speakers]
    others = [clip for clip in clips if table[clip] not in unseen_speakers]
    chosen = set(generator.choice(len(others), number_random, replace=False).tolist())
    return ([clip for number, clip in enumerate(others) if number not in chosen],
            [others[number] for number in sorted(chosen)], unseen)


def gains(whole, training, groups, settings, seeds):
    """Return ({group: [gain of each seed]}, {group: its 95 % interval by bootstrap over speakers}, CPU seconds a seed, features
    included where they were not there yet).

    whole: Split of all clips; training: clips; groups: {name: clips}.
    """
    device = pick_device()
    model, epochs = settings.pop("model", MODEL), settings.pop("epochs", EPOCHS)
    training = whole.only(training, "training")
    constant = training.labels.mean()
    result, intervals = {name: [] for name in groups}, {}
    started = time.process_time()
    for seed in seeds:
        seed_everything(seed)
        network = build_network(model, settings, "dlib").to(device)
        network.compute_dtype = autocast_dtype("auto", device)
        used = [network]  # or its moving average, which comes with what would be saved
        fit(network, model, training, None, settings, epochs, BATCH_SIZE, seed, device, show_progress=False,
            on_save=lambda state, averaged: used.append(averaged))
        network = used[-1]
        for name, clips in groups.items():
            group = whole.only(clips, name)
            source = make_source(network, model, group, settings, device, "float16", 0, False, seed)
            scores = scores_of_clips(group.faces["clip"], predict_faces(network, source, device))
            labels = group.labels.loc[scores.index]
            table = measure(labels, scores, constant, whole.speakers, seed)
            result[name].append(table.loc["mean", "gain"])
            intervals.setdefault(name, table.loc["mean", ["gain_low", "gain_high"]].tolist())
    return result, intervals, (time.process_time() - started) / len(seeds)


def row_of(name, result, intervals, seconds):
    """Return one line of a table: mean gain, its standard deviation over the seeds, and the first seed's interval over
    speakers, for each group."""
    row = {"what": name}
    for group, values in result.items():
        row[f"gain {group}"] = statistics.mean(values)
        row[f"± {group}"] = statistics.stdev(values) if len(values) > 1 else 0.0
        row[f"low {group}"], row[f"high {group}"] = intervals[group]
    row["CPU s a seed"] = round(seconds)
    print("  ".join(f"{key} {value:+.4f}" if isinstance(value, float) else f"{value}" for key, value in row.items()), flush=True)
    return row


def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("portraits", metavar="PORTRAITS_ZIP", type=Path)
    parser.add_argument("labels", metavar="ANNOTATION_PKL", type=Path)
    parser.add_argument("work_dir", metavar="WORK_DIR", type=Path)
    parser.add_argument("--ablation", action="store_true", help="what each part of the recipe gives, on folds")
    parser.add_argument("--learning-curve", action="store_true", help="gain over the number of training clips, on folds")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each row")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    if not args.portraits.is_file():
        raise UserError(f"{args.portraits}: no such file")
    started = time.monotonic()
    face_dir = prepare_faces(args.portraits, args.work_dir)
    labels = read_labels(args.labels)
    faces = list_faces(face_dir)
    clips = [clip for clip in labels.index if clip in set(faces["clip"])]
    labels = labels.loc[clips]
    speakers = pandas.Series(speakers_of(clips), index=clips)
    whole = Split("portraits", faces, labels, speakers, read_preprocessing(face_dir))
    rest, random_clips, unseen = set_aside(clips, speakers, 500, 1000, seed=2026)
    kind = "final"
    if args.ablation or args.learning_curve:
        kind = "ablation" if args.ablation else "learning_curve"
        rest, random_clips, unseen = set_aside(rest, speakers.loc[rest].tolist(), 500, 1000, seed=1)
    groups = {"random": random_clips, "unseen": unseen}
    print(f"{len(rest)} clips to train on; measured on {len(random_clips)} random ones and {len(unseen)} of unseen speakers")
    seeds, rows = range(args.seeds), []
    if args.ablation:
        for name, changes in VARIANTS.items():
            rows.append(row_of(name, *gains(whole, rest, groups, {**DEFAULTS, **changes}, seeds)))
    elif args.learning_curve:
        order = np.random.default_rng(0).permutation(len(rest))
        for number in (375, 750, 1500, len(rest)):
            some = [rest[i] for i in order[:number]]
            rows.append(row_of(f"{number} clips", *gains(whole, some, groups, dict(DEFAULTS), seeds)))
        first_faces = faces[~faces["clip"].duplicated()]
        one_frame = Split("one frame a clip", first_faces.reset_index(drop=True), labels, speakers, whole.preprocessing)
        rows.append(row_of(f"{len(rest)} clips, one frame of each",
                           *gains(one_frame, rest, groups, dict(DEFAULTS), seeds)))
    else:
        for name, changes in FINAL.items():
            rows.append(row_of(name, *gains(whole, rest, groups, {**DEFAULTS, **changes}, seeds)))
    pandas.DataFrame(rows).to_csv(args.work_dir / f"accuracy_{kind}.csv", index=False)
    print(f"{(time.monotonic() - started) / 60:.1f} minutes; table: {args.work_dir / f'accuracy_{kind}.csv'}")


if __name__ == "__main__":
    run_script(main)
