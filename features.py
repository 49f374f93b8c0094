"""What training and evaluation read of a split: face chips, or the cached features of a frozen backbone.

FaceChips and CachedFeatures have the same two things: usable, the rows that can be read, and batches(), which yields
inputs for the network. A frozen backbone sees every chip once: its features, of the picture and of its mirror image, are
kept in <split>/features/, one cache file for each faces folder.
"""
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from command_line import progress_bar

import numpy as np
import pandas
import torch
from filelock import FileLock

from dataset import FaceDataset, Split, chip_loader, row_batches, stamp_of_files
from device import Machine
from labels import TRAITS
from model_architectures import PersonalityNetwork, backbone_key

# A function of a bool array B: True takes the mirror image of that row. It returns inputs of the network on its device,
# uint8 B x 3 x H x W or float32 B x F.
Inputs = Callable[[np.ndarray], torch.Tensor]
CACHE_BATCH_SIZE = 64


class FaceChips:
    """The face chips of a split, read from their files for every epoch.

    augment: strength of crops, colour and erasing, 0 to 1; what is random depends on seed, epoch and row.
    """

    def __init__(self, split: Split, machine: Machine, augment: float = 0.0, seed: int = 0):
        self.dataset = FaceDataset(split, augment, seed)
        self.machine = machine
        self.usable = np.arange(len(self.dataset))

    def __len__(self) -> int:
        return len(self.dataset)

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


class CachedFeatures:
    """Features of every face of a split, as a frozen backbone gives them, and of the faces' mirror images.

    parts: memory maps 2 x N x F (first the picture, then its mirror image), whose pages all processes of a machine share.
    usable: the rows of chips that could be read; the others hold NaN.
    """

    def __init__(self, parts: list[np.ndarray], machine: Machine):
        self.parts = parts
        self.machine = machine
        self.starts = np.cumsum([0] + [part.shape[1] for part in parts])
        self.usable = np.flatnonzero(~np.concatenate([np.isnan(part[0, :, 0]) for part in parts]))

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def width(self) -> int:
        """The number F of features of a face."""
        return self.parts[0].shape[2]

    def rows(self, rows: np.ndarray, hflip: np.ndarray) -> torch.Tensor:
        """Return float32 B x F for int64 rows and bool hflip (both of length B)."""
        result = np.empty((len(rows), self.width), dtype=np.float32)
        for part, start, end in zip(self.parts, self.starts[:-1], self.starts[1:]):
            inside = (rows >= start) & (rows < end)
            result[inside] = part[hflip[inside].astype(np.int64), rows[inside] - start]
        return torch.from_numpy(result)

    def batches(self, batches: list[list[int]], epoch: int = 0) -> Iterator[tuple[np.ndarray, Inputs]]:
        """Yield (rows, inputs) for each batch of row numbers; the epoch changes nothing."""
        for batch in batches:
            rows = np.asarray(batch)
            yield rows, lambda hflip, rows=rows: self.rows(rows, hflip).to(self.machine.device, non_blocking=True)


def make_source(network: PersonalityNetwork, split: Split, machine: Machine, augment: float = 0.0,
                seed: int = 0) -> FaceChips | CachedFeatures:
    """Return CachedFeatures where the backbone is frozen and no augmentation needs pictures, else FaceChips."""
    if network.frozen and machine.cache != "off" and not augment:
        return cached_features(split, network.features, backbone_key(network), machine)
    return FaceChips(split, machine, augment, seed)


# ---------------------------------------------------------------- scores

def score_both(network: PersonalityNetwork, inputs: Inputs, number: int) -> torch.Tensor:
    """Return scores N x 5 of a batch, each of the picture and its mirror image together."""
    hflip = np.ones(number, dtype=bool)
    return network.scores_of_both(inputs(~hflip), inputs(hflip))


def score_chips(network: PersonalityNetwork, chips: torch.Tensor) -> torch.Tensor:
    """Return scores B x 5 of uint8 chips B x 3 x H x W, each of the picture and its mirror image together."""
    return network.scores_of_both(chips, chips.flip(-1))


@torch.inference_mode()
def score_faces(network: PersonalityNetwork, source: FaceChips | CachedFeatures, batch_size: int = 256,
                title: str | None = None) -> np.ndarray:
    """Return float32 scores N x 5 in [0, 1] of N faces, each of the picture and its mirror image together.

    Rows of chips that cannot be read are NaN. title: name of the progress bar; None: no bar.
    """
    network.eval()
    scores = np.full((len(source), len(TRAITS)), np.nan, dtype=np.float32)
    with progress_bar(total=len(source), desc=title, unit="face", disable=None if title else True) as bar:
        for rows, inputs in source.batches(row_batches(len(source), batch_size)):
            if len(rows):
                scores[rows] = score_both(network, inputs, len(rows)).cpu().numpy()
            bar.update(len(rows))
    return scores


# ---------------------------------------------------------------- the cache

def cached_features(split: Split, backbone: Callable[[torch.Tensor], torch.Tensor], key: str,
                    machine: Machine) -> CachedFeatures:
    """Return the features of a split, from the disk where they were made before.

    backbone: maps uint8 chips B x 3 x H x W to features B x F. key: text that names everything the features depend on
    besides the faces (architecture, weights, input). Each faces folder has one cache file in <split>/features/. Its name
    is a digest of the key and of the name, size and time of every face, so another backbone or another face makes another
    file. Deleting the folder costs only time.
    """
    # Faces of several splits (final training) are cached where each split lies, and so shared with the search.
    folders = split.faces["path"].map(_feature_folder)
    return CachedFeatures([_features_of_folder(Path(folder), split, split.faces[folders == folder], backbone, key, machine)
                           for folder in folders.unique()], machine)


def _feature_folder(path):
    head, mark, _ = path.rpartition(os.sep + "faces" + os.sep)
    return os.path.join(head if mark else os.path.dirname(path), "features")


def _features_of_folder(folder, split, faces, backbone, key, machine):
    description = {"network": key, "dtype": machine.cache, "preprocessing": split.preprocessing, "faces": len(faces),
                   "files": stamp_of_files(faces["path"])}
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:20]
    path = folder / f"{key.split()[0]}_{digest}.npy"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{digest}.lock"):
        if not _is_whole(path, len(faces), machine.cache):
            _write_features(path, split, faces, backbone, machine)
            path.with_suffix(".json").write_text(json.dumps(description, indent=2))
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _is_whole(path, number_of_faces, dtype):
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return False
    return values.ndim == 3 and values.shape[:2] == (2, number_of_faces) and values.dtype == dtype


def _new_memory_map(path, dtype, shape):
    """Return a new .npy file as a writable memory map for which the disk has set aside all the room it needs: writing to a
    memory map on a full disk kills the process without a word. Raises OSError, and leaves no file, where there is no room."""
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
def _write_features(path, split, faces: pandas.DataFrame, backbone, machine):
    of_folder = Split(split.name, faces.reset_index(drop=True), split.labels, split.speakers, split.preprocessing)
    partial, progress = path.with_suffix(".partial"), path.with_suffix(".progress")
    done, values = 0, None
    if _is_whole(partial, len(faces), machine.cache) and progress.exists():
        # An interrupted run goes on where its last flush ended.
        text = progress.read_text()
        done = min(int(text), len(faces)) if text.isdecimal() else 0
        values = np.lib.format.open_memmap(partial, mode="r+")
    batches = [[row + done for row in rows] for rows in row_batches(len(faces) - done, CACHE_BATCH_SIZE)]
    loader = chip_loader(FaceDataset(of_folder), batches, machine.num_workers, machine.device)
    with progress_bar(total=len(faces), initial=done, desc=f"features of {split.name}", unit="face") as bar:
        for number, (chips, rows) in enumerate(loader):
            chips = chips.to(machine.device, non_blocking=True)
            both = backbone(torch.cat([chips, chips.flip(-1)])).cpu().numpy()
            if values is None:
                values = _new_memory_map(partial, machine.cache, (2, len(faces), both.shape[1]))
            values[:, batches[number]] = np.nan
            values[:, rows.numpy()] = both.reshape(2, len(rows), both.shape[1])
            bar.update(len(batches[number]))
            if number % 50 == 49:
                values.flush()
                progress.write_text(str(batches[number][-1] + 1))
    values.flush()
    del values
    os.replace(partial, path)
    progress.unlink(missing_ok=True)
