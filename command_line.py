"""What every script does the same way: options, help pages, errors, exit statuses, progress bars, files written whole.

Exit statuses: 0 done, 1 the machine failed (disk full) or nothing could be scored, 2 wrong input (one line on stderr
names the file and the remedy), 129 SIGHUP, 130 Ctrl-C, 141 the reader of the output went away, 143 SIGTERM.
"""
import argparse
import contextlib
import errno
import os
import shlex
import shutil
import signal
import sys
import tempfile
import termios
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout
from tqdm import tqdm

# PyTorch's threads wait by spinning, which is ten times slower as soon as another program wants the same cores. Read
# when torch is imported, so the scripts import this module before it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

VERSION = "1.0.0"
MOST = 1_000_000_000  # of anything that is counted
# Errors of the file system that mean a wrong path or missing rights, and no fault of this suite.
PATH_ERRORS = frozenset((errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
                         errno.ENAMETOOLONG, errno.EROFS, errno.ELOOP))


def _end_quietly(kind, error, trace):
    """Catch Ctrl-C while the libraries are still being imported, which takes seconds: before run_script can."""
    cause = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        sys.__excepthook__(kind, error, trace)
        return
    print(f"\n{Path(sys.argv[0]).name}: stopped by Ctrl-C", file=sys.stderr, flush=True)
    os._exit(130)


sys.excepthook = _end_quietly


class UserError(Exception):
    """Wrong input. The message is one line that names the file or option and says what to do about it."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, or SIGHUP when the terminal closes: ends a run as Ctrl-C does, with another exit status."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number


def pass_over(*_) -> None:
    """Handler of a signal that is to do nothing. Not SIG_IGN: of a signal that has come already Python would then print
    that it was ignored."""


def raise_terminated(number: int, _) -> None:
    """Handler of SIGTERM and SIGHUP. Another one of them must not tear the clean-up."""
    for other in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, pass_over)
    leave_closed_terminal()
    raise Terminated(number)


def leave_closed_terminal() -> None:
    """Send what is still to be said to nowhere where the terminal is gone: writing to it is an error."""
    for descriptor in (1, 2):
        try:
            termios.tcgetattr(descriptor)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore Ctrl-C, SIGTERM and SIGHUP in this block. Other threads than the main one never hear of them."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    if threading.current_thread() is not threading.main_thread():
        numbers = ()
    before = [signal.signal(number, pass_over) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before):
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def stop_status(error: KeyboardInterrupt) -> int:
    """Return the exit status of a run that Ctrl-C or a signal ended."""
    return 128 + getattr(error, "number", signal.SIGINT)


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
    """An ArgumentParser whose complaints are one line: the list of all options would bury them."""

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message} (--help explains all arguments)\n")


def make_parser(docstring: str) -> argparse.ArgumentParser:
    """Return an ArgumentParser whose help page is the script's docstring and which knows --version."""
    parser = OneLineParser(description=docstring.strip(), formatter_class=HelpFormatter, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    return parser


def positive_int(text: str) -> int:
    """argparse type: a whole number from 1 to 1,000,000,000."""
    return _number_between(1, MOST, text)


def whole_number(text: str) -> int:
    """argparse type: a whole number from 0 to 1,000,000,000."""
    return _number_between(0, MOST, text)


def seed_number(text: str) -> int:
    """argparse type: a whole number from 0 to 2^63 - 1, which every generator takes."""
    return _number_between(0, 2**63 - 1, text)


def _number_between(least, most, text):
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if not least <= value <= most:
        shown = repr(text) if len(text) < 40 else f"{text[:20]!r}..."
        raise argparse.ArgumentTypeError(f"{shown} is not a whole number from {least} to {most}")
    return value


def true_or_false(text: str) -> bool:
    """argparse type: the words true and false, in any case."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def progress_bar(iterable: Iterable | None = None, **options) -> tqdm:
    """Return a tqdm bar on stderr; silent where stderr is not a terminal, without colour and with plain characters
    where NO_COLOR is set."""
    options.setdefault("dynamic_ncols", True)
    options.setdefault("smoothing", 0.1)
    options.setdefault("disable", None)
    return tqdm(iterable, ascii=True if os.environ.get("NO_COLOR") else None, **options)


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


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a path to write to, which is renamed to `path` when the block has ended well and removed when it has not: a
    file of that name is always a whole one."""
    path = Path(path)
    partial = path.with_name(f".partial.{path.name}")  # keeps its ending, by which libraries know the format
    try:
        yield partial
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = os.fspath(path)  # a full disk does not say where it is
        raise


@contextlib.contextmanager
def folder_lock(folder: str | os.PathLike, seconds: float = 5.0, name: str = ".lock") -> Iterator[None]:
    """Hold an existing folder for this run alone, until the block ends or the process dies. name: of the file that is
    locked.

    Waits a few seconds for another run, since one that was killed a moment ago may still be ending. Raises UserError
    where another run holds the folder, or where no file can be written there.
    """
    lock = FileLock(Path(folder, name), timeout=seconds)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{folder}: another run is working there; wait for its end or name another folder") from None
    except PermissionError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); name another folder") from None
    except NotImplementedError:
        pass  # a network folder that knows no locks: the user sees to it that one run works there at a time
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def private_folder(prefix: str) -> Iterator[Path]:
    """Yield a new folder for temporary files that only this user can read; delete it in the end, and also those of the
    same prefix that killed runs have left."""
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        # Not folder_lock, which lets pass where a disk knows no locks.
        with contextlib.suppress(OSError, NotImplementedError), FileLock(left / ".lock", timeout=0):
            shutil.rmtree(left, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix=f"new-{prefix}")).resolve()
    folder = new.with_name(new.name.removeprefix("new-"))
    with folder_lock(new):
        os.rename(new, folder)  # other runs see it when it is locked
        try:
            yield folder
        finally:
            with undisturbed():
                shutil.rmtree(folder, ignore_errors=True)


def check_output_file(option: str, path: Path) -> None:
    """Raise UserError where no file can be written under the path that an option names: before the work, not after."""
    if not path.parent.is_dir():
        raise UserError(f"{option} {path}: the folder {path.parent} does not exist")
    if path.is_dir():
        raise UserError(f"{option} {path}: is a folder; name a file in it")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{path.parent}: cannot be written; name another folder")


def disk_error(error: BaseException | None) -> OSError | None:
    """Return the OSError of a full disk or quota that an exception is, or that led to it; None where there is none."""
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
            signal.signal(number, raise_terminated)
    try:
        status = main(argv)
    except UserError as error:
        print(f"{name}: error: {printable(error)}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt as error:
        signal.signal(signal.SIGINT, pass_over)  # a second Ctrl-C must not tear what libraries clean up at exit
        status = stop_status(error)
        print(f"\n{name}: stopped by {stop_name(status)}", file=sys.stderr)
    except BrokenPipeError:
        # The reader of the output (head, less) has gone; nothing is left to say, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 141
    except Exception as error:
        full = disk_error(error)
        if full is None and isinstance(error, OSError) and error.errno in PATH_ERRORS and error.filename is not None:
            print(f"{name}: error: {printable(error.filename)}: {error.strerror}", file=sys.stderr)
            sys.exit(2)
        if full is None:
            raise
        place = printable(getattr(full, "filename", None) or "the target folder")
        print(f"{name}: error: no space left on the disk of {place}; all that was complete is intact: free some space "
              "and run the same command again", file=sys.stderr)
        status = 1
    sys.exit(status or 0)
