"""The network: a backbone, frozen wholly or in part, heads whose scores are averaged, perhaps a Gaussian process."""
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import nn
from torch.nn import functional

from first_impressions.common.command_line import UserError
from first_impressions.common.constants import TRAITS
from first_impressions.networks import face_resnet29
from first_impressions.networks.gaussian_process import MOST_CLIPS, GaussianProcess
from first_impressions.networks.principal_components import PrincipalComponents
from first_impressions.networks.settings import GP_WEIGHTS, Settings
from first_impressions.networks.weights import load_backbone_weights, load_state

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Backbone:
    """A kind of backbone and what it sees of a face chip."""
    name: str
    build: Callable[[], nn.Module]      # makes it with random weights; without a classifier it maps a view to features
    features_per_view: int
    default_weights: str                # what --weights means if it is not given
    input_size: int                     # pixels
    mean: tuple[float, ...]             # of RGB pictures in [0, 1], subtracted from them
    std: tuple[float, ...]              # which they are then divided by
    explained_stage: str                # the stage whose activations saliency maps use
    views: tuple[float, ...] = (1.0,)   # parts of the chip's side that are seen one after the other
    descriptor_size: int = 0            # the last features, which tell people apart; a Gaussian process needs them
    classifier: str = ""                # the module after the features, which is taken off, in files of weights too


def _torchvision_resnet(name):
    import torchvision  # here, since it takes three seconds, which dlib's network can do without

    return torchvision.models.get_model(name, weights=None)


_RESNET_WIDTHS = {"resnet18": 512, "resnet34": 512, "resnet50": 2048, "resnet101": 2048, "resnet152": 2048}
BACKBONES = {name: Backbone(name, partial(_torchvision_resnet, name), width, "imagenet", 224, IMAGENET_MEAN,
                            IMAGENET_STD, "layer4", classifier="fc") for name, width in _RESNET_WIDTHS.items()}
# All that the score depends on passes the first stages of dlib's network; the first of these localises best (35 x 35).
BACKBONES["face_resnet29"] = Backbone(
    "face_resnet29", face_resnet29.FaceResNet29, face_resnet29.FEATURES_PER_VIEW, "dlib", face_resnet29.FACE_INPUT_SIZE,
    face_resnet29.FACE_MEAN, face_resnet29.FACE_STD, "stage1", face_resnet29.FACE_VIEWS, face_resnet29.DESCRIPTOR_SIZE)


@dataclass(frozen=True)
class Architecture:
    """What a network's name stands for. It travels with checkpoints and to the trials of a search."""
    name: str
    backbone: Literal[tuple(BACKBONES)]
    trained: tuple[str, ...]    # stages of the backbone that are trained, from the input on; all others are frozen
    hidden: tuple               # sizes of the head's hidden layers: names of settings, or fixed numbers
    dropout: tuple = ()         # fixed dropout after each hidden layer; empty: that of the settings

    @property
    def frozen(self) -> bool:
        """Whether no part of the backbone is trained: it then learns from features of clips, which can be cached."""
        return not self.trained

    @property
    def has_gp(self) -> bool:
        """Whether a Gaussian process can stand beside the heads: its features must stay as they are."""
        return self.kind.descriptor_size > 0 and self.frozen

    @property
    def kind(self) -> Backbone:
        """The Backbone."""
        return BACKBONES[self.backbone]

ALTERNATING = 5     # faces of a clip from which on most are seen from one side alone (docs/accuracy.md)


def sides_of_clip(faces: int) -> torch.Tensor:
    """Return the weights in the mean features of a clip, float32 N x 2, of each of its faces and of its mirror image,
    in the order of the faces' files: a frozen network sees only what has a weight.

    A face keeps its side of light through a clip, so the clip's mean needs mirror images, but not of every face: plain
    and mirrored ones take turns, but for the middle one, which also stands for the clip's single pictures."""
    if faces < ALTERNATING:
        return torch.full((faces, 2), 0.5)
    others = torch.eye(2).repeat(faces // 2, 1)[:faces - 1]
    return torch.cat([others[:faces // 2], torch.full((1, 2), 0.5), others[faces // 2:]])


class PersonalityNetwork(nn.Module):
    """A backbone, frozen wholly or in part, heads whose scores are averaged, and perhaps a GaussianProcess.

    Takes uint8 RGB chips B x 3 x H x W, or features B x W that represent() projected, and gives float32 scores B x 5
    in [0, 1] in the order of TRAITS. Scaling and normalisation happen inside, on the device of the weights. The
    features of a frozen backbone are projected on this many principal components. compute_dtype is the type of mixed
    precision of backbone and heads (None: that of the weights).
    """

    def __init__(self, architecture: Architecture, settings: Settings):
        super().__init__()
        kind = self.kind = architecture.kind
        self.backbone = kind.build()
        if kind.classifier:
            self.backbone.set_submodule(kind.classifier, nn.Identity())
        self.trained, self.frozen = architecture.trained, architecture.frozen
        width = kind.features_per_view * len(kind.views)
        components = min(settings.components, width)
        self.projection = None if self.trained else PrincipalComponents(width, components)
        # Features of a trained backbone differ in scale by orders of magnitude, and drift, so late steps count more.
        self.standardise = nn.BatchNorm1d(width, affine=False, momentum=0.1) if self.trained else None
        self.memory_weight, self.memory = settings.memory_weight, None
        if architecture.has_gp and settings.memory != "none":
            descriptor_size = kind.descriptor_size if settings.memory == "exact" else 0
            self.memory = GaussianProcess(width, components, descriptor_size)
        hidden = [getattr(settings, size) if isinstance(size, str) else size for size in architecture.hidden]
        dropout = architecture.dropout or [settings.dropout] * len(hidden)
        self.heads = nn.ModuleList(make_head(width if self.trained else components, hidden, dropout)
                                   for _ in range(settings.heads))
        self.compute_dtype = None
        self.register_buffer("mean", torch.tensor(kind.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(kind.std).view(1, 3, 1, 1), persistent=False)
        self.backbone.requires_grad_(False)
        for stage in self.trained:
            self.backbone.get_submodule(stage).requires_grad_(True)

    def train(self, mode: bool = True) -> "PersonalityNetwork":
        """Put the heads and the trained stages into training mode; frozen stages stay in evaluation mode, so that
        their batch normalisation keeps the statistics they came with."""
        super().train(mode)
        self.backbone.eval()
        if mode:
            for stage in self.trained:
                self.backbone.get_submodule(stage).train()
        return self

    def features(self, chips: torch.Tensor) -> torch.Tensor:
        """Return the backbone's features of all views, B x F float32, of uint8 chips B x 3 x H x W."""
        pictures = chips.to(self.mean.dtype) / 255
        views = [self.view_of(pictures, part) for part in self.kind.views]
        with self._mixed_precision(chips.device):
            return torch.cat([self.backbone(view).float() for view in views], dim=1)

    def view_of(self, pictures: torch.Tensor, part: float) -> torch.Tensor:
        """Return what the backbone sees of pictures B x 3 x H x W in [0, 1]: the middle part, resized, normalised."""
        height, width = (round(part * length) for length in pictures.shape[-2:])
        top, left = (pictures.shape[-2] - height) // 2, (pictures.shape[-1] - width) // 2
        view = pictures[:, :, top:top + height, left:left + width]
        size = (self.kind.input_size, self.kind.input_size)
        if (height, width) != size:
            view = functional.interpolate(view, size, mode="bilinear", antialias=True, align_corners=False)
        return ((view - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def _mixed_precision(self, device):
        return torch.autocast(device.type, dtype=self.compute_dtype or torch.bfloat16,
                              enabled=self.compute_dtype is not None)

    def represent(self, features: torch.Tensor) -> torch.Tensor:
        """Return what the heads and the Gaussian process see of features B x F, B x W: of a frozen backbone the
        principal components and the descriptor, of a trained one the features as they are."""
        if self.projection is None:
            return features
        descriptors = features[:, features.shape[1] - self.kind.descriptor_size:]
        return torch.cat([self.projection(features), descriptors], dim=1)

    def forward(self, inputs: torch.Tensor, of_each_head: bool = False) -> torch.Tensor:
        """Return the scores B x 5, or with of_each_head what is trained: the scores of all K heads, K x B x 5."""
        projected = inputs if inputs.ndim == 2 else self.represent(self.features(inputs))
        if self.standardise is None:
            components = projected[:, :self.projection.axes.shape[1]] / self.projection.scale
        else:
            components = self.standardise(projected)
        with self._mixed_precision(components.device):
            scores = torch.stack([torch.sigmoid(head(components).float()) for head in self.heads])
        if of_each_head:
            return scores
        scores = scores.mean(0)
        if self.memory is None or not len(self.memory.points):
            return scores
        return (1 - self.memory_weight) * scores + self.memory_weight * self.memory(projected)

    def features_of_both(self, chips: torch.Tensor) -> torch.Tensor:
        """Return the features 2 x B x F of uint8 chips B x 3 x H x W and of their mirror images."""
        return self.features(torch.cat([chips, chips.flip(-1)])).unflatten(0, (2, -1))

    def features_of_sides(self, chips: torch.Tensor, sides: torch.Tensor) -> torch.Tensor:
        """Return the features B x F that count in clips' means, of uint8 chips B x 3 x H x W and their weights of
        sides_of_clip, B x 2 on the same device."""
        seen = sides.T > 0
        features = self.features(torch.cat([chips[seen[0]], chips[seen[1]].flip(-1)]))
        both = features.new_zeros(2, len(chips), features.shape[1])
        both[seen] = features
        return (both * sides.T[:, :, None]).sum(0)

    def scores_of_faces(self, chips: torch.Tensor) -> torch.Tensor:
        """Return the scores B x 5 of uint8 chips, each of the chip and its mirror image: of a frozen
        network the score of their mean features, of a trained one the mean of their scores."""
        if self.frozen:
            return self(self.represent(self.features_of_both(chips).mean(0)))
        return self(torch.cat([chips, chips.flip(-1)])).unflatten(0, (2, -1)).mean(0)


def make_head(width: int, hidden: list[int], dropout: list[float]) -> nn.Sequential:
    """Return the layers width - hidden - 5, with ReLU and dropout after each hidden one (the sigmoid comes after)."""
    layers = []
    for size, rate in zip(hidden, dropout):
        layers += [nn.Linear(width, size), nn.ReLU(), nn.Dropout(rate)]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, len(TRAITS)))


def build_network(architecture: Architecture, settings: Settings, weights: str | None = None) -> PersonalityNetwork:
    """Return the PersonalityNetwork of an architecture.

    settings: as settle_gp returns them. weights: what the backbone starts from: "imagenet", "dlib", "none" (random
    numbers), a path to a state dict, or None, which leaves random numbers to be overwritten by a checkpoint. Raises
    UserError if the form of the GP is not settled, or for weights that do not fit.
    """
    settled = settings.memory in GP_WEIGHTS and (settings.memory == "none" or settings.memory_weight is not None)
    if architecture.has_gp and not settled:
        raise UserError(f"memory {settings.memory} with weight {settings.memory_weight} is not a form of the "
                        f"GP; there are {', '.join(GP_WEIGHTS)}")
    network = PersonalityNetwork(architecture, settings)
    if weights is not None:
        load_backbone_weights(network.backbone, network.kind, weights)
    return network.to(memory_format=torch.channels_last)


def backbone_key(network: PersonalityNetwork) -> str:
    """Return text that names all that a frozen backbone's features depend on besides the chips."""
    digest = hashlib.sha256()
    for key, value in network.backbone.state_dict().items():
        digest.update(key.encode() + value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return (f"{network.kind.name} views {network.kind.views} at {network.kind.input_size} px, "
            f"{network.kind.features_per_view * len(network.kind.views)} features in "
            f"{network.compute_dtype or torch.float32}, weights {digest.hexdigest()}")


def load_network_state(network: PersonalityNetwork, state: dict, source: str | os.PathLike) -> None:
    """Fill a PersonalityNetwork with a state dict; its Gaussian process takes the size of the state's. Raises UserError
    if the state does not fit."""
    points = state.get("memory.points")
    if network.memory is not None and torch.is_tensor(points) and points.ndim == 2 and len(points) <= MOST_CLIPS:
        network.memory.allocate(len(points))
    load_state(network, state, source)
