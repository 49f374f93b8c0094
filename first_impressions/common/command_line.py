"""Shared command-line behaviour: options, help pages, errors, exit statuses, progress bars.

Exit statuses: 0 done, 1 the machine failed (disk full) or nothing could be scored, 2 wrong input (one line on stderr
names the file and the remedy), 129 SIGHUP, 130 Ctrl-C, 141 the reader of the output went away, 143 SIGTERM.
"""
import argparse
import contextlib
import errno
import math
import os
import shlex
import signal
import sys
import termios
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from tqdm import tqdm

VERSION = "1.0.0"
MOST = 1_000_000_000  # of anything that is counted
CGROUPS, CGROUPS_OF_PROCESS = "/sys/fs/cgroup", "/proc/self/cgroup"    # of Linux


class UserError(Exception):
    """Wrong input. The message is one line that names the file or option and says what to do about it."""


def pass_over(*_) -> None:
    """Handler of a signal that is to do nothing. SIG_IGN would make Python report one that is already pending."""


def end_run(number: int, _) -> None:
    """Handler of SIGTERM, and of SIGHUP when the terminal closes: a run ends as by Ctrl-C, with another exit status. A
    second signal must not interrupt the clean-up."""
    for other in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, pass_over)
    leave_closed_terminal()
    raise KeyboardInterrupt(number)


def leave_closed_terminal() -> None:
    """Redirect stdout and stderr to /dev/null if the terminal is gone: writing to it is an error."""
    for descriptor in (1, 2):
        try:
            termios.tcgetattr(descriptor)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore Ctrl-C, SIGTERM and SIGHUP in this block. Other threads than the main one never hear of them."""
    is_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if is_main else ()
    before = [signal.signal(number, pass_over) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before):
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def stop_status(error: KeyboardInterrupt) -> int:
    """Return the exit status of a run that Ctrl-C or a signal ended."""
    return 128 + (error.args or (signal.SIGINT,))[0]


def stop_name(status: int) -> str:
    """Return what ended a run with this exit status: Ctrl-C or the name of a signal."""
    return "Ctrl-C" if status == 128 + signal.SIGINT else signal.Signals(status - 128).name


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the line breaks of the script's docstring and appends each option's default."""

    def _get_help_string(self, action):
        if action.default is None or action.default is False or not action.option_strings:
            return action.help
        return super()._get_help_string(action)


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are one line, since the list of all options would bury them, and which takes
    existing files for files: the names of 117 of the challenge's 10,000 clips begin with "-"."""

    def parse_known_args(self, args=None, namespace=None):
        args = list(sys.argv[1:] if args is None else args)
        self.unknown = [word for word in args if word.startswith("-") and not self._negative_number_matcher.match(word)
                        and word.partition("=")[0] not in {"--", *self._option_string_actions}]
        args = [os.path.join(".", word) if word in self.unknown and os.path.lexists(word) else word for word in args]
        return super().parse_known_args(args, namespace)

    def error(self, message):
        if self.unknown and "unrecognized" not in message:  # they are left out, and the next word takes their place
            message += f"; {self.unknown[0]} is not an option"
        self.exit(2, f"{self.prog}: error: {message} (--help explains all arguments)\n")


def make_parser(docstring: str) -> argparse.ArgumentParser:
    """Return an ArgumentParser whose help page is the script's docstring and which knows --version."""
    parser = OneLineParser(description=docstring.strip(), formatter_class=HelpFormatter, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    return parser


def number_between(least: float, most: float, wanted: str, kind: type = float) -> Callable[[str], float]:
    """Return an argparse type: a finite number, float or int, from least to most. wanted: what messages call it."""
    def number(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most or math.isinf(value):
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is not {wanted}")
        return value

    return number


def whole_number_between(least: int, most: int) -> Callable[[str], int]:
    """Return an argparse type: a whole number from least to most."""
    return number_between(least, most, f"a whole number from {least} to {most}", int)


seconds_apart = number_between(0.001, math.inf, "a number of seconds, at least 0.001")
positive_int = whole_number_between(1, MOST)
whole_number = whole_number_between(0, MOST)
seed_number = whole_number_between(0, 2**63 - 1)    # which every generator takes


def usable_cores() -> int:
    """Return the number of CPU cores that this process may use, at least 1: not those of the whole machine.

    Linux says it by the affinity (Slurm, taskset) and by the CPU quota of the control group and of those above it
    (docker run --cpus; Linux's admin-guide/cgroup-v2, "cpu.max", and scheduler/sched-bwc for version 1).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError):
        for line in Path(CGROUPS_OF_PROCESS).read_text().splitlines():
            _, controllers, place = line.split(":", 2)
            if controllers in ("", "cpu", "cpu,cpuacct"):
                top = Path(CGROUPS, controllers)
                group = top / place.lstrip("/")
                cores = min(cores, *(_quota(folder) for folder in (group, *group.parents)
                                     if folder.is_relative_to(top)))
    return max(1, math.ceil(cores))


def _quota(group):
    """Return the cores that a control group may use, infinite without a limit."""
    for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            quota, period = " ".join((group / name).read_text() for name in names).split()
            if float(quota) > 0:  # else "max" or -1: no limit
                return float(quota) / float(period)
    return math.inf


def true_or_false(text: str) -> bool:
    """argparse type: the words true and false, in any case."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def progress_bar(iterable: Iterable | None = None, **options) -> tqdm:
    """Return a tqdm bar on stderr; silent if that is not a terminal, of plain characters if NO_COLOR is set."""
    return tqdm(iterable, ascii=True if os.environ.get("NO_COLOR") else None,
                **{"dynamic_ncols": True, "smoothing": 0.1, "disable": None, **options})


def printable(text: object) -> str:
    """Return the text on one line with control characters escaped, so that a file's name cannot garble a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode("ascii")
                   for c in str(text))


def counted(number: int, word: str) -> str:
    """Return "1 clip", "2 clips"."""
    return f"{number} {word}{'' if number == 1 else 's'}"


def folder_options(args: argparse.Namespace, names: Iterable[str] = ("data_dir", "runs_dir")) -> str:
    """Return, as text for a next command, those of the options --data-dir and --runs-dir that are not the default."""
    return "".join(f" --{name.replace('_', '-')} {shlex.quote(getattr(args, name))}" for name in names
                   if getattr(args, name) != name.removesuffix("_dir"))


def disk_error(error: BaseException | None) -> OSError | None:
    """Return the OSError of a full disk or quota that an exception is, or that led to it; None if there is none."""
    while error is not None and getattr(error, "errno", None) not in (errno.ENOSPC, errno.EDQUOT):
        error = error.__cause__ or error.__context__
    return error


def run_script(main: Callable, argv: list[str] | None = None) -> None:
    """Run main(argv) and end the process with its exit status; turn known errors into one line on stderr."""
    name = Path(sys.argv[0]).name
    for stream in (sys.stdout, sys.stderr):  # a terminal that knows only ASCII must not stop a run at a clip's name
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    # TensorBoard writes in a thread, which ends on a full disk with a traceback. Main then hears of it as an error.
    threading.excepthook = lambda failure: disk_error(failure.exc_value) or threading.__excepthook__(failure)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # under nohup SIGHUP is ignored
            signal.signal(number, end_run)
    try:
        status = main(argv)
    except UserError as error:
        print(f"{name}: error: {printable(error)}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt as error:
        signal.signal(signal.SIGINT, pass_over)  # a second Ctrl-C must not interrupt the libraries' exit handlers
        status = stop_status(error)
        print(f"\n{name}: stopped by {stop_name(status)}", file=sys.stderr)
    except BrokenPipeError:
        # The reader of the output (head, less) has gone; nothing is left to say, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except Exception as error:
        if full := disk_error(error):
            place, status = printable(getattr(full, "filename", None) or "the target folder"), 1
            reason = (f"no space left on the disk of {place}; all that was complete is intact: free some space and run "
                      "the same command again")
        elif isinstance(error, OSError) and error.filename is not None:  # a wrong path or missing rights
            reason, status = f"{printable(error.filename)}: {error.strerror}", 2
        else:
            raise
        print(f"{name}: error: {reason}", file=sys.stderr)
    sys.exit(status or 0)
