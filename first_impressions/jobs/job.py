"""A run of a pre-processing script over all its files: options, progress, failures.csv, and what is said at the end."""
import argparse
import contextlib
import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from first_impressions.common.command_line import (
    UserError,
    counted,
    positive_int,
    printable,
    progress_bar,
    stop_status,
    undisturbed,
    usable_cores,
    whole_number_between,
)
from first_impressions.common.constants import JPEG_QUALITY
from first_impressions.jobs.failures import Failures
from first_impressions.jobs.target_folder import FAILURES, say_passed_over
from first_impressions.jobs.worker_pool import UNEXPECTED, Known, map_files, warn_of_unexpected


def add_job_options(parser: argparse.ArgumentParser, inputs: str) -> None:
    """Add the options that all runs share. inputs: the word for one file of the source."""
    parser.add_argument("--quality", type=whole_number_between(1, 100), metavar="1-100", default=JPEG_QUALITY,
                        help="JPEG quality")
    parser.add_argument("--workers", type=positive_int, default=usable_cores(),
                        help=f"processes, one {inputs} each at a time")
    parser.add_argument("--ray-address", default=os.environ.get("RAY_ADDRESS"), metavar="ADDRESS",
                        help=f"spread the {inputs}s over this Ray cluster (also: the variable RAY_ADDRESS)")


@dataclass
class Job:
    """A run over files, and what it did.

    inputs, outputs: the words for one file of the source and of the target; passed_over: how many files in the source
    have another ending, by ending; expected: texts that mark reasons which are not errors, each of one frame.

    looked_at: inputs; made, present: files in the target folder; marked: lines of failures.csv that bear a text of
    expected, by text; failed: inputs with another line; unexpected: those of them with a reason that nobody thought of;
    status: the exit status of a run that was stopped.
    """
    target: str
    inputs: str
    outputs: str
    workers: int | None = None
    ray_address: str | None = None
    expected: tuple[str, ...] = ()
    passed_over: Counter = field(default_factory=Counter)
    looked_at: int = 0
    made: int = 0
    present: int = 0
    marked: Counter = field(default_factory=Counter)
    failed: int = 0
    unexpected: int = 0
    status: int = 0
    seconds: float = 0.0

    def run(self, function: Callable[[str], tuple[int, int, list[str]]], items: Iterable[tuple[str, Known]],
            total: int) -> None:
        """Run a function over all items, write failures.csv, show a progress bar. Call it inside open_target.

        function, items: as in worker_pool.map_files; total: of the items. function(path) returns (made, present,
        problems): two numbers of files in the target folder, and a list of reasons, each a line in failures.csv. A
        second run is over the lines of the first one's failures.csv, and replaces them.
        """
        begin, number, complete = time.monotonic(), 0, False
        failures = Failures(self.target)
        self.failed, self.unexpected, self.marked = 0, 0, Counter()
        try:
            with (contextlib.closing(map_files(function, items, self.workers, self.ray_address)) as results,
                  progress_bar(total=total, unit=self.inputs) as bar):
                for path, result, problem in results:
                    made, present, problems = result or (0, 0, [problem])
                    self.made += made
                    self.present += present
                    marks = [[text for text in self.expected if text in reason] for reason in problems]
                    self.marked.update(itertools.chain(*marks))
                    self.failed += not all(marks)
                    self.unexpected += any(reason.startswith(UNEXPECTED) for reason in problems)
                    failures.add(path, *problems)
                    number += 1
                    bar.update()
            complete = True
        except KeyboardInterrupt as error:
            self.status = stop_status(error)
        finally:
            with undisturbed(), contextlib.suppress(OSError):  # on a full disk the last run's list stays
                failures.close(complete)
        self.looked_at = max(self.looked_at, number)
        self.seconds += time.monotonic() - begin

    def report(self, following: str) -> int:
        """Print what was done and, on the last line, where the results are and what to run next (following). Return the
        exit status: 1 if more than one file in a hundred failed for a reason that nobody thought of.

        Raises UserError if a complete run has nothing to show but problems.
        """
        listed = Path(self.target, FAILURES)
        inputs = counted(self.looked_at, self.inputs)
        speed = f" ({self.looked_at / self.seconds:.1f} {self.inputs}s/s)" if self.made and self.seconds else ""
        print(f"{inputs} in {self.seconds:.1f} s{speed}: {counted(self.made, self.outputs)} made, {self.present} there "
              f"already{say_passed_over(self.passed_over)}.")
        problems = [f"{text}: {counted(self.marked[text], 'frame')}" for text in self.expected if self.marked[text]]
        if self.failed:
            problems.append(f"{'other ' if problems else ''}problems: {counted(self.failed, self.inputs)}")
        if problems:
            line = ", ".join(problems)
            print(f"{line[0].upper()}{line[1:]}; listed in {printable(listed)}")
        is_suspect = warn_of_unexpected(self.unexpected, self.looked_at, self.inputs)
        if self.status:
            print(f"Stopped. What is finished is in {printable(self.target)}; next: the same command, which goes on")
            return self.status
        if not self.made + self.present and self.failed:
            raise UserError(f"{self.target}: {inputs}, and nothing could be made of any; {listed} says why")
        print(f"{self.outputs.capitalize()}s: {printable(self.target)}   next: {following}")
        return int(is_suspect)
