"""Run a function over many files, however many there are and whatever happens: shared by the pre-processing scripts.

What it promises: files are found and handed out one by one, so memory does not grow with their number; every written
file appears whole under its final name or not at all; a file that fails, hangs or kills its process costs a line in
failures.csv and nothing else; Ctrl-C ends at once with a summary; one run at a time works in a target folder.

The processes are managed here and not by concurrent.futures, whose pool is lost as a whole with one dead worker and does
not say which file killed it.
"""
import array
import contextlib
import csv
import ctypes
import errno
import fcntl
import faulthandler
import functools
import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from command_line import UserError, counted, printable, progress_bar  # noqa: E402

import numpy as np  # noqa: E402

SCRATCH = ".unfinished"
FAILURES = "failures.csv"
SETTINGS = "preprocessing.json"
STALL_SECONDS = 30
# So many results may wait for an earlier file that is still being worked on: failures.csv keeps the order of the files.
WINDOW = 1000


class Terminated(KeyboardInterrupt):
    """SIGTERM: ends a run as Ctrl-C does, with another exit status."""


@dataclass
class Summary:
    """What a run did: made and present count files in the target folder, failed counts lines in failures.csv (of these,
    `expected` bear the reason that is no error), status is the exit status."""
    inputs: int = 0
    made: int = 0
    present: int = 0
    failed: int = 0
    expected: int = 0
    status: int = 0
    seconds: float = 0.0


# ---------------------------------------------------------------- finding files

def find_files(folder, suffixes, exclude=None):
    """Yield (path, problem) for every file in a folder and the folders below it whose name ends in one of the suffixes.

    suffixes: lower-case endings such as ".mp4"; exclude: a folder to leave out. Links are followed, each folder is
    visited once, names that begin with a dot are left out. problem is None, or says why the path cannot be read at all.
    Only names are read, no contents; nothing but the folders still to visit is kept in memory.
    """
    visited = set()
    if exclude is not None and os.path.isdir(exclude):
        visited.add(_identity(exclude))
    waiting = [os.fspath(folder)]
    while waiting:
        directory = waiting.pop()
        try:
            identity = _identity(directory)
            if identity in visited:
                continue
            visited.add(identity)
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    problem = None
                    try:
                        if entry.is_dir():
                            waiting.append(entry.path)
                            continue
                        if not entry.is_file():
                            problem = "a link to nothing" if entry.is_symlink() else "neither a file nor a folder"
                    except OSError as error:
                        problem = f"cannot be opened: {error.strerror}"
                    if os.path.splitext(entry.name)[1].lower() in suffixes:
                        yield entry.path, problem
        except OSError as error:
            yield directory, f"the folder cannot be read: {error.strerror}"


def _identity(path):
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _number_of(text):
    return int.from_bytes(hashlib.blake2b(os.fsencode(text), digest_size=8).digest(), "little")


def count_files(find, name_of, kind):
    """Return how many files find() yields; raise UserError naming two files that would be written under one name.

    find: function without arguments that returns an iterator of (path, problem); name_of(path): the name that the
    results of a file begin with; kind: the word for the files in messages.
    """
    numbers = array.array("Q", (_number_of(name_of(path)) for path, _ in find()))
    ordered = np.sort(np.frombuffer(numbers, dtype=np.uint64)) if numbers else np.empty(0, np.uint64)
    repeated = set(ordered[1:][ordered[1:] == ordered[:-1]].tolist())
    if repeated:
        first = {}
        for path, _ in find():
            name = name_of(path)
            if _number_of(name) in repeated and first.setdefault(name, path) != path:
                others = f" ({len(repeated)} names are taken twice)" if len(repeated) > 1 else ""
                raise UserError(f"two {kind} of one name, {first[name]} and {path}: rename or remove one{others}")
    return len(numbers)


# ---------------------------------------------------------------- the target folder

def check_folders(source, target):
    """Raise UserError unless source is a folder and target is another one, or a name that a folder can be made of."""
    if not os.path.isdir(source):
        raise UserError(f"{source}: " + ("is no folder" if os.path.exists(source) else "no such folder"))
    if os.path.lexists(target) and not os.path.isdir(target):
        raise UserError(f"{target}: is no folder; name another target folder")
    if os.path.isdir(target) and os.path.samefile(source, target):
        raise UserError(f"{target}: is the source folder; name another target folder")


def check_settings(target, settings):
    """Compare settings (a dictionary of plain values) with those in target/preprocessing.json, if it exists.

    Return True where they agree, False where there are none yet; raise UserError naming the differences, because files
    made in two ways must not be mixed in one folder.
    """
    path = Path(target, SETTINGS)
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return False
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); remove it if the folder's files were made with the same "
                        "settings, or name another folder") from None
    if not isinstance(before, dict):
        raise UserError(f"{path}: holds no settings; remove it or name another folder")
    differences = [f"{key} {before.get(key)!r} there, {settings.get(key)!r} now"
                   for key in dict.fromkeys([*before, *settings]) if before.get(key) != settings.get(key)]
    if differences:
        raise UserError(f"{target}: its files were made with other settings ({'; '.join(differences)}); name another "
                        "folder or the same settings")
    return True


@contextlib.contextmanager
def open_target(target, settings):
    """Create the target folder, hold it for this run alone, remove what a killed run left, note the settings in it (None:
    there is nothing to note)."""
    target = Path(target)
    try:
        target.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(target, os.O_RDONLY)
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}); name another target folder") from None
    try:
        _lock(descriptor, target)
        scratch = target / SCRATCH
        if scratch.is_symlink() or (scratch.exists() and not scratch.is_dir()):
            raise UserError(f"{scratch}: is in the way of unfinished files; remove it")
        _remove_unfinished(target)
        try:
            scratch.mkdir()
            if settings is not None and not check_settings(target, settings):
                write_file(target, SETTINGS, (json.dumps(settings, indent=1) + "\n").encode())
        except PermissionError as error:
            raise UserError(f"{target}: cannot be written ({error.strerror}); name another target folder") from None
        try:
            yield
        finally:
            _remove_unfinished(target)
    finally:
        os.close(descriptor)


def _lock(descriptor, target):
    # The workers of a run that was killed a moment ago may still hold the folder: wait a little.
    for attempt in range(50):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(0.1)
        except OSError:
            return  # network folders that know no locks: the user sees to it that one run works there at a time
    raise UserError(f"{target}: another run is working there; wait for its end or name another folder")


def _remove_unfinished(target):
    scratch = Path(target, SCRATCH)
    if not scratch.is_dir():
        return
    for path in scratch.iterdir():
        if path.suffix == ".tmp":
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # something of the user's lies in it
        scratch.rmdir()


@functools.lru_cache(maxsize=1000)
def _make_folder(folder, target):
    os.makedirs(folder, exist_ok=True)
    root = os.path.realpath(target)
    if os.path.commonpath([root, os.path.realpath(folder)]) != root:
        raise UserError(f"the folder {folder} is a link that leads out of the target folder")


def write_file(target, name, data):
    """Write the bytes data to target/name so that the file is seen whole or not at all.

    name: relative path; folders in it are made. Raises UserError where a link would lead out of the target folder and
    OSError where the disk is full.
    """
    path = os.path.join(target, name)
    _make_folder(os.path.dirname(path), os.fspath(target))
    unfinished = os.path.join(target, SCRATCH, f"{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        with open(unfinished, "wb") as file:
            file.write(data)
        os.replace(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        raise


def is_finished(path):
    """Return True for a file that exists and is not empty: a power cut can leave empty ones."""
    try:
        return os.stat(path).st_size > 0
    except OSError:
        return False


# ---------------------------------------------------------------- failures.csv

def _input_cell(path):
    # A spreadsheet takes =x, +x, -x and @x for formulas; ./=x names the same file and is none.
    text = os.fspath(path)
    return text if text[:1].isalnum() or text[:1] in "./_" else os.path.join(".", text)


class Failures:
    """failures.csv of a target folder: the last run's lines, and this run's, which replace them at the end."""

    def __init__(self, target):
        self.path = Path(target, FAILURES)
        self.unfinished = Path(target, SCRATCH, "failures.tmp")
        self.file = open(self.unfinished, "w", encoding="utf-8", errors="surrogateescape", newline="")
        # The clock of the target's disk, which also stamps the input files, not the clock of this machine.
        self.start = os.fstat(self.file.fileno()).st_mtime_ns
        self.writer = csv.writer(self.file)
        self.writer.writerow(["input", "reason"])
        numbers = array.array("Q", (_number_of(cell) for cell, _ in self._last_lines()))
        self.numbers = np.unique(np.frombuffer(numbers, dtype=np.uint64)) if numbers else np.empty(0, np.uint64)
        self.visited = np.zeros(len(self.numbers), dtype=bool)

    def _last_lines(self):
        try:
            with open(self.path, encoding="utf-8", errors="surrogateescape", newline="") as file:
                for row in csv.reader(file):
                    if len(row) == 2 and row != ["input", "reason"]:
                        yield row
        except (FileNotFoundError, csv.Error):
            return

    def add(self, path, reason):
        """Write a line for the file, or for reason None only note that it was looked at."""
        cell = _input_cell(path)
        if len(self.numbers):
            place = np.searchsorted(self.numbers, np.uint64(_number_of(cell)))
            if place < len(self.numbers) and self.numbers[place] == _number_of(cell):
                self.visited[place] = True
        if reason is not None:
            self.writer.writerow([cell, reason])

    def close(self, complete):
        """Put the lines in place; after a run that was stopped keep the last run's lines on files not looked at."""
        if not complete:
            for cell, reason in self._last_lines():
                if not self.visited[np.searchsorted(self.numbers, np.uint64(_number_of(cell)))]:
                    self.writer.writerow([cell, reason])
        self.file.close()
        # The time of the start: what was changed later than this was not seen by this run.
        os.utime(self.unfinished, ns=(self.start, self.start))
        os.replace(self.unfinished, self.path)


def unchanged_failures(target, reason):
    """Return a function that tells whether the last run gave this reason for a file that has not changed since.

    A file counts as changed when its inode change time (which copying an old time stamp does not set back) is not
    clearly before the start of that run.
    """
    path = Path(target, FAILURES)
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            start = os.fstat(file.fileno()).st_mtime_ns
            numbers = array.array("Q", (_number_of(row[0]) for row in csv.reader(file) if row[1:] == [reason]))
    except (FileNotFoundError, csv.Error):
        return lambda path: False
    numbers = np.unique(np.frombuffer(numbers, dtype=np.uint64)) if numbers else np.empty(0, np.uint64)

    def unchanged(path):
        number = np.uint64(_number_of(_input_cell(path)))
        place = np.searchsorted(numbers, number)
        return place < len(numbers) and numbers[place] == number and os.stat(path).st_ctime_ns < start

    return unchanged


# ---------------------------------------------------------------- one file in a worker

_watchdog = {"seconds": None, "next": 0.0, "file": None}


def progress():
    """Tell the watchdog that work goes on; without a word for STALL_SECONDS a worker process ends itself.

    Does nothing outside a worker, so library functions may call it as often as they like.
    """
    if _watchdog["seconds"] is not None and time.monotonic() >= _watchdog["next"]:
        # The C timer of faulthandler works even where a codec never comes back to Python.
        faulthandler.dump_traceback_later(_watchdog["seconds"], exit=True, file=_watchdog["file"])
        _watchdog["next"] = time.monotonic() + min(1.0, _watchdog["seconds"] / 4)


def _work_on(function, path, stall_seconds):
    """Return (result, problem, errno) of function(path): result is None where problem says what went wrong."""
    if _watchdog["file"] is None:
        _watchdog["file"] = open(os.devnull, "w")
    _watchdog.update(seconds=stall_seconds, next=0.0)
    progress()
    try:
        return function(path), None, 0
    except UserError as error:
        return None, str(error), 0
    except MemoryError:
        return None, "needs more memory than there is", 0
    except OSError as error:
        return None, f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""), error.errno or 0
    except Exception as error:  # a batch never dies of one bad file; the line says what to report
        return None, f"unexpected {type(error).__name__}: {error}", 0
    finally:
        faulthandler.cancel_dump_traceback_later()
        _watchdog["seconds"] = None


def _serve(connection, function, stall_seconds, parent):
    """Main function of a worker process: answer each path that arrives until the connection is closed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: never outlive the parent
        if os.getppid() != parent:
            return
    # Libraries in C print warnings on damaged files, which would garble the progress bar; failures.csv says what is wrong.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    while True:
        try:
            path = connection.recv()
        except EOFError:
            return
        connection.send(_work_on(function, path, stall_seconds))


def _why_it_died(exit_code, stall_seconds):
    if exit_code == 1:
        return f"no progress for {stall_seconds} seconds"
    if exit_code is not None and exit_code < 0:
        return f"its process was killed by {signal.Signals(-exit_code).name}; perhaps damaged, or memory ran out"
    return f"its process ended with status {exit_code}"


# ---------------------------------------------------------------- many files

def map_files(function, items, workers=None, ray_address=None, stall_seconds=STALL_SECONDS):
    """Yield (path, result, problem) for each item, in the order of the items, from function(path) run in processes.

    function: a picklable function of a module (functools.partial is fine); it may raise UserError to name a problem.
    items: iterable of (path, known); known is None, or a ready (result, problem) that needs no work. workers: number of
    processes, default all cores. ray_address: spread the work over this Ray cluster instead. A file whose process dies
    or stalls yields a problem. Raises OSError where the disk is full. Take it in contextlib.closing, so that the
    processes end with the loop.
    """
    source = (_results_from_ray(function, items, ray_address, stall_seconds) if ray_address
              else _results_from_processes(function, items, workers or os.cpu_count(), stall_seconds))
    with contextlib.closing(source):
        for path, result, problem, number in source:
            if number in (errno.ENOSPC, errno.EDQUOT):
                raise OSError(number, os.strerror(number))
            yield path, result, problem


def _results_from_processes(function, items, workers, stall_seconds):
    context = multiprocessing.get_context("spawn")
    idle, busy, done = [], {}, {}
    items = iter(items)
    given = taken = 0
    exhausted = False

    def start_worker():
        mine, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, function, stall_seconds, os.getpid()), daemon=True)
        # Blocked signals stay blocked in the child: Ctrl-C is for the parent alone, from the child's first moment on.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        theirs.close()
        return process, mine

    try:
        while True:
            while not exhausted and given - taken < WINDOW and (idle or len(busy) < workers):
                try:
                    path, known = next(items)
                except StopIteration:
                    exhausted = True
                    break
                if known is not None:
                    done[given] = (path, *known, 0)
                else:
                    process, connection = idle.pop() if idle else start_worker()
                    busy[connection] = (process, given, path)
                    with contextlib.suppress(BrokenPipeError):  # it died while idle: receiving says so below
                        connection.send(path)
                given += 1
            while taken in done:
                yield done.pop(taken)
                taken += 1
            if not busy:
                if exhausted:
                    return
                continue
            for connection in multiprocessing.connection.wait(list(busy)):
                process, number, path = busy.pop(connection)
                try:
                    done[number] = (path, *connection.recv())
                    idle.append((process, connection))
                except (EOFError, OSError):
                    process.join()
                    connection.close()
                    done[number] = (path, None, _why_it_died(process.exitcode, stall_seconds), 0)
    finally:
        for process, connection in [*idle, *((process, connection) for connection, (process, _, _) in busy.items())]:
            process.kill()
            process.join()
            connection.close()


def _results_from_ray(function, items, address, stall_seconds):
    import ray  # only here: a run on one machine needs no Ray

    modules = os.pathsep.join([str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)])
    try:
        host, _, port = address.rpartition("//")[2].rpartition(":")
        if port.isdigit():  # Ray itself tries for minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
        ray.init(address=address, log_to_driver=False, configure_logging=False,
                 runtime_env={"env_vars": {"PYTHONPATH": modules}})
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"--ray-address {address}: no Ray cluster answers there ({str(error).splitlines()[0]}); start one with "
                        "`ray start --head`, or leave the option and RAY_ADDRESS away") from None

    @ray.remote(num_cpus=1, max_retries=3)  # tried again elsewhere when a node dies
    def work(path):
        return _work_on(function, path, stall_seconds)

    try:
        limit = 8 + 2 * int(ray.cluster_resources().get("CPU", 1))
        busy, done = {}, {}
        items = iter(items)
        given = taken = 0
        exhausted = False
        while True:
            while not exhausted and given - taken < WINDOW and len(busy) < limit:
                try:
                    path, known = next(items)
                except StopIteration:
                    exhausted = True
                    break
                if known is not None:
                    done[given] = (path, *known, 0)
                else:
                    busy[work.remote(os.path.abspath(path))] = (given, path)
                given += 1
            while taken in done:
                yield done.pop(taken)
                taken += 1
            if not busy:
                if exhausted:
                    return
                continue
            for reference in ray.wait(list(busy), num_returns=1)[0]:
                number, path = busy.pop(reference)
                try:
                    done[number] = (path, *ray.get(reference))
                except ray.exceptions.WorkerCrashedError:
                    done[number] = (path, None, f"its process died or made no progress for {stall_seconds} seconds", 0)
                except ray.exceptions.RayError as error:
                    done[number] = (path, None, f"lost by the cluster: {type(error).__name__}; run again", 0)
    finally:
        ray.shutdown()


def run_batch(function, items, target, total, unit, workers=None, ray_address=None, expected_reason=None):
    """Run function over all items, write failures.csv, show a progress bar and return a Summary.

    function(path) returns (made, present, problem): two numbers of files and None or a reason for failures.csv.
    items: as in map_files; total: their number; unit: the word for one in the progress bar. Call it inside open_target.
    """
    def stop(*_):
        raise Terminated

    summary = Summary()
    begin = time.monotonic()
    failures = Failures(target)
    before = signal.signal(signal.SIGTERM, stop)
    bar = progress_bar(total=total, unit=unit)
    complete = False
    try:
        with contextlib.closing(map_files(function, items, workers, ray_address)) as results:
            for path, result, problem in results:
                summary.inputs += 1
                if result is not None:
                    made, present, problem = result
                    summary.made += made
                    summary.present += present
                failures.add(path, problem)
                if problem is not None:
                    summary.failed += 1
                    summary.expected += problem == expected_reason
                bar.update()
        complete = True
    except KeyboardInterrupt as error:
        summary.status = 143 if isinstance(error, Terminated) else 130
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            error.filename = os.fspath(target)
        raise
    finally:
        # A second Ctrl-C must not tear what follows.
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        bar.close()
        with contextlib.suppress(OSError):  # on a full disk the last run's list stays
            failures.close(complete)
        signal.signal(signal.SIGINT, interrupt)
        signal.signal(signal.SIGTERM, before)
    summary.seconds = time.monotonic() - begin
    return summary


def print_dry_run(function, items, total, inputs, outputs, target, workers):
    """Print what run_batch would make, from a function that makes nothing; touch no file. inputs, outputs: words for one."""
    made = present = failed = 0
    with contextlib.closing(map_files(function, items, workers)) as results:
        for path, result, problem in progress_bar(results, total=total, unit=inputs):
            if result is not None:
                made += result[0]
                present += result[1]
                problem = result[2]
            failed += problem is not None
    print(f"Dry run: from {counted(total, inputs)}, {counted(made, outputs)} would be made in {printable(target)}; {present} "
          f"there already; {counted(failed, inputs)} with a problem. Nothing was written; next: the same command without "
          "--dry-run.")


def print_summary(summary, inputs, outputs, target, following, expected_reason=None):
    """Print what a run did and, on the last line, where the results are and what to run next. inputs, outputs: words for one.

    Raises UserError where a complete run has nothing to show but problems.
    """
    speed = f" ({summary.inputs / summary.seconds:.1f} {inputs}s/s)" if summary.made and summary.seconds else ""
    print(f"{counted(summary.inputs, inputs)} in {summary.seconds:.1f} s{speed}: {counted(summary.made, outputs)} made, "
          f"{summary.present} there already.")
    problems = [f"{expected_reason}: {counted(summary.expected, inputs)}"] if summary.expected else []
    if summary.failed > summary.expected:
        problems.append(f"other problems: {summary.failed - summary.expected}" if problems
                        else f"problems: {counted(summary.failed, inputs)}")
    if problems:
        print(f"{', '.join(problems).capitalize()}; listed in {printable(Path(target, FAILURES))}")
    if summary.status:
        print(f"Stopped. {outputs.capitalize()}s of the {inputs}s that were under way stay in {printable(target)}; next: the same "
              "command, which goes on")
        return
    if not summary.made + summary.present and summary.failed > summary.expected:
        raise UserError(f"{target}: {counted(summary.inputs, inputs)}, and nothing could be made of any; "
                        f"{Path(target, FAILURES)} says why")
    print(f"{outputs.capitalize()}s: {printable(target)}   next: {following}")
