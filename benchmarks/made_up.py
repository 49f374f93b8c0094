"""Made-up clips for measures of time and memory, which do not depend on what the numbers are."""
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas

from first_impressions.common.constants import DEFAULT_PREPROCESSING, TRAITS
from first_impressions.common.device import Machine
from first_impressions.data.labels import speakers_of
from first_impressions.data.splits import Split
from first_impressions.networks.face_resnet29 import FACE_VIEWS, FEATURES_PER_VIEW
from first_impressions.training.feature_cache import StoredFeatures
from first_impressions.training.inputs import ClipFeatures

WIDTH = FEATURES_PER_VIEW * len(FACE_VIEWS)     # features of a face by dlib's network
BYTES_A_CLIP = 34_000                           # of float16, in a file of feature_cache.py
FACES_A_CLIP = 30
CLIPS_A_SPEAKER = 3
CHUNK = 1000    # clips at a time


def with_made_up_labels(faces: pandas.DataFrame, clips: list[str]) -> Split:
    """Return a Split of the faces and clips, with labels."""
    scores = np.random.default_rng(0).uniform(0.2, 0.8, (len(clips), len(TRAITS)))
    return Split("train", faces, pandas.DataFrame(scores, index=clips, columns=list(TRAITS)),
                 pandas.Series(speakers_of(clips), index=clips), DEFAULT_PREPROCESSING)


def made_up_split(number_of_clips: int) -> Split:
    """Return a Split of clips with labels and speakers, and without faces: features take their place."""
    clips = [f"{clip // CLIPS_A_SPEAKER}.{clip % CLIPS_A_SPEAKER}" for clip in range(number_of_clips)]
    return with_made_up_labels(pandas.DataFrame(columns=["path", "clip"], dtype=str), clips)


def made_up_rows(number_of_clips: int) -> Iterator[np.ndarray]:
    """Yield features of clips, float16 B x 2 x WIDTH, as they are kept on disk; clips of one speaker are alike."""
    generator = np.random.default_rng(0)
    directions = generator.standard_normal((40, WIDTH), np.float32) / 6
    for start in range(0, number_of_clips, CHUNK):
        speakers = np.arange(start, min(start + CHUNK, number_of_clips)) // CLIPS_A_SPEAKER
        places = np.stack([np.random.default_rng([1, speaker]).standard_normal(40, np.float32) for speaker in speakers])
        noise = generator.standard_normal((len(speakers), 2, WIDTH), np.float32)
        yield ((places @ directions)[:, None] + 0.5 * noise).astype(np.float16)


def made_up_samples(number_of_clips: int, machine: Machine, path: Path | None = None) -> ClipFeatures:
    """Return clips and their features, in memory or, with a path, in the file that write_file made."""
    split = made_up_split(number_of_clips)
    if path is None:
        part = np.concatenate(list(made_up_rows(number_of_clips)))
    else:
        part = StoredFeatures(path, "float16")
        part.find(_names(split.labels.index))
    faces = np.full(number_of_clips, FACES_A_CLIP)
    return ClipFeatures(split, split.labels.index.to_numpy(), machine, [part], faces)


def write_file(number_of_clips: int, path: Path) -> None:
    """Write the features to a file as feature_cache.py does, without holding them in memory."""
    names, stored = iter(_names(made_up_split(number_of_clips).labels.index)), StoredFeatures(path, "float16")
    for rows in made_up_rows(number_of_clips):
        stored.write([(*next(names), FACES_A_CLIP, mean.tobytes(), alone.tobytes()) for mean, alone in rows])


def _names(clips):
    return [(clip.encode(), "made up") for clip in clips]
