"""failures.csv of a target folder: each input that could not be worked on, and why."""
import contextlib
import csv
import os
from pathlib import Path

from first_impressions.jobs.target_folder import FAILURES, SCRATCH


def read_failures(target: str | os.PathLike) -> dict[str, list[str]]:
    """Return {input: reasons} of a target folder's failures.csv; empty if there is no such file."""
    reasons = {}
    with contextlib.suppress(OSError, csv.Error), open(
            Path(target, FAILURES), encoding="utf-8", errors="surrogateescape", newline="") as file:
        for row in csv.reader(file):
            if len(row) == 2 and row != ["input", "reason"]:
                reasons.setdefault(row[0], []).append(row[1])
    return reasons


def known_failures(target: str | os.PathLike) -> dict[str, list[str]]:
    """Return {absolute path: reasons} of a target folder's failures.csv, of files that have not changed since: whose
    inode change time (which copying an old time stamp does not set back) is clearly before the run that wrote it."""
    known = {}
    with contextlib.suppress(FileNotFoundError):
        start = os.stat(Path(target, FAILURES)).st_mtime_ns
        for cell, reasons in read_failures(target).items():
            if os.path.exists(cell) and os.stat(cell).st_ctime_ns < start:
                known[os.path.abspath(cell)] = reasons
    return known


class Failures:
    """failures.csv of a target folder: this run's lines replace the last one's at the end. Make it in open_target."""

    def __init__(self, target: str | os.PathLike):
        self.path = Path(target, FAILURES)
        self.unfinished = Path(target, SCRATCH, "failures.tmp")
        self.file = open(self.unfinished, "w", encoding="utf-8", errors="surrogateescape", newline="")
        # The clock of the target's disk, which also stamps the input files, not the clock of this machine.
        self.start = os.fstat(self.file.fileno()).st_mtime_ns
        self.writer = csv.writer(self.file)
        self.writer.writerow(["input", "reason"])
        self.waiting = read_failures(target)    # what this run has not looked at yet

    def add(self, path: str | os.PathLike, *reasons: str) -> None:
        """Note that a file was looked at, and write a line for each reason why something of it could not be made."""
        cell = os.fspath(path)
        if not cell[:1].isalnum() and cell[:1] not in "./_":
            # A spreadsheet takes =x, +x, -x and @x for formulas; ./=x names the same file and is not one.
            cell = os.path.join(".", cell)
        self.waiting.pop(cell, None)
        self.writer.writerows([cell, reason] for reason in reasons)

    def close(self, complete: bool) -> None:
        """Put the lines in place; after a run that was stopped keep the last run's lines on files not looked at."""
        if not complete:
            self.writer.writerows([cell, reason] for cell, reasons in self.waiting.items() for reason in reasons)
        self.file.close()
        # The time of the start: what was changed later than this was not seen by this run.
        os.utime(self.unfinished, ns=(self.start, self.start))
        os.replace(self.unfinished, self.path)
