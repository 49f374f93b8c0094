"""Made-up clips for measures of time and memory, which do not depend on what the numbers are."""
from pathlib import Path

import numpy as np
import pandas

from first_impressions.common.constants import DEFAULT_PREPROCESSING, TRAITS
from first_impressions.common.device import Machine
from first_impressions.data.splits import Split
from first_impressions.networks.face_resnet29 import FACE_VIEWS, FEATURES_PER_VIEW
from first_impressions.training.inputs import ClipRows
from first_impressions.training.samples import Samples

WIDTH = FEATURES_PER_VIEW * len(FACE_VIEWS)     # features of a face by dlib's network
BYTES_A_CLIP = 2 * (WIDTH + 1) * 2              # of float16, in a cache file of clip_rows.py
FACES_A_CLIP = 30
CLIPS_A_SPEAKER = 3
CHUNK = 1000    # clips at a time


def made_up_split(number_of_clips: int) -> Split:
    """Return a Split of clips with labels and speakers, and without faces: rows take their place."""
    clips = pandas.Index([f"{clip // CLIPS_A_SPEAKER}.{clip % CLIPS_A_SPEAKER}" for clip in range(number_of_clips)])
    scores = np.random.default_rng(0).uniform(0.2, 0.8, (number_of_clips, len(TRAITS)))
    return Split("made up", pandas.DataFrame(columns=["path", "clip"], dtype=str),
                 pandas.DataFrame(scores, index=clips, columns=list(TRAITS)),
                 pandas.Series([clip.split(".")[0] for clip in clips], index=clips), DEFAULT_PREPROCESSING)


def write_rows(values: np.ndarray) -> None:
    """Fill an array C x 2 x (WIDTH + 1) with rows as clip_rows.py keeps them; clips of one speaker are alike."""
    generator = np.random.default_rng(0)
    directions = generator.standard_normal((40, WIDTH), np.float32) / 6
    for start in range(0, len(values), CHUNK):
        some = values[start:start + CHUNK]
        speakers = np.arange(start, start + len(some)) // CLIPS_A_SPEAKER
        places = np.stack([np.random.default_rng([1, speaker]).standard_normal(40, np.float32) for speaker in speakers])
        noise = generator.standard_normal((len(some), 2, WIDTH), np.float32)
        some[:, :, :-1] = (places @ directions)[:, None] + 0.5 * noise
        some[:, :, -1] = FACES_A_CLIP, 1


def made_up_samples(number_of_clips: int, machine: Machine, path: Path | None = None) -> Samples:
    """Return clips and their rows, in memory or, with a path, in a file that is mapped into memory."""
    shape = (number_of_clips, 2, WIDTH + 1)
    if path is None:
        values = np.empty(shape, np.float16)
        write_rows(values)
    else:
        values = np.load(path, mmap_mode="r")
    split = made_up_split(number_of_clips)
    source = ClipRows([values[:, :, :-1]], split.labels.index.to_numpy(), values[:, 0, -1].astype(np.int64), machine)
    return Samples(split, source)


def write_file(number_of_clips: int, path: Path) -> None:
    """Write the rows to a file as clip_rows.py does, without holding them in memory."""
    values = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=(number_of_clips, 2, WIDTH + 1))
    write_rows(values)
    values.flush()
