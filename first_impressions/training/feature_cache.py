"""The rows of clips that a frozen backbone's features become, computed once and kept on disk.

A row is the mean of the features of all faces of a clip, and beside it the features of one face alone. Each faces
folder has one cache file of rows in <split>/features/; deleting it costs only time. With a Ray cluster the faces are
computed there, and only rows come back; all machines must then see the data folder under one path.
"""
import contextlib
import hashlib
import json
import os
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas
import torch
from filelock import FileLock
from torch.utils.data import Dataset

from first_impressions.common.command_line import UserError, counted, printable, progress_bar
from first_impressions.common.device import Machine, pick_device
from first_impressions.data.chips import chip_loader, row_batches
from first_impressions.data.splits import Split, stamp_of_files

BATCH_SIZE = 64
BATCHES_BETWEEN_FLUSHES = 50
FACES_A_TASK = 2000     # of a Ray cluster
MOST_FACES = 2048       # of a clip that are counted: float16 knows whole numbers up to here


def rows_of_dataset(dataset: Dataset, backbone: Callable[[torch.Tensor], torch.Tensor], key: str, machine: Machine,
                    batch_size: int = BATCH_SIZE) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Return (parts, clips, faces) of the clips with faces of a dataset.FaceDataset, from the disk if they are there.

    parts: arrays C x 2 x F, mostly memory maps, one for each faces folder; clips: names of all rows; faces: int64, the
    number of faces in each mean (0: none can be read, the row is NaN). backbone: maps uint8 chips B x 3 x H x W to
    features B x F; with machine.ray_address it can be pickled. key: text that names everything the features depend on
    besides the faces (architecture, weights, input). The name of a cache file is a digest of the key and of the name,
    size and time of every face, so another backbone or another face makes another file. machine.cache "off": no file.
    batch_size: faces that go through the backbone at once.
    """
    # Faces of several splits (final training) are cached where each split lies, and so shared with the search.
    split = dataset.split
    folders = split.faces["path"].map(_feature_folder)
    parts, clips = [], []
    for folder in folders.unique():
        job = _Job(split, split.faces[folders == folder].sort_values("clip", kind="stable"), type(dataset), backbone,
                   machine, batch_size)
        parts.append(_rows_of_folder(Path(folder), job, key) if machine.cache != "off" else _compute_rows(job))
        clips.append(job.clips)
    faces = np.concatenate([part[:, 0, -1] for part in parts]).astype(np.int64)
    return [part[:, :, :-1] for part in parts], np.concatenate(clips), faces


@dataclass
class _Job:
    """The faces of one folder, sorted by clip, whose rows are to be computed."""
    split: Split
    faces: pandas.DataFrame
    dataset_of: Callable[[Split], Dataset]
    backbone: Callable[[torch.Tensor], torch.Tensor]
    machine: Machine
    batch_size: int

    def __post_init__(self):
        self.codes, clips = pandas.factorize(self.faces["clip"])
        self.clips = clips.to_numpy()
        self.first_face = np.searchsorted(self.codes, np.arange(len(self.clips) + 1))

    def of_clips(self, first: int, end: int) -> "_Job":
        """Return the job of some of the clips, one after the other."""
        return replace(self, faces=self.faces.iloc[self.first_face[first]:self.first_face[end]])


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


def _compute_rows(job, path=None):
    """Return the rows of a job, C x 2 x (F + 1), with the number of faces in the last column.

    With a path they are in a file of that name, where an interrupted run goes on after the last flush.
    """
    done, values, flushed = 0, None, 0
    progress = path.with_suffix(".progress") if path else None
    if path and _is_whole(path, len(job.clips), job.machine.cache) and progress.exists():
        text = progress.read_text()
        done = flushed = min(int(text), len(job.clips)) if text.isdecimal() else 0
        values = np.lib.format.open_memmap(path, mode="r+")
    blocks = _blocks_by_ray(job, done) if job.machine.ray_address else _blocks(job.of_clips(done, len(job.clips)))
    with progress_bar(total=len(job.faces), initial=int(job.first_face[done]), desc=f"features of {job.split.name}",
                      unit="face") as bar, contextlib.closing(blocks):
        for rows, faces in blocks:
            if values is None:
                values = _new_rows(path, job.machine.cache, (len(job.clips), *rows.shape[1:]))
            values[done:done + len(rows)] = rows
            done += len(rows)
            bar.update(faces)
            if path and job.first_face[done] - job.first_face[flushed] >= BATCHES_BETWEEN_FLUSHES * job.batch_size:
                values.flush()
                progress.write_text(str(done))
                flushed = done
    if path:
        values.flush()
    return values


@torch.inference_mode()
def _blocks(job):
    """Yield (rows of the next clips, faces read) for all clips of a job, in batches of faces."""
    open_clips, first_open = {}, 0     # clips of which more faces may come
    of_job = replace(job.split, faces=job.faces.reset_index(drop=True))
    batches = row_batches(len(job.faces), job.batch_size)
    loader = chip_loader(job.dataset_of(of_job), batches, job.machine.num_workers, job.machine.device)
    for batch, (chips, rows) in zip(batches, loader):
        features = job.backbone(chips.to(job.machine.device, non_blocking=True)).float().cpu().numpy()
        for row, feature in zip(rows.tolist(), features):
            _add_face(open_clips, job.codes[row], row, job.first_face, feature)
        complete = job.codes[batch[-1] + 1] if batch[-1] + 1 < len(job.codes) else len(job.clips)
        block = np.full((complete - first_open, 2, features.shape[1] + 1), np.nan, dtype=np.float32)
        for code in range(first_open, complete):
            _write_row(block, code - first_open, open_clips.pop(code, None))
        first_open = complete
        yield block, len(batch)


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
    values[code, :, -1] = min(clip.faces, MOST_FACES), 1


# ---------------------------------------------------------------- on a Ray cluster

def _rows_in_task(split, dataset_of, backbone, machine, batch_size):
    """Return the rows of some clips, computed by the machine that this Ray task runs on."""
    torch.set_num_threads(1)
    machine = replace(machine, device=pick_device(), num_workers=0)
    return np.concatenate([rows for rows, _ in _blocks(
        _Job(split, split.faces, dataset_of, backbone, machine, batch_size))])


def _blocks_by_ray(job, first):
    """Yield (rows of the next clips, faces) for the clips of a job from the first one on, computed on the cluster."""
    from first_impressions.common.ray_cluster import (  # before ray; without a cluster neither is needed
        SUITE_ENVIRONMENT,
        connect_to_ray,
    )

    connect_to_ray(job.machine.ray_address, logging_level="ERROR", runtime_env=SUITE_ENVIRONMENT)
    import ray

    try:
        resources = ray.cluster_resources()
        task = ray.remote(num_cpus=1, num_gpus=int(resources.get("GPU", 0) > 0), max_retries=3)(_rows_in_task)
        backbone, waiting = ray.put(job.backbone), deque()
        for start, end in _tasks(job, first):
            faces = job.of_clips(start, end).faces
            faces = faces.assign(path=faces["path"].map(os.path.abspath))
            # Without the labels and speakers, which the features do not need.
            part = replace(job.split, faces=faces, labels=job.split.labels.iloc[:0],
                           speakers=job.split.speakers.iloc[:0])
            waiting.append((start, end, task.remote(part, job.dataset_of, backbone, job.machine, job.batch_size)))
            if len(waiting) > 2 * resources.get("CPU", 1):
                yield _finished(job, *waiting.popleft(), ray)
        while waiting:
            yield _finished(job, *waiting.popleft(), ray)
    finally:
        ray.shutdown()


def _finished(job, start, end, reference, ray):
    """Wait for a task; return (its rows, number of its faces). Names clips whose faces could not all be read."""
    try:
        rows = ray.get(reference)
    except ray.exceptions.RayError as error:
        reason = (str(getattr(error, "cause", None) or error).strip().splitlines() or [type(error).__name__])[-1]
        raise UserError(f"features on the Ray cluster: {printable(reason)}; do all its machines see "
                        f"{os.path.dirname(job.faces['path'].iloc[0])}? Run again: what is done is kept") from None
    for number, row in zip(range(start, end), rows):
        faces = int(job.first_face[number + 1] - job.first_face[number])
        if row[0, -1] < min(faces, MOST_FACES):
            print(f"warning: left out {counted(faces - int(row[0, -1]), 'face')} of {printable(job.clips[number])}, "
                  "unreadable; delete them and make the faces again", file=sys.stderr)
    return rows, int(job.first_face[end] - job.first_face[start])


def _tasks(job, first):
    """Yield (first clip, end) of the tasks: whole clips with about FACES_A_TASK faces together."""
    while first < len(job.clips):
        end = int(np.searchsorted(job.first_face, job.first_face[first] + FACES_A_TASK))
        end = min(max(end, first + 1), len(job.clips))
        yield first, end
        first = end
