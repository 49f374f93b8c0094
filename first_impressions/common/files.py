"""Files and folders on disk: atomic writes, locks, private temporary folders, checks before the work."""
import contextlib
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from first_impressions.common.command_line import UserError, disk_error, undisturbed


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
    """Hold an existing folder, by locking a file in it, for this run alone until the block ends or the process dies.

    Waits a few seconds for another run, since one that was killed a moment ago may still be ending. Raises UserError
    if another run holds the folder, or if no file can be written there.
    """
    lock = FileLock(Path(folder, name), timeout=seconds)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(f"{folder}: another run is working there; wait for its end or name another folder") from None
    except OSError as error:
        if disk_error(error):
            raise
        raise UserError(f"{folder}: cannot be written ({error.strerror}); name another folder") from None
    except NotImplementedError:
        pass  # a file system without locks: the user must make sure that only one run uses the folder
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def private_folder(prefix: str) -> Iterator[Path]:
    """Yield a new folder for temporary files that only this user can read; delete it in the end, and also those of the
    same prefix that killed runs have left."""
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        # Not folder_lock, which lets pass if a file system is without locks.
        with contextlib.suppress(OSError, NotImplementedError), FileLock(left / ".lock", timeout=0):
            shutil.rmtree(left, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix=f"new-{prefix}")).resolve()
    folder = new.with_name(new.name.removeprefix("new-"))
    with folder_lock(new):
        os.rename(new, folder)  # other runs see it when it is locked
        try:
            yield folder
        except OSError as error:
            if disk_error(error) is error and error.filename is None:
                error.filename = os.fspath(folder)  # as above; TMPDIR may be another disk than that of the results
            raise
        finally:
            with undisturbed():
                shutil.rmtree(folder, ignore_errors=True)


def remove(path: Path) -> None:
    """Delete a file, a link or a folder with all that is in it."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def read_json(path: str | os.PathLike) -> Any:
    """Return the content of a JSON file in UTF-8, perhaps with a byte order mark. Raises OSError or ValueError."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def make_folder(folder: Path, remedy: str) -> None:
    """Make a folder for results. Raises UserError with the remedy if nothing can be written there: before the work, not
    after. Raises OSError if the disk is full."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if disk_error(error):
            raise
        raise UserError(f"{folder}: cannot be made ({error.strerror}); {remedy}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: cannot be written; {remedy}")


def check_output_file(option: str, path: Path) -> None:
    """Make the folder of a file that an option names. Raises UserError if the file cannot be written."""
    make_folder(path.parent, f"name another file with {option}")
    if path.is_dir():
        raise UserError(f"{option} {path}: is a folder; name a file in it")


def packaged_model(name: str) -> Path:
    """Return the path of a model file of dlib in the package face-recognition-models. Raises UserError if it is not
    there. The package is not imported: its import needs pkg_resources, which current setuptools no longer have."""
    package = importlib.util.find_spec("face_recognition_models")
    path = Path(package.submodule_search_locations[0], "models", name) if package else Path()
    if not path.is_file():
        raise UserError(f"{name}: not found; install it with pip install -r requirements.txt (face-recognition-models)")
    return path
