"""The settings of a training: one field each with its default, bounds and help text.

The options of train.py, the search space of the search and the checks of both come from here.
"""
import argparse
import dataclasses
import math
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields

from first_impressions.common.command_line import UserError, true_or_false
from first_impressions.common.device import is_main_process
from first_impressions.common.files import read_json
from first_impressions.networks.gaussian_process import MOST_CLIPS


def _setting(default, text, most=math.inf, below=math.inf, choices=None):
    return field(default=default, metadata={"help": text, "most": most, "below": below, "choices": choices})


@dataclass(frozen=True)
class Settings:
    """How a network is trained. Numbers are at least 0; those that shape the network have further bounds in
    model_architectures.py."""
    l1: int = _setting(1024, "first hidden layer of the head")
    l2: int = _setting(256, "second hidden layer of the head")
    l3: int = _setting(64, "third hidden layer of the head (ResNet101_v1.0)")
    dropout: float = _setting(0.5, "dropout after each hidden layer")
    heads: int = _setting(1, "heads trained side by side, whose scores are averaged")
    components: int = _setting(512, "principal components that a frozen backbone's features are projected on")
    memory: str = _setting("auto", "regression on the training clips beside the heads (FaceResNet29_v1.0 only): exact "
                           "keeps a row of each clip, centres keeps none of a person, none; auto: exact up to 10,000 "
                           "clips, else centres", choices=("auto", "exact", "centres", "none"))
    memory_weight: float = _setting(None, "part of the regression in the scores (default: 0.7 exact, 0.3 centres)",
                                    most=1)
    noise: float = _setting(0.3, "variance of the noise in a label, for the regression")
    one_face: float = _setting(0.5, "part of the clips of which a frozen network sees one face alone in a step", most=1)
    centres: int = _setting(300, "most centres of the regression")
    lr: float = _setting(1e-3, "highest learning rate of the heads")
    weight_decay: float = _setting(1e-2, "weight decay of AdamW")
    backbone_lr_factor: float = _setting(0.1, "learning rate of the last trained stage of the backbone, "
                                         "as a part of --lr")
    layer_decay: float = _setting(0.7, "learning rate of each stage before it, as a part of the next one's")
    warmup: float = _setting(0.1, "part of the steps in which the learning rate rises; it then falls as a cosine",
                             most=1)
    loss: str = _setting("l1", "loss: mse, l1, smooth_l1 or ccc", choices=("mse", "l1", "smooth_l1", "ccc"))
    mixup: float = _setting(0.0, "alpha of the Beta distribution that mixes pairs of samples, 0: none")
    augment: float = _setting(0.0, "strength of crops, colour and erasing, 0 to 1", most=1)
    ema_decay: float = _setting(0.0, "decay a step of the weights' exponential moving average, 0: none", below=1)
    hflip: bool = _setting(True, "mirror half of the pictures in training")

    def as_dict(self) -> dict:
        """Return {name: value} of all settings."""
        return asdict(self)


@dataclass(frozen=True)
class Plan:
    """What a training is to do."""
    settings: Settings
    num_epochs: int
    batch_size: int     # clips (frozen networks) or faces a step and process
    seed: int = 0


MEMORY_WEIGHTS = {"exact": 0.7, "centres": 0.3, "none": 0.0}


def settle_memory(settings: Settings, number_of_clips: int, has_memory: bool) -> Settings:
    """Return the settings with memory and memory_weight as a training on so many clips has them.

    Raises UserError where that many clips are too many for the exact form.
    """
    form = settings.memory if has_memory else "none"
    if form == "auto":
        form = "exact" if number_of_clips <= MOST_CLIPS else "centres"
    if form == "exact" and number_of_clips > MOST_CLIPS:
        raise UserError(f"--memory exact: {number_of_clips} clips are more than {MOST_CLIPS}; take --memory centres")
    weight = MEMORY_WEIGHTS[form] if settings.memory_weight is None or form == "none" else settings.memory_weight
    return dataclasses.replace(settings, memory=form, memory_weight=weight)


SETTING_NAMES = tuple(setting.name for setting in fields(Settings))


def resolve_settings(config: dict, given: dict | None = None) -> Settings:
    """Return the settings: the defaults, over them config (but unknown keys), over it what is given and not None.

    Raises UserError that names the setting whose value has a wrong type or is out of bounds.
    """
    given = {key: value for key, value in (given or {}).items() if value is not None}
    settings = Settings(**{key: value for key, value in {**config, **given}.items() if key in SETTING_NAMES})
    for setting in fields(Settings):
        _check(setting, getattr(settings, setting.name))
    return settings


def _check(setting, value):
    bounds = setting.metadata
    kind = float if setting.default is None else type(setting.default)
    if value is None and setting.default is None:
        return
    wrong = type(value) is not kind and not (kind is float and type(value) is int)
    if wrong or (isinstance(value, (int, float)) and not (math.isfinite(value) and value >= 0)):
        wanted = {int: "a whole number of at least 0", float: "a number of at least 0", bool: "true or false",
                  str: "a text"}[kind]
        raise UserError(f"{setting.name}: {value!r} is not {wanted}")
    if bounds["choices"] and value not in bounds["choices"]:
        raise UserError(f"{setting.name}: {value!r} is unknown; known are {', '.join(bounds['choices'])}")
    if isinstance(value, (int, float)) and value > bounds["most"]:
        raise UserError(f"{setting.name}: {value} is more than {bounds['most']}")
    if isinstance(value, (int, float)) and value >= bounds["below"]:
        raise UserError(f"{setting.name}: {value} is not below {bounds['below']}")


def note_without_effect(args: argparse.Namespace, settings: Settings, shaping: Iterable[str], is_trained: bool) -> None:
    """Print which of the options given change nothing. settings: as settle_memory returns them; shaping: those that
    shape the network (model_architectures.config_keys); is_trained: layers of the backbone learn."""
    useless = {"l1", "l2", "l3", "dropout", "heads", "components"} - set(shaping)
    if is_trained:
        useless.add("one_face")
    else:
        useless |= {"backbone_lr_factor", "layer_decay", "one_face" if settings.augment else "hflip"}
    if settings.memory != "centres":
        useless.add("centres")
    if settings.memory == "none":
        useless |= {"memory_weight", "noise"}
    given = [name for name in SETTING_NAMES if name in useless and getattr(args, name) is not None]
    if given and is_main_process():
        print("note: without effect here: " + ", ".join("--" + name.replace("_", "-") for name in given),
              file=sys.stderr)


def read_config(path: str | os.PathLike) -> dict:
    """Return the settings in a JSON file as written by the search. Raises UserError for unknown keys or damage."""
    try:
        config = read_json(path)
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}; "
                        "the search writes runs/EXPERIMENT/best_config.json") from None
    except ValueError as error:
        raise UserError(f"--config {path}: is no JSON ({error})") from None
    if not isinstance(config, dict):
        raise UserError(f"--config {path}: is no dictionary of settings")
    unknown = sorted(config.keys() - set(SETTING_NAMES) - {"batch_size", "model"})
    if unknown:
        raise UserError(f"--config {path}: does not know {', '.join(unknown)}; known are {', '.join(SETTING_NAMES)}")
    return config


def add_settings_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each setting; without a default here, so that --config can say otherwise."""
    group = parser.add_argument_group("settings (the command line wins over --config)")
    for setting in fields(Settings):
        kind, shown = type(setting.default), setting.default
        if setting.default is None:
            kind = float
        elif isinstance(setting.default, bool):
            kind, shown = true_or_false, str(setting.default).lower()
        text = setting.metadata["help"] + ("" if shown is None else f" (default: {shown})")
        group.add_argument("--" + setting.name.replace("_", "-"), dest=setting.name, type=kind,
                           metavar=kind.__name__.upper(), help=text)
