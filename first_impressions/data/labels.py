"""The readers of labels, scores, groups and speakers.

The labels of a split are the challenge's own annotation_*.pkl or a labels.csv with the columns clip and TRAITS. No code
in a label file is ever run.
"""
import os
import re
import reprlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas

from first_impressions.common.command_line import UserError
from first_impressions.common.constants import ANNOTATION_FILES, LABEL_TABLE, TRAITS, clip_name
from first_impressions.data.annotation_pickle import read_annotation
from first_impressions.data.tables import check_table, numbers_of, read_table

# A ChaLearn clip is called <YouTube id>.<number>: the clips of one video show one speaker.
SPEAKER_REGEX = r"^(.+)\.\d+$"
PICKLE = ".pkl"
SUFFIXES = (PICKLE, ".csv", ".tsv", ".tab", ".txt")     # of label files; any other file is read as a table, too
SPREADSHEETS = (".xlsx", ".xls", ".ods", ".numbers")
LARGEST = 1e300     # a pickle may hold whole numbers that are too large for a float
# The numbers in the challenge's own files of groups.
CHALLENGE_GROUPS = {
    "ethnicity": {"1": "Asian", "2": "Caucasian", "3": "African-American"}, "gender": {"1": "male", "2": "female"},
    "agegroup": {"1": "0 to 6 years", "2": "7 to 13 years", "3": "14 to 18 years", "4": "19 to 24 years",
                 "5": "25 to 32 years", "6": "33 to 45 years", "7": "46 to 60 years", "8": "61 years and more"}}
OTHER_SCALE = "is outside [0, 1]; scale the scores to [0, 1]"
SCORE_MARGIN = 0.5  # a prediction may be so far outside of [0, 1]; further means another scale


def _named(names, places, path):
    """Return the clips' names; places: of each in the file. Raises UserError for one that is missing or there twice."""
    clips, first = [clip_name(name) for name in names], {}
    for clip, where in zip(clips, zip(places, names), strict=True):
        if not clip:
            raise UserError(f"{path}: {where[0]} has an empty clip name; name it or remove the line")
        if first.setdefault(clip, where) is not where:
            raise UserError(f"{path}: the clip {clip} is listed twice, in {' as '.join(first[clip])} and in "
                            f"{' as '.join(where)}; keep one, or rename one if these are two clips")
    return pandas.Index(clips, name="clip", dtype=object)


def _clip_table(path, needed, optional):
    """Return a table by read_table, index clip in the order of the lines, and the scores in its columns TRAITS if these
    are needed."""
    table = read_table(path, ("clip", *needed), optional)
    if needed and "problem" in table:   # predict.py's own table: a file that could not be scored has no scores
        table = table[(table["problem"] == "") | (table[list(TRAITS)] != "").any(axis=1)]
    if table.empty:
        raise UserError(f"{path}: contains no clip")
    clips = _named(table["clip"], [f"line {line}" for line in table.index], path)
    return table.set_axis(clips, axis=0), numbers_of(table, needed, path).set_axis(clips, axis=0).sort_index()


def _annotation_scores(path):
    check_table(path)
    content = read_annotation(path)
    missing = [trait for trait in TRAITS if trait not in content]
    if missing:
        raise UserError(f"{path}: the trait {', '.join(missing)} is missing (there are {', '.join(map(str, content))})")
    columns = {}
    for trait in TRAITS:
        clips = _named(content[trait], [f"entry {number} of {trait}" for number in range(len(content[trait]))], path)
        columns[trait] = pandas.Series(list(content[trait].values()), index=clips, dtype=object)
    scores = pandas.DataFrame(columns)
    if scores.empty:
        raise UserError(f"{path}: contains no clip")
    numbers = scores.map(lambda score: isinstance(score, (int, float)) and not isinstance(score, bool)
                         and abs(score) < LARGEST)
    _refuse(~numbers, scores, path, "is not a number; correct it or remove the clip")
    return scores.astype("float64").rename_axis("clip").sort_index()


def _refuse(wrong, scores, path, complaint):
    """Raise UserError with the first score that is wrong, if there is one."""
    if wrong.any(axis=None):
        row, column = np.argwhere(wrong)[0]
        score = reprlib.repr(scores.astype(object).iat[row, column])
        raise UserError(f"{path}: clip {scores.index[row]}, {TRAITS[column]}: {score} {complaint}")


def read_scores(path: str | os.PathLike) -> pandas.DataFrame:
    """Return predictions in a table as a DataFrame: index clip (without video ending), sorted, float64 columns TRAITS.
    A row of predict.py's table that has a text in `problem` and no scores is left out. Raises UserError for anything
    that is not read for sure (see tables.py), a clip named twice, and scores of another scale: a little outside of
    [0, 1] a regression may be."""
    _, scores = _clip_table(path, TRAITS, ("problem",))
    _refuse((scores < -SCORE_MARGIN) | (scores > 1 + SCORE_MARGIN), scores, path, OTHER_SCALE)
    return scores


def quantiles_of(labels: pandas.DataFrame) -> dict[str, list[float]]:
    """Return {trait: its 0 %, 1 % ... 100 % quantiles, 101 ascending numbers} of labels, columns TRAITS."""
    quantiles = labels[list(TRAITS)].quantile(np.linspace(0, 1, 101))
    return {trait: sorted(quantiles[trait].tolist()) for trait in TRAITS}


def read_groups(path: str | os.PathLike) -> dict[str, pandas.Series]:
    """Return {column: group of each clip} for all columns but `clip` of a table: Series, index clip, of text.
    Clips with an empty cell are left out. The numbers in the challenge's own files (`VideoName;Ethnicity;Gender`,
    `VideoName,AgeGroup`) become words. Raises UserError as read_scores does."""
    table, _ = _clip_table(path, (), None)
    groups = {column: table[column] for column in table if column != "clip"}
    if not groups:
        raise UserError(f"{path}: has no column of groups beside `clip`")
    if groups.keys() in ({"ethnicity", "gender"}, {"agegroup"}) and b"VideoName" in Path(path).read_bytes()[:20]:
        groups = {column: of_clips.replace(CHALLENGE_GROUPS[column]) for column, of_clips in groups.items()}
    return {column: of_clips[of_clips != ""] for column, of_clips in groups.items()}


def speakers_of(clips: Iterable[str], speaker_regex: str = SPEAKER_REGEX) -> list[str]:
    """Return one speaker's name for each clip: the first group of the expression, or the clip's own name if the
    expression does not match. Raises UserError for an expression without a group."""
    names = pandas.Series(list(clips), dtype=object)
    try:
        found = names.str.extract(speaker_regex).iloc[:, 0]
    except (re.error, ValueError) as error:
        remedy = f"it needs a group, as in '{SPEAKER_REGEX}'"
        raise UserError(f"--speaker-regex '{speaker_regex}': {error}; {remedy}") from None
    return found.mask(found == "").fillna(names).tolist()


def read_labels(path: str | os.PathLike, speaker_regex: str = SPEAKER_REGEX) -> tuple[pandas.DataFrame, pandas.Series]:
    """Return the labels in a file of the challenge (.pkl) or a table, and each clip's speaker.

    Labels: DataFrame, index clip name without video ending, sorted, columns TRAITS, float64 in [0, 1]. Speakers: Series
    with this index, from the column `speaker` of a table, if it has one and the cell is not empty, else from the clip's
    name by speakers_of. Raises UserError naming the file for a missing trait, a score that is not a number or outside
    [0, 1], a clip named twice or a file that is not plain data. No code in the file is ever run.
    """
    path, table = Path(path), {}
    if path.suffix.lower() == PICKLE:
        labels = _annotation_scores(path)
    else:
        table, labels = _clip_table(path, TRAITS, ("speaker",))
    _refuse((labels < 0) | (labels > 1), labels, path, OTHER_SCALE)
    speakers = pandas.Series(speakers_of(labels.index, speaker_regex), index=labels.index, dtype=object)
    if "speaker" in table:
        speakers.update(table["speaker"][table["speaker"] != ""])
    return labels, speakers


def label_file(folder: Path, split: str | None = None) -> Path:
    """Return the path of the labels in a folder, perhaps a split's. Raises UserError if there is none, or two."""
    names = [ANNOTATION_FILES[split], LABEL_TABLE] if split else [LABEL_TABLE]
    found = [folder / name for name in names if (folder / name).exists()]
    if len(found) > 1:
        raise UserError(f"{found[0]} and {found[1]}: two files of labels in one folder; keep one")
    if found:
        return found[0]
    others = sorted(path.name for path in folder.iterdir() if path.suffix.lower() in (*SPREADSHEETS, *SUFFIXES))
    remedy = "; the README says how to lay out the data" + ", and --data-dir names another folder" * bool(split)
    if others:  # the labels under another name
        spreadsheet = next((name for name in others if name.lower().endswith(SPREADSHEETS)), None)
        remedy = f"; there {'are' if len(others) > 1 else 'is'} {', '.join(others[:5])}: " + (
            f"export {spreadsheet} as {LABEL_TABLE} (CSV UTF-8)" if spreadsheet else
            f"if {others[0]} holds the labels, rename it to {LABEL_TABLE}")
    raise UserError(f"{folder}: contains no {' or '.join(names)}{remedy}")
