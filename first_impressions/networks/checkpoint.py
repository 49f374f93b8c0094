"""The checkpoint of a training run: its format, written, checked and found in one place."""
import difflib
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from first_impressions.common.command_line import VERSION, UserError
from first_impressions.common.constants import TRAITS
from first_impressions.common.device import Machine
from first_impressions.common.experiment import CHECKPOINTS, PRETRAINED, SUITE, TO_GIVE_AWAY, experiment_folder
from first_impressions.common.files import atomic_write
from first_impressions.networks.network import Architecture, PersonalityNetwork, build_network, load_network_state
from first_impressions.networks.settings import Settings, Share
from first_impressions.networks.weights import load_file

FORMAT = 4
LEVEL = 0.8     # fraction of the labels inside the interval
BEST, LAST, PREVIOUS = "checkpoint_best.pt", "checkpoint_last.pt", "checkpoint_previous.pt"


OfEachTrait = TypedDict("OfEachTrait", dict.fromkeys(TRAITS, Share))
Percentiles = Annotated[list[Share], Field(min_length=101, max_length=101)]     # 0 % to 100 %
Quantiles = TypedDict("Quantiles", dict.fromkeys(TRAITS, Percentiles))


@dataclass(frozen=True)
class Intervals:
    """Half the width of the interval of each trait: of a clip of this many faces, and of one face alone."""
    clip: OfEachTrait
    one_face: OfEachTrait
    faces: Annotated[float, Field(ge=1)]
    level: Share = LEVEL

    def half_widths(self, faces: np.ndarray) -> np.ndarray:
        """Return float64 N x 5 for numbers of faces N. The error's variance falls with 1 / faces, down to a clip's."""
        clip, one = (np.array([widths[trait] for trait in TRAITS]) for widths in (self.clip, self.one_face))
        part = np.clip((1 / np.maximum(faces, 1) - 1 / self.faces) / max(1 - 1 / self.faces, 1e-9), 0, 1)[:, None]
        return np.sqrt(part * np.maximum(one, clip) ** 2 + (1 - part) * clip ** 2)


class Preprocessing(TypedDict):
    """How faces were cropped, with more keys than these."""
    __pydantic_config__ = ConfigDict(extra="allow")
    size: Annotated[int, Field(ge=1, le=4096)]      # pixels
    padding: Annotated[float, Field(ge=0, le=5)]


class Best(TypedDict):
    """The best epoch so far."""
    epoch: Annotated[int, Field(ge=1)]
    accuracy: float
    network: dict[str, Any]


class Training(TypedDict):
    """What resuming needs: see TrainingState.state_dict."""
    network: dict[str, Any]
    optimizer: dict
    scheduler: dict
    epoch: Annotated[int, Field(ge=0)]
    step: Annotated[int, Field(ge=0)]
    loss_sum: float
    loss_count: int
    history: list[dict[str, Any]]
    best: Best | None


@dataclass
class Checkpoint:
    """All that the scripts need of a trained network. load_checkpoint checks a file's content against these types."""
    architecture: Architecture
    config: Settings            # of the training
    preprocessing: Preprocessing
    network: dict[str, Any]     # its state dict
    constant: OfEachTrait       # mean label of the training clips, the baseline of every evaluation
    clips: list[str]            # names of the training clips; empty in a checkpoint to give away
    speakers: list[str]         # names of their speakers; likewise
    trained_on: str             # name of the training split
    epoch: Annotated[int, Field(ge=0)]      # epochs done
    metrics: dict[str, Any]     # the last epoch's record
    intervals: Intervals | None = None      # None: not known
    training: Training | None = None
    backbone: Literal["dlib"] | None = None     # "dlib": its weights are left out of network
    label_quantiles: Quantiles | None = None    # of the training labels
    neuroticism_is_stability: bool = False  # the challenge's labels have it the other way round
    speaker_regex: str | None = None        # how speakers were found in the names of the training clips
    weights: str | None = None              # what the backbone started from, as --weights names it

    def save(self, path: str | os.PathLike) -> None:
        """Write the checkpoint so that the file under its name is always whole."""
        with atomic_write(path) as partial, open(partial, "wb") as file:
            records = {name: asdict(value) for name, value in vars(self).items() if is_dataclass(value)}
            torch.save({"format": FORMAT, "traits": list(TRAITS), **vars(self), **records}, file)
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


def load_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Return the checkpoint in a file, of which no code is run. Raises UserError if it is damaged, of another format,
    or lacks anything that any script reads."""
    content = load_file(path, "a checkpoint of train.py")
    if not isinstance(content, dict) or "format" not in content:
        raise UserError(f"{path}: is not a checkpoint of this suite; train a new one with train.py")
    if type(content["format"]) is not int or content["format"] != FORMAT:
        raise UserError(f"{path}: was written in format {content['format']!r}, this version reads {FORMAT}; "
                        "train again")
    traits = content.get("traits")
    if not isinstance(traits, (list, tuple)) or tuple(traits) != TRAITS:
        raise UserError(f"{path}: its scores are {traits!r}, not {', '.join(TRAITS)}; train again")
    try:
        checkpoint = TypeAdapter(Checkpoint).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: is damaged, {first['loc'][0]}: {first['msg']}; use another checkpoint or train again"
                        ) from None
    for key, value in checkpoint.network.items():
        if torch.is_tensor(value) and value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"{path}: its weights hold numbers that are not finite ({key}); use another checkpoint or "
                            "train again")
    return checkpoint


def find_checkpoint(experiment_dir: str | os.PathLike) -> Path:
    """Return the path of the checkpoint to use: the best one, else the last, the one before, one given away; of the
    experiment `pretrained` the one that comes with the suite. Raises UserError if there is none."""
    experiment_dir = Path(experiment_dir)
    for name in (BEST, LAST, PREVIOUS, TO_GIVE_AWAY):
        if (experiment_dir / name).exists():
            return experiment_dir / name
    if experiment_dir.name == PRETRAINED:
        return SUITE / PRETRAINED / TO_GIVE_AWAY
    others = sorted({path.parent.name for path in experiment_dir.parent.glob(f"*/{CHECKPOINTS}")})
    near = difflib.get_close_matches(experiment_dir.name, [*others, PRETRAINED], 1)
    problem = "contains no checkpoint" if experiment_dir.is_dir() else "no such experiment"
    raise UserError(f"{experiment_dir}: {problem}; " + (f"did you mean {near[0]}? " if near else "")
                    + (f"trained are {', '.join(others)}" if others else "train one with train.py")
                    + f", or take {PRETRAINED}, which comes with the suite; --runs-dir names another folder")


def read_last(path: Path) -> tuple[Path, Checkpoint]:
    """Return the path and content of a checkpoint, or of checkpoint_previous.pt, with a warning, if it is a last one
    that is damaged. Raises UserError if neither is whole."""
    previous = path.with_name(PREVIOUS)
    try:
        return path, load_checkpoint(path)
    except UserError as error:
        if path.name != LAST or not previous.exists():
            raise
        print(f"warning: {error}; falling back to the checkpoint before it", file=sys.stderr)
    return previous, load_checkpoint(previous)


def read_experiment(folder: str | os.PathLike) -> tuple[Path, Checkpoint]:
    """Return the path of an experiment's checkpoint and what it holds, as find_checkpoint and read_last have it."""
    return read_last(find_checkpoint(folder))


def load_experiment(experiment: str, runs_dir: str | os.PathLike,
                    machine: Machine) -> tuple[PersonalityNetwork, Checkpoint]:
    """Return an experiment's network, in evaluation mode on the machine's device, and its checkpoint."""
    path, checkpoint = read_experiment(experiment_folder(runs_dir, experiment))
    return machine.place(checkpoint.build(path)), checkpoint


def versions() -> dict:
    """Return the versions that a result depends on, and the commit of the suite's checkout, or None outside one."""
    try:
        commit = subprocess.check_output(["git", "-C", str(SUITE), "rev-parse", "HEAD"], stderr=subprocess.DEVNULL,
                                         text=True, timeout=10).strip()
    except (OSError, subprocess.SubprocessError):
        commit = None
    return {"suite": VERSION, "commit": commit, "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "torchvision", "numpy", "pandas", "scipy")}}
