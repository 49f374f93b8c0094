"""Division of one folder of labelled clips into train, valid and test, no speaker in two of them."""
import argparse
import os
import re
import shutil
import sys
from pathlib import Path

from first_impressions.common.command_line import UserError, counted, printable, progress_bar
from first_impressions.common.constants import CLIP_SUFFIXES, LABEL_TABLE, PREPROCESSING_FILE, SPLITS, clip_name
from first_impressions.data.labels import label_file, read_labels
from first_impressions.data.splits import LEAST_SPEAKERS, draw_parts, list_faces
from first_impressions.jobs.target_folder import count_files, find_files

SCRATCH = ".dividing"   # in the data folder, for what is not complete


def shares(text: str) -> tuple[int, ...]:
    """argparse type: three whole numbers such as 3:1:1, the shares of train, valid and test."""
    if not re.fullmatch(r"[1-9][0-9]{0,5}(:[1-9][0-9]{0,5}){2}", text):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not three whole numbers such as 3:1:1, the shares of "
                                         f"{', '.join(SPLITS)}")
    return tuple(map(int, text.split(":")))


def find_sources(data_dir: Path) -> list[tuple[str, str]]:
    """Return (path, clip) of all videos and faces in the folder. Raises UserError if there are none, or two videos of
    one name."""
    video_dir, found = data_dir / "videos", []
    if video_dir.is_dir():
        count_files(find_files(video_dir, CLIP_SUFFIXES), clip_name, "clips", data_dir)
        found = [(path, clip_name(path)) for path, problem in find_files(video_dir, CLIP_SUFFIXES) if not problem]
    found += list_faces(data_dir / "faces").itertuples(index=False, name=None)
    if not found:
        raise UserError(f"{data_dir}: contains neither a clip in {video_dir} nor a face in {data_dir / 'faces'}")
    return found


def link(source: str, target: Path, final: Path) -> None:
    """Make target the same file as source: a hard link, so that neither depends on the other; a symbolic link, right in
    the folder that target is moved to as final, if the disk or the file's owner allows no hard link. Raises UserError
    if the disk knows neither."""
    target.parent.mkdir(parents=True, exist_ok=True)
    source = os.path.realpath(source)
    try:
        os.link(source, target)
    except OSError:
        try:
            os.symlink(os.path.relpath(source, os.path.realpath(final.parent)), target)
        except PermissionError:
            raise UserError(f"{final}: its disk does not support links (FAT, exFAT), and nothing is copied; move the "
                            "data folder to another disk") from None


def divide(data_dir: Path, parts: tuple[int, ...], speaker_regex: str, seed: int) -> None:
    """Make train, valid and test in a data folder from its labels.csv and its folders videos and faces, and print it.

    Nothing is moved or copied, the files are linked: removing the three folders undoes it. A split's labels.csv gets a
    column `speaker`. Raises UserError if one of the folders is there, for labels that are missing or wrong, and if
    there is nothing to divide.
    """
    for split in SPLITS:
        if os.path.lexists(data_dir / split):
            raise UserError(f"{data_dir / split}: is there already; move it away, or divide another folder")
    labels, speakers = read_labels(label_file(data_dir), speaker_regex)
    rooms = {split: len(speakers) * parts[SPLITS.index(split)] / sum(parts) for split in ("test", "valid")}
    splits, sources = draw_parts(speakers, rooms, seed), find_sources(data_dir)
    unlabelled = sorted({clip for _, clip in sources} - set(labels.index))
    scratch = data_dir / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)  # what a killed run left
    try:
        for split in SPLITS:
            (scratch / split).mkdir(parents=True)
            of_split = labels[splits == split].assign(speaker=speakers[splits == split])
            of_split.to_csv(scratch / split / LABEL_TABLE)
            if (data_dir / "faces" / PREPROCESSING_FILE).is_file():
                (scratch / split / "faces").mkdir()
                shutil.copy(data_dir / "faces" / PREPROCESSING_FILE, scratch / split / "faces")
        for path, clip in progress_bar(sources, unit="file"):
            if clip in splits:
                place = Path(splits[clip], os.path.relpath(path, data_dir))
                link(path, scratch / place, data_dir / place)
        for split in SPLITS:
            os.rename(scratch / split, data_dir / split)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    for split in SPLITS:
        print(f"{split}: {counted((splits == split).sum(), 'clip')} of "
              f"{counted(speakers[splits == split].nunique(), 'speaker')}")
    if speakers[splits == "test"].nunique() < LEAST_SPEAKERS:
        print(f"warning: test has fewer than {LEAST_SPEAKERS} speakers: evaluate.py will give no p value, and its "
              "intervals are too narrow", file=sys.stderr)
    if unlabelled:
        print(f"left out: {counted(len(unlabelled), 'clip')} without a label (the first: {printable(unlabelled[0])})")
    print(f"Files are linked, nothing was moved: removing {', '.join(SPLITS)} undoes it.")
