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


class KnownFailures:
    """What failures.csv said before this run of files that have not changed since. It can be sent to other processes.

    A file counts as changed when its inode change time (which copying an old time stamp does not set back) is not
    clearly before the start of the run that wrote failures.csv.
    """

    def __init__(self, target: str | os.PathLike):
        path = Path(target, FAILURES)
        self.start = path.stat().st_mtime_ns if path.is_file() else 0
        # Workers of a cluster know files by their absolute paths.
        self.reasons = {os.path.abspath(cell): reasons for cell, reasons in read_failures(target).items()}

    def of(self, path: str | os.PathLike) -> list[str]:
        """Return the reasons that the last run gave for a file; none if the file has changed since."""
        reasons = self.reasons.get(os.path.abspath(path), [])
        return reasons if reasons and os.stat(path).st_ctime_ns < self.start else []
