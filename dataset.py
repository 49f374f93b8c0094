"""Labels, face folders, loaders and cached features.

A data folder holds data/{train,valid,test}/{videos,frames,faces} and for each split its labels: the challenge's own
annotation_*.pkl or a labels.csv with the columns clip,openness,conscientiousness,extraversion,agreeableness,neuroticism.
Look at what the suite makes of a data folder:

    python dataset.py data
    python dataset.py data --speaker-regex '(.*)_[0-9]+'      the speaker in names such as anna_12.mp4
"""
import csv
import hashlib
import io
import json
import math
import os
import pickle
import pickletools
import re
import signal
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

from command_line import CLIP_SUFFIXES, UserError, counted, make_parser, printable, progress_bar, run_script

import cv2
import numpy as np
import pandas
import torch
from filelock import FileLock
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2


TRAITS = ("openness", "conscientiousness", "extraversion", "agreeableness", "neuroticism")
ANNOTATION_FILES = {"train": "annotation_training.pkl", "valid": "annotation_validation.pkl", "test": "annotation_test.pkl"}
# A ChaLearn clip is called <YouTube id>.<number>: the clips of one video show one speaker.
SPEAKER_REGEX = r"^([^.]+)\.\d+$"
FACE_MARK = "_aligned"
FACE_SIZE = 224
# What the crop was before the face script wrote it beside the faces.
DEFAULT_PREPROCESSING = {"size": FACE_SIZE, "padding": 0.25}
LABEL_FILE_LIMIT = 200_000_000


# ---------------------------------------------------------------- labels

def clip_name(text):
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
        for opcode, argument, position in pickletools.genops(data):
            if opcode.name not in _PICKLE_OPCODES:
                raise pickle.UnpicklingError(f"the operation {opcode.name} at byte {position}, which labels do not need")
        content = _LabelUnpickler(io.BytesIO(data), encoding="latin1").load()
    # A damaged pickle can fail in any of these ways; none of them has run anything.
    except (pickle.UnpicklingError, ValueError, KeyError, IndexError, TypeError, AttributeError, EOFError, struct.error,
            OverflowError, MemoryError, RecursionError) as error:
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


def read_scores(path):
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


def read_labels(path):
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


def speakers_of(clips, speaker_regex=SPEAKER_REGEX):
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


def read_speakers(path, clips, speaker_regex=SPEAKER_REGEX):
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


# ---------------------------------------------------------------- splits

@dataclass
class Split:
    """The faces and labels of one split or of several together.

    faces: DataFrame with the columns path (str), clip (str), one row a face chip, sorted by path.
    labels: DataFrame, index clip, columns TRAITS, of all labelled clips, with a face or without.
    speakers: Series, index clip: the speaker's name.
    preprocessing: how the chips were cropped ({"size": px, "padding": fraction, ...}).
    """
    name: str
    faces: pandas.DataFrame
    labels: pandas.DataFrame
    speakers: pandas.Series
    preprocessing: dict

    @property
    def targets(self):
        """float32 N x 5: the labels of each face's clip."""
        return torch.tensor(self.labels.loc[self.faces["clip"]].to_numpy(), dtype=torch.float32)

    @property
    def clips_without_face(self):
        return sorted(set(self.labels.index) - set(self.faces["clip"]))

    def only(self, clips, name):
        """Return the split of just these clips."""
        clips = set(clips)
        keep = self.labels.index.isin(clips)
        return Split(name, self.faces[self.faces["clip"].isin(clips)].reset_index(drop=True), self.labels[keep],
                     self.speakers[keep], self.preprocessing)

    def fingerprint(self):
        """Return 16 hex digits that change when a label or a face file (name, size or time) changes."""
        digest = hashlib.sha256(self.labels.to_csv().encode())
        digest.update(_stamp_of_files(self.faces["path"]).encode())
        return digest.hexdigest()[:16]


def list_faces(face_dir):
    """Return the face chips below a folder: DataFrame with the columns path, clip, sorted by path.

    A face belongs to the clip named before the last `__frame_` of its file's name.
    """
    rows = []
    for folder, subfolders, names in os.walk(face_dir):
        subfolders.sort()
        for name in sorted(names):
            clip, mark, rest = name.rpartition("__frame_")
            if mark and clip and FACE_MARK in rest and name.lower().endswith(".jpg") and not name.startswith("."):
                rows.append((os.path.join(folder, name), clip))
    return pandas.DataFrame(rows, columns=["path", "clip"], dtype=str)


def label_file(split_dir, split):
    """Return the path of the split's labels. Raises UserError where there is none, or two."""
    found = [path for path in (split_dir / ANNOTATION_FILES[split], split_dir / "labels.csv") if path.exists()]
    if len(found) == 2:
        raise UserError(f"{found[0]} and {found[1]}: two files of labels for one split; keep one")
    if not found:
        raise UserError(f"{split_dir}: holds neither {ANNOTATION_FILES[split]} nor labels.csv; the README says how to lay "
                        "out the data, and --data-dir names another folder")
    return found[0]


def read_preprocessing(face_dir):
    """Return what the face script wrote about its crop, or the defaults where the faces come from elsewhere."""
    path = Path(face_dir) / "preprocessing.json"
    if not path.exists():
        return dict(DEFAULT_PREPROCESSING)
    try:
        content = json.loads(path.read_text())
        return {**content, "size": int(content["size"]), "padding": float(content["padding"])}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: is damaged; make the faces again in an empty folder") from None


def load_split(data_dir, split, speaker_regex=SPEAKER_REGEX):
    """Return the Split `train`, `valid` or `test` of a data folder, after checking that every face has a label.

    Raises UserError for missing folders or labels, faces without a label and a folder without faces.
    """
    split_dir = Path(data_dir) / split
    if not split_dir.is_dir():
        raise UserError(f"{split_dir}: no such folder; the README says how to lay out the data, and --data-dir names "
                        "another folder")
    labels_path = label_file(split_dir, split)
    labels = read_labels(labels_path)
    face_dir = split_dir / "faces"
    faces = list_faces(face_dir)
    if faces.empty:
        raise UserError(f"{face_dir}: holds no faces; make them with python pre-processing/extract_faces_from_frames.py "
                        f"{split_dir / 'frames'} {face_dir}")
    unlabelled = sorted(set(faces["clip"]) - set(labels.index))
    if unlabelled:
        raise UserError(f"{labels_path}: has no label for {len(unlabelled)} clip(s) with faces in {face_dir}, the first is "
                        f"{unlabelled[0]}; add them or move their faces away")
    return Split(split, faces, labels, read_speakers(labels_path, labels.index, speaker_regex),
                 read_preprocessing(face_dir))


def join_splits(first, second):
    """Return one Split of two (training and validation clips for the final run). Raises UserError where a clip is in
    both, or where their faces were cropped differently."""
    both = sorted(set(first.labels.index) & set(second.labels.index))
    if both:
        raise UserError(f"clip {both[0]}: is in {first.name} and in {second.name}; remove it from one of them")
    check_same_crop(first, second)
    return Split(f"{first.name}+{second.name}", pandas.concat([first.faces, second.faces], ignore_index=True),
                 pandas.concat([first.labels, second.labels]), pandas.concat([first.speakers, second.speakers]),
                 first.preprocessing)


def check_same_crop(first, second):
    """Raise UserError where the faces of two splits were cropped with another size or padding."""
    for key in ("size", "padding"):
        if first.preprocessing[key] != second.preprocessing[key]:
            raise UserError(f"the faces of {first.name} were made with --{key} {first.preprocessing[key]}, those of "
                            f"{second.name} with {second.preprocessing[key]}; make them alike")


def split_by_speaker(split, fraction, seed):
    """Return (training, validation) Splits without a common speaker, about `fraction` of the clips in the second."""
    generator = np.random.default_rng(seed)
    sizes = split.speakers.value_counts().sort_index()
    order = generator.permutation(len(sizes))
    chosen = sizes.index[order[np.cumsum(sizes.to_numpy()[order]) <= max(1, fraction * len(split.labels))]]
    held_out = split.speakers.isin(chosen)
    if not held_out.any() or held_out.all():
        raise UserError(f"--val-split speaker: {len(sizes)} speakers in {split.name} are too few to set some aside")
    return (split.only(split.labels.index[~held_out], split.name + " without held-out speakers"),
            split.only(split.labels.index[held_out], "held-out speakers of " + split.name))


def describe(split):
    """Return one line on a split: clips, faces, faces a clip, clips without a face."""
    with_face = split.faces["clip"].nunique()
    line = (f"{split.name}: {counted(len(split.labels), 'clip')} of {counted(split.speakers.nunique(), 'speaker')}, "
            f"{counted(len(split.faces), 'face')}, "
            f"{len(split.faces) / max(1, with_face):.1f} a clip")
    without = split.clips_without_face
    if without:
        line += f"; left out: {counted(len(without), 'clip')} without a face (the first: {printable(without[0])})"
    return line


# ---------------------------------------------------------------- pictures

def read_chip(path, size):
    """Return a face chip as uint8 3 x size x size RGB tensor. Raises UserError for a file that is no whole JPEG."""
    try:
        with open(path, "rb") as file:
            data = file.read()
        # A JPEG ends with this mark; OpenCV fills up what is missing of a truncated one with grey and says nothing.
        if b"\xff\xd9" not in data[-64:]:
            raise ValueError("it is no whole JPEG")
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        if picture is None:
            raise ValueError("it is no JPEG that OpenCV can decode")
    except (cv2.error, ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]}); delete it and make the faces again") from None
    if picture.shape[:2] != (size, size):
        picture = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(picture).permute(2, 0, 1)


def augmentation(strength):
    """Return torchvision transforms for a uint8 3 x H x W chip: small crops, colour and erasing; None for 0."""
    if not strength:
        return None
    return v2.Compose([
        v2.RandomResizedCrop(FACE_SIZE, scale=(1 - 0.3 * strength, 1.0), ratio=(0.95, 1.05), antialias=True),
        v2.ColorJitter(brightness=0.3 * strength, contrast=0.3 * strength, saturation=0.3 * strength, hue=0.02 * strength),
        v2.RandomErasing(p=0.25 * strength, scale=(0.02, 0.1)),
    ])


class FaceDataset(Dataset):
    """Face chips of a Split, read a batch at a time.

    A batch is (chips uint8 B x 3 x size x size, rows int64 B): rows index the split's faces and targets.
    A chip that cannot be read is named on stderr and left out. What is random depends only on (seed, epoch, row), so it
    is the same for any number of workers.
    """

    def __init__(self, split, training=False, augment=0.0, seed=0):
        self.paths = split.faces["path"].tolist()
        self.size = split.preprocessing["size"]
        self.training = training
        self.transform = augmentation(augment) if training else None
        self.seed = seed
        self.epoch = 0

    def __len__(self):
        return len(self.paths)

    def __getitems__(self, rows):
        chips, kept = [], []
        for row in rows:
            try:
                chip = read_chip(self.paths[row], self.size)
            except UserError as error:
                print(f"warning: left out {printable(error)}", file=sys.stderr)
                continue
            if self.transform is not None:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed((self.seed * 1_000_003 + self.epoch) * 10_000_019 + row)
                    chip = self.transform(chip)
            chips.append(chip)
            kept.append(row)
        rows = torch.tensor(kept, dtype=torch.int64)
        return (torch.stack(chips) if chips else torch.empty(0, 3, self.size, self.size, dtype=torch.uint8), rows)


def _as_it_is(batch):
    return batch


def _leave_interrupts_to_the_parent(_):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # else every process prints a traceback at Ctrl-C


def epoch_batches(number_of_rows, batch_size, seed, epoch, rank=0, world_size=1):
    """Return the shuffled batches of an epoch as a list of lists of row numbers, for one of several processes.

    The order depends only on (seed, epoch). Every process gets the same number of batches; the last rows are repeated
    from the beginning where they do not divide evenly.
    """
    order = np.random.default_rng([seed, epoch]).permutation(number_of_rows)
    per_process = math.ceil(number_of_rows / world_size)
    order = np.resize(order, per_process * world_size)[rank::world_size]
    batches = [order[start:start + batch_size].tolist() for start in range(0, per_process, batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        alone = batches.pop()  # one sample has no deviation to be standardised by
        batches[-1] += alone
    return batches


def row_batches(number_of_rows, batch_size):
    """Return all rows in order, in batches."""
    return [list(range(start, min(start + batch_size, number_of_rows))) for start in range(0, number_of_rows, batch_size)]


def chip_loader(dataset, batches, num_workers, device):
    """Return a DataLoader over the given batches of a FaceDataset."""
    return DataLoader(dataset, batch_sampler=batches, num_workers=num_workers, collate_fn=_as_it_is,
                      worker_init_fn=_leave_interrupts_to_the_parent, pin_memory=device.type == "cuda",
                      prefetch_factor=4 if num_workers else None)


# ---------------------------------------------------------------- cached features

def _stamp_of_files(paths):
    digest = hashlib.sha256()
    for path in paths:
        status = os.stat(path)
        digest.update(f"{os.path.basename(path)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


class Features:
    """Features of every face of a split, as a frozen backbone gives them, and of the faces' mirror images.

    values: float tensor 2 x N x F over a memory map (first the picture, then its mirror image); pages are shared by all
    processes of a machine. Rows of chips that could not be read hold NaN and are named by `unreadable`.
    """

    def __init__(self, parts):
        self.parts = parts
        self.starts = np.cumsum([0] + [part.shape[1] for part in parts])
        self.unreadable = np.concatenate([np.isnan(part[0, :, 0]) for part in parts])

    def __len__(self):
        return int(self.starts[-1])

    @property
    def width(self):
        return self.parts[0].shape[2]

    def rows(self, rows, mirrored):
        """Return float32 B x F for int64 rows and bool mirrored (NumPy arrays of length B)."""
        result = np.empty((len(rows), self.width), dtype=np.float32)
        for part, start, end in zip(self.parts, self.starts[:-1], self.starts[1:]):
            inside = (rows >= start) & (rows < end)
            result[inside] = part[mirrored[inside].astype(np.int64), rows[inside] - start]
        return torch.from_numpy(result)


def cached_features(split, network, network_key, device, dtype="float16", batch_size=64, num_workers=0):
    """Return the Features of a split, from the disk where they were made before.

    network: maps uint8 chips B x 3 x H x W to features B x F. network_key: text that names everything the features
    depend on besides the faces (architecture, weights, input). A file a split's faces folder lies in
    <split>/features/; its name is a digest of the key and of the name, size and time of every face, so another backbone
    or another face makes another file. Deleting the folder costs only time.
    """
    parts = []
    # Faces of several splits (final training) are cached where each split lies, and so shared with the search.
    folders = split.faces["path"].map(_feature_folder)
    for folder in folders.unique():
        faces = split.faces[folders == folder]
        parts.append(_features_of_folder(Path(folder), faces, split, network, network_key, device, dtype, batch_size,
                                         num_workers))
    return Features(parts)


def _feature_folder(path):
    head, mark, _ = path.rpartition(os.sep + "faces" + os.sep)
    return os.path.join(head if mark else os.path.dirname(path), "features")


def _features_of_folder(folder, faces, split, network, network_key, device, dtype, batch_size, num_workers):
    description = {"network": network_key, "dtype": dtype, "preprocessing": split.preprocessing, "faces": len(faces),
                   "files": _stamp_of_files(faces["path"])}
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:20]
    path = folder / f"{network_key.split()[0]}_{digest}.npy"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / f"{digest}.lock"):
        if not _is_whole(path, len(faces), dtype):
            _write_features(path, faces, split, network, device, dtype, batch_size, num_workers)
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
def _write_features(path, faces, split, network, device, dtype, batch_size, num_workers):
    only_these = Split(split.name, faces.reset_index(drop=True), split.labels, split.speakers, split.preprocessing)
    partial, progress = path.with_suffix(".partial"), path.with_suffix(".progress")
    done, values = 0, None
    if _is_whole(partial, len(faces), dtype) and progress.exists():
        # An interrupted run goes on where its last flush ended.
        text = progress.read_text()
        done = min(int(text), len(faces)) if text.isdecimal() else 0
        values = np.lib.format.open_memmap(partial, mode="r+")
    batches = [[row + done for row in rows] for rows in row_batches(len(faces) - done, batch_size)]
    loader = chip_loader(FaceDataset(only_these), batches, num_workers, device)
    with progress_bar(total=len(faces), initial=done, desc=f"features of {split.name}", unit="face") as bar:
        for number, (chips, rows) in enumerate(loader):
            chips = chips.to(device, non_blocking=True)
            both = network(torch.cat([chips, chips.flip(-1)])).cpu().numpy()
            if values is None:
                values = _new_memory_map(partial, dtype, (2, len(faces), both.shape[1]))
            wanted = batches[number]
            values[:, wanted] = np.nan
            values[:, rows.numpy()] = both.reshape(2, len(rows), -1)
            bar.update(len(wanted))
            if number % 50 == 49:
                values.flush()
                progress.write_text(str(wanted[-1] + 1))
    values.flush()
    del values
    os.replace(partial, path)
    progress.unlink(missing_ok=True)


# ---------------------------------------------------------------- command line

def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("data_dir", metavar="DATA_DIR", help="data folder with train, valid and test")
    parser.add_argument("--speaker-regex", default=SPEAKER_REGEX, help="its first group is the speaker in a clip's name")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    for split_name in ANNOTATION_FILES:
        split = load_split(args.data_dir, split_name, args.speaker_regex)
        print(describe(split))
        means, deviations = split.labels.mean(), split.labels.std()
        print("    " + ", ".join(f"{trait} {means[trait]:.3f} ± {deviations[trait]:.3f}" for trait in TRAITS))


if __name__ == "__main__":
    run_script(main)
