"""Source and target folders of the pre-processing: files found and counted, settings noted, files written whole.

Every written file appears whole under its final name or not at all, and one run at a time works in a target folder.
"""
import contextlib
import functools
import json
import os
import socket
import sys
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from first_impressions.common.command_line import UserError, counted, printable
from first_impressions.common.constants import FRAME_MARK, PREPROCESSING_FILE, SYSTEM_FOLDERS
from first_impressions.common.files import folder_lock, make_folder, read_json, remove

SCRATCH = ".unfinished"
FAILURES = "failures.csv"


def find_files(folder: str | os.PathLike, suffixes: Iterable[str], exclude: str | os.PathLike | None = None,
               passed_over: Counter | None = None) -> Iterator[tuple[str, str | None]]:
    """Yield (path, problem) for every file in a folder and the folders below it whose name ends in one of the suffixes.

    suffixes: lower-case endings such as ".mp4"; exclude: a folder to leave out; passed_over: gets the number of files
    with other endings, by ending. Links are followed, each folder is visited once, names that begin with a dot and
    folders of the system are left out. problem is None, or says why the path cannot be read at all.
    Only names are read, no contents; nothing but the folders still to visit is kept in memory.
    """
    visited = set() if exclude is None else {os.path.realpath(exclude)}
    waiting = [os.fspath(folder)]
    while waiting:
        directory = waiting.pop()
        try:
            place = os.path.realpath(directory)
            if place in visited:
                continue
            visited.add(place)
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name.lower() in SYSTEM_FOLDERS:
                        continue
                    problem = None
                    try:
                        if entry.is_dir():
                            waiting.append(entry.path)
                            continue
                        if not entry.is_file():
                            problem = ("neither a file nor a folder" if os.path.exists(entry.path)
                                       else "a link to nothing")
                    except OSError as error:
                        problem = f"cannot be opened: {error.strerror}"
                    suffix = os.path.splitext(entry.name)[1].lower()
                    if suffix in suffixes:
                        yield entry.path, problem
                    elif passed_over is not None and entry.name not in (FAILURES, PREPROCESSING_FILE):
                        passed_over[suffix] += 1
        except OSError as error:
            yield directory, f"the folder cannot be read: {error.strerror}"


def say_passed_over(passed_over: Counter) -> str:
    """Return "; passed over: 3 files (.jfif 2, .txt 1)", or nothing if there are none."""
    endings = [f"{printable(suffix) or 'without an ending'} {number}" for suffix, number in passed_over.most_common(5)]
    shown = ", ".join(endings + ["..."] * (len(passed_over) > 5))
    return f"; passed over: {counted(passed_over.total(), 'file')} ({shown})" if shown else ""


def count_files(files: Iterable[tuple[str, str | None]], name_of: Callable[[str], str], kind: str,
                target: str | os.PathLike) -> int:
    """Return the number of files. Raises UserError if the results of two would have one name in the target folder, or
    if frames of one clip lie in two folders: two clips of one name would become one clip.

    files: (path, problem) of each; name_of(path): the name that the results of a file begin with; kind: "clips" or
    "frames".
    """
    ignoring = ignores_case(target)
    folder_of_name, folder_of_clip = {}, {}     # of millions of names only 64 bits each are kept
    for path, _ in files:
        # macOS and others write the same letters in two ways, which look the same and would bear one label.
        name = unicodedata.normalize("NFC", name_of(path))
        code, folder = hash(name.casefold() if ignoring else name), sys.intern(os.path.dirname(path))
        if code in folder_of_name:
            raise UserError(f"two {kind} of one name, {path} and one in {folder_of_name[code]}: rename or remove one")
        folder_of_name[code] = folder
        clip = os.path.basename(name).rpartition(FRAME_MARK)[0] if kind == "frames" else ""
        if clip and folder_of_clip.setdefault(clip, folder) != folder:
            raise UserError(f"frames of a clip {clip} lie in {folder_of_clip[clip]} and in {folder}: two clips of one "
                            "name would become one; rename one of the clips and draw its frames again")
    return len(folder_of_name)


def ignores_case(folder: str | os.PathLike) -> bool:
    """Return whether A.jpg and a.jpg are one file in a folder, or in the one that it will be made in: so on disks of
    macOS and on exFAT."""
    while not os.path.isdir(folder):
        folder = os.path.dirname(os.path.abspath(folder))
    with contextlib.suppress(OSError), tempfile.NamedTemporaryFile(prefix=".case", dir=folder) as file:
        return os.path.exists(os.path.join(folder, os.path.basename(file.name).swapcase()))
    return False  # nothing can be written there: open_target will say why


def check_folders(source: str | os.PathLike, target: str | os.PathLike) -> None:
    """Raise UserError unless source is a folder, and target another one or not there yet."""
    if not os.path.isdir(source):
        raise UserError(f"{source}: " + ("is not a folder" if os.path.exists(source) else "no such folder"))
    if os.path.isdir(target) and os.path.samefile(source, target):
        raise UserError(f"{target}: is the source folder; name another target folder")


def read_settings(target: str | os.PathLike, otherwise: dict | None = None) -> dict | None:
    """Return the settings in the target's preprocessing.json; otherwise: what is returned if there is none. Raises
    UserError if it cannot be read."""
    path = Path(target, PREPROCESSING_FILE)
    try:
        return dict(read_json(path))
    except FileNotFoundError:
        return otherwise
    except (OSError, TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as settings ({error}); remove it if the folder's files were made with "
                        "the same settings, or name another folder") from None


@contextlib.contextmanager
def open_target(target: str | os.PathLike, settings: dict | None) -> Iterator[None]:
    """Create the target folder, hold it for this run alone, remove what a killed run left, note the settings in it, a
    dictionary of plain values (None: there is nothing to note).

    Raises UserError if the folder cannot be written, is in use or holds files made with other settings: files made in
    two ways must not be mixed.
    """
    target = Path(target)
    scratch = target / SCRATCH
    make_folder(target, "name another target folder")
    with folder_lock(target):
        if scratch.is_symlink() or (target / FAILURES).is_dir():
            raise UserError(f"{target}: a link {SCRATCH} or a folder {FAILURES} is in the way; remove it")
        _remove_unfinished(scratch)
        make_folder(scratch, "remove it")
        try:
            if settings is not None:
                _note_settings(target, settings)
            yield
        finally:
            _remove_unfinished(scratch)


def _note_settings(target, settings):
    before = read_settings(target)
    if before is None:
        write_file(target, PREPROCESSING_FILE, (json.dumps(settings, indent=1) + "\n").encode())
    elif before != settings:
        differences = [f"{key} {before.get(key, 'not noted')} there, {settings.get(key, 'none')} now"
                       for key in dict.fromkeys([*before, *settings]) if before.get(key) != settings.get(key)]
        raise UserError(f"{target}: its files were made with other settings ({'; '.join(differences)}); name another "
                        "folder or the same settings")


def _remove_unfinished(scratch):
    for path in scratch.glob("*.tmp"):
        remove(path)
    with contextlib.suppress(OSError):  # it is not there, or something of the user's lies in it
        scratch.rmdir()


@functools.lru_cache(maxsize=1000)
def _make_folder(folder, target):
    os.makedirs(folder, exist_ok=True)
    root = os.path.realpath(target)
    if os.path.commonpath([root, os.path.realpath(folder)]) != root:
        raise UserError(f"the folder {folder} is a link that leads out of the target folder")


def write_file(target: str | os.PathLike, name: str, data: bytes) -> None:
    """Write the bytes data to target/name so that the file is seen whole or not at all. Call it inside open_target.

    name: relative path, with a last part that check_name allows; folders in it are made. Raises UserError if a link
    would lead out of the target folder, and OSError if the disk is full.
    """
    path = os.path.join(target, name)
    _make_folder(os.path.dirname(path), os.fspath(target))
    unfinished = os.path.join(target, SCRATCH, f"{socket.gethostname()}-{os.getpid()}.tmp")
    try:
        with open(unfinished, "wb") as file:
            file.write(data)
        os.replace(unfinished, path)
    except OSError as error:  # the unfinished file's name, another in each run, tells nobody anything
        raise OSError(error.errno, error.strerror, path) from None


def check_name(target: str | os.PathLike, name: str) -> None:
    """Raise UserError for a file name that is too long for the target's disk: before the work on it, not after."""
    if len(os.fsencode(os.path.basename(name))) > os.pathconf(target, "PC_NAME_MAX"):
        raise UserError("its name is too long to name frames and faces after it; shorten it")


def is_finished(path: str | os.PathLike) -> bool:
    """Return True for a file that exists and is not empty: a power cut can leave empty ones."""
    return os.path.isfile(path) and os.path.getsize(path) > 0
