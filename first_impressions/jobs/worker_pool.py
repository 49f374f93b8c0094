"""Run a function over many files, in worker processes of this machine or on a Ray cluster.

A file that fails, hangs or kills its process costs one line and nothing else. Results come in the order of the files,
and files are handed out one by one, so memory does not grow with their number.
"""
import contextlib
import ctypes
import errno
import faulthandler
import math
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for_connections
from typing import Any, NamedTuple

from first_impressions.common.command_line import UserError, counted, usable_cores
from first_impressions.common.experiment import SUITE

# Of wall time: with ten times more work than cores a frame of 8K takes half a minute. The tests set the variable.
STALL_SECONDS = int(os.environ.get("STALL_SECONDS", 120))
UNEXPECTED = "unexpected "  # what the reason of an error begins with that nobody thought of
LONGEST_UNEXPECTED = 200    # characters: C++ libraries list all their signatures
# At most this many results may wait for an earlier file that is still being worked on: the order of the files is kept.
WINDOW = 1000
# A worker never imports the script that started it, which may import much more (PyTorch) than finding a face needs.
WORKER_COMMAND = """import sys
sys.path[:] = sys.argv[3:]
try:
    from first_impressions.jobs import worker_pool
    worker_pool.serve(int(sys.argv[1]), int(sys.argv[2]))
except Exception:
    sys.excepthook(*sys.exc_info())
    sys.exit(70)  # not 1, which is the watchdog's"""

Known = tuple[Any, str | None] | None


class Answer(NamedTuple):
    """Of one file: the function's result, or None and a problem in one line. errno: of an OSError, else 0."""
    result: Any
    problem: str | None
    errno: int = 0


_next_beat = math.inf   # no file is being worked on


def heartbeat() -> None:
    """Tell the watchdog that work goes on; without a call for STALL_SECONDS a worker ends itself.

    Does nothing outside a worker, so library functions may call it as often as they like.
    """
    global _next_beat
    if time.monotonic() >= _next_beat:
        # The C timer of faulthandler works even if a codec never comes back to Python.
        faulthandler.dump_traceback_later(STALL_SECONDS, exit=True)
        _next_beat = time.monotonic() + min(1.0, STALL_SECONDS / 4)


def answer_for(function: Callable[[str], Any], path: str) -> Answer:
    """Return the Answer of function(path), whatever it raises, under the watchdog."""
    global _next_beat
    _next_beat = 0.0
    heartbeat()
    try:
        return Answer(function(path), None)
    except UserError as error:
        return Answer(None, str(error))
    except MemoryError:
        return Answer(None, "needs more memory than there is")
    except OSError as error:
        reason = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
        return Answer(None, reason, error.errno or 0)
    except Exception as error:  # a batch never dies of one bad file; the line says what to report
        return Answer(None, _unexpected(error))
    finally:
        faulthandler.cancel_dump_traceback_later()
        _next_beat = math.inf


def _unexpected(error):
    """Return one short line that is the same in each run: objects without their addresses."""
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", str(error))
    return textwrap.shorten(f"{UNEXPECTED}{type(error).__name__}: {text}", LONGEST_UNEXPECTED, placeholder="...")


def warn_of_unexpected(number: int, total: int, kind: str) -> bool:
    """Print a line on stderr and return True if more than one file in a hundred failed for an unexpected reason: then
    the fault is likely in the suite or its installation, not in the files. kind: the word for one file."""
    if number * 100 <= total:
        return False
    print(f"warning: {number} of {counted(total, kind)} failed for an unexpected reason, which is likely a fault of "
          "this suite and not of the files; please report the reason given for the first of them", file=sys.stderr)
    return True


def serve(descriptor: int, parent: int) -> None:
    """Main function of a worker process: answer each path that arrives until the parent closes the connection.

    descriptor: inherited file descriptor of the connection; parent: process id.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: never outlive the parent
        if os.getppid() != parent:
            return
    with Connection(descriptor) as connection, contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        function = connection.recv()
        # C libraries print warnings on damaged files, which would garble the progress bar.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        while True:
            answer = answer_for(function, connection.recv())
            try:
                connection.send(answer)
            except Exception as error:  # it cannot be pickled
                connection.send(Answer(None, _unexpected(error)))


class ProcessPool:
    """Worker processes, one file each at a time. They are managed here because concurrent.futures loses the whole pool
    with one dead worker, and pebble's time limits know no heartbeat."""

    def __init__(self, function: Callable, workers: int):
        self.task = pickle.dumps(function)
        self.limit = workers
        self.processes: dict[Connection, subprocess.Popen] = {}
        self.idle: list[Connection] = []
        self.busy: dict[Connection, int] = {}

    def is_full(self) -> bool:
        """Return False if a worker is idle; start one if none is and more are allowed."""
        if not self.idle and len(self.busy) < self.limit:
            try:
                self._start_worker()
            except OSError as error:  # the system allows no more processes or open files: go on with those there are
                if not self.busy:
                    raise UserError(f"no worker process can be started ({error.strerror})") from None
                self.limit = len(self.busy)
        return not self.idle

    def submit(self, number: int, path: str) -> None:
        """Give a file to an idle worker."""
        connection = self.idle.pop()
        self.busy[connection] = number
        with contextlib.suppress(OSError):  # it died while idle: wait() will notice
            connection.send(path)

    def wait(self) -> dict[int, Answer]:
        """Wait for one or more answers and return them by the numbers of their files."""
        answers = {}
        for connection in wait_for_connections(list(self.busy)):
            number = self.busy.pop(connection)
            try:
                answers[number] = connection.recv()
                self.idle.append(connection)
            except Exception as error:
                process = self.processes.pop(connection)
                if not isinstance(error, (EOFError, OSError)):
                    process.kill()  # it lives, but its answer cannot be read
                process.wait()
                connection.close()
                answers[number] = Answer(None, _cause_of_death(process.returncode))
        return answers

    def close(self) -> None:
        """Kill all workers."""
        for connection, process in self.processes.items():
            process.kill()
            process.wait()
            connection.close()

    def _start_worker(self):
        mine, theirs = multiprocessing.Pipe()
        command = [sys.executable, "-c", WORKER_COMMAND, str(theirs.fileno()), str(os.getpid()), str(SUITE), *sys.path]
        # Blocked signals stay blocked in the child: Ctrl-C is for the parent alone, from the child's first moment on.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self.processes[mine] = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            theirs.close()
        with contextlib.suppress(OSError):
            mine.send_bytes(self.task)
        self.idle.append(mine)


def _cause_of_death(status: int) -> str:
    if status == 1:  # by faulthandler
        return f"no progress for {counted(STALL_SECONDS, 'second')}"
    if status < 0:
        name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
        return f"its process was killed by {name}; perhaps damaged, or memory ran out"
    return f"its process ended with status {status}"


class RayPool:
    """The worker processes of a Ray cluster; the same interface as ProcessPool."""

    def __init__(self, function: Callable, address: str):
        from first_impressions.common.ray_cluster import start_ray  # only here: a run on one machine needs no Ray

        start_ray(address, {"env_vars": {"PYTHONPATH": str(SUITE)}}, configure_logging=False)
        import ray

        self.ray = ray
        # Tried again elsewhere when a node dies.
        self.work = ray.remote(num_cpus=1, max_retries=3)(lambda path: answer_for(function, path))
        self.limit = 8 + 2 * int(ray.cluster_resources().get("CPU", 1))
        self.busy: dict[Any, int] = {}

    def is_full(self) -> bool:
        return len(self.busy) >= self.limit

    def submit(self, number: int, path: str) -> None:
        self.busy[self.work.remote(os.path.abspath(path))] = number

    def wait(self) -> dict[int, Answer]:
        answers = {}
        for reference in self.ray.wait(list(self.busy), num_returns=1)[0]:
            number = self.busy.pop(reference)
            try:
                answers[number] = self.ray.get(reference)
            except self.ray.exceptions.WorkerCrashedError:
                answers[number] = Answer(None, "its process died or made no progress for "
                                         f"{counted(STALL_SECONDS, 'second')}")
            except self.ray.exceptions.RayError as error:
                answers[number] = Answer(None, f"lost by the cluster: {type(error).__name__}; run again")
        return answers

    def close(self) -> None:
        self.ray.shutdown()


def map_files(function: Callable[[str], Any], items: Iterable[tuple[str, Known]], workers: int | None = None,
              ray_address: str | None = None) -> Iterator[tuple[str, Any, str | None]]:
    """Yield (path, result, problem) for each item, in the order of the items, from function(path) run in processes.

    function: a picklable function of a module, not of the script that runs (functools.partial is fine); it may raise
    UserError to name a problem. items: iterable of (path, known); known is None, or a ready (result, problem) that
    needs no work. workers: number of processes, default usable_cores(). ray_address: spread the work over this Ray
    cluster instead. A file whose process dies or stalls yields a problem. Raises OSError if the disk is full. Take
    it in contextlib.closing, so that the processes end with the loop.
    """
    pool = RayPool(function, ray_address) if ray_address else ProcessPool(function, workers or usable_cores())
    paths, answers = deque(), {}    # of the files under way, and of those that wait for an earlier one

    def ready():
        while paths and paths[0][0] in answers:
            number, path = paths.popleft()
            answer = answers.pop(number)
            if answer.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OSError(answer.errno, os.strerror(answer.errno))
            yield path, answer.result, answer.problem

    with contextlib.closing(pool):
        for number, (path, known) in enumerate(items):
            while len(paths) >= WINDOW or (known is None and pool.is_full()):
                answers.update(pool.wait())
                yield from ready()
            paths.append((number, path))
            if known is None:
                pool.submit(number, path)
            else:
                answers[number] = Answer(*known)
            yield from ready()
        while paths:
            answers.update(pool.wait())
            yield from ready()
