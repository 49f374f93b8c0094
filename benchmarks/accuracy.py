"""How accurate the recipe is, and what each part of it gives, on portraits of ChaLearn's training clips.

    python benchmarks/accuracy.py PORTRAITS_ZIP... ANNOTATION_PKL WORK_DIR                     final figures
    python benchmarks/accuracy.py PORTRAITS_ZIP... ANNOTATION_PKL WORK_DIR --ablation          what each part gives
    python benchmarks/accuracy.py PORTRAITS_ZIP... ANNOTATION_PKL WORK_DIR --learning-curve

Protocol: by a fixed seed about 500 clips of speakers that appear nowhere else and 1,000 clips at random are set aside
(the official splits are like the latter: most of their speakers are also in training). The final figures train on the
rest and look at the clips set aside once for each of three seeds. The ablation and the learning curve never look at
them: they set aside as much again from the rest, by another seed for each training. Gain = mean accuracy per clip minus
that of the constant prediction. Writes WORK_DIR/accuracy_<kind>.csv; the pictures, faces and rows are made once and
kept in WORK_DIR.
"""
import statistics
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line import UserError, make_parser, positive_int, run_script

import numpy as np
import pandas

from dataset import Split, list_faces
from device import Machine, pick_device, seed_everything
from features import ClipRows, make_source, score_rows
from labels import read_labels, read_preprocessing, speakers_of
from metrics import measure, scores_of_clips
from model_architectures import architecture_named, build_network
from settings import Plan, resolve_settings, settle_memory
from training import fit, start_training
from training_data import Faces

REPOSITORY = Path(__file__).resolve().parents[1]
EPOCHS, BATCH_SIZE = 30, 128
MODEL = "FaceResNet29_v1.0"
SET_ASIDE_SEED = 2027
# The recipe is what train.py does without any option.
FINAL = {"the recipe": {}, "no row of a person kept (centres)": {"memory": "centres"},
         "heads alone": {"memory": "none"}}
VARIANTS = {
    **FINAL,
    "regression alone": {"memory_weight": 1.0},
    "single faces instead of rows of clips": {"single_faces": True},
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
    "moving average of the weights, 0.99": {"ema_decay": 0.99},
}


def prepare_faces(portraits: list[Path], work_dir: Path) -> Path:
    """Unpack the portraits and find the faces in them with the suite's own script; return the folder of the faces."""
    frames, faces = work_dir / "portraits", work_dir / "faces"
    frames.mkdir(parents=True, exist_ok=True)
    for path in portraits:
        mark = work_dir / f"{path.name}.unpacked"
        if not mark.exists():
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if name.endswith(".jpg"):
                        (frames / Path(name).name).write_bytes(archive.read(name))
            mark.touch()
    subprocess.run([sys.executable, REPOSITORY / "pre-processing" / "extract_faces_from_frames.py", frames, faces],
                   check=True)
    return faces


def set_aside(clips: list[str], speakers: list[str], seed: int, unseen: int = 500,
              at_random: int = 1000) -> tuple[list[str], list[str], list[str]]:
    """Return (rest, random, unseen): lists of clips. unseen: of speakers that are nowhere else."""
    generator = np.random.default_rng(seed)
    table = pandas.Series(speakers, index=clips)
    names = np.array(sorted(set(speakers)))
    generator.shuffle(names)
    counts = table.value_counts().reindex(names).cumsum()
    unseen_speakers = set(names[:int((counts < unseen).sum()) + 1])
    unseen_clips = [clip for clip in clips if table[clip] in unseen_speakers]
    others = [clip for clip in clips if table[clip] not in unseen_speakers]
    chosen = set(generator.choice(len(others), at_random, replace=False).tolist())
    return ([clip for number, clip in enumerate(others) if number not in chosen],
            [others[number] for number in sorted(chosen)], unseen_clips)


@dataclass
class Portraits:
    """All portraits, their rows computed once, and parts of them."""
    split: Split
    source: ClipRows
    faces_a_clip: int | None = None     # None: all

    def part(self, clips: list[str], single_faces: bool = False) -> Faces:
        """Return the rows of some clips; single_faces: a row for each of two faces of a clip instead of their mean."""
        of_clip = {clip: row for row, clip in enumerate(self.source.clips)}
        rows = np.array([of_clip[clip] for clip in clips])
        forms = np.stack([self.source.features(rows, form).numpy() for form in (0, 1)], axis=1)
        names, faces = np.array(clips), self.source.faces[rows]
        if single_faces:
            # From the mean and one face: that face, and the mean of the others.
            count = faces[:, None].astype(np.float32)
            other = np.where(count > 1, (count * forms[:, 0] - forms[:, 1]) / np.maximum(count - 1, 1), forms[:, 1])
            forms = np.concatenate([forms[:, [1, 1]], np.stack([other, other], axis=1)])
            names, faces = np.concatenate([names, names]), np.concatenate([faces, faces])
        source = ClipRows([forms], names, faces, self.source.machine)
        return Faces(self.split.only(clips, "part"), source)


def train_once(portraits: Portraits, clips: list[str], changes: dict, seed: int):
    """Return a network trained on some clips with the recipe, changed."""
    changes = dict(changes)
    faces = portraits.part(clips, changes.pop("single_faces", False))
    architecture = architecture_named(MODEL)
    settings = settle_memory(resolve_settings(changes), len(faces.source), architecture.has_memory)
    plan = Plan(settings, EPOCHS, BATCH_SIZE, seed)
    seed_everything(seed)
    network = portraits.source.machine.place(build_network(MODEL, settings.as_dict(), "dlib"))
    state = start_training(network, faces, plan, portraits.source.machine)
    for _ in fit(state, plan, faces, show_progress=False):
        pass
    return state.averaged


def measure_part(network, portraits: Portraits, clips: list[str], constant: pandas.Series,
                 alone: bool = False) -> pandas.Series:
    """Return the mean gain and its interval over speakers on some clips; alone: from one face of each."""
    faces = portraits.part(clips)
    faces.source.prepare(network)
    scores = scores_of_clips(faces.source.clips, score_rows(network, faces.source, alone=alone))
    return measure(faces.split.labels.loc[scores.index], scores, constant, faces.split.speakers).loc["mean"]


def gains(portraits: Portraits, folds: list[tuple[list[str], list[str], list[str]]], changes: dict) -> dict:
    """Return one row of a table: mean gain and its standard deviation over the trainings, the first one's interval over
    speakers, and the CPU seconds a training. folds: (training, random, unseen) clips of each training."""
    values, row, seconds = {}, {}, 0.0
    for seed, (training, at_random, unseen) in enumerate(folds):
        started = time.process_time()
        network = train_once(portraits, training, changes, seed)
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


def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("portraits", metavar="PORTRAITS_ZIP", type=Path, nargs="+")
    parser.add_argument("labels", metavar="ANNOTATION_PKL", type=Path)
    parser.add_argument("work_dir", metavar="WORK_DIR", type=Path)
    parser.add_argument("--ablation", action="store_true", help="what each part of the recipe gives, on folds")
    parser.add_argument("--learning-curve", action="store_true",
                        help="gain over the number of training clips, on folds")
    parser.add_argument("--seeds", type=positive_int, default=3, help="trainings of each row")
    return parser.parse_args(argv)


def load_portraits(args) -> Portraits:
    """Return all portraits that have a face, with their rows."""
    for path in args.portraits:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
    face_dir = prepare_faces(args.portraits, args.work_dir)
    labels, faces = read_labels(args.labels), list_faces(face_dir)
    labels = labels[labels.index.isin(faces["clip"])]
    speakers = pandas.Series(speakers_of(labels.index), index=labels.index)
    split = Split("portraits", faces, labels, speakers, read_preprocessing(face_dir))
    machine = Machine(pick_device())
    network = machine.place(build_network(MODEL, {**resolve_settings({}).as_dict(), "memory": "none"}, "dlib"))
    return Portraits(split, make_source(network, split, machine))


def main(argv=None):
    args = parse_args(argv)
    started = time.monotonic()
    portraits = load_portraits(args)
    split = portraits.split
    whole = set_aside(list(split.labels.index), split.speakers.tolist(), SET_ASIDE_SEED)
    kind, folds = "final", [whole] * args.seeds
    if args.ablation or args.learning_curve:
        kind = "ablation" if args.ablation else "learning_curve"
        folds = [set_aside(whole[0], split.speakers.loc[whole[0]].tolist(), seed) for seed in range(1, args.seeds + 1)]
    print(f"{len(folds[0][0])} clips to train on; measured on {len(folds[0][1])} random ones and "
          f"{len(folds[0][2])} of unseen speakers")
    if args.learning_curve:
        rows = []
        for number in (375, 750, 1500, len(folds[0][0])):
            drawn = [np.random.default_rng(0).permutation(fold[0])[:number].tolist() for fold in folds]
            smaller = [(some, *fold[1:]) for some, fold in zip(drawn, folds)]
            rows.append(show(f"{number} clips", gains(portraits, smaller, {})))
    else:
        variants = FINAL if kind == "final" else VARIANTS
        rows = [show(name, gains(portraits, folds, changes)) for name, changes in variants.items()]
    table = args.work_dir / f"accuracy_{kind}.csv"
    pandas.DataFrame(rows).to_csv(table, index=False)
    print(f"{(time.monotonic() - started) / 60:.1f} minutes; table: {table}")


if __name__ == "__main__":
    run_script(main)
