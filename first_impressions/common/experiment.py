"""The folder of an experiment, runs/EXPERIMENT: its name, its settings, and how a new training replaces an old one.

A training run that is to replace another one (--overwrite) writes into runs/EXPERIMENT/.new. When its first checkpoint
is there, all that the old one, its evaluations and its exports left is deleted, and the new files take their place.
"""
import argparse
import contextlib
import itertools
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from first_impressions.common.command_line import UserError
from first_impressions.common.files import folder_lock, make_folder, read_json, remove

SUITE = Path(__file__).resolve().parents[2]
PRETRAINED = "pretrained"   # the experiment that comes with the suite, in SUITE / PRETRAINED
TRAINING_RECORD, SEARCH_RECORD = "args.json", "search_args.json"
TRAINING_TABLE = "training.csv"     # one row per epoch
CHECKPOINTS = "checkpoint_*.pt"
MODEL_CARD = "MODEL_CARD.md"
TO_GIVE_AWAY = "model.pt"
# What train.py, evaluate.py and export.py write into the folder.
TRAINING_FILES = (TRAINING_RECORD, TRAINING_TABLE, CHECKPOINTS, "events.out.tfevents.*", "evaluation_*",
                  "model.*", MODEL_CARD)
# The tests set the variable to save after every step.
SECONDS_BETWEEN_CHECKPOINTS = float(os.environ.get("SECONDS_BETWEEN_CHECKPOINTS", 30))
NEW = ".new"
LONGEST_NAME = 200  # bytes; a name in a folder has at most 255, and files of this name get endings


def experiment_folder(runs_dir: str | os.PathLike, experiment: str) -> Path:
    """Return the path of an experiment. Raises UserError for a name that is not a plain folder's name in runs_dir."""
    if not re.fullmatch(r"[^-./\\][^/\\]*", experiment) or not experiment.isprintable():
        raise UserError(f"EXPERIMENT {experiment!r}: give a plain name; its folder is made in {runs_dir}")
    if len(os.fsencode(experiment)) > LONGEST_NAME:
        raise UserError(f"EXPERIMENT {experiment[:20]}...: is longer than {LONGEST_NAME} bytes; give a shorter name")
    for folder in (Path(runs_dir), Path(runs_dir) / experiment):
        if os.path.lexists(folder) and not folder.is_dir():
            raise UserError(f"{folder}: is not a folder; name another one")
    return Path(runs_dir) / experiment


@contextlib.contextmanager
def open_experiment(folder: Path) -> Iterator[None]:
    """Make the folder and hold it for this run alone. Raises UserError if that is not possible."""
    make_folder(folder, "name another --runs-dir")
    with folder_lock(folder):
        finish_replacement(folder)
        try:
            yield
        finally:
            finish_replacement(folder)


def has_training(folder: Path) -> bool:
    """Return whether the folder holds a training run or a shared checkpoint."""
    return any(any(folder.glob(name)) for name in (TRAINING_RECORD, TO_GIVE_AWAY, CHECKPOINTS))


def check_experiment(record: Path, exists: bool, used: dict, args: argparse.Namespace) -> None:
    """Raise UserError if a training run or search would replace another one, or go on with other settings.

    record: the JSON file whose "used" holds the settings of the experiment there, if it exists; used: those of now.
    """
    if record.parent.name == PRETRAINED:
        raise UserError(f"EXPERIMENT {PRETRAINED}: is the name of the model that comes with the suite; choose another")
    if exists and args.resume:
        try:
            before = dict(read_json(record)["used"])
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{record}: is missing or damaged; start again with --overwrite") from None
        for key, value in used.items():
            was = before.get(key)
            if isinstance(value, dict) and isinstance(was, dict):
                was, value = ({name: some[name] for name in some if was.get(name) != value.get(name)}
                              for some in (was, value))
            if was != value:
                raise UserError(f"--resume: {record.parent} was started with {key} {was!r}, now it is {value!r}; give "
                                "the same, or another EXPERIMENT")
    elif exists and not args.overwrite:
        raise UserError(f"{record.parent}: an experiment of this name exists; choose another EXPERIMENT, or --resume "
                        "it, or --overwrite it")


def start_replacement(folder: Path) -> Path:
    """Make the folder that a training run writes to until its first checkpoint is there."""
    (folder / NEW).mkdir()
    return folder / NEW


def finish_replacement(folder: Path) -> None:
    """Put a new training that has a checkpoint in the place of the old one, or go on with that after a kill; remove
    what one without a checkpoint left."""
    if any((folder / NEW).glob(CHECKPOINTS)):
        # The record is moved when the old training is gone, the checkpoints when all else is moved: so what is still
        # there says what is still to do.
        if (folder / NEW / TRAINING_RECORD).exists():
            for path in itertools.chain(*map(folder.glob, TRAINING_FILES)):
                remove(path)
        for path in sorted((folder / NEW).iterdir(), key=lambda path: (path.name != TRAINING_RECORD,
                                                                       path.match(CHECKPOINTS))):
            os.replace(path, folder / path.name)
    shutil.rmtree(folder / NEW, ignore_errors=True)
