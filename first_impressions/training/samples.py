"""Data loading for training: the splits, what is read of them, and checks of their size."""
import argparse
import functools
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from first_impressions.common.command_line import UserError, counted, seed_number
from first_impressions.common.device import Machine, add_machine_options, is_main_process, world_size
from first_impressions.data import splits
from first_impressions.data.labels import SPEAKER_REGEX
from first_impressions.data.splits import Split

HELD_OUT = 0.2  # of the clips, for --val-split speaker


@dataclass
class Samples:
    """A split in rows, each a face or a clip (see inputs.py). clips: the name of each row's clip."""
    split: Split
    clips: np.ndarray
    machine: Machine

    def __len__(self) -> int:
        return len(self.clips)

    @functools.cached_property  # the loop asks for it at every epoch
    def targets(self) -> torch.Tensor:
        """float32 N x 5: the label of the clip of each row."""
        return torch.tensor(self.split.labels.loc[self.clips].to_numpy(), dtype=torch.float32)


def load_training_and_validation(data_dir: str | Path, final_run: bool, val_split: str = "official",
                                 speaker_regex: str = SPEAKER_REGEX, seed: int = 0) -> tuple[Split, Split | None]:
    """Return (training Split, validation Split or None in the final run). Prints what they hold.

    val_split "official" validates on the validation clips; "speaker" joins both and sets aside about a fifth of the
    clips, of speakers that training does not hold.
    """
    training = splits.load_split(data_dir, "train", speaker_regex)
    has_validation = (Path(data_dir) / "valid").is_dir()
    if not has_validation and not final_run and val_split == "official":
        raise UserError(f"{Path(data_dir) / 'valid'}: no such folder; --val-split speaker validates on a fifth of the "
                        "training clips, FINAL_RUN true on none")
    validation = splits.load_split(data_dir, "valid", speaker_regex) if has_validation else None
    if final_run or val_split == "speaker":
        training, validation = (splits.join_splits(training, validation) if validation else training), None
    if not final_run and val_split == "speaker":
        training, validation = splits.split_by_speaker(training, HELD_OUT, seed)
    if validation is not None:
        splits.check_same_faces(validation.preprocessing, training.preprocessing, f"the faces of {validation.name}",
                                f"those of {training.name}")
    if is_main_process():
        for split in filter(None, (training, validation)):
            print(splits.describe(split), flush=True)
    # Clips without a face must not count: not in the mean label, nor among the known speakers.
    training, validation = (split and split.with_faces() for split in (training, validation))
    if validation is not None and is_main_process():
        known = validation.speakers.isin(set(training.speakers))
        if known.any():
            print(f"warning: {known.sum()} of {len(known)} validation clips show speakers that are in training; "
                  "--val-split speaker validates on unknown ones", file=sys.stderr, flush=True)
    return training, validation


def add_run_options(parser: argparse.ArgumentParser, run: str) -> None:
    """Add the options that search and training share. run: what the help texts call one of them."""
    existing = parser.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help=f"go on with an interrupted {run} of the same command")
    existing.add_argument("--overwrite", action="store_true", help=f"replace a {run} of the same name")
    parser.add_argument("--dry-run", action="store_true", help="check all, say what would be done, write nothing")
    parser.add_argument("--seed", type=seed_number, default=0, help="of everything random")
    group = parser.add_argument_group("data")
    group.add_argument("--data-dir", default="data", help="data folder")
    group.add_argument("--runs-dir", default="runs", help="folder of the experiments")
    group.add_argument("--val-split", choices=("official", "speaker"), default="official",
                       help="validate on the validation clips, or on a fifth of all clips, of speakers not in training")
    group.add_argument("--weights", help="of the backbone: imagenet, dlib, none or the path of a state dict (default: "
                       "dlib for FaceResNet29, else imagenet)")
    splits.add_speaker_option(group)
    add_machine_options(parser)


def number_of_samples(split: Split, frozen: bool) -> int:
    """Return the number of clips with a face, which a frozen network learns from, or of faces for a trained one."""
    return len(split.labels) if frozen else len(split.faces)


def check_batch_size(batch_size: int, split: Split, frozen: bool) -> int:
    """Return number_of_samples. Raises UserError if it is too small, or less than two for batch normalisation."""
    number, unit = number_of_samples(split, frozen), "clip" if frozen else "face"
    if batch_size < 2 or number < 2 * world_size():
        raise UserError(f"BATCH_SIZE {batch_size} with {counted(number, unit)}: "
                        f"training needs at least two {unit}s a step")
    if batch_size > number:
        raise UserError(f"BATCH_SIZE {batch_size}: is larger than the {counted(number, unit)} with a face of "
                        f"{split.name}; give {number} or less")
    return number

