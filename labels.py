"""Traits, the names of files and folders, and the readers of labels, scores and speakers.

A data folder holds data/{train,valid,test}/{videos,frames,faces} and, for each split, its labels: the challenge's own
annotation_*.pkl or a labels.csv with the columns clip and TRAITS. No code in a label file is ever run. Imports no
PyTorch, so the pre-processing starts at once.
"""
import json
import math
import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

from command_line import UserError

import numpy as np
import pandas

from annotation_pickle import read_annotation
from tables import SIZE_LIMIT, numbers_of, read_table

# The order of all scores, labels and columns.
TRAITS = ("openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism")

# ---------------------------------------------------------------- names of files and folders

SPLITS = ("train", "valid", "test")
ANNOTATION_FILES = {"train": "annotation_training.pkl", "valid": "annotation_validation.pkl",
                    "test": "annotation_test.pkl"}
LABEL_TABLE = "labels.csv"
# A frame is <clip>__frame_<index>.jpg, its face chip <clip>__frame_<index>_aligned.jpg.
FRAME_MARK = "__frame_"
FACE_MARK = "_aligned"
FACE_SIZE = 224     # pixels, width and height of a face chip
JPEG_QUALITY = 95   # of frames and face chips
NO_FACE = "no face found"
# Beside the frames and beside the faces: how they were made.
PREPROCESSING_FILE = "preprocessing.json"
# How the faces were cropped where no such file says so.
DEFAULT_PREPROCESSING = {"size": FACE_SIZE, "padding": 0.25}
# Endings of names that are taken for clips and for pictures, in folders and in tables of labels.
CLIP_SUFFIXES = frozenset("""
    .3g2 .3gp .amv .asf .avi .divx .dv .f4v .flv .gif .h264 .h265 .hevc .ivf .m2t .m2ts .m2v .m4v .mj2 .mjpeg .mjpg .mkv
    .mov .mp4 .mpe .mpeg .mpg .mts .mxf .nut .obu .ogm .ogv .qt .rm .rmvb .ts .vob .webm .wmv .y4m""".split())
PICTURE_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"])
# A ChaLearn clip is called <YouTube id>.<number>: the clips of one video show one speaker.
SPEAKER_REGEX = r"^(.+)\.\d+$"
SCORE_MARGIN = 0.5  # a prediction may be so far outside of [0, 1]; further means another scale


def frame_name(clip: str, index: int) -> str:
    """Return the name of a clip's frame, index counted from 0 in display order: `abc.000__frame_7.jpg`."""
    return f"{clip}{FRAME_MARK}{index}.jpg"


def face_name(frame_stem: str, number: int = 1) -> str:
    """Return the name of a frame's face chip, the number-th largest of the frame: `abc.000__frame_7_aligned_2.jpg`."""
    return f"{frame_stem}{FACE_MARK}{'' if number == 1 else f'_{number}'}.jpg"


def clip_of_face(name: str) -> str | None:
    """Return the clip that a face chip's file name says it is of, or None for a name that is no face chip's.

    The clip is what stands before the last `__frame_`, whatever the length of the name.
    """
    clip, mark, rest = name.rpartition(FRAME_MARK)
    if mark and clip and FACE_MARK in rest and name.lower().endswith(".jpg") and not name.startswith("."):
        return unicodedata.normalize("NFC", clip)  # as clip_name; macOS writes file names in NFD
    return None


# ---------------------------------------------------------------- labels and scores

def clip_name(text: object) -> str:
    """Return the clip's name without folder and video ending, in Unicode's form NFC: `x/abc.000.mp4` -> `abc.000`."""
    name = unicodedata.normalize("NFC", str(text)).strip().replace("\\", "/").rsplit("/", 1)[-1]
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in CLIP_SUFFIXES else name


def _named(names, places, path):
    """Return the clips' names; places: of each in the file. Raises UserError for one that is missing or there twice."""
    clips, first = [clip_name(name) for name in names], {}
    for clip, name, place in zip(clips, names, places):
        if not clip:
            raise UserError(f"{path}: {place} names no clip; name it or remove the line")
        if clip in first:
            raise UserError(f"{path}: the clip {clip} stands there twice, in {first[clip][0]} as {first[clip][1]} and "
                            f"in {place} as {name}; keep one, or rename the clip where these are two")
        first[clip] = place, name
    return pandas.Index(clips, name="clip", dtype=object)


def _score_table(path):
    table = read_table(path, ("clip", *TRAITS))
    if table.empty:
        raise UserError(f"{path}: holds no clip")
    clips = _named(table["clip"], [f"line {line}" for line in table.index], path)
    return numbers_of(table, TRAITS, path).set_axis(clips, axis=0).sort_index()


def _annotation_scores(path):
    content = read_annotation(path)
    missing = [trait for trait in TRAITS if trait not in content]
    if missing:
        raise UserError(f"{path}: the trait {', '.join(missing)} is missing (it holds {', '.join(map(str, content))})")
    columns = {}
    for trait in TRAITS:
        clips = _named(content[trait], [f"entry {number} of {trait}" for number in range(len(content[trait]))], path)
        columns[trait] = pandas.Series(list(content[trait].values()), index=clips, dtype=object)
    scores = pandas.DataFrame(columns)
    if scores.empty:
        raise UserError(f"{path}: holds no clip")
    for trait in TRAITS:
        for clip, score in scores[trait].items():
            if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
                raise UserError(f"{path}: clip {clip}, {trait}: {score!r} is no number; correct it or remove the clip")
    return scores.astype("float64").rename_axis("clip").sort_index()


def _check_range(scores, path, low, high):
    outside = (scores.to_numpy() < low) | (scores.to_numpy() > high)
    if outside.any():
        row, column = np.argwhere(outside)[0]
        raise UserError(f"{path}: clip {scores.index[row]}, {TRAITS[column]}: {scores.iat[row, column]:g} is outside "
                        "[0, 1]; scale the scores to [0, 1]")
    return scores


def read_scores(path: str | os.PathLike) -> pandas.DataFrame:
    """Return predictions in a table as a DataFrame: index clip (without video ending), sorted, float64 columns TRAITS.

    Raises UserError for anything that is not read for sure (see tables.py), a clip named twice, and scores of another
    scale: a little outside of [0, 1] a regression may be.
    """
    return _check_range(_score_table(path), path, -SCORE_MARGIN, 1 + SCORE_MARGIN)


def read_labels(path: str | os.PathLike) -> pandas.DataFrame:
    """Return the labels in a file of the challenge (.pkl) or a table as a DataFrame.

    Index: clip name without video ending, sorted; columns: TRAITS, float64 in [0, 1]. Raises UserError naming the file
    for a missing trait, a score that is no number or outside [0, 1], a clip named twice or any file that is not plain
    data. No code in the file is ever run.
    """
    path = Path(path)
    if path.suffix.lower() != ".pkl":
        return _check_range(_score_table(path), path, 0, 1)
    if not path.is_file():
        raise UserError(f"{path}: is a folder; name a file" if path.is_dir() else
                        f"{path}: no such file; the README says where the labels come from")
    if path.stat().st_size > SIZE_LIMIT:
        raise UserError(f"{path}: is larger than any file of labels ({SIZE_LIMIT // 10**6} MB)")
    return _check_range(_annotation_scores(path), path, 0, 1)


def quantiles_of(labels: pandas.DataFrame) -> dict[str, list[float]]:
    """Return {trait: its 0 %, 1 % ... 100 % quantiles, 101 ascending numbers} of labels, columns TRAITS."""
    quantiles = labels[list(TRAITS)].quantile(np.linspace(0, 1, 101))
    return {trait: sorted(quantiles[trait].tolist()) for trait in TRAITS}


def read_groups(path: str | os.PathLike) -> pandas.Series:
    """Return the group of each clip in a table with the columns clip and group: a Series, index clip, of text.

    Clips with an empty group are left out. Raises UserError as read_scores does.
    """
    table = read_table(path, ("clip", "group"))
    if table.empty:
        raise UserError(f"{path}: holds no clip")
    clips = _named(table["clip"], [f"line {line}" for line in table.index], path)
    groups = pandas.Series(table["group"].to_list(), index=clips, dtype=object)
    return groups[groups != ""]


def speakers_of(clips: Iterable[str], speaker_regex: str = SPEAKER_REGEX) -> list[str]:
    """Return one speaker's name for each clip: the first group of the expression, or the clip's own name where the
    expression does not match. Raises UserError for an expression without a group."""
    try:
        pattern = re.compile(speaker_regex)
    except re.error as error:
        raise UserError(f"--speaker-regex {speaker_regex!r}: {error}") from None
    if pattern.groups < 1:
        raise UserError(f"--speaker-regex {speaker_regex!r}: needs a group, as in {SPEAKER_REGEX!r}")
    matches = [pattern.search(clip) for clip in clips]
    return [match.group(1) if match and match.group(1) else clip for match, clip in zip(matches, clips)]


def read_speakers(path: str | os.PathLike, clips: Iterable[str], speaker_regex: str = SPEAKER_REGEX) -> pandas.Series:
    """Return a Series, index clips: each clip's speaker from the column `speaker` of a table of labels, where it has
    one and the cell is not empty, else from the clip's name by speakers_of."""
    speakers = pandas.Series(speakers_of(clips, speaker_regex), index=clips, dtype=object)
    if Path(path).suffix.lower() != ".pkl":
        table = read_table(path, ("clip",), ("speaker",))
        if "speaker" in table:
            named = pandas.Series(table["speaker"].to_list(), index=[clip_name(clip) for clip in table["clip"]],
                                  dtype=object)
            speakers.update(named[named != ""])
    return speakers


# ---------------------------------------------------------------- files of a split

def label_file(split_dir: Path, split: str) -> Path:
    """Return the path of the split's labels. Raises UserError where there is none, or two."""
    found = [path for path in (split_dir / ANNOTATION_FILES[split], split_dir / LABEL_TABLE) if path.exists()]
    if len(found) == 2:
        raise UserError(f"{found[0]} and {found[1]}: two files of labels for one split; keep one")
    if not found:
        raise UserError(f"{split_dir}: holds neither {ANNOTATION_FILES[split]} nor {LABEL_TABLE}; the README says how "
                        "to lay out the data, and --data-dir names another folder")
    return found[0]


def read_preprocessing(face_dir: str | os.PathLike) -> dict:
    """Return what the face script wrote about its crop, or the defaults where the faces come from elsewhere."""
    path = Path(face_dir) / PREPROCESSING_FILE
    if not path.exists():
        return dict(DEFAULT_PREPROCESSING)
    try:
        content = json.loads(path.read_text())
        return {**content, "size": int(content["size"]), "padding": float(content["padding"])}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: is damaged; make the faces again in an empty folder") from None
