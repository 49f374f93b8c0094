"""Readers of what the scripts wrote: files and tables, compared by many tests."""
import csv
import os
from pathlib import Path


def contents(folder, pattern="**/*"):
    """Return {path below the folder: bytes} of the files in it, but for locks."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).glob(pattern)
            if path.is_file() and path.name != ".lock"}


def rows_of(path):
    """Return the rows of a CSV file as {column: text}."""
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def failures_in(folder):
    """Return [(name of the input, reason)] of a folder's failures.csv, sorted."""
    path = Path(folder, "failures.csv")
    assert path.read_bytes().startswith(b"input,reason\r\n")
    return sorted((os.path.basename(row["input"]), row["reason"]) for row in rows_of(path))


def overlap(first, second):
    """Return the shared part (IoU) of two boxes (left, top, right, bottom)."""
    shared = [max(0, min(first[axis + 2], second[axis + 2]) - max(first[axis], second[axis])) for axis in (0, 1)]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return shared[0] * shared[1] / (sum(areas) - shared[0] * shared[1])
