"""The checkpoint of a training run: its format, written, checked and found in one place."""
import difflib
import math
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from first_impressions.common.command_line import VERSION, UserError
from first_impressions.common.constants import TRAITS
from first_impressions.common.device import Machine
from first_impressions.common.experiment import PRETRAINED, SUITE, TO_GIVE_AWAY
from first_impressions.common.files import atomic_write
from first_impressions.networks.network import (
    BACKBONES,
    Architecture,
    PersonalityNetwork,
    build_network,
    load_network_state,
)
from first_impressions.networks.settings import Settings, resolve_settings
from first_impressions.networks.weights import load_file

FORMAT = 4
LEVEL = 0.8     # fraction of the labels inside the interval
BEST, LAST, PREVIOUS = "checkpoint_best.pt", "checkpoint_last.pt", "checkpoint_previous.pt"


@dataclass(frozen=True)
class Intervals:
    """Half the width of the interval of each trait: of a clip with this many faces, and of one face alone."""
    clip: dict[str, float]
    one_face: dict[str, float]
    faces: float
    level: float = LEVEL

    def half_widths(self, faces: np.ndarray) -> np.ndarray:
        """Return float64 N x 5 for numbers of faces N. The error's variance falls with 1 / faces, down to a clip's."""
        clip, one = (np.array([widths[trait] for trait in TRAITS]) for widths in (self.clip, self.one_face))
        part = np.clip((1 / np.maximum(faces, 1) - 1 / self.faces) / max(1 - 1 / self.faces, 1e-9), 0, 1)[:, None]
        return np.sqrt(part * np.maximum(one, clip) ** 2 + (1 - part) * clip ** 2)


@dataclass
class Checkpoint:
    """All that evaluation, prediction, export and resuming need of a trained network."""
    architecture: Architecture
    config: Settings            # of the training
    preprocessing: dict         # how its faces were cropped: size (px), padding, ...
    network: dict               # state dict of the network
    constant: dict              # {trait: mean label of the training clips}, the baseline of every evaluation
    clips: list                 # names of the training clips; empty in a checkpoint to give away
    speakers: list              # names of their speakers; likewise
    trained_on: str             # name of the training split
    epoch: int                  # epochs done
    metrics: dict               # the last epoch's record
    intervals: dict | None = None   # fields of Intervals; None: not known
    training: dict | None = None    # what resuming needs
    backbone: str | None = None     # "dlib": its weights are left out of network, and are those of --weights dlib
    label_quantiles: dict | None = None     # {trait: 0 % to 100 % quantiles of the training labels, 101 numbers}
    neuroticism_is_stability: bool = False  # the challenge's labels have it the other way round
    speaker_regex: str | None = None        # how speakers were found in the names of the training clips
    weights: str | None = None              # what the backbone started from, as --weights names it

    def save(self, path: str | os.PathLike) -> None:
        """Write the checkpoint so that the file under its name is always whole."""
        with atomic_write(path) as partial, open(partial, "wb") as file:
            content = {item.name: getattr(self, item.name) for item in fields(self)}
            records = {"architecture": asdict(self.architecture), "config": asdict(self.config)}
            torch.save({"format": FORMAT, "traits": list(TRAITS), **content, **records}, file)
            file.flush()
            os.fsync(file.fileno())

    def build(self, path: str | os.PathLike) -> PersonalityNetwork:
        """Return the network in evaluation mode. Raises UserError, naming path, if the weights do not fit."""
        try:
            network = build_network(self.architecture, self.config, self.backbone)
        except UserError as error:
            raise UserError(f"{path}: is damaged, {error}") from None
        state = self.network
        if self.backbone:
            state = {**{f"backbone.{key}": value for key, value in network.backbone.state_dict().items()}, **state}
        load_network_state(network, state, path)
        return network.eval()


# ---------------------------------------------------------------- checks

def _is_number(value, low=-math.inf, high=math.inf):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _is_list_of_names(value):
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _has_keys_of_text(value):
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _is_architecture(value):
    if not _has_keys_of_text(value) or value.keys() != {item.name for item in fields(Architecture)}:
        return False
    kinds = {"trained": (str,), "hidden": (str, int), "dropout": (float,)}
    return (isinstance(value["name"], str) and value["backbone"] in list(BACKBONES)
            and all(isinstance(value[key], (list, tuple)) and all(isinstance(part, kind) for part in value[key])
                    for key, kind in kinds.items()))


def _has_number_of_each_trait(value):
    return isinstance(value, dict) and all(_is_number(value.get(trait), 0, 1) for trait in TRAITS)


def _are_quantiles(value):
    return isinstance(value, dict) and all(_is_list_of_quantiles(value.get(trait)) for trait in TRAITS)


def _is_list_of_quantiles(value):
    return (isinstance(value, list) and len(value) == 101 and all(_is_number(number, 0, 1) for number in value)
            and value == sorted(value))


def _are_intervals(value):
    if not isinstance(value, dict) or value.keys() != {"clip", "one_face", "faces", "level"}:
        return False
    widths_are_whole = all(_has_number_of_each_trait(value[key]) for key in ("clip", "one_face"))
    return widths_are_whole and _is_number(value["faces"], 1) and _is_number(value["level"], 0, 1)


def _is_training(value):
    kinds = {"network": dict, "optimizer": dict, "scheduler": dict, "ema": (dict, type(None)), "epoch": int,
             "step": int, "loss_sum": float, "loss_count": int, "history": list, "best": (dict, type(None))}
    if not isinstance(value, dict) or not all(isinstance(value.get(key, ...), kind) for key, kind in kinds.items()):
        return False
    records_are_whole = all(isinstance(record, dict) and _is_number(record.get("epoch")) for record in value["history"])
    best = value["best"]
    best_is_whole = best is None or (
        _is_number(best.get("epoch"), 1, len(value["history"])) and _is_number(best.get("accuracy"))
        and isinstance(best.get("network"), dict))
    counts_fit = len(value["history"]) == value["epoch"] and 0 <= value["step"] < 10**9
    return records_are_whole and best_is_whole and counts_fit


# What is said of a key whose value does not pass its check.
CHECKS = {
    "architecture": (_is_architecture, "is not one of a network of this suite"),
    "config": (_has_keys_of_text, "is not a dictionary of settings"),
    "preprocessing": (lambda value: isinstance(value, dict) and _is_number(value.get("size"), 1, 4096)
                      and isinstance(value.get("size"), int) and _is_number(value.get("padding"), 0, 5),
                      "has no size in pixels and padding of the faces"),
    "network": (_has_keys_of_text, "is not a state dict"),
    "constant": (_has_number_of_each_trait, "has no number in [0, 1] for each trait"),
    "backbone": (lambda value: value is None or isinstance(value, str) and value == "dlib", "is neither None nor dlib"),
    "label_quantiles": (lambda value: value is None or _are_quantiles(value),
                        "are not 101 ascending numbers in [0, 1] for each trait"),
    "clips": (_is_list_of_names, "is not a list of names"),
    "speakers": (_is_list_of_names, "is not a list of names"),
    "trained_on": (lambda value: isinstance(value, str), "is not the name of a split"),
    "epoch": (lambda value: _is_number(value, 0, 10**9) and isinstance(value, int), "is not a number of epochs"),
    "metrics": (_has_keys_of_text, "is not a record of figures"),
    "intervals": (lambda value: value is None or _are_intervals(value), "are not intervals of the scores"),
    "neuroticism_is_stability": (lambda value: isinstance(value, bool), "is neither True nor False"),
    "speaker_regex": (lambda value: value is None or isinstance(value, str), "is not a rule"),
    "weights": (lambda value: value is None or isinstance(value, str), "is not a name or path"),
    "training": (lambda value: value is None or _is_training(value), "is not the state of a training run"),
}


def load_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Return the checkpoint in a file. No code in the file is run.

    Raises UserError if it is damaged, of another format, or lacks anything that any script reads.
    """
    content = load_file(path, "a checkpoint of train.py")
    if not isinstance(content, dict) or "format" not in content:
        raise UserError(f"{path}: is not a checkpoint of this suite; train a new one with train.py")
    if type(content["format"]) is not int or content["format"] != FORMAT:
        raise UserError(f"{path}: was written in format {content['format']!r}, this version reads {FORMAT}; "
                        "train again")
    traits = content.get("traits")
    if not isinstance(traits, (list, tuple)) or tuple(traits) != TRAITS:
        raise UserError(f"{path}: its scores are {traits!r}, not {', '.join(TRAITS)}; train again")
    for key, (check, complaint) in CHECKS.items():
        if key not in content:
            raise UserError(f"{path}: is damaged, it lacks {key}; use another checkpoint or train again")
        if not check(content[key]):
            raise UserError(f"{path}: is damaged, its {key} {complaint}; use another checkpoint or train again")
    for key, value in content["network"].items():
        if torch.is_tensor(value) and value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"{path}: its weights hold numbers that are not finite ({key}); use another checkpoint or "
                            "train again")
    architecture = Architecture(**{key: tuple(value) if isinstance(value, list) else value
                                   for key, value in content["architecture"].items()})
    try:
        config = resolve_settings(content["config"])
    except UserError as error:
        raise UserError(f"{path}: is damaged, its config has {error}; use another checkpoint or train again") from None
    values = {item.name: content[item.name] for item in fields(Checkpoint)}
    return Checkpoint(**{**values, "architecture": architecture, "config": config})


def find_checkpoint(experiment_dir: str | os.PathLike) -> Path:
    """Return the path of the checkpoint to use: the best one, else the last, the one before, one given away; of the
    experiment `pretrained` the one that comes with the suite.

    Raises UserError if there is none.
    """
    experiment_dir = Path(experiment_dir)
    for name in (BEST, LAST, PREVIOUS, TO_GIVE_AWAY):
        if (experiment_dir / name).exists():
            return experiment_dir / name
    if experiment_dir.name == PRETRAINED:
        return SUITE / PRETRAINED / TO_GIVE_AWAY
    others = sorted({path.parent.name for path in experiment_dir.parent.glob("*/checkpoint_*.pt")})
    near = difflib.get_close_matches(experiment_dir.name, [*others, PRETRAINED], 1)
    problem = "contains no checkpoint" if experiment_dir.is_dir() else "no such experiment"
    raise UserError(f"{experiment_dir}: {problem}; " + (f"did you mean {near[0]}? " if near else "")
                    + (f"trained are {', '.join(others)}" if others else "train one with train.py")
                    + f", or take {PRETRAINED}, which comes with the suite; --runs-dir names another folder")


def read_first_whole(paths: list[Path]) -> tuple[Path, Checkpoint]:
    """Return the first of some checkpoints that is whole: its path and what it holds. Warns of each damaged one before
    it. Raises the UserError of the last if none is whole."""
    for path in paths:
        try:
            return path, load_checkpoint(path)
        except UserError as error:
            if path == paths[-1]:
                raise
            print(f"warning: {error}; falling back to the checkpoint before it", file=sys.stderr)


def read_experiment(folder: str | os.PathLike) -> tuple[Path, Checkpoint]:
    """Return the path of an experiment's checkpoint and what it holds; if the last one is damaged, the one before it.
    Raises UserError if none is whole."""
    path = find_checkpoint(folder)
    before = path.with_name(PREVIOUS)
    return read_first_whole([path, before] if path.name == LAST and before.exists() else [path])


def load_experiment(experiment: str, runs_dir: str | os.PathLike,
                    machine: Machine) -> tuple[PersonalityNetwork, Checkpoint]:
    """Return an experiment's network, in evaluation mode on the machine's device, and its checkpoint."""
    path, checkpoint = read_experiment(Path(runs_dir) / experiment)
    return machine.place(checkpoint.build(path)), checkpoint


# ---------------------------------------------------------------- versions

def git_commit() -> str | None:
    """Return the commit of the suite's checkout, or None outside one."""
    try:
        result = subprocess.run(["git", "-C", str(SUITE), "rev-parse", "HEAD"],
                                capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


def versions() -> dict:
    """Return the versions that a result depends on."""
    return {"suite": VERSION, "commit": git_commit(), "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "torchvision", "numpy", "pandas", "scipy")}}
