"""Portraits of ChaLearn's training clips for the benchmarks: their faces, features, parts set aside."""
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas

from dataset import FaceDataset
from first_impressions.common.command_line import UserError
from first_impressions.common.constants import ANNOTATION_FILES
from first_impressions.common.device import Machine, pick_device, seed_everything
from first_impressions.data.splits import Split, load_split
from first_impressions.evaluation.metrics import figure_table, scores_of_clips
from first_impressions.networks.network import build_network
from first_impressions.networks.settings import Plan, Settings, resolve_settings, settle_gp
from first_impressions.training.conformal import calibrate
from first_impressions.training.feature_cache import features_of_dataset
from first_impressions.training.inputs import ClipFeatures, make_samples, score_rows
from first_impressions.training.loop import fit, start_training
from model_architectures import architecture_named

REPOSITORY = Path(__file__).resolve().parents[1]
EPOCHS, BATCH_SIZE = 30, 128
MODEL = "FaceResNet29_v1.0"
SET_ASIDE_SEED = 2027


def prepare_data(portraits: list[Path], labels: Path, work_dir: Path) -> None:
    """Make a data folder of portraits, with the split train alone: unpack them, find the faces in them with the suite's
    own script. Raises UserError for a file that is missing."""
    for path in (*portraits, labels):
        if not path.is_file():
            raise UserError(f"{path}: no such file")
    frames, faces = work_dir / "portraits", work_dir / "train" / "faces"
    frames.mkdir(parents=True, exist_ok=True)
    faces.parent.mkdir(exist_ok=True)
    for path in portraits:
        mark = work_dir / f"{path.name}.unpacked"
        if not mark.exists():
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    if name.endswith(".jpg"):
                        (frames / Path(name).name).write_bytes(archive.read(name))
            mark.touch()
    shutil.copyfile(labels, faces.parent / ANNOTATION_FILES["train"])
    subprocess.run([sys.executable, REPOSITORY / "pre-processing" / "extract_faces_from_frames.py", frames, faces],
                   check=True)


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
    source: ClipFeatures

    def part(self, clips: list[str], single_faces: bool = False) -> ClipFeatures:
        """Return the features of some clips; single_faces: two faces of a clip each, instead of the mean."""
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
        return ClipFeatures(self.split.only(clips, "part"), names, self.source.machine, [forms], faces)


def train_once(portraits: Portraits, clips: list[str], changes: dict, seed: int):
    """Return a network trained on some clips with the recipe, changed."""
    changes = dict(changes)
    samples = portraits.part(clips, changes.pop("single_faces", False))
    plan = _plan(samples, changes, seed)
    seed_everything(seed)
    network = portraits.source.machine.place(build_network(architecture_named(MODEL), plan.settings, "dlib"))
    state = start_training(network, samples, plan)
    for _ in fit(state, plan, samples, show_progress=False):
        pass
    return state.network


def _plan(samples, changes, seed):
    settings = settle_gp(resolve_settings(changes), len(samples), architecture_named(MODEL).has_gp)
    return Plan(settings, EPOCHS, BATCH_SIZE, seed)


def measure_coverage(portraits: Portraits, clips: list[str], parts: dict[str, list[str]], changes: dict,
                     seed: int) -> dict[str, float]:
    """Return, for each of the parts (lists of clips), the share of labels that lie in the 80 % intervals of a network
    that was trained on some clips: with all pictures, and under "<part> one face" with one."""
    network = train_once(portraits, clips, changes, seed)
    training = portraits.part(clips)
    intervals = calibrate(architecture_named(MODEL), training, _plan(training, changes, seed), "dlib",
                          portraits.source.machine)
    result = {}
    for name, some in parts.items():
        samples = portraits.part(some)
        for kind, alone in (("", False), (" one face", True)):
            error = np.abs(score_rows(network, samples, alone=alone) - samples.targets.numpy())
            count = np.ones_like(samples.faces) if alone else samples.faces
            result[name + kind] = float((error <= intervals.half_widths(count)).mean())
    return result


def measure_part(network, portraits: Portraits, clips: list[str], constant: pandas.Series,
                 alone: bool = False) -> pandas.Series:
    """Return the mean gain and its interval over speakers on some clips; alone: from one face of each."""
    samples = portraits.part(clips)
    scores = scores_of_clips(samples.clips, score_rows(network, samples, alone=alone))
    return figure_table(samples.split.labels.loc[scores.index], scores, constant, samples.split.speakers).loc["mean"]


def load_portraits(work_dir: Path, faces_a_clip: int | None = None, in_turn: bool = True) -> Portraits:
    """Return all portraits that have a face, with their rows, from the data folder that prepare_data made.

    faces_a_clip: at most this many faces of each clip, the first ones; None: all. in_turn: seen as sides_of_clip says;
    otherwise every face with its mirror image.
    """
    split = load_split(work_dir, "train")
    split = split.only(split.faces["clip"], "portraits")
    if faces_a_clip:
        first = split.faces.groupby("clip").cumcount() < faces_a_clip
        split = replace(split, faces=split.faces[first].reset_index(drop=True))
    # Fewer faces of each clip must not take the place of all of them in the cache.
    machine = Machine(pick_device(), cache="off" if faces_a_clip else "float16")
    network = machine.place(build_network(architecture_named(MODEL), Settings(memory="none"), "dlib"))
    if in_turn:
        return Portraits(split, make_samples(network, FaceDataset(split), machine))

    def both_sides(chips, sides):
        return network.features_of_both(chips).mean(0)

    machine = replace(machine, cache="off")
    parts, clips, faces = features_of_dataset(FaceDataset(split), both_sides, "", machine)
    return Portraits(split, ClipFeatures(split, clips, machine, parts, faces))
