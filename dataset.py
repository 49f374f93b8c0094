"""Splits of a data folder, their face chips and the loaders of both.

A data folder holds data/{train,valid,test}/{videos,frames,faces} and for each split its labels (see labels.py). Look at
what the suite makes of a data folder:

    python dataset.py data
    python dataset.py data --speaker-regex '(.*)_[0-9]+'      the speaker in names such as anna_12.mp4
"""
import argparse
import hashlib
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from command_line import UserError, counted, make_parser, printable, run_script

import cv2
import numpy as np
import pandas
import torch
from torch.utils.data import DataLoader, Dataset

from conventions import DEFAULT_PREPROCESSING, FACE_SIZE, PREPROCESSING_FILE, SPLITS, TRAITS, clip_of_face
from labels import SPEAKER_REGEX, label_file, read_labels, read_speakers

# ---------------------------------------------------------------- splits

@dataclass
class Split:
    """The faces and labels of one split or of several together.

    faces: DataFrame with the columns path (str), clip (str), one row a face chip, sorted by path.
    labels: DataFrame, index clip, columns TRAITS, of all labelled clips, with a face or without.
    speakers: Series, index clip: the speaker's name.
    preprocessing: how the chips were cropped ({"size": px, "padding": fraction, ...}).
    """
    name: str
    faces: pandas.DataFrame
    labels: pandas.DataFrame
    speakers: pandas.Series
    preprocessing: dict

    @property
    def targets(self) -> torch.Tensor:
        """float32 N x 5: the labels of each face's clip."""
        return torch.tensor(self.labels.loc[self.faces["clip"]].to_numpy(), dtype=torch.float32)

    @property
    def number_with_face(self) -> int:
        """The number of clips that have a face."""
        return self.faces["clip"].nunique()

    @property
    def clips_without_face(self) -> list[str]:
        return sorted(set(self.labels.index) - set(self.faces["clip"]))

    def with_faces(self) -> "Split":
        """Return the split of just the clips with a face. The faces, of which there may be millions, are not copied."""
        without = self.clips_without_face
        return replace(self, labels=self.labels.drop(without), speakers=self.speakers.drop(without))

    def only(self, clips: Iterable[str], name: str) -> "Split":
        """Return the split of just these clips."""
        clips = set(clips)
        keep = self.labels.index.isin(clips)
        return Split(name, self.faces[self.faces["clip"].isin(clips)].reset_index(drop=True), self.labels[keep],
                     self.speakers[keep], self.preprocessing)

    def fingerprint(self) -> str:
        """Return 16 hex digits that change when a label or a face file (name or size) changes; a copy has the same."""
        digest = hashlib.sha256(self.labels.to_csv().encode())
        digest.update(stamp_of_files(self.faces["path"], with_times=False).encode())
        return digest.hexdigest()[:16]


def list_faces(face_dir: str | os.PathLike) -> pandas.DataFrame:
    """Return the face chips below a folder: DataFrame with the columns path, clip, sorted by path.

    Links to other folders are followed, each folder is visited once. Raises UserError where two folders have faces of
    clips of one name: they would be taken for one clip.
    """
    rows, visited, folder_of_clip = [], set(), {}
    for folder, subfolders, names in os.walk(face_dir, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited:
            subfolders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        subfolders.sort()
        for name in sorted(names):
            clip = clip_of_face(name)
            if clip is not None:
                if folder_of_clip.setdefault(clip, folder) != folder:
                    raise UserError(f"{folder_of_clip[clip]} and {folder}: both have faces of a clip called "
                                    f"{printable(clip)}, which would be taken for one clip; rename one clip, or remove "
                                    "its faces there")
                rows.append((os.path.join(folder, name), clip))
    return pandas.DataFrame(rows, columns=["path", "clip"], dtype=str)


def read_preprocessing(face_dir: str | os.PathLike) -> dict:
    """Return what the face script wrote about its crop, or the defaults where the faces come from elsewhere."""
    path = Path(face_dir) / PREPROCESSING_FILE
    if not path.exists():
        return dict(DEFAULT_PREPROCESSING)
    try:
        content = json.loads(path.read_text())
        return {**content, "size": int(content["size"]), "padding": float(content["padding"])}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: is damaged; make the faces again in an empty folder") from None


def load_split(data_dir: str | os.PathLike, split: str, speaker_regex: str = SPEAKER_REGEX) -> Split:
    """Return the Split `train`, `valid` or `test` of a data folder, after checking that every face has a label.

    Raises UserError for missing folders or labels, faces without a label and a folder without faces.
    """
    split_dir = Path(data_dir) / split
    if not split_dir.is_dir():
        raise UserError(f"{split_dir}: no such folder; the README says how to lay out the data, and --data-dir names "
                        "another folder")
    labels_path = label_file(split_dir, split)
    labels = read_labels(labels_path)
    face_dir = split_dir / "faces"
    faces = list_faces(face_dir)
    if faces.empty:
        raise UserError(f"{face_dir}: holds no faces; make them with python "
                        f"pre-processing/extract_faces_from_videos.py {split_dir / 'videos'} {face_dir} 10")
    unlabelled = sorted(set(faces["clip"]) - set(labels.index))
    if unlabelled:
        raise UserError(f"{labels_path}: has no label for {len(unlabelled)} clip(s) with faces in {face_dir}, the "
                        f"first is {unlabelled[0]}; add them or move their faces away")
    return Split(split, faces, labels, read_speakers(labels_path, labels.index, speaker_regex),
                 read_preprocessing(face_dir))


def join_splits(first: Split, second: Split) -> Split:
    """Return one Split of two (training and validation clips for the final run). Raises UserError where a clip is in
    both, or where their faces were cropped differently."""
    both = sorted(set(first.labels.index) & set(second.labels.index))
    if both:
        raise UserError(f"clip {both[0]}: is in {first.name} and in {second.name}; remove it from one of them")
    check_same_crop(first, second)
    return Split(f"{first.name}+{second.name}", pandas.concat([first.faces, second.faces], ignore_index=True),
                 pandas.concat([first.labels, second.labels]), pandas.concat([first.speakers, second.speakers]),
                 first.preprocessing)


def check_same_crop(first: Split, second: Split) -> None:
    """Raise UserError where the faces of two splits were cropped with another size or padding."""
    for key in ("size", "padding"):
        if first.preprocessing[key] != second.preprocessing[key]:
            raise UserError(f"the faces of {first.name} were made with --{key} {first.preprocessing[key]}, those of "
                            f"{second.name} with {second.preprocessing[key]}; make them alike")


def draw_speakers(speakers: pandas.Series, room: float, generator: np.random.Generator) -> list[str]:
    """Return speakers drawn at random who have at most so many clips together.

    speakers: the speaker of each clip. One who does not fit is skipped, and the drawing goes on; there may be none.
    """
    sizes, chosen = speakers.value_counts().sort_index(), []
    for number in generator.permutation(len(sizes)):
        if sizes.iloc[number] <= room:
            chosen.append(sizes.index[number])
            room -= sizes.iloc[number]
    return chosen


def split_by_speaker(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Return (training, validation) Splits without a common speaker, about `fraction` of the clips in the second.

    Speakers are taken in random order as long as they fit; one who does not fit is skipped. Where none fits, the one
    with the fewest clips is taken. Raises UserError where there is only one speaker.
    """
    sizes = split.speakers.value_counts().sort_index()
    if len(sizes) < 2:
        raise UserError(f"--val-split speaker: all clips of {split.name} are of one speaker "
                        f"({printable(sizes.index[0])}); none can be set aside")
    chosen = draw_speakers(split.speakers, fraction * len(split.labels), np.random.default_rng(seed))
    held_out = split.speakers.isin(chosen or [sizes.idxmin()])
    return (split.only(split.labels.index[~held_out], split.name + " without held-out speakers"),
            split.only(split.labels.index[held_out], "held-out speakers of " + split.name))


def describe(split: Split) -> str:
    """Return one line on a split: clips with a face, their faces, faces a clip, clips without a face."""
    without = split.clips_without_face
    with_face, speakers = len(split.labels) - len(without), split.speakers.drop(without).nunique()
    line = (f"{split.name}: {counted(with_face, 'clip')} of {counted(speakers, 'speaker')}, "
            f"{counted(len(split.faces), 'face')}, {len(split.faces) / max(1, with_face):.1f} a clip")
    if without:
        line += f"; left out: {counted(len(without), 'clip')} without a face (the first: {printable(without[0])})"
    return line


def stamp_of_files(paths: Iterable[str], with_times: bool = True) -> str:
    """Return a digest of the names and sizes, and by default the times, of files."""
    digest = hashlib.sha256()
    for path in paths:
        status = os.stat(path)
        time = status.st_mtime_ns if with_times else ""
        digest.update(f"{os.path.basename(path)}\0{status.st_size}\0{time}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def add_speaker_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that says how speakers are named in clips' names."""
    parser.add_argument("--speaker-regex", default=SPEAKER_REGEX,
                        help="its first group is the speaker in a clip's name (a column `speaker` in labels.csv comes "
                        "first)")


# ---------------------------------------------------------------- pictures

def read_chip(path: str | os.PathLike, size: int) -> torch.Tensor:
    """Return a face chip as uint8 3 x size x size RGB tensor. Raises UserError for a file that is no whole JPEG."""
    try:
        with open(path, "rb") as file:
            data = file.read()
        # A JPEG ends with this mark; OpenCV fills up what is missing of a truncated one with grey and says nothing.
        if b"\xff\xd9" not in data[-64:]:
            raise ValueError("it is no whole JPEG")
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        if picture is None:
            raise ValueError("it is no JPEG that OpenCV can decode")
    except (cv2.error, ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]}); "
                        "delete it and make the faces again") from None
    if picture.shape[:2] != (size, size):
        picture = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(picture).permute(2, 0, 1)


def augmentation(strength: float) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Return torchvision transforms for a uint8 3 x H x W chip: small crops, colour and erasing; None for 0."""
    if not strength:
        return None
    from torchvision.transforms import (
        v2,  # here, since it takes seconds, which training without augmentation can do without
    )

    return v2.Compose([
        v2.RandomResizedCrop(FACE_SIZE, scale=(1 - 0.3 * strength, 1.0), ratio=(0.95, 1.05), antialias=True),
        v2.ColorJitter(brightness=0.3 * strength, contrast=0.3 * strength, saturation=0.3 * strength,
                       hue=0.02 * strength),
        v2.RandomErasing(p=0.25 * strength, scale=(0.02, 0.1)),
    ])


class FaceDataset(Dataset):
    """Face chips of a Split, read a batch at a time.

    A batch is (chips uint8 B x 3 x size x size, rows int64 B): rows index the split's faces and targets.
    A chip that cannot be read is named on stderr and left out. What is random depends only on (seed, epoch, row), so it
    is the same for any number of workers.
    """

    def __init__(self, split: Split, augment: float = 0.0, seed: int = 0):
        self.paths = split.faces["path"].tolist()
        self.size = split.preprocessing["size"]
        self.transform = augmentation(augment)
        self.seed = seed
        self.epoch = 0

    def __len__(self):
        return len(self.paths)

    def __getitems__(self, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        chips, kept = [], []
        for row in rows:
            try:
                chip = read_chip(self.paths[row], self.size)
            except UserError as error:
                print(f"warning: left out {printable(error)}", file=sys.stderr)
                continue
            if self.transform is not None:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed((self.seed * 1_000_003 + self.epoch) * 10_000_019 + row)
                    chip = self.transform(chip)
            chips.append(chip)
            kept.append(row)
        rows = torch.tensor(kept, dtype=torch.int64)
        return (torch.stack(chips) if chips else torch.empty(0, 3, self.size, self.size, dtype=torch.uint8), rows)


def _as_it_is(batch):
    return batch


def _leave_interrupts_to_the_parent(_):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # else every process prints a traceback at Ctrl-C


def epoch_batches(number_of_rows: int, batch_size: int, seed: int, epoch: int, rank: int = 0,
                  world_size: int = 1) -> list[list[int]]:
    """Return the shuffled batches of an epoch as a list of lists of row numbers, for one of several processes.

    The order depends only on (seed, epoch). Every process gets the same number of batches; the last rows are repeated
    from the beginning where they do not divide evenly.
    """
    order = np.random.default_rng([seed, epoch]).permutation(number_of_rows)
    per_process = math.ceil(number_of_rows / world_size)
    order = np.resize(order, per_process * world_size)[rank::world_size]
    batches = [order[start:start + batch_size].tolist() for start in range(0, per_process, batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        alone = batches.pop()  # one sample has no deviation to be standardised by
        batches[-1] += alone
    return batches


def row_batches(number_of_rows: int, batch_size: int) -> list[list[int]]:
    """Return all rows in order, in batches."""
    return [list(range(start, min(start + batch_size, number_of_rows)))
            for start in range(0, number_of_rows, batch_size)]


def chip_loader(dataset: FaceDataset, batches: list[list[int]], num_workers: int, device: torch.device) -> DataLoader:
    """Return a DataLoader over the given batches of a FaceDataset."""
    return DataLoader(dataset, batch_sampler=batches, num_workers=num_workers, collate_fn=_as_it_is,
                      worker_init_fn=_leave_interrupts_to_the_parent, pin_memory=device.type == "cuda",
                      prefetch_factor=4 if num_workers else None)


# ---------------------------------------------------------------- command line

def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("data_dir", metavar="DATA_DIR", help="data folder with train, valid and test")
    add_speaker_option(parser)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    found = [split_name for split_name in SPLITS if (Path(args.data_dir) / split_name).is_dir()]
    if not found:
        raise UserError(f"{args.data_dir}: holds no folder train, valid or test; the README says how to lay out the "
                        "data")
    for split_name in SPLITS:
        if split_name not in found:
            print(f"{split_name}: not there")
            continue
        split = load_split(args.data_dir, split_name, args.speaker_regex)
        print(describe(split))
        means, stds = split.labels.mean(), split.labels.std()
        print("    " + ", ".join(f"{trait} {means[trait]:.3f} ± {stds[trait]:.3f}" for trait in TRAITS))


if __name__ == "__main__":
    run_script(main)
