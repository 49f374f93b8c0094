"""The search space: a setting or batch_size, and a range of Ray Tune or a constant for each."""
import math
import re

from ray import tune

from first_impressions.common.command_line import UserError
from first_impressions.networks.network import Architecture
from first_impressions.networks.settings import SETTING_NAMES, names_with_effect, read_config

# What a file knows, as tune has them.
RANGES = ("choice", "uniform", "quniform", "loguniform", "qloguniform", "randint", "qrandint", "lograndint",
          "grid_search")


def describe_entry(value: object) -> str:
    """Return an entry of the search space as text, the same in every process."""
    text = f"{type(value).__name__} {value.domain_str}" if hasattr(value, "domain_str") else repr(value)
    return re.sub(" at 0x[0-9a-f]+", "", text)  # of a function


def number_of_trials(num_trials: int, space: dict) -> int:
    """Return the number of trials: NUM_TRIALS, times the values of every grid_search."""
    return num_trials * math.prod(len(value["grid_search"]) for value in space.values() if isinstance(value, dict))


def read_space(path: str) -> dict:
    """Return the search space in a JSON file. Raises UserError if it has another form."""
    space = read_config(path, "--space")
    for key, value in space.items():
        if isinstance(value, dict):
            try:
                (kind, values), = value.items()
                if kind not in RANGES:
                    raise ValueError(f"{kind} is not one of {', '.join(RANGES)}")
                space[key] = getattr(tune, kind)(*([values] if kind in ("choice", "grid_search") else values))
            except (TypeError, ValueError) as error:
                raise UserError(f"--space {path}: {key}: {error}") from None
    return space


def space_for(architecture: Architecture, space: dict, place: str) -> dict:
    """Return the part of a search space that this network uses. Raises UserError, with the place, for other keys."""
    unknown = [key for key in space if key not in SETTING_NAMES and key != "batch_size"]
    if unknown or "batch_size" not in space:
        raise UserError(f"{place} holds {', '.join(unknown) or 'no batch_size'}; known are batch_size, "
                        f"{', '.join(SETTING_NAMES)}")
    used = {"batch_size", *names_with_effect(architecture)}
    return {key: value for key, value in space.items() if key in used}
