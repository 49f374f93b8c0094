"""Accuracy of the recipe, and what each part of it gives, on portraits of ChaLearn's training clips.

    python benchmarks/accuracy.py PORTRAITS_ZIP... ANNOTATION_PKL WORK_DIR                     final figures
    python benchmarks/accuracy.py PORTRAITS_ZIP... ANNOTATION_PKL WORK_DIR --ablation          what each part gives
    python benchmarks/accuracy.py PORTRAITS_ZIP... ANNOTATION_PKL WORK_DIR --learning-curve
    python benchmarks/accuracy.py PORTRAITS_ZIP... ANNOTATION_PKL WORK_DIR --mirror-images  of all faces, or in turn
    python benchmarks/accuracy.py PORTRAITS_ZIP... ANNOTATION_PKL WORK_DIR --coverage              of the intervals

Protocol: by a fixed seed about 500 clips of speakers that appear nowhere else and 1,000 clips at random are set aside
(the official splits are like the latter: most of their speakers are also in training). The final figures train on the
rest and look at the clips set aside once for each of three seeds. The ablation and the learning curve never look at
them: they set aside as much again from the rest, by another seed for each training. Gain = mean accuracy per clip minus
that of the constant prediction. Writes WORK_DIR/accuracy_<kind>.csv; the pictures, faces and features are made once and
kept in WORK_DIR.
"""
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import first_impressions.common.startup  # noqa: F401  (before torch)

import numpy as np
import pandas
from portraits import (
    SET_ASIDE_SEED,
    Portraits,
    load_portraits,
    measure_coverage,
    measure_part,
    prepare_data,
    set_aside,
    train_once,
)

from first_impressions.common.command_line import counted, make_parser, positive_int, run_script

# The recipe is what train.py does without any option.
FINAL = {"the recipe": {}, "no data of individuals (centres)": {"memory": "centres"},
         "pretrained/ (centres, 256 components)": {"memory": "centres", "components": 256},
         "heads alone": {"memory": "none"}}
VARIANTS = {
    **FINAL,
    "GP alone": {"memory_weight": 1.0},
    "single faces instead of clip features": {"single_faces": True},
    "no single face in training": {"one_face": 0.0},
    "256 components": {"components": 256},
    "three heads averaged": {"heads": 3},
    "MSE loss": {"loss": "mse"},
    "smooth L1 loss": {"loss": "smooth_l1"},
    "CCC loss": {"loss": "ccc"},
    "mixup 0.4": {"mixup": 0.4},
    "head 256-64": {"l1": 256, "l2": 64},
    "dropout 0.2": {"dropout": 0.2},
    "weight decay 0.1": {"weight_decay": 0.1},
    "noise 0.6": {"noise": 0.6},
}


def gains(portraits: Portraits, folds: list[tuple[list[str], list[str], list[str]]], changes: dict,
          learn_from: Portraits | None = None) -> dict:
    """Return one row of a table: mean gain and its standard deviation over the trainings, the first one's interval over
    speakers, and the CPU seconds per training run. folds: (training, random, unseen) clips of each run;
    learn_from: portraits to train on, by default those that are evaluated on."""
    values, row, seconds = {}, {}, 0.0
    for seed, (training, at_random, unseen) in enumerate(folds):
        started = time.process_time()
        network = train_once(learn_from or portraits, training, changes, seed)
        seconds += time.process_time() - started
        constant = portraits.split.labels.loc[training].mean()
        for name, clips in (("random", at_random), ("unseen", unseen)):
            for kind, alone in (("", False), (" one face", True)):
                figures = measure_part(network, portraits, clips, constant, alone)
                values.setdefault(name + kind, []).append(figures["gain"])
                if not alone:
                    row.setdefault(f"low {name}", figures["gain_low"])
                    row.setdefault(f"high {name}", figures["gain_high"])
    for name, gained in values.items():
        row[f"gain {name}"] = statistics.mean(gained)
        row[f"± {name}"] = statistics.stdev(gained) if len(gained) > 1 else 0.0
    return {**row, "CPU s": round(seconds / len(folds))}


def show(name: str, row: dict) -> dict:
    """Print one row of a table and return it with its name."""
    figures = "  ".join(f"{key} {value:+.4f}" for key, value in row.items() if key.startswith(("gain", "±")))
    print(f"{name:<40} {figures}  CPU s {row['CPU s']}", flush=True)
    return {"what": name, **row}


def show_coverage(name: str, portraits: Portraits, fold: tuple[list[str], list[str], list[str]], changes: dict) -> dict:
    """Print and return one row of the table on intervals."""
    training, at_random, unseen = fold
    row = measure_coverage(portraits, training, {"random": at_random, "unseen": unseen}, changes, 0)
    print(f"{name:<40} " + "  ".join(f"{key} {100 * value:.1f} %" for key, value in row.items()), flush=True)
    return {"what": name, **row}


def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("portraits", metavar="PORTRAITS_ZIP", type=Path, nargs="+")
    parser.add_argument("labels", metavar="ANNOTATION_PKL", type=Path)
    parser.add_argument("work_dir", metavar="WORK_DIR", type=Path)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--ablation", action="store_true", help="what each part of the recipe gives, on folds")
    kind.add_argument("--learning-curve", action="store_true",
                      help="gain over the number of training clips and of pictures per clip, on folds")
    kind.add_argument("--mirror-images", action="store_true",
                      help="every face with its mirror image, against faces as they are and mirrored in turn, on folds")
    kind.add_argument("--coverage", action="store_true",
                      help="how many of the labels lie in the 80 %% intervals, on the clips set aside")
    parser.add_argument("--seeds", type=positive_int, default=3, help="trainings of each row")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    started = time.monotonic()
    prepare_data(args.portraits, args.labels, args.work_dir)
    portraits = load_portraits(args.work_dir)
    split = portraits.split
    whole = set_aside(list(split.labels.index), split.speakers.tolist(), SET_ASIDE_SEED)
    kind, folds = "final", [whole] * args.seeds
    if args.ablation or args.learning_curve or args.mirror_images:
        kind = "ablation" if args.ablation else "learning_curve" if args.learning_curve else "mirror_images"
        folds = [set_aside(whole[0], split.speakers.loc[whole[0]].tolist(), seed) for seed in range(1, args.seeds + 1)]
    print(f"{len(folds[0][0])} clips to train on; evaluated on {len(folds[0][1])} random ones and "
          f"{len(folds[0][2])} of unseen speakers")
    if args.coverage:
        kind = "coverage"
        rows = [show_coverage(name, portraits, whole, changes) for name, changes in FINAL.items()]
    elif args.learning_curve:
        rows = []
        for number in (375, 750, 1500, len(folds[0][0])):
            drawn = [np.random.default_rng(0).permutation(fold[0])[:number].tolist() for fold in folds]
            smaller = [(some, *fold[1:]) for some, fold in zip(drawn, folds)]
            rows.append(show(f"{number} clips", gains(portraits, smaller, {})))
        for number in (1, 2):
            fewer = load_portraits(args.work_dir, number)
            rows.append(show(f"{counted(number, 'picture')} of each clip", gains(portraits, folds, {}, fewer)))
    elif args.mirror_images:
        rows, full = [], load_portraits(args.work_dir, in_turn=False)
        for name, changes in FINAL.items():
            rows.append(show(f"{name}: of every face", gains(full, folds, changes)))
            rows.append(show(f"{name}: in turn", gains(portraits, folds, changes)))
            rows.append(show(f"{name}: learned from all, scored in turn", gains(portraits, folds, changes, full)))
    else:
        variants = FINAL if kind == "final" else VARIANTS
        rows = [show(name, gains(portraits, folds, changes)) for name, changes in variants.items()]
    table = args.work_dir / f"accuracy_{kind}.csv"
    pandas.DataFrame(rows).to_csv(table, index=False)
    print(f"{(time.monotonic() - started) / 60:.1f} minutes; table: {table}")


if __name__ == "__main__":
    run_script(main)
