"""Clip-level features of a frozen backbone, computed once and cached on disk.

Each faces folder has one SQLite file per backbone in <split>/features/, with one record per clip: the mean of the
features of its faces (seen as network.sides_of_clip says), the features of one face and its mirror image, the number of
faces and a stamp of the face files. Any split or selection of clips reads from it, and only clips that are new or whose
faces changed are computed. Deleting the file costs only time. With a Ray cluster the faces are computed there, and only
records come back; all machines must then see the data folder under one path.

SQLite rather than LMDB, HDF5 or zarr: it comes with every Python, a kill at any moment leaves the last commit whole,
and several processes may read while one writes, which LMDB does not do on network disks.
"""
import contextlib
import errno
import hashlib
import os
import sqlite3
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas
import torch
from filelock import FileLock
from torch.utils.data import BatchSampler, Dataset

from first_impressions.common.command_line import UserError, counted, printable, progress_bar
from first_impressions.common.device import Machine, pick_device, send
from first_impressions.data.chips import chip_loader
from first_impressions.data.splits import Split, stamp_of_files
from first_impressions.networks.network import ALTERNATING, sides_of_clip

BATCH_SIZE = 32         # on a CPU 7 % faster than 64
SECONDS_BETWEEN_COMMITS = 3.0
SECONDS_TO_WAIT = 60.0  # while another process commits
FACES_A_TASK = 2000     # of a Ray cluster
PAGE = 8192             # bytes; a record of dlib's network in float16 fills four pages and a bit, 34 KB
TABLE = f"""PRAGMA page_size = {PAGE};
PRAGMA mmap_size = 2147418112;
CREATE TABLE IF NOT EXISTS clips (clip BLOB PRIMARY KEY, stamp TEXT, faces INTEGER, mean BLOB, alone BLOB)"""
FORMS = ("mean", "alone")


def features_of_dataset(dataset: Dataset, backbone: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], key: str,
                        machine: Machine, batch_size: int = BATCH_SIZE) -> tuple[list, np.ndarray, np.ndarray]:
    """Return (parts, clips, faces) of the clips with faces of a dataset.FaceDataset, from the disk if they are there.

    parts: one per faces folder, StoredFeatures or with machine.cache "off" an array C x 2 x F: part[rows, form] are
    features. clips: their names. faces: int64, the number of faces in each mean; 0: none can be read, the features are
    NaN. backbone: maps uint8 chips B x 3 x H x W and their weights of sides_of_clip, B x 2, to features B x F; with
    machine.ray_address it can be pickled. key: text that names everything the features depend on besides the faces
    (architecture, weights, input). batch_size: faces that go through the backbone at once. Raises OSError if the disk
    is full, UserError if no Ray cluster answers.
    """
    # Faces of several splits (final training) are cached where each split lies, and so shared with the search.
    split = dataset.split
    folders = split.faces["path"].map(_feature_folder)
    parts, clips, faces = [], [], []
    for folder in folders.unique():
        of_folder = split.faces[folders == folder].sort_values("clip", kind="stable")
        job = _Job(replace(split, faces=of_folder), type(dataset), backbone, machine, batch_size)
        part, numbers = _in_memory(job) if machine.cache == "off" else _stored(Path(folder), job, key)
        parts.append(part)
        faces.append(numbers)
        clips.append(job.clips)
    return parts, np.concatenate(clips), np.concatenate(faces)


@dataclass
class _Job:
    """The faces of a split, sorted by clip, whose features are to be computed."""
    split: Split
    dataset_of: Callable[[Split], Dataset]
    backbone: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    machine: Machine
    batch_size: int

    def __post_init__(self):
        self.codes, clips = pandas.factorize(self.split.faces["clip"])
        self.clips = clips.to_numpy()
        self.first_face = np.searchsorted(self.codes, np.arange(len(self.clips) + 1))
        self.sides = torch.cat([sides_of_clip(number) for number in (*np.diff(self.first_face).tolist(), 0)])


def names_and_stamps(faces: pandas.DataFrame) -> list[tuple[bytes, str]]:
    """Return (name, stamp) of each clip of face files that are sorted by clip; any change of them changes the stamp."""
    return [(os.fsencode(clip), stamp_of_files(files)) for clip, files in faces.groupby("clip", sort=False)["path"]]


def _feature_folder(path):
    head, mark, _ = path.rpartition(os.sep + "faces" + os.sep)
    return os.path.join(head if mark else os.path.dirname(path), "features")


def _in_memory(job):
    records = list(_records(job))
    missing = np.full(max((len(mean) for faces, mean, _ in records if faces), default=0), np.nan, dtype=np.float32)
    values = np.array([(mean, alone) if faces else (missing, missing) for faces, mean, alone in records])
    return values, np.array([faces for faces, *_ in records], dtype=np.int64)


def _stored(folder, job, key):
    """Return (StoredFeatures of the job's clips, numbers of faces). Computes what is missing."""
    text = f"{key}, chips of {job.split.preprocessing['size']} px, alternating from {ALTERNATING} faces"
    path = folder / f"{key.split()[0]}_{job.machine.cache}_{hashlib.sha256(text.encode()).hexdigest()[:16]}.sqlite"
    folder.mkdir(parents=True, exist_ok=True)
    stored, wanted = StoredFeatures(path, job.machine.cache), names_and_stamps(job.split.faces)
    if not stored.find(wanted).all():
        with FileLock(path.with_suffix(".lock")):   # one process computes, the others wait and find it done
            missing = np.flatnonzero(~stored.find(wanted, mend=True))
            faces = job.split.faces[np.isin(job.codes, missing)]
            stored.fill(replace(job, split=replace(job.split, faces=faces)), [wanted[row] for row in missing])
        stored.find(wanted)
    return stored, stored.faces


class StoredFeatures:
    """The features of some clips in a file. Like an array C x 2 x F of one type: stored[rows, form] reads int rows of
    form 0, the means, or 1, one face alone; rows of clips without a readable face are NaN."""

    def __init__(self, path: Path, dtype: str):
        self.path, self.dtype, self.width = path, np.dtype(dtype), 0
        self.places = self.faces = np.empty(0, dtype=np.int64)

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.places), len(FORMS), self.width

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: tuple[np.ndarray, int]) -> np.ndarray:
        rows, form = index
        query = f"SELECT {FORMS[form]} FROM clips WHERE rowid = ?"
        result = np.empty((len(rows), self.width), dtype=self.dtype)
        with self._database() as database:
            for row, place in zip(result, self.places[rows].tolist()):
                found = database.execute(query, (place,)).fetchone()
                if found is None:
                    raise UserError(f"{self.path}: another run has computed changed faces meanwhile; run again")
                row[:] = np.nan if found[0] is None else np.frombuffer(found[0], self.dtype)
        return result

    @contextlib.contextmanager
    def _database(self):
        """Open the file for one transaction: a connection must not pass to other threads or forked processes."""
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=SECONDS_TO_WAIT)) as database:
                database.executescript(TABLE)
                with database:
                    database.execute("BEGIN")
                    yield database
        except sqlite3.OperationalError as error:
            if "disk is full" in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path)) from None
            # No permission, or no locks.
            raise UserError(f"{self.path}: {error}; --cache off keeps no features") from None

    def find(self, wanted: list[tuple[bytes, str]], mend: bool = False) -> np.ndarray:
        """Look for the records of clips, (name, stamp) each, and keep where they are; return bool C, True for found.
        mend: delete a damaged file. No other process may then be writing."""
        found = [(-1, 0, 0)] * len(wanted)
        try:
            with self._database() as database:
                pages = database.execute("PRAGMA page_count").fetchone()[0]
                if self.path.stat().st_size < pages * PAGE:
                    raise sqlite3.DatabaseError("truncated")
                found = [database.execute("SELECT rowid, faces, length(mean) FROM clips WHERE clip = ? AND stamp = ?",
                                          pair).fetchone() or (-1, 0, 0) for pair in wanted]
        except sqlite3.DatabaseError:
            if mend:
                self.path.unlink()
        self.places, self.faces = np.array([row[:2] for row in found], dtype=np.int64).reshape(-1, 2).T
        self.width = max((row[2] or 0 for row in found), default=0) // self.dtype.itemsize
        return self.places >= 0

    def fill(self, job: _Job, names: list[tuple[bytes, str]]) -> None:
        """Compute and write the features of a job's clips. Killed at any moment, it loses the last seconds alone."""
        waiting, written = [], time.monotonic()
        try:
            for name, (faces, *features) in zip(names, _records(job)):
                features = [None if some is None else some.astype(self.dtype).tobytes() for some in features]
                waiting.append((*name, faces, *features))
                if time.monotonic() - written > SECONDS_BETWEEN_COMMITS:
                    self.write(waiting)
                    waiting, written = [], time.monotonic()
        finally:
            self.write(waiting)

    def write(self, rows: list[tuple[bytes, str, int, bytes | None, bytes | None]]) -> None:
        """Write records in one transaction: (name, stamp, number of faces, mean, one face alone) each."""
        with self._database() as database:
            database.executemany("INSERT OR REPLACE INTO clips VALUES (?, ?, ?, ?, ?)", rows)


def _records(job) -> Iterator[tuple[int, np.ndarray | None, np.ndarray | None]]:
    """Yield (number of faces, their mean, one face alone) of each clip, float32 F, or None if no face can be read."""
    records = _records_by_ray(job) if job.machine.ray_address else _records_here(job)
    with progress_bar(total=len(job.codes), desc=f"features of {job.split.name}", unit="face") as bar, \
            contextlib.closing(records):
        for record, faces in zip(records, np.diff(job.first_face).tolist()):
            yield record
            bar.update(faces)


@torch.inference_mode()
def _records_here(job):
    open_clips, first_open = {}, 0     # clips of which more faces may come
    middle = (job.first_face[:-1] + job.first_face[1:]) // 2
    dataset = job.dataset_of(replace(job.split, faces=job.split.faces.reset_index(drop=True)))
    batches = list(BatchSampler(range(len(dataset)), job.batch_size, drop_last=False))
    loader = chip_loader(dataset, batches, job.machine.num_workers, job.machine.device)
    for batch, (chips, rows) in zip(batches, loader):
        seen = (send(some, job.machine.device) for some in (chips, job.sides[rows]))
        features = job.backbone(*seen).float().cpu().numpy() if len(rows) else ()
        for row, feature in zip(rows.tolist(), features):
            code = job.codes[row]
            total, faces, alone = open_clips.get(code, (0.0, 0, feature))
            # The face in the middle of the clip stands for one face alone; if it cannot be read, one before it.
            open_clips[code] = total + feature.astype(np.float64), faces + 1, feature if row <= middle[code] else alone
        complete = job.codes[batch[-1] + 1] if batch[-1] + 1 < len(job.codes) else len(job.clips)
        for code in range(first_open, complete):
            total, faces, alone = open_clips.pop(code, (None, 0, None))
            yield faces, (total / faces).astype(np.float32) if faces else None, alone
        first_open = complete


def _records_in_task(job, backbone):
    """Return the records of a job, computed by the machine that this Ray task runs on."""
    machine = replace(job.machine, device=pick_device(job.machine.wanted), num_workers=0)
    return list(_records_here(replace(job, backbone=backbone, machine=machine)))


def _records_by_ray(job):
    """Yield the records of a job, computed on the cluster. Names clips whose faces could not all be read."""
    from first_impressions.common.ray_cluster import start_ray  # before ray; without a cluster neither is needed

    start_ray(job.machine.ray_address)
    import ray

    try:
        gpus = int(ray.cluster_resources().get("GPU", 0) > 0 and job.machine.wanted != "cpu")
        task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=3)(_records_in_task)
        backbone, tasks = ray.put(job.backbone), deque()
        for _, faces in job.split.faces.groupby(job.first_face[job.codes] // FACES_A_TASK):     # whole clips
            # Without the labels and speakers, which the features do not need.
            split = replace(job.split, faces=faces.assign(path=faces["path"].map(os.path.abspath)),
                            labels=job.split.labels.iloc[:0], speakers=job.split.speakers.iloc[:0])
            part = replace(job, split=split, backbone=None)
            tasks.append((part, task.remote(part, backbone)))
        while tasks:
            part, reference = tasks.popleft()
            records = ray.get(reference)
            for clip, record, faces in zip(part.clips, records, np.diff(part.first_face).tolist()):
                if record[0] < faces:
                    print(f"warning: left out {counted(faces - record[0], 'face')} of {printable(clip)}, unreadable; "
                          "delete them and make the faces again", file=sys.stderr)
                yield record
    except ray.exceptions.RayError as error:
        reason = (str(getattr(error, "cause", None) or error).strip().splitlines() or [type(error).__name__])[-1]
        folder = os.path.dirname(job.split.faces["path"].iloc[0])
        raise UserError(f"features on the Ray cluster: {printable(reason)}; do all its machines see {folder}? Run "
                        "again: what is done is kept") from None
    finally:
        ray.shutdown()
