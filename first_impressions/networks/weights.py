"""Weights: files of tensors read without running code, and the state dicts that backbones start from."""
import os
import sys
import textwrap
import zipfile
from pathlib import Path
from urllib.error import URLError

import torch
from torch import nn

from first_impressions.common.command_line import UserError
from first_impressions.networks.face_resnet29 import read_face_weights


def load_file(path: str | os.PathLike, expected: str) -> object:
    """Return what torch.save wrote to a file: tensors and plain data only. Raises UserError for anything else; no code
    in the file is run."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; it should be {expected}")
    try:
        if not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile("no archive of torch.save")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what torch raises depends on where in the file the damage is
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: is damaged or not {expected} ({reason}); make or download it again") from None


def load_state(module: nn.Module, state: dict, source: str | os.PathLike) -> None:
    """Fill a module with a state dict. Raises UserError, naming keys, if it does not fit in names and shapes."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).partition("\n")[2].split())
        raise UserError(f"{source}: does not fit this network: {textwrap.shorten(reason, 300)}") from None


def load_backbone_weights(backbone: nn.Module, kind: "Backbone", weights: str) -> None:  # noqa: F821
    """Fill a backbone of a kind with the weights that --weights names: imagenet, dlib, none or the path of a state
    dict. Raises UserError for missing or unfit ones."""
    if weights == "none":
        return
    if weights in ("imagenet", "dlib") and weights != kind.default_weights:
        raise UserError(f"--weights {weights}: there are none for {kind.name}; it takes {kind.default_weights}, "
                        "none or a path")
    if weights == "dlib":
        state = read_face_weights().state_dict()
    elif weights == "imagenet":
        import torchvision

        file = torchvision.models.get_model_weights(kind.name)["IMAGENET1K_V1"]
        try:
            state = file.get_state_dict(progress=sys.stderr.isatty(), check_hash=True, weights_only=True)
        except (URLError, OSError, RuntimeError) as error:
            raise UserError(f"--weights imagenet: {file.url} cannot be downloaded ({error}); give --weights with the "
                            "path of a downloaded file, or --weights none to start from random numbers") from None
    else:
        state = load_file(weights, "a state dict saved by torch.save")
    if not isinstance(state, dict) or not all(torch.is_tensor(value) for value in state.values()):
        raise UserError(f"{weights}: is not a state dict (a dictionary of names and tensors)")
    state = {key: value for key, value in state.items() if not key.startswith(f"{kind.classifier}.")}
    load_state(backbone, state, weights)
