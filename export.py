"""Write a trained network as one file that other programs can run, without this suite, or that can be given away.

    python export.py final                        runs/final/model.onnx
    python export.py final --format torch         runs/final/model.pt2, for torch.export.load
    python export.py final --format checkpoint    runs/final/model.pt, for this suite: in a folder runs/NAME it is an
                                                  experiment like any other

The last one is small, contains no name of a clip or speaker, and is refused for a network that stores data of
individuals. Its numbers have half precision, and the weights of dlib's network are left out, since the suite has them.

The model of the other two takes uint8 RGB chips N x 3 x 224 x 224, any N, and gives the float32 scores N x traits that
predict.py gives each face; scaling, normalisation and the mirror images happen inside. Its metadata (ONNX:
metadata_props, torch: extra_files) name the order of the traits and the cropping. A file of that name is replaced. A
network with a memory of clips takes descriptors of the training clips' faces with it: see the README before you publish
it.
"""
import first_impressions.common.startup  # noqa: F401  (before torch)

import dataclasses
import io
import json
import sys
from pathlib import Path

import torch
from torch import nn

from first_impressions.common.command_line import UserError, make_parser, run_script
from first_impressions.common.constants import TRAITS
from first_impressions.common.experiment import TO_GIVE_AWAY, experiment_folder
from first_impressions.common.files import atomic_write, check_output_file
from first_impressions.networks.checkpoint import Checkpoint, read_experiment
from first_impressions.networks.network import PersonalityNetwork, build_network

EXPORTED_FILES = {"onnx": "model.onnx", "torch": "model.pt2", "checkpoint": TO_GIVE_AWAY}
DESCRIPTORS = ("contains descriptors of the training clips' faces, by which people can be recognised; for a model to "
               "publish, train with --memory centres or --memory none")
MOST_SINGLE = 20_000    # numbers of a tensor that keeps single precision: little to gain from halves


class FaceScores(nn.Module):
    """What is exported of a network: uint8 chips N x 3 x size x size in, float32 scores N x 5 out."""

    def __init__(self, network: PersonalityNetwork):
        super().__init__()
        self.network = network

    def forward(self, chips: torch.Tensor) -> torch.Tensor:
        return self.network.scores_of_faces(chips)


def export_model(checkpoint: Checkpoint, path: Path, target: Path, file_format: str) -> None:
    """Write the network of a checkpoint (read from path) to the file target. file_format: "onnx" or "torch"."""
    size = checkpoint.preprocessing["size"]
    metadata = {"architecture": checkpoint.architecture.name, "traits": ",".join(TRAITS), "scores": "in [0, 1]",
                "input": f"uint8 RGB face chips N x 3 x {size} x {size}",
                "preprocessing": json.dumps(checkpoint.preprocessing)}
    chips = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    shapes = {"chips": {0: torch.export.Dim("N", min=1, max=65536)}}
    module = FaceScores(checkpoint.build(path)).to(memory_format=torch.contiguous_format)
    with torch.no_grad(), atomic_write(target) as partial:
        program = torch.export.export(module, (chips,), dynamic_shapes=shapes)
        if file_format == "torch":
            # PyTorch's own writer ends the process if the disk is full.
            buffer = io.BytesIO()
            torch.export.save(program, buffer, extra_files={"metadata.json": json.dumps(metadata)})
            partial.write_bytes(buffer.getbuffer())
        else:
            converted = torch.onnx.export(program, (), input_names=["chips"], output_names=["scores"], dynamo=True,
                                          verbose=False, dynamic_shapes={"chips": {0: "N"}})  # names the axis
            converted.model.metadata_props.update(metadata)
            converted.save(partial, external_data=False)


def to_give_away(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    """Return a checkpoint (read from path) in a form that is small and names nobody: large tensors in half precision,
    no names of clips and speakers, no state of the training, dlib's weights left out if they are as they come.

    Raises UserError for a network that stores data of each training clip.
    """
    if checkpoint.config.memory == "exact":
        raise UserError(f"{path}: {DESCRIPTORS}")
    state, backbone = checkpoint.network, checkpoint.backbone
    network = checkpoint.build(path)
    if network.frozen and network.kind.default_weights == "dlib":
        own = build_network(checkpoint.architecture, checkpoint.config, "dlib").backbone.state_dict()
        if all(torch.equal(value, own[key]) for key, value in network.backbone.state_dict().items()):
            state = {key: value for key, value in state.items() if not key.startswith("backbone.")}
            backbone = "dlib"
    state = {key: value.half() if value.is_floating_point() and value.numel() > MOST_SINGLE else value.clone()
             for key, value in state.items()}
    return dataclasses.replace(checkpoint, network=state, backbone=backbone, clips=[], speakers=[], metrics={},
                               training=None)


def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("experiment", metavar="EXPERIMENT", help="name of a folder in --runs-dir")
    parser.add_argument("--format", choices=tuple(EXPORTED_FILES), default="onnx",
                        help="ONNX, torch.export, or a checkpoint to give away")
    parser.add_argument("--runs-dir", default="runs", help="folder of the experiments")
    parser.add_argument("--out", metavar="FILE", help="default: a name as above, in the experiment's folder")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    folder = experiment_folder(args.runs_dir, args.experiment)
    path, checkpoint = read_experiment(folder)
    target = Path(args.out) if args.out else folder / EXPORTED_FILES[args.format]
    check_output_file("--out", target)
    if target.suffix != Path(EXPORTED_FILES[args.format]).suffix:
        raise UserError(f"--out {target}: give a name that ends in {Path(EXPORTED_FILES[args.format]).suffix}")
    if args.format == "checkpoint":
        to_give_away(checkpoint, path).save(target)
    else:
        export_model(checkpoint, path, target, args.format)
    print(f"exported {path} to {target} ({target.stat().st_size / 1e6:.1f} MB)")
    if checkpoint.config.memory == "exact":
        print(f"note: {target}: {DESCRIPTORS}", file=sys.stderr)


if __name__ == "__main__":
    run_script(main)
