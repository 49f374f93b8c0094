"""Official clips of the challenge: name, split, size and SHA-256 of all 10,000 of them (public facts, no pictures)."""
import functools
import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pandas

from first_impressions.common.command_line import UserError, printable, progress_bar
from first_impressions.common.constants import CLIP_SUFFIXES, SPLITS, clip_name
from first_impressions.common.files import atomic_write
from first_impressions.jobs.target_folder import find_files

TABLE = Path(__file__).with_suffix(".csv.gz")
DIFFERING_CLIPS = "differing_clips.csv"     # in the data folder


@functools.cache
def official_clips() -> pandas.DataFrame:
    """Return the table: index clip (without ending), columns split ("train", "valid" or "test"), bytes (int64) and
    sha256 (the first 12 hexadecimal digits)."""
    return pandas.read_csv(TABLE, index_col="clip", dtype={"clip": str, "sha256": str}, keep_default_na=False)


def official_split_of(clips: Iterable[str]) -> pandas.Series:
    """Return the official split of each clip, "" for a clip that is not one of the challenge's. clips: names, with or
    without a folder and video ending; they are the index."""
    clips = list(clips)
    splits = official_clips()["split"].reindex([clip_name(clip) for clip in clips]).fillna("")
    return pandas.Series(splits.to_list(), index=clips, dtype=object)


def problem_of(path: str, official: pandas.Series) -> str:
    """Return what distinguishes a file from the official clip (a row of the table), "" for the very same bytes."""
    try:
        size = os.path.getsize(path)
        if size != official["bytes"]:
            return f"{'truncated' if size < official['bytes'] else 'too long'}: {size} of {official['bytes']} bytes"
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "" if digest.startswith(official["sha256"]) else "not the official bytes: SHA-256 differs"


def verify_split(split: str, paths: dict[str, str]) -> dict[str, str]:
    """Return the problem of each clip that is in the split officially or by its files, "" for a clip with the official
    bytes. paths: {clip: its file}."""
    official = official_clips()[official_clips()["split"] == split]
    problems = {clip: problem_of(paths[clip], expected) if clip in paths else "missing"
                for clip, expected in progress_bar(official.iterrows(), total=len(official), unit="clip", desc=split)}
    others = official_split_of(sorted(set(paths) - set(problems)))
    problems.update((clip, f"of another split: {other}" if other else "not an official clip")
                    for clip, other in others.items())
    return problems


def verify_clips(data_dir: str | os.PathLike, table: Path) -> bool:
    """Compare the clips of a data folder with the official ones: print the counts of each split, write a table of those
    that differ (columns split, clip, problem). Return True if none differs. Raises UserError if no split has videos."""
    if not any(Path(data_dir, split, "videos").is_dir() for split in SPLITS):
        raise UserError(f"{data_dir}: contains no folder train/videos, valid/videos or test/videos; name another")
    rows = []
    for split in SPLITS:
        videos = Path(data_dir, split, "videos")
        if not videos.is_dir():
            print(f"{split}: {videos} is not there")
            continue
        paths = {clip_name(path): path for path, problem in find_files(videos, CLIP_SUFFIXES) if not problem}
        problems = verify_split(split, paths)
        rows += [(split, clip, problem) for clip, problem in problems.items() if problem]
        counts = Counter(problem.partition(":")[0] for problem in problems.values())
        line = f"{split}: {counts.pop('', 0)} of {(official_clips()['split'] == split).sum()} official clips"
        print("; ".join([line, *(f"{number} {kind}" for kind, number in counts.most_common())]))
    with atomic_write(table) as partial:
        pandas.DataFrame(rows, columns=["split", "clip", "problem"]).to_csv(partial, index=False)
    print(f"Clips that differ: {printable(table)}" if rows else "All of them have the official bytes.")
    return not rows
