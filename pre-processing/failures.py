"""failures.csv of a target folder: each input that could not be worked on, and why."""
import csv
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from name_index import NameIndex
from target_folder import FAILURES, SCRATCH


def _input_cell(path):
    # A spreadsheet takes =x, +x, -x and @x for formulas; ./=x names the same file and is none.
    text = os.fspath(path)
    return text if text[:1].isalnum() or text[:1] in "./_" else os.path.join(".", text)


def _read_failures(path):
    """Yield the lines (input, reason) of a failures.csv; none where there is no such file."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            for row in csv.reader(file):
                if len(row) == 2 and row != ["input", "reason"]:
                    yield row
    except (OSError, csv.Error):
        return


class Failures:
    """failures.csv of a target folder: the last run's lines, and this run's, which replace them at the end. Make it
    inside open_target."""

    def __init__(self, target: str | os.PathLike):
        self.path = Path(target, FAILURES)
        self.unfinished = Path(target, SCRATCH, "failures.tmp")
        self.file = open(self.unfinished, "w", encoding="utf-8", errors="surrogateescape", newline="")
        # The clock of the target's disk, which also stamps the input files, not the clock of this machine.
        self.start = os.fstat(self.file.fileno()).st_mtime_ns
        self.writer = csv.writer(self.file)
        self.writer.writerow(["input", "reason"])
        self.before = NameIndex(cell for cell, _ in _read_failures(self.path))
        self.visited = np.zeros(len(self.before), dtype=bool)

    def add(self, path: str | os.PathLike, reason: str | None) -> None:
        """Write a line for the file, or for reason None only note that it was looked at."""
        cell = _input_cell(path)
        place = self.before.find(cell) if len(self.before) else None
        if place is not None:
            self.visited[place] = True
        if reason is not None:
            self.writer.writerow([cell, reason])

    def close(self, complete: bool) -> None:
        """Put the lines in place; after a run that was stopped keep the last run's lines on files not looked at."""
        if not complete:
            for cell, reason in _read_failures(self.path):
                if not self.visited[self.before.find(cell)]:
                    self.writer.writerow([cell, reason])
        self.file.close()
        # The time of the start: what was changed later than this was not seen by this run.
        os.utime(self.unfinished, ns=(self.start, self.start))
        os.replace(self.unfinished, self.path)


def unchanged_failures(target: str | os.PathLike, reason: str) -> Callable[[str], bool]:
    """Return a function that tells whether the last run gave this reason for a file that has not changed since.

    A file counts as changed when its inode change time (which copying an old time stamp does not set back) is not
    clearly before the start of that run.
    """
    path = Path(target, FAILURES)
    try:
        start = path.stat().st_mtime_ns
    except OSError:
        return lambda path: False
    index = NameIndex(cell for cell, its_reason in _read_failures(path) if its_reason == reason)
    return lambda path: index.find(_input_cell(path)) is not None and os.stat(path).st_ctime_ns < start
