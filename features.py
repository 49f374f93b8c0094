"""What training and evaluation read of a split: single face chips, or one row of features for each clip.

FaceChips reads chips for a backbone that is trained. ClipRows holds what a frozen backbone sees of each clip, computed
once: the mean of the features of all its faces and of their mirror images, and those of one face alone. Both have
len(), usable, clips and batches(), which yields inputs for the network.

Each faces folder has one cache file of rows in <split>/features/; deleting it costs only time.
"""
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from command_line import progress_bar

import numpy as np
import pandas
import torch
from filelock import FileLock

from dataset import FaceDataset, Split, chip_loader, row_batches, stamp_of_files
from device import Machine
from labels import TRAITS
from model_architectures import PersonalityNetwork, backbone_key
from settings import Settings

# A function of a bool array B, True where another form of that row is wanted: the mirror image of a chip, the one face
# alone of a clip. It returns inputs of the network on its device, uint8 B x 3 x H x W or float32 B x F.
Inputs = Callable[[np.ndarray], torch.Tensor]
CACHE_BATCH_SIZE = 64
BATCHES_BETWEEN_FLUSHES = 50


class FaceChips:
    """The face chips of a split, read from their files for every epoch.

    augment: strength of crops, colour and erasing, 0 to 1; what is random depends on seed, epoch and row.
    """

    of_clips: ClassVar[bool] = False    # a row is a face

    def __init__(self, split: Split, machine: Machine, augment: float = 0.0, seed: int = 0):
        self.dataset = FaceDataset(split, augment, seed)
        self.machine = machine
        self.clips = split.faces["clip"].to_numpy()
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
        return network.scores_of_both(inputs(np.zeros(number, dtype=bool)))

    def batches(self, batches: list[list[int]], epoch: int = 0) -> Iterator[tuple[np.ndarray, Inputs]]:
        """Yield (rows, inputs) for each batch of row numbers; rows of chips that cannot be read are left out."""
        self.dataset.epoch = epoch
        for chips, rows in chip_loader(self.dataset, batches, self.machine.num_workers, self.machine.device):
            yield rows.numpy(), self._flips_of(chips.to(self.machine.device, non_blocking=True))

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

    parts: arrays C x 2 x F, mostly memory maps: the mean over the clip's faces, and one of its faces alone, each the
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
            return self.projected[rows, alone.astype(np.int64)].to(self.machine.device, non_blocking=True)
        return inputs


# ---------------------------------------------------------------- scores

@torch.inference_mode()
def score_clip(network: PersonalityNetwork, chips: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return (scores of the clip, 5, scores of each face, N x 5), float32 in [0, 1], of uint8 chips N x 3 x H x W.

    A frozen network scores the mean features of the faces; a trained one scores each face, and the mean is the clip's.
    """
    if network.frozen:
        features = torch.cat([network.features_of_both(some) for some in chips.split(CACHE_BATCH_SIZE)])
        scores = network(network.represent(torch.cat([features.mean(0, keepdim=True), features])))
        return scores[0].cpu().numpy(), scores[1:].cpu().numpy()
    scores = torch.cat([network.scores_of_both(some) for some in chips.split(CACHE_BATCH_SIZE)])
    scores = scores.cpu().numpy()
    return scores.mean(0), scores


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


# ---------------------------------------------------------------- rows of clips, computed once

def make_source(network: PersonalityNetwork, split: Split, machine: Machine, augment: float = 0.0,
                seed: int = 0) -> FaceChips | ClipRows:
    """Return ClipRows where the backbone is frozen and no augmentation needs pictures, else FaceChips."""
    if network.frozen and not augment:
        return clip_rows(split, network.features_of_both, backbone_key(network), machine)
    return FaceChips(split, machine, augment, seed)


def clip_rows(split: Split, backbone: Callable[[torch.Tensor], torch.Tensor], key: str, machine: Machine) -> ClipRows:
    """Return the rows of a split's clips that have faces, from the disk where they were made before.

    backbone: maps uint8 chips B x 3 x H x W to features B x F. key: text that names everything the features depend on
    besides the faces (architecture, weights, input). The name of a cache file is a digest of the key and of the name,
    size and time of every face, so another backbone or another face makes another file. machine.cache "off": no file.
    """
    # Faces of several splits (final training) are cached where each split lies, and so shared with the search.
    folders = split.faces["path"].map(_feature_folder)
    parts, clips = [], []
    for folder in folders.unique():
        job = _Job(split, split.faces[folders == folder].sort_values("clip", kind="stable"), backbone, machine)
        parts.append(_rows_of_folder(Path(folder), job, key) if machine.cache != "off" else _compute_rows(job))
        clips.append(job.clips)
    faces = np.concatenate([part[:, 0, -1] for part in parts]).astype(np.int64)
    return ClipRows([part[:, :, :-1] for part in parts], np.concatenate(clips), faces, machine)


@dataclass
class _Job:
    """The faces of one folder, sorted by clip, whose rows are to be computed."""
    split: Split
    faces: pandas.DataFrame
    backbone: Callable[[torch.Tensor], torch.Tensor]
    machine: Machine

    def __post_init__(self):
        self.codes, clips = pandas.factorize(self.faces["clip"])
        self.clips = clips.to_numpy()
        self.first_face = np.searchsorted(self.codes, np.arange(len(self.clips) + 1))


def _feature_folder(path):
    head, mark, _ = path.rpartition(os.sep + "faces" + os.sep)
    return os.path.join(head if mark else os.path.dirname(path), "features")


def _rows_of_folder(folder, job, key):
    dtype = job.machine.cache
    description = {"rows": "mean and one face of each clip", "network": key, "dtype": dtype,
                   "preprocessing": job.split.preprocessing, "clips": len(job.clips), "faces": len(job.faces),
                   "files": stamp_of_files(job.faces["path"])}
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:20]
    path = folder / f"{key.split()[0]}_{digest}.npy"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{digest}.lock"):
        if not _is_whole(path, len(job.clips), dtype):
            partial = path.with_suffix(".partial")
            _compute_rows(job, partial)
            os.replace(partial, path)
            path.with_suffix(".progress").unlink(missing_ok=True)
            path.with_suffix(".json").write_text(json.dumps(description, indent=2))
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _is_whole(path, number_of_clips, dtype):
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return values.ndim == 3 and values.shape[:2] == (number_of_clips, 2) and values.dtype == dtype


def _new_rows(path, dtype, shape):
    """Return a new array, with a path as a memory map for which the disk has set aside all the room it needs.

    Writing to a memory map on a full disk kills the process without a word. Raises OSError, and leaves no file, where
    there is no room.
    """
    if path is None:
        return np.zeros(shape, dtype=np.float32)
    try:
        values = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        if hasattr(os, "posix_fallocate"):
            with open(path, "r+b") as file:
                os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
        return values
    except OSError as error:
        path.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None


@torch.inference_mode()
def _compute_rows(job, path=None):
    """Return the rows of a job, C x 2 x (F + 1), with the number of faces in the last column.

    With a path they are in a file of that name, where an interrupted run goes on after the last flush.
    """
    done, values, open_clips = 0, None, {}  # clips in values; clips of which more faces may come
    progress = path.with_suffix(".progress") if path else None
    if path and _is_whole(path, len(job.clips), job.machine.cache) and progress.exists():
        text = progress.read_text()
        done = min(int(text), len(job.clips)) if text.isdecimal() else 0
        values = np.lib.format.open_memmap(path, mode="r+")
    faces = job.faces.iloc[job.first_face[done]:].reset_index(drop=True)
    codes = job.codes[job.first_face[done]:]
    of_folder = Split(job.split.name, faces, job.split.labels, job.split.speakers, job.split.preprocessing)
    batches, first_open = row_batches(len(faces), CACHE_BATCH_SIZE), done
    loader = chip_loader(FaceDataset(of_folder), batches, job.machine.num_workers, job.machine.device)
    with progress_bar(total=len(job.faces), initial=int(job.first_face[done]), desc=f"features of {job.split.name}",
                      unit="face") as bar:
        for number, (batch, (chips, rows)) in enumerate(zip(batches, loader)):
            features = job.backbone(chips.to(job.machine.device, non_blocking=True)).float().cpu().numpy()
            if values is None:
                values = _new_rows(path, job.machine.cache, (len(job.clips), 2, features.shape[1] + 1))
            for row, feature in zip(rows.tolist(), features):
                _add_face(open_clips, codes[row], job.first_face[done] + row, job.first_face, feature)
            complete = codes[batch[-1] + 1] if batch[-1] + 1 < len(codes) else len(job.clips)
            for code in range(first_open, complete):
                _write_row(values, code, open_clips.pop(code, None))
            first_open = complete
            bar.update(len(batch))
            if path and number % BATCHES_BETWEEN_FLUSHES == BATCHES_BETWEEN_FLUSHES - 1:
                values.flush()
                progress.write_text(str(first_open))
    if path:
        values.flush()
    return values


@dataclass
class _OpenClip:
    """What is known of a clip whose faces are not all computed yet."""
    total: np.ndarray
    faces: int
    alone: np.ndarray


def _add_face(open_clips, code, place, first_face, feature):
    clip = open_clips.get(code)
    if clip is None:
        open_clips[code] = _OpenClip(feature.astype(np.float64), 1, feature)
        return
    clip.total += feature
    clip.faces += 1
    # The face in the middle of the clip stands for one face alone; where it cannot be read, one before it.
    if place <= (first_face[code] + first_face[code + 1]) // 2:
        clip.alone = feature


def _write_row(values, code, clip):
    if clip is None:
        values[code] = np.nan
        values[code, :, -1] = 0
        return
    values[code, 0, :-1], values[code, 1, :-1] = clip.total / clip.faces, clip.alone
    values[code, :, -1] = min(clip.faces, 2048), 1  # float16 knows whole numbers up to 2,048
