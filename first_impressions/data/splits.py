"""Splits of a data folder: their face chips, labels and speakers (the folder's layout is in dataset.py)."""
import argparse
import hashlib
import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas

from first_impressions.common import constants
from first_impressions.common.command_line import UserError, counted, printable
from first_impressions.common.files import read_json
from first_impressions.data.labels import SPEAKER_REGEX, label_file, read_labels
from first_impressions.jobs.target_folder import find_files

LEAST_SPEAKERS = 20     # of the clips of a test; fewer tell nothing from chance, and get no p value


@dataclass
class Split:
    """The faces and labels of one split or of several together.

    faces: DataFrame with the columns path (str), clip (str), one row per face chip, sorted by path.
    labels: DataFrame, index clip, columns TRAITS, of all labelled clips, with a face or without.
    speakers: Series, index clip: the speaker's name.
    preprocessing: how the chips were cropped ({"size": px, "padding": fraction, ...}).
    speaker_regex: the rule that the speakers follow; is_chalearn: the labels are those of the challenge, whose
    neuroticism is emotional stability.
    """
    name: str
    faces: pandas.DataFrame
    labels: pandas.DataFrame
    speakers: pandas.Series
    preprocessing: dict
    speaker_regex: str = SPEAKER_REGEX
    is_chalearn: bool = False

    @property
    def clips_without_face(self) -> list[str]:
        return sorted(set(self.labels.index) - set(self.faces["clip"]))

    def with_faces(self) -> "Split":
        """Return the split of just the clips with a face. The faces, of which there may be millions, are not copied."""
        without = self.clips_without_face
        return replace(self, labels=self.labels.drop(without), speakers=self.speakers.drop(without))

    def only(self, clips: Iterable[str], name: str) -> "Split":
        """Return the split of just these clips."""
        clips = set(clips)
        keep = self.labels.index.isin(clips)
        faces = self.faces[self.faces["clip"].isin(clips)].reset_index(drop=True)
        return replace(self, name=name, faces=faces, labels=self.labels[keep], speakers=self.speakers[keep])

    def fingerprint(self) -> str:
        """Return 16 hex digits that change when a label or a face file (name or size) changes; a copy has the same."""
        digest = hashlib.sha256(self.labels.to_csv().encode())
        digest.update(stamp_of_files(self.faces["path"], with_times=False).encode())
        return digest.hexdigest()[:16]


def list_faces(face_dir: str | os.PathLike) -> pandas.DataFrame:
    """Return the face chips below a folder: DataFrame with the columns path, clip, sorted by path.

    Links to other folders are followed, each folder is visited once. Raises UserError if two folders have faces of
    clips of one name: they would be taken for one clip.
    """
    rows, folder_of_clip = [], {}
    for path, _ in find_files(face_dir, (".jpg",)):
        clip, folder = constants.clip_of_face(os.path.basename(path)), os.path.dirname(path)
        if clip is not None:
            if folder_of_clip.setdefault(clip, folder) != folder:
                raise UserError(f"{folder_of_clip[clip]} and {folder}: both have faces of a clip called "
                                f"{printable(clip)}, which would be taken for one clip; rename one clip, or remove "
                                "its faces there")
            rows.append((path, clip))
    return pandas.DataFrame(sorted(rows), columns=["path", "clip"], dtype=str)


def read_preprocessing(face_dir: str | os.PathLike) -> dict:
    """Return what the face script wrote about its crop, or the defaults if the faces come from elsewhere."""
    path = Path(face_dir) / constants.PREPROCESSING_FILE
    if not path.exists():
        return dict(constants.DEFAULT_PREPROCESSING)
    try:
        content = read_json(path)
        return {**content, "size": int(content["size"]), "padding": float(content["padding"])}
    except (ValueError, KeyError, TypeError, OverflowError):
        raise UserError(f"{path}: is damaged; make the faces again in an empty folder") from None


def faces_command(split_dir: Path) -> str:
    """Return the command that makes the faces of a split: from its frames if it has the folder, else from its clips."""
    source, number = ("frames", []) if (split_dir / "frames").is_dir() else ("videos", ["10"])
    return printable(shlex.join(["python", f"pre-processing/extract_faces_from_{source}.py", str(split_dir / source),
                                 str(split_dir / "faces"), *number]))


def load_split(data_dir: str | os.PathLike, split: str, speaker_regex: str = SPEAKER_REGEX,
               need_faces: bool = True) -> Split:
    """Return the Split `train`, `valid` or `test` of a data folder, after checking that every face has a label.

    Raises UserError for missing folders or labels, faces without a label and, if need_faces, a folder without faces.
    """
    split_dir = Path(data_dir) / split
    if not split_dir.is_dir():
        raise UserError(f"{split_dir if split_dir.parent.is_dir() else data_dir}: no such folder; the README says how "
                        "to lay out the data, and --data-dir names another folder")
    labels_path = label_file(split_dir, split)
    labels, speakers = read_labels(labels_path, speaker_regex)
    face_dir = split_dir / "faces"
    faces = list_faces(face_dir)
    if faces.empty and (pictures := sum(1 for _ in face_dir.rglob("*.jpg"))):
        example = constants.face_name(Path(constants.frame_name("CLIP", 7)).stem)
        raise UserError(f"{face_dir}: contains {counted(pictures, 'picture')}, none named after a clip as {example}; "
                        "make the faces with the scripts of pre-processing")
    if faces.empty and need_faces:
        raise UserError(f"{face_dir}: contains no faces; make them with {faces_command(split_dir)}")
    if unlabelled := sorted(set(faces["clip"]) - set(labels.index)):
        raise UserError(f"{labels_path}: has no label for {len(unlabelled)} clip(s) with faces in {face_dir}, the "
                        f"first is {unlabelled[0]}; add them or move their faces away")
    return Split(split, faces, labels, speakers, read_preprocessing(face_dir), speaker_regex,
                 labels_path.name in constants.ANNOTATION_FILES.values())


def join_splits(first: Split, second: Split) -> Split:
    """Return one Split of two (training and validation clips for the final run). Raises UserError if a clip is in
    both, or if their faces were made differently."""
    if both := sorted(set(first.labels.index) & set(second.labels.index)):
        raise UserError(f"clip {both[0]}: is in {first.name} and in {second.name}; remove it from one of them")
    check_same_faces(first.preprocessing, second.preprocessing, f"the faces of {first.name}", f"those of {second.name}")
    return replace(first, name=f"{first.name}+{second.name}",
                   faces=pandas.concat([first.faces, second.faces], ignore_index=True),
                   labels=pandas.concat([first.labels, second.labels]),
                   speakers=pandas.concat([first.speakers, second.speakers]),
                   is_chalearn=first.is_chalearn and second.is_chalearn)


def check_same_faces(made: dict, wanted: dict, whose: str, others: str) -> None:
    """Raise UserError if faces were made in another way than they should be.

    made, wanted: contents of preprocessing.json; what one of them does not note is not compared. The detectors hog and
    auto agree: auto only adds files in which hog finds no face. whose, others: words for the two, as in "the faces of
    test" and "those of train".
    """
    for key, option in (("size", "--size"), ("padding", "--padding"), ("faces", "--faces"), ("predictor", "PREDICTOR"),
                        ("detector", "--detector")):
        this, other = (settings.get(key, "hog" if key == "detector" else None) for settings in (made, wanted))
        if None not in (this, other) and this != other and {this, other} != {"hog", "auto"}:
            raise UserError(f"{whose} were made with {option} {this}, {others} with {other}; make them alike")


def draw_speakers(speakers: pandas.Series, room: float, generator: np.random.Generator) -> list[str]:
    """Return speakers drawn at random who have at most `room` clips in total; there may be none. speakers: the speaker
    of each clip. One who does not fit is skipped, and the drawing goes on."""
    sizes, chosen = speakers.value_counts().sort_index(), []
    for number in generator.permutation(len(sizes)):
        if sizes.iloc[number] <= room:
            chosen.append(sizes.index[number])
            room -= sizes.iloc[number]
    return chosen


def draw_parts(speakers: pandas.Series, rooms: dict[str, float], seed: int) -> pandas.Series:
    """Return the part of each clip, a Series with the index of `speakers` (the speaker of each clip): one of `rooms`,
    {part: the most clips that it may have}, drawn by draw_speakers one after the other, or train. If no speaker fits,
    a part gets the one with the fewest clips. Raises UserError for fewer speakers than parts."""
    if speakers.nunique() <= len(rooms):
        raise UserError(f"the {counted(len(speakers), 'clip')} are of {counted(speakers.nunique(), 'speaker')}, "
                        f"{len(rooms) + 1} are needed; check --speaker-regex or add a column speaker to "
                        f"{constants.LABEL_TABLE}")
    generator, parts = np.random.default_rng(seed), pandas.Series("train", index=speakers.index, dtype=object)
    for part, room in rooms.items():
        left = speakers[parts == "train"]
        chosen = draw_speakers(left, room, generator) or [left.value_counts().sort_index().idxmin()]
        parts[speakers.isin(chosen)] = part
    return parts


def split_by_speaker(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Return (training, validation) Splits without a common speaker, about `fraction` of the clips in the second, by
    draw_parts."""
    held_out = draw_parts(split.speakers, {"valid": fraction * len(split.labels)}, seed) == "valid"
    return (split.only(split.labels.index[~held_out], split.name + " without held-out speakers"),
            split.only(split.labels.index[held_out], "held-out speakers of " + split.name))


def describe(split: Split) -> str:
    """Return one line on a split: clips with a face, their faces, faces per clip, clips without a face."""
    if split.faces.empty:
        return (f"{split.name}: {counted(len(split.labels), 'labelled clip')} of "
                f"{counted(split.speakers.nunique(), 'speaker')}, no faces yet")
    without, speakers = split.clips_without_face, split.with_faces().speakers
    line = (f"{split.name}: {counted(len(speakers), 'clip')} of {counted(speakers.nunique(), 'speaker')}, "
            f"{counted(len(split.faces), 'face')}, {len(split.faces) / max(1, len(speakers)):.1f} a clip")
    if without:
        line += f"; left out: {counted(len(without), 'clip')} without a face (the first: {printable(without[0])})"
    return line


def stamp_of_files(paths: Iterable[str], with_times: bool = True) -> str:
    """Return a digest of the names and sizes, and by default the times, of files."""
    digest = hashlib.sha256()
    for path in paths:
        status = os.stat(path)
        time = status.st_mtime_ns if with_times else ""
        digest.update(f"{os.path.basename(path)}\0{status.st_size}\0{time}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def add_speaker_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that says how speakers are named in clips' names."""
    parser.add_argument("--speaker-regex", default=SPEAKER_REGEX,
                        help="its first group is the speaker in a clip's name (a column `speaker` in "
                        f"{constants.LABEL_TABLE} comes first)")
