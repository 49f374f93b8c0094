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


@dataclass(frozen=True)
class Batch:
    """What a run has to do.

    function: picklable function of a module; function(path) returns (made, present, problems): two numbers of files in
    the target folder, and a list of reasons, each a line in failures.csv. items: as in worker_pool.map_files; total:
    their number. inputs, outputs: the words for one file of the source and of the target. expected: texts that mark
    reasons which are not errors, each of one frame; passed_over: how many files in the source have another ending, by
    ending.
    """
    function: Callable[[str], tuple[int, int, list[str]]]
    items: Iterable[tuple[str, Known]]
    total: int
    target: str
    inputs: str
    outputs: str
    expected: tuple[str, ...] = ()
    passed_over: Counter = field(default_factory=Counter)


@dataclass
class Summary:
    """What a run did: made and present count files in the target folder, expected counts the lines in failures.csv that
    bear a reason which is not an error, by its text, failed the inputs with another one; status is the exit status."""
    inputs: int = 0
    made: int = 0
    present: int = 0
    failed: int = 0
    expected: Counter = field(default_factory=Counter)
    unexpected: int = 0
    status: int = 0
    seconds: float = 0.0


def add_batch_options(parser: argparse.ArgumentParser, inputs: str) -> None:
    """Add the options that all runs share. inputs: the word for one file of the source."""
    parser.add_argument("--quality", type=whole_number_between(1, 100), metavar="1-100", default=JPEG_QUALITY,
                        help="JPEG quality")
    parser.add_argument("--workers", type=positive_int, default=usable_cores(),
                        help=f"processes, one {inputs} each at a time")
    parser.add_argument("--ray-address", default=os.environ.get("RAY_ADDRESS"), metavar="ADDRESS",
                        help=f"spread the {inputs}s over this Ray cluster (also: the variable RAY_ADDRESS)")


def run_batch(batch: Batch, workers: int | None = None, ray_address: str | None = None) -> Summary:
    """Run the function over all items, write failures.csv, show a progress bar. Call it inside open_target."""
    summary = Summary()
    begin = time.monotonic()
    failures = Failures(batch.target)
    bar = progress_bar(total=batch.total, unit=batch.inputs)
    complete = False
    try:
        with contextlib.closing(map_files(batch.function, batch.items, workers, ray_address)) as results:
            for path, result, problem in results:
                made, present, problems = result or (0, 0, [problem])
                summary.inputs += 1
                summary.made += made
                summary.present += present
                marks = [[text for text in batch.expected if text in reason] for reason in problems]
                summary.expected.update(itertools.chain(*marks))
                summary.failed += not all(marks)
                summary.unexpected += any(reason.startswith(UNEXPECTED) for reason in problems)
                failures.add(path, *problems)
                bar.update()
        complete = True
    except KeyboardInterrupt as error:
        summary.status = stop_status(error)
    finally:
        with undisturbed():
            bar.close()
            with contextlib.suppress(OSError):  # on a full disk the last run's list stays
                failures.close(complete)
    summary.seconds = time.monotonic() - begin
    return summary


def print_summary(batch: Batch, summary: Summary, following: str) -> None:
    """Print what a run did and, on the last line, where the results are and what to run next (following);
    set the status to 1 if more than one file in a hundred failed for a reason that nobody thought of.

    Raises UserError if a complete run has nothing to show but problems.
    """
    inputs, target = batch.inputs, batch.target
    listed = Path(target, FAILURES)
    speed = f" ({summary.inputs / summary.seconds:.1f} {inputs}s/s)" if summary.made and summary.seconds else ""
    print(f"{counted(summary.inputs, inputs)} in {summary.seconds:.1f} s{speed}: "
          f"{counted(summary.made, batch.outputs)} made, {summary.present} there already"
          f"{say_passed_over(batch.passed_over)}.")
    problems = [f"{text}: {counted(summary.expected[text], 'frame')}" for text in batch.expected
                if summary.expected[text]]
    if summary.failed:
        problems.append(f"{'other ' if problems else ''}problems: {counted(summary.failed, inputs)}")
    if problems:
        line = ", ".join(problems)
        print(f"{line[0].upper()}{line[1:]}; listed in {printable(listed)}")
    is_suspect = warn_of_unexpected(summary.unexpected, summary.inputs, inputs)
    if summary.status:
        print(f"Stopped. {batch.outputs.capitalize()}s that were finished stay in {printable(target)}; next: the same "
              "command, which goes on")
        return
    if not summary.made + summary.present and summary.failed:
        raise UserError(f"{target}: {counted(summary.inputs, inputs)}, and nothing could be made of any; {listed} says "
                        "why")
    print(f"{batch.outputs.capitalize()}s: {printable(target)}   next: {following}")
    summary.status = int(is_suspect)
