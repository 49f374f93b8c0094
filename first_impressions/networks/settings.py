"""The settings of a training run: one field each with its default, bounds, help text, and the networks that it is for.

The options of train.py, the search space of the search, the networks and the checks of all three come from here.
"""
import argparse
import dataclasses
import operator
import os
from dataclasses import dataclass, field, fields
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from first_impressions.common.command_line import UserError, true_or_false
from first_impressions.common.files import read_json
from first_impressions.networks.gaussian_process import MOST_CLIPS
from first_impressions.networks.losses import LOSSES

GP_WEIGHTS = {"exact": 0.7, "centres": 0.3, "none": 0.0}    # default of memory_weight in each form
LARGEST_LAYER = 16_384

Layer = Annotated[int, Field(strict=True, ge=1, le=LARGEST_LAYER)]
Heads = Annotated[int, Field(strict=True, ge=1, le=64)]
Count = Annotated[int, Field(strict=True, ge=0)]
Number = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Dropout = Annotated[float, Field(strict=True, ge=0, le=0.95)]


def _setting(default, text, of=lambda architecture: True, given=lambda architecture, settings: True, advanced=False):
    """Return a field. of, given: the architectures, and for these the other settings, for which it changes anything.
    advanced: docs/accuracy.md measured no effect."""
    return field(default=default, metadata={"help": text, "of": of, "given": given, "advanced": advanced})


def _layer(size, default, which):
    return _setting(default, f"{which} hidden layer of the head", lambda architecture: size in architecture.hidden,
                    advanced=True)


_is_trained, _is_frozen, _has_gp = map(operator.attrgetter, ("trained", "frozen", "has_gp"))


def _remembers(_, settings):
    return settings.memory != "none"


@dataclass(frozen=True)
class Settings:
    """How a network is made and trained."""
    l1: Layer = _layer("l1", 1024, "first")
    l2: Layer = _layer("l2", 256, "second")
    l3: Layer = _layer("l3", 64, "third (ResNet101_v1.0 only)")
    dropout: Dropout = _setting(0.5, "dropout after each hidden layer", lambda architecture: bool(
        architecture.hidden and not architecture.dropout), advanced=True)
    heads: Heads = _setting(1, "heads trained side by side, whose scores are averaged", advanced=True)
    components: Layer = _setting(512, "principal components that a frozen backbone's features are projected on",
                                 _is_frozen, advanced=True)
    memory: Literal[("auto", *GP_WEIGHTS)] = _setting(
        "auto", "Gaussian process (GP) beside the heads (FaceResNet29_v1.0 only): exact keeps the features of each "
        "clip, centres those of no individual, none: heads alone; "
        f"auto: exact up to {MOST_CLIPS:,} clips, else centres", _has_gp)
    memory_weight: Share | None = _setting(None, "part of the GP in the scores (default: " + ", ".join(
        f"{weight} {form}" for form, weight in GP_WEIGHTS.items() if weight) + ")", _has_gp, _remembers)
    noise: Number = _setting(0.3, "variance of the noise in a label, for the GP", _has_gp, _remembers, advanced=True)
    one_face: Share = _setting(0.5, "part of the clips of which a frozen network sees one face alone in a step",
                               _is_frozen, advanced=True)
    centres: Count = _setting(300, "most centres of the GP", _has_gp, lambda _, settings: settings.memory == "centres")
    lr: Number = _setting(1e-3, "highest learning rate of the heads")
    weight_decay: Number = _setting(1e-2, "weight decay of AdamW", advanced=True)
    backbone_lr_factor: Number = _setting(0.1, "learning rate of the last trained stage of the backbone, as a part of "
                                          "--lr", _is_trained)
    layer_decay: Number = _setting(0.7, "learning rate of each stage before it, as a part of the next one's",
                                   _is_trained)
    warmup: Share = _setting(0.1, "part of the steps in which the learning rate rises; it then falls as a cosine")
    loss: Literal[tuple(LOSSES)] = _setting("l1", f"loss: {', '.join(LOSSES)}", advanced=True)
    mixup: Number = _setting(0.0, "alpha of the Beta distribution that mixes pairs of samples, 0: none", advanced=True)
    augment: Share = _setting(0.0, "strength of crops, colour and erasing, 0 to 1", _is_trained)
    hflip: Annotated[bool, Field(strict=True)] = _setting(True, "mirror half of the pictures in training", _is_trained)


SETTING_NAMES = tuple(setting.name for setting in fields(Settings))
RUN_OPTIONS = ("weights", "val_split", "speaker_regex", "seed")  # which best_config.json also has


@dataclass(frozen=True)
class Plan:
    """The plan of a training run."""
    settings: Settings
    num_epochs: int
    batch_size: int     # of a step and process: clips of a frozen network, faces of a trained one
    seed: int = 0


def names_with_effect(architecture: "Architecture", settings: Settings | None = None) -> list[str]:  # noqa: F821
    """Return the names of the settings that change anything for an Architecture, and beside the others, if given."""
    return [setting.name for setting in fields(Settings) if setting.metadata["of"](architecture)
            and (settings is None or setting.metadata["given"](architecture, settings))]


def settle_gp(settings: Settings, number_of_clips: int, has_gp: bool) -> Settings:
    """Return the settings with memory and memory_weight resolved for a training set of this size. Raises UserError if
    it has too many clips for the exact form."""
    form = settings.memory if has_gp else "none"
    if form == "auto":
        form = "exact" if number_of_clips <= MOST_CLIPS else "centres"
    if form == "exact" and number_of_clips > MOST_CLIPS:
        raise UserError(f"--memory exact: {number_of_clips} clips are more than {MOST_CLIPS}; take --memory centres")
    weight = GP_WEIGHTS[form] if settings.memory_weight is None or form == "none" else settings.memory_weight
    return dataclasses.replace(settings, memory=form, memory_weight=weight)


def resolve_settings(config: dict, given: dict | None = None) -> Settings:
    """Return the settings: the defaults, over them config (but unknown keys), over it what is given and not None.
    Raises UserError that names the setting whose value has a wrong type or is out of bounds."""
    given = {key: value for key, value in (given or {}).items() if value is not None}
    values = {key: value.item() if hasattr(value, "item") else value  # a number of NumPy, as some searches draw
              for key, value in {**config, **given}.items() if key in SETTING_NAMES}
    try:
        return TypeAdapter(Settings).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{first['loc'][0]}: {first['input']!r:.40} is not "
                        f"{first['msg'].removeprefix('Input should be ')}") from None


def read_config(path: str | os.PathLike, option: str = "--config") -> dict:
    """Return the settings in a JSON file, as the search writes it. Raises UserError, with the option that named the
    file, for unknown keys or damage."""
    try:
        config = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{option} {path}: cannot be read as JSON ({getattr(error, 'strerror', error)})") from None
    if not isinstance(config, dict):
        raise UserError(f"{option} {path}: is not a dictionary of settings")
    unknown = sorted(config.keys() - set(SETTING_NAMES) - {"batch_size", "model", *RUN_OPTIONS})
    if unknown:
        raise UserError(f"{option} {path}: does not know {', '.join(unknown)}; known are {', '.join(SETTING_NAMES)}")
    return config


def add_settings_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for each setting; without a default here, so that --config can say otherwise."""
    main, advanced = (parser.add_argument_group(title) for title in (
        "settings (the command line wins over --config)",
        "advanced settings (docs/accuracy.md measured no effect of them beyond the spread)"))
    for setting in fields(Settings):
        kind = {bool: true_or_false, type(None): float}.get(type(setting.default), type(setting.default))
        shown = "" if setting.default is None else f" (default: {str(setting.default).lower()})"
        group = advanced if setting.metadata["advanced"] else main
        group.add_argument("--" + setting.name.replace("_", "-"), dest=setting.name, type=kind,
                           metavar=kind.__name__.upper(), help=setting.metadata["help"] + shown)
