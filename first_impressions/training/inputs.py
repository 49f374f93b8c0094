"""What training and evaluation read of a split: single face chips, or one row of features for each clip.

FaceChips reads chips for a backbone that is trained. ClipRows holds what a frozen backbone sees of each clip, computed
once: the mean of the features of all its faces and of their mirror images, and those of one face alone. Both have
len(), usable, clips and batches(), which yields inputs for the network.

feature_cache.py computes the rows.
"""
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch.utils.data import Dataset

from first_impressions.common.command_line import progress_bar
from first_impressions.common.constants import TRAITS
from first_impressions.common.device import Machine, send
from first_impressions.data.chips import chip_loader, row_batches
from first_impressions.networks.network import PersonalityNetwork, backbone_key
from first_impressions.training.feature_cache import features_of_dataset
from first_impressions.training.settings import Settings

# A function of a bool array B, True where another form of that row is wanted: the mirror image of a chip, the one face
# alone of a clip. It returns inputs of the network on its device, uint8 B x 3 x H x W or float32 B x F.
Inputs = Callable[[np.ndarray], torch.Tensor]


class FaceChips:
    """The face chips of a dataset.FaceDataset, read from their files for every epoch."""

    of_clips: ClassVar[bool] = False    # a row is a face

    def __init__(self, dataset: Dataset, machine: Machine):
        self.dataset = dataset
        self.machine = machine
        self.clips = dataset.split.faces["clip"].to_numpy()
        self.usable = np.arange(len(self.dataset))

    def __len__(self) -> int:
        return len(self.dataset)

    def prepare(self, network: PersonalityNetwork) -> None:
        """Chips go to the network as they are."""

    def part_of_other_form(self, settings: Settings) -> float:
        """Return the part of the chips that are mirrored in training."""
        return 0.5 if settings.hflip else 0.0

    def scores(self, network: PersonalityNetwork, inputs: Inputs, number: int, alone: bool) -> torch.Tensor:
        """Return the scores of a batch, each of a chip and its mirror image; alone changes nothing."""
        return network.scores_of_faces(inputs(np.zeros(number, dtype=bool)))

    def batches(self, batches: list[list[int]], epoch: int = 0) -> Iterator[tuple[np.ndarray, Inputs]]:
        """Yield (rows, inputs) for each batch of row numbers; rows of chips that cannot be read are left out."""
        self.dataset.epoch = epoch
        for chips, rows in chip_loader(self.dataset, batches, self.machine.num_workers, self.machine.device):
            yield rows.numpy(), self._flips_of(send(chips, self.machine.device))

    @staticmethod
    def _flips_of(chips):
        def inputs(hflip):
            if hflip.all() or not hflip.any():
                return chips.flip(-1) if hflip.any() else chips
            return torch.where(torch.from_numpy(hflip).to(chips.device).view(-1, 1, 1, 1), chips.flip(-1), chips)
        return inputs


@dataclass
class ClipRows:
    """One row for each clip of a split, as a frozen backbone gives it.

    parts: arrays C x 2 x F, or StoredFeatures: the mean over the clip's faces, and one of its faces alone, each the
    mean of the picture and its mirror image. faces: int64 C, the number of faces in the mean; rows of clips without a
    readable face hold NaN. projected: what prepare() made of them.
    """
    of_clips: ClassVar[bool] = True     # a row is a clip
    parts: list[np.ndarray]
    clips: np.ndarray
    faces: np.ndarray
    machine: Machine
    places: np.ndarray | None = None    # of the rows in the parts, one after the other; None: all of them
    projected: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.clips)

    def part_of_other_form(self, settings: Settings) -> float:
        """Return the part of the clips of which one face alone is seen in training."""
        return settings.one_face

    def scores(self, network: PersonalityNetwork, inputs: Inputs, number: int, alone: bool) -> torch.Tensor:
        """Return the scores of a batch, of the clips' means or of one face alone."""
        return network(inputs(np.full(number, alone)))

    def select(self, rows: np.ndarray) -> "ClipRows":
        """Return the source of just these rows."""
        places = rows if self.places is None else self.places[rows]
        return ClipRows(self.parts, self.clips[rows], self.faces[rows], self.machine, places)

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

    @torch.no_grad()
    def prepare(self, network: PersonalityNetwork) -> None:
        """Compute what the network takes of every row, float32 C x 2 x W, kept in memory."""
        self.projected = None
        for rows in row_batches(len(self), 1024):
            for form in (0, 1):
                features = self.features(np.array(rows), form).to(self.machine.device)
                projected = network.represent(features).cpu()
                if self.projected is None:
                    self.projected = torch.empty(len(self), 2, projected.shape[1])
                self.projected[rows[0]:rows[-1] + 1, form] = projected

    def batches(self, batches: list[list[int]], epoch: int = 0) -> Iterator[tuple[np.ndarray, Inputs]]:
        """Yield (rows, inputs) for each batch of row numbers, projected; the epoch changes nothing."""
        for batch in batches:
            rows = np.asarray(batch)
            yield rows, self._rows_of(rows)

    def _rows_of(self, rows):
        def inputs(alone):
            return send(self.projected[rows, alone.astype(np.int64)], self.machine.device)
        return inputs


def features_of_chips(network: PersonalityNetwork, chips: torch.Tensor) -> torch.Tensor:
    """Return the features B x F of uint8 chips B x 3 x H x W on any device, to which the network is moved."""
    return network.to(chips.device).features(chips)


def make_source(network: PersonalityNetwork, dataset: Dataset, machine: Machine) -> FaceChips | ClipRows:
    """Return ClipRows of a dataset.FaceDataset if the backbone is frozen and no augmentation needs pictures, else
    FaceChips."""
    if network.frozen and dataset.transform is None:
        backbone = partial(features_of_chips, network)
        return ClipRows(*features_of_dataset(dataset, backbone, backbone_key(network), machine), machine)
    return FaceChips(dataset, machine)


# ---------------------------------------------------------------- scores

@torch.inference_mode()
def score_rows(network: PersonalityNetwork, source: FaceChips | ClipRows, alone: bool = False, batch_size: int = 256,
               title: str | None = None) -> np.ndarray:
    """Return float32 scores N x 5 in [0, 1] of the N rows of a source: clips or faces, as the source has them.

    Rows that cannot be read are NaN. alone: score one face of each clip instead of its mean. title: name of the
    progress bar; None: no bar.
    """
    network.eval()
    scores = np.full((len(source), len(TRAITS)), np.nan, dtype=np.float32)
    batches = [source.usable[batch].tolist() for batch in row_batches(len(source.usable), batch_size)]
    with progress_bar(total=len(source.usable), desc=title, unit="row", disable=None if title else True) as bar:
        for rows, inputs in source.batches(batches):
            if len(rows):
                scores[rows] = source.scores(network, inputs, len(rows), alone).cpu().numpy()
            bar.update(len(rows))
    return scores
