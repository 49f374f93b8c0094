"""The named networks.

    python model_architectures.py list      the networks and what each of them trains

From Python, a new network and a trained one:

    from model_architectures import load_model, load_trained
    network = load_model("ResNet18_v1.0", {"l1": 512, "l2": 128})
    network, checkpoint = load_trained("pretrained")
"""
import first_impressions.common.startup  # noqa: F401  (before torch)

import difflib
import os

from first_impressions.common.command_line import UserError, make_parser, run_script
from first_impressions.common.constants import TRAITS
from first_impressions.common.device import Machine, pick_device
from first_impressions.networks.checkpoint import Checkpoint, load_experiment
from first_impressions.networks.network import Architecture, PersonalityNetwork, build_network
from first_impressions.networks.settings import SETTING_NAMES, resolve_settings, settle_gp

ARCHITECTURES = {architecture.name: architecture for architecture in (
    Architecture("ResNet18_v1.0", "resnet18", (), ("l1", "l2")),
    Architecture("ResNet18_v2.0", "resnet18", ("layer4",), ("l1", "l2")),
    Architecture("ResNet18_v3.0", "resnet18", ("layer1", "layer2", "layer3", "layer4"), ("l1", "l2")),
    Architecture("ResNet34_v1.0", "resnet34", (), ("l1", "l2")),
    Architecture("ResNet34_v2.0", "resnet34", (), ()),
    Architecture("ResNet50_v1.0", "resnet50", (), ("l1", "l2")),
    Architecture("ResNet101_v1.0", "resnet101", (), ("l1", "l2", "l3")),
    Architecture("ResNet101_v2.0", "resnet101", (), (512, 256, 64), (0.5, 0.3, 0.1)),
    Architecture("ResNet152_v1.0", "resnet152", (), ("l1", "l2")),
    Architecture("FaceResNet29_v1.0", "face_resnet29", (), ("l1", "l2")),
    Architecture("FaceResNet29_v2.0", "face_resnet29", ("stage4", "stage5", "descriptor"), ("l1", "l2")),
    Architecture("FaceResNet29_v3.0", "face_resnet29",
                 ("stem", "stage1", "stage2", "stage3", "stage4", "stage5", "descriptor"), ("l1", "l2")),
)}


def architecture_named(name: str) -> Architecture:
    """Return the Architecture of that name. Raises UserError that lists the known names."""
    if name not in ARCHITECTURES:
        near = difflib.get_close_matches(name, ARCHITECTURES, 1)
        raise UserError(f"unknown model {name!r}; " + (f"did you mean {near[0]}? " if near else "")
                        + f"known are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def load_model(name: str, config: dict | None = None, weights: str | None = None) -> PersonalityNetwork:
    """Return a new network of that name, on the CPU. It takes uint8 chips N x 3 x H x W and gives scores N x 5 in
    [0, 1].

    config: its settings (l1, l2, dropout, ...); the others have the defaults of train.py. weights: what the backbone
    starts from: imagenet, dlib, none or the path of a state dict; default: imagenet or dlib, as the network's own
    are. Raises UserError for an unknown name or setting, or weights that cannot be had.
    """
    architecture, unknown = architecture_named(name), sorted(set(config or {}) - set(SETTING_NAMES) - {"batch_size"})
    if unknown:
        raise UserError(f"unknown setting {unknown[0]!r}; known are {', '.join(SETTING_NAMES)}")
    settings = settle_gp(resolve_settings(config or {}), 0, architecture.has_gp)
    return build_network(architecture, settings, weights or architecture.kind.default_weights)


def load_trained(experiment: str, runs_dir: str | os.PathLike = "runs",
                 device: str = "auto") -> tuple[PersonalityNetwork, Checkpoint]:
    """Return a trained network in evaluation mode and its checkpoint, which knows all else that scores depend on.

    experiment: a folder in runs_dir, or "pretrained". device: auto, cpu, cuda, cuda:N or mps. Raises UserError if one
    of them is not there.
    """
    return load_experiment(experiment, runs_dir, Machine(pick_device(device), "float32"))


def main(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("command", choices=("list",), help="print the networks")
    parser.parse_args(argv)
    print(f"{'MODEL':<20}{'backbone':<16}{'trained with the head':<26}layers of the head")
    for name, architecture in ARCHITECTURES.items():
        head = "-".join(str(size) for size in (*architecture.hidden, len(TRAITS)))
        trained = " ".join(architecture.trained) or "nothing"
        if len(architecture.trained) > 3:
            trained = f"{architecture.trained[0]} to {architecture.trained[-1]}"
        print(f"{name:<20}{architecture.backbone:<16}{trained:<26}{head}")
    print(f"l1, l2 and l3 are sizes that the configuration gives; {len(TRAITS)} are the traits")


if __name__ == "__main__":
    run_script(main)
