"""Traits, the names of files and folders, and the readers of labels, scores and speakers.

A data folder holds data/{train,valid,test}/{videos,frames,faces} and, for each split, its labels: the challenge's own
annotation_*.pkl or a labels.csv with the columns clip,openness,conscientiousness,extraversion,agreeableness,neuroticism.
No code in a label file is ever run. Imports no PyTorch, so the pre-processing starts at once.
"""
import csv
import io
import json
import os
import pickle
import pickletools
import re
import struct
from collections.abc import Iterable
from pathlib import Path

from command_line import UserError

import numpy as np
import pandas

# The order of all scores, labels and columns.
TRAITS = ("openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism")

# ---------------------------------------------------------------- names of files and folders

SPLITS = ("train", "valid", "test")
ANNOTATION_FILES = {"train": "annotation_training.pkl", "valid": "annotation_validation.pkl", "test": "annotation_test.pkl"}
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
SPEAKER_REGEX = r"^([^.]+)\.\d+$"
LABEL_FILE_LIMIT = 200_000_000  # bytes


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
        return clip
    return None


# ---------------------------------------------------------------- labels and scores

def clip_name(text: object) -> str:
    """Return the clip's name without folder and video ending: `train/abc.000.mp4` -> `abc.000`."""
    name = str(text).strip().replace("\\", "/").rsplit("/", 1)[-1]
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in CLIP_SUFFIXES else name


# The opcodes that a dictionary of names and scores needs. Everything else (among them the ones that allocate whatever
# size the file asks for) is refused before a single one is carried out.
_PICKLE_OPCODES = frozenset("""PROTO FRAME STOP MARK POP POP_MARK EMPTY_DICT DICT SETITEM SETITEMS PUT BINPUT LONG_BINPUT
    MEMOIZE GET BINGET LONG_BINGET STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINBYTES
    SHORT_BINBYTES FLOAT BINFLOAT INT BININT BININT1 BININT2 LONG LONG1 NONE NEWTRUE NEWFALSE EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    GLOBAL STACK_GLOBAL REDUCE BUILD""".split())


class _Float:
    """Stands in for numpy.dtype: knows only the two float types, and none of numpy's code runs."""

    def __init__(self, code, align=False, copy=False):
        if code not in ("f8", "f4"):
            raise pickle.UnpicklingError(f"numbers of the type {code!r}")
        self.format = {"f8": "<d", "f4": "<f"}[code]

    def __setstate__(self, state):
        if isinstance(state, tuple) and len(state) > 1 and state[1] == ">":
            self.format = ">" + self.format[1]


def _float_scalar(dtype, data):
    if not isinstance(dtype, _Float):
        raise pickle.UnpicklingError("a numpy scalar without a type")
    return struct.unpack(dtype.format, data.encode("latin1") if isinstance(data, str) else data)[0]


def _latin1(text, encoding):
    """Stands in for codecs.encode, by which Python 3 writes bytes in old pickles."""
    if encoding != "latin1" or not isinstance(text, str):
        raise pickle.UnpicklingError(f"text in the encoding {encoding!r}")
    return text.encode("latin1")


class _LabelUnpickler(pickle._Unpickler):  # the one in Python: the C one allocates memory for any memo index it reads
    """Admits dictionaries, strings, numbers and numpy float scalars; names whatever else a file asks for."""

    def find_class(self, module, name):
        if (module, name) == ("numpy", "dtype"):
            return _Float
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "scalar":
            return _float_scalar
        if (module, name) == ("_codecs", "encode"):
            return _latin1
        raise pickle.UnpicklingError(f"the file asks for {module}.{name}, which labels do not need")


def _read_annotation_pickle(path):
    data = path.read_bytes()
    try:
        for opcode, _, position in pickletools.genops(data):
            if opcode.name not in _PICKLE_OPCODES:
                raise pickle.UnpicklingError(f"the operation {opcode.name} at byte {position}, which labels do not need")
        content = _LabelUnpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # a damaged pickle can fail in many ways; none of them has run anything
        raise UserError(f"{path}: refused, not a file of labels as the challenge wrote it: {error}; nothing of it was "
                        "run; download it again or write a labels.csv") from None
    if not isinstance(content, dict) or not all(isinstance(scores, dict) for scores in content.values()):
        raise UserError(f"{path}: holds no dictionary {{trait: {{clip: score}}}}; download it again or write a labels.csv")
    missing = [trait for trait in TRAITS if trait not in content]
    if missing:
        raise UserError(f"{path}: the trait {', '.join(missing)} is missing (it holds {', '.join(map(str, content))})")
    columns = {}
    for trait in TRAITS:
        names = [clip_name(clip) for clip in content[trait]]
        column = pandas.Series(list(content[trait].values()), index=names, dtype=object)
        if not column.index.is_unique:
            raise UserError(f"{path}: the clip {column.index[column.index.duplicated()][0]} is labelled twice for {trait}; "
                            "keep one entry")
        columns[trait] = column
    return pandas.DataFrame(columns)


def _read_csv(path):
    try:
        table = pandas.read_csv(path, encoding="utf-8-sig", dtype=str, keep_default_na=False, sep=None, engine="python")
    except (UnicodeDecodeError, pandas.errors.ParserError, pandas.errors.EmptyDataError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a table ({str(error).splitlines()[0]}); "
                        f"write UTF-8 CSV with the columns clip,{','.join(TRAITS)}") from None
    return table


def read_scores(path: str | os.PathLike) -> pandas.DataFrame:
    """Return the scores in a CSV file as a DataFrame: index clip (without video ending), five float64 columns TRAITS.

    The column of clips is `clip` or `VideoName`; a trait's column bears its name in any case, also as `ValueOpenness`.
    Raises UserError for a missing column, a clip named twice, text or a number that is not finite.
    """
    path = Path(path)
    table = _read_csv(path)
    plain = {re.sub(r"^value_?", "", str(name).strip().lower()): name for name in table.columns}
    name_column = plain.get("clip", plain.get("videoname"))
    if name_column is None:
        raise UserError(f"{path}: has no column `clip`; its columns are {', '.join(map(str, table.columns))}")
    missing = [trait for trait in TRAITS if trait not in plain]
    if missing:
        raise UserError(f"{path}: has no column for {', '.join(missing)}; its columns are {', '.join(map(str, table.columns))}")
    scores = table[[plain[trait] for trait in TRAITS]].set_axis(list(TRAITS), axis=1)
    scores.index = [clip_name(clip) for clip in table[name_column]]
    return _checked_scores(scores, path)


def _checked_scores(scores, path):
    """Return the table as float64, sorted by clip; raise UserError for the first clip that is wrong."""
    if scores.empty:
        raise UserError(f"{path}: holds no clip")
    if not scores.index.is_unique:
        raise UserError(f"{path}: the clip {scores.index[scores.index.duplicated()][0]} stands there twice; keep one line")
    numbers = scores.apply(pandas.to_numeric, errors="coerce").astype("float64")
    wrong = ~np.isfinite(numbers.to_numpy())
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise UserError(f"{path}: clip {scores.index[row]}, {TRAITS[column]}: {scores.iat[row, column]!r} is no number; "
                        "correct it or remove the clip")
    numbers.index = numbers.index.astype(str)
    numbers.index.name = "clip"
    return numbers.sort_index()


def read_labels(path: str | os.PathLike) -> pandas.DataFrame:
    """Return the labels in a file of the challenge (.pkl) or a CSV file as a DataFrame.

    Index: clip name without video ending, sorted; columns: TRAITS, float64 in [0, 1]. Raises UserError naming the file
    for a missing trait, a score that is no number or outside [0, 1], a clip named twice or any file that is not plain
    data. No code in the file is ever run.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; the README says where the labels come from")
    if path.stat().st_size > LABEL_FILE_LIMIT:
        raise UserError(f"{path}: is larger than any file of labels ({LABEL_FILE_LIMIT // 10**6} MB)")
    labels = _checked_scores(_read_annotation_pickle(path), path) if path.suffix == ".pkl" else read_scores(path)
    outside = (labels < 0) | (labels > 1)
    if outside.to_numpy().any():
        row, column = np.argwhere(outside.to_numpy())[0]
        raise UserError(f"{path}: clip {labels.index[row]}, {TRAITS[column]}: {labels.iat[row, column]:g} is outside [0, 1]; "
                        "scale the scores to [0, 1]")
    return labels


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
    """Return a Series, index clips: each clip's speaker from the column `speaker` of a CSV file of labels where it has
    one, else from the clip's name by speakers_of."""
    path = Path(path)
    if path.suffix != ".pkl":
        table = _read_csv(path)
        columns = {str(name).strip().lower(): name for name in table.columns}
        if "speaker" in columns:
            names = [clip_name(clip) for clip in table[columns.get("clip", columns.get("videoname"))]]
            return pandas.Series(table[columns["speaker"]].to_list(), index=names).reindex(clips)
    return pandas.Series(speakers_of(clips, speaker_regex), index=clips)


# ---------------------------------------------------------------- files of a split

def label_file(split_dir: Path, split: str) -> Path:
    """Return the path of the split's labels. Raises UserError where there is none, or two."""
    found = [path for path in (split_dir / ANNOTATION_FILES[split], split_dir / LABEL_TABLE) if path.exists()]
    if len(found) == 2:
        raise UserError(f"{found[0]} and {found[1]}: two files of labels for one split; keep one")
    if not found:
        raise UserError(f"{split_dir}: holds neither {ANNOTATION_FILES[split]} nor {LABEL_TABLE}; the README says how to lay "
                        "out the data, and --data-dir names another folder")
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
