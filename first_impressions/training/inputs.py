"""The network's inputs for a split: face chips for a backbone that is trained, or what a frozen one sees of each clip.

Both have len(), usable, clips and batches().
"""
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch.utils.data import BatchSampler, Dataset

from first_impressions.common.command_line import progress_bar
from first_impressions.common.constants import TRAITS
from first_impressions.common.device import Machine, send
from first_impressions.data.chips import chip_loader
from first_impressions.networks.network import PersonalityNetwork, backbone_key
from first_impressions.training.feature_cache import features_of_dataset
from first_impressions.training.samples import Samples


class FaceChips(Samples):
    """The face chips of a dataset.FaceDataset, read from their files for every epoch."""

    of_clips: ClassVar[bool] = False    # a row is a face

    def __init__(self, dataset: Dataset, machine: Machine):
        super().__init__(dataset.split, dataset.split.faces["clip"].to_numpy(), machine)
        self.dataset = dataset
        self.usable = np.arange(len(dataset))

    def batches(self, network: PersonalityNetwork, batches: list[list[int]],
                epoch: int = 0) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Yield (rows, uint8 chips B x 3 x H x W on the device) for each batch of row numbers, whatever the network;
        rows of chips that cannot be read are left out."""
        self.dataset.epoch = epoch
        for chips, rows in chip_loader(self.dataset, batches, self.machine.num_workers, self.machine.device):
            yield rows.numpy(), send(chips, self.machine.device)


@dataclass
class ClipFeatures(Samples):
    """The features of each clip of a split, as a frozen backbone gives them, computed once (feature_cache.py).

    parts: arrays C x 2 x F, or StoredFeatures: the mean over the clip's faces, and one of its faces alone, seen from
    both sides. faces: int64 C, the number of faces in the mean; rows of clips without a readable face hold NaN.
    """
    of_clips: ClassVar[bool] = True     # a row is a clip
    parts: list[np.ndarray]
    faces: np.ndarray
    places: np.ndarray | None = None    # of the rows in the parts, one after the other; None: all of them
    fitted: dict = field(default_factory=dict)          # see loop.fit_frozen_parts
    _projected: tuple = (None, None)                    # a projection, and what it made of the rows

    def select(self, rows: np.ndarray) -> "ClipFeatures":
        """Return just these rows."""
        places = rows if self.places is None else self.places[rows]
        return ClipFeatures(self.split, self.clips[rows], self.machine, self.parts, self.faces[rows], places)

    @property
    def usable(self) -> np.ndarray:
        """The rows of the clips with a readable face."""
        return np.flatnonzero(self.faces > 0)

    def features(self, rows: np.ndarray, form: int = 0) -> torch.Tensor:
        """Return float32 B x F for row numbers. form 0: the clips' means, 1: one face alone."""
        rows = rows if self.places is None else self.places[rows]
        result = np.empty((len(rows), self.parts[0].shape[2]), dtype=np.float32)
        start = 0
        for part in self.parts:
            inside = (rows >= start) & (rows < start + len(part))
            result[inside] = part[rows[inside] - start, form]
            start += len(part)
        return torch.from_numpy(result)

    def projected(self, network: PersonalityNetwork) -> torch.Tensor:
        """Return what a network takes of every row, float32 C x 2 x W on the CPU: of the mean, of one face alone. It is
        kept for this projection, which does not change once it was fitted."""
        if self._projected[0] is not network.projection:
            self._projected = (network.projection, self._project(network))
        return self._projected[1]

    @torch.inference_mode(False)    # training must be able to use what was first made for scores
    @torch.no_grad()
    def _project(self, network):
        batches = [np.array(rows) for rows in BatchSampler(range(len(self)), 1024, drop_last=False)]
        return torch.stack([torch.cat([network.represent(self.features(rows, form).to(self.machine.device)).cpu()
                                       for rows in batches]) for form in (0, 1)], dim=1)

    def batches(self, network: PersonalityNetwork, batches: list[list[int]],
                epoch: int = 0) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Yield (rows, float32 B x 2 x W on the device: of the mean, of one face alone) for each batch of row numbers,
        projected for the network; the epoch changes nothing."""
        for batch in batches:
            yield np.asarray(batch), send(self.projected(network)[batch], self.machine.device)


def features_of_chips(network: PersonalityNetwork, chips: torch.Tensor, sides: torch.Tensor) -> torch.Tensor:
    """Return what the network's features_of_sides does, on any device, to which the network is moved."""
    return network.to(chips.device).features_of_sides(chips, sides)


def make_samples(network: PersonalityNetwork, dataset: Dataset, machine: Machine) -> FaceChips | ClipFeatures:
    """Return ClipFeatures of a dataset.FaceDataset if the backbone is frozen, else FaceChips."""
    if not network.frozen:
        return FaceChips(dataset, machine)
    parts, clips, faces = features_of_dataset(dataset, partial(features_of_chips, network), backbone_key(network),
                                              machine)
    return ClipFeatures(dataset.split, clips, machine, parts, faces)


@torch.inference_mode()
def score_rows(network: PersonalityNetwork, samples: FaceChips | ClipFeatures, alone: bool = False,
               title: str | None = None) -> np.ndarray:
    """Return float32 scores N x 5 in [0, 1] of the N rows of samples: clips or faces, as the samples have them.

    Rows that cannot be read are NaN. Faces are scored with their mirror images. alone: score one face of each clip
    instead of its mean. title: name of the progress bar; None: no bar.
    """
    network.eval()
    scores = np.full((len(samples), len(TRAITS)), np.nan, dtype=np.float32)
    batches = list(BatchSampler(samples.usable.tolist(), 256, drop_last=False))
    with progress_bar(total=len(samples.usable), desc=title, unit="row", disable=None if title else True) as bar:
        for rows, inputs in samples.batches(network, batches):
            if len(rows):
                of_rows = network(inputs[:, int(alone)]) if samples.of_clips else network.scores_of_faces(inputs)
                scores[rows] = of_rows.cpu().numpy()
            bar.update(len(rows))
    return scores
