"""Zip archives of the challenge, plain or encrypted, also inside one another, unpacked by 7-Zip (pybit7z).

An archive inside another one is unpacked to a scratch folder, one at a time, and opened there. A file appears under its
name when it is complete and its checksum is right.
"""
import errno
import functools
import getpass
import os
import re
import shutil
import signal
import stat
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pybit7z
from tqdm import tqdm

from first_impressions.common.command_line import Terminated, UserError, disk_error, printable
from first_impressions.common.constants import ANNOTATION_FILES
from first_impressions.jobs.failures import Failures
from first_impressions.jobs.target_folder import check_name

PASSWORD_VARIABLE = "CHALEARN_PASSWORD"
RESERVE = 100 * 2**20   # bytes of disk space to keep free
FILE_LIMIT = 2**30      # bytes; a member that declares more is not a clip
DEPTH_LIMIT = 4         # archives inside archives


# ---------------------------------------------------------------- looking, without unpacking

def open_archive(library: pybit7z.Bit7zLibrary, path: Path) -> pybit7z.BitArchiveReader:
    """Return the reader of an archive. Raises UserError for a file that is damaged, cut off or not a zip archive."""
    try:
        reader = pybit7z.BitArchiveReader(library, os.fspath(path), pybit7z.FormatZip)
        flags = reader.archive_property(pybit7z.BitProperty.ErrorFlags)
    except pybit7z.BitException as error:
        raise UserError(f"damaged or not a zip archive ({error}); download it again") from None
    if flags.is_uint32() and flags.get_uint64():
        raise UserError("damaged or cut off (its directory is missing); download it again")
    reader.set_retain_directories(False)
    return reader


def kind_of(member: pybit7z.BitArchiveItem, split: str) -> str | None:
    """Return "clip", "annotation", "archive", or None for what is not unpacked."""
    name = name_of(member)
    if member.is_dir() or name.startswith(".") or "__MACOSX" in member.path():
        return None
    kinds = {".zip": "archive", ".mp4": "clip"}
    return "annotation" if name == ANNOTATION_FILES[split] else kinds.get(os.path.splitext(name)[1].lower())


def name_of(member: pybit7z.BitArchiveItem) -> str:
    """Return the name of a member without its folders."""
    return member.path().replace("\\", "/").rpartition("/")[2]


def refusal(member: pybit7z.BitArchiveItem) -> str | None:
    """Return why a member must not be unpacked, or None."""
    parts = member.path().replace("\\", "/").split("/")
    if parts[0] == "" or ".." in parts or re.match(r"[A-Za-z]:", parts[0]):
        return "refused: its name leads out of the folder"
    if stat.S_IFMT(member.attributes() >> 16) not in (0, stat.S_IFREG):
        return "refused: a link or special file"
    if member.size() > FILE_LIMIT and not member.path().lower().endswith(".zip"):
        return f"refused: declares {member.size() / 1e9:.1f} GB"
    return None


def require_space(folder: Path, needed: int) -> None:
    """Raise OSError (no space left) if the folder's disk has less than the needed bytes and a reserve."""
    if shutil.disk_usage(folder).free < needed + RESERVE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(folder))


def is_same(path: Path, member: pybit7z.BitArchiveItem) -> bool:
    """Return True if the file has the size and the checksum that the archive gives for the member."""
    if not path.is_file() or path.stat().st_size != member.size():
        return False
    if member.is_encrypted() and member.crc() == 0:  # AES checks by other means and gives no checksum
        return True
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(2**20):
            checksum = zlib.crc32(block, checksum)
    return checksum == member.crc()


# ---------------------------------------------------------------- unpacking

@dataclass
class Unpacker:
    """A run that unpacks archives into a data folder.

    scratch: folder for what is not complete; passwords: those to try, the last that opened an archive first; may_ask:
    the user can be asked for one; bar: progress bar, hidden while the user is asked; problems: what could not be
    unpacked; written: {path: (checksum, size, label)}, to notice two clips of one name.
    """
    library: pybit7z.Bit7zLibrary
    data_dir: Path
    scratch: Path
    passwords: list[str]
    may_ask: bool
    failures: Failures
    bar: tqdm
    made: int = 0
    present: int = 0
    problems: list[str] = field(default_factory=list)
    written: dict[Path, tuple[int, int, str]] = field(default_factory=dict)

    def attempt(self, label: str, function: Callable[..., None], *arguments) -> None:
        """Call the function; note a failure of it under the label. Raises OSError if the disk is full."""
        try:
            function(*arguments)
        except (UserError, OSError) as error:
            if disk_error(error):
                raise
            reason = getattr(error, "strerror", None) or str(error)
            self.failures.add(label, reason)
            self.problems.append(f"{label}: {reason}")

    def unpack_archive(self, path: Path, label: str, split: str, depth: int = 1) -> None:
        """Unpack what an archive and the archives inside it contain for one split. label: its name for messages."""
        if depth > DEPTH_LIMIT:
            raise UserError(f"refused, more than {DEPTH_LIMIT} archives deep")
        reader = open_archive(self.library, path)
        if reader.has_encrypted_items():
            self._unlock(reader, label)
        for member in reader.items():
            if kind_of(member, split):
                self.attempt(f"{label}/{member.path()}", self._unpack_member, reader, member, label, split, depth)

    def _unpack_member(self, reader, member, label, split, depth):
        if reason := refusal(member):
            raise UserError(reason)
        label, kind = f"{label}/{member.path()}", kind_of(member, split)
        folder = self.data_dir / split / ("videos" if kind == "clip" else "")
        path = folder / name_of(member)
        if kind == "archive":
            path = self._extract(reader, member, depth)
            self.unpack_archive(path, label, split, depth + 1)
            path.unlink()
            return
        check_name(folder, path.name)
        *before, other = self.written.setdefault(path, (member.crc(), member.size(), label))
        if before != [member.crc(), member.size()]:
            raise UserError(f"has the name of {other} and another content; only that one was unpacked")
        if is_same(path, member):
            self.present += 1
        else:
            os.replace(self._extract(reader, member, depth), path)
            self.made += 1
        self.bar.update(member.size())

    def _extract(self, reader, member, depth):
        """Return the path in the scratch folder that a member was written to, its checksum checked."""
        folder = self.scratch / str(depth)
        shutil.rmtree(folder, ignore_errors=True)
        require_space(self.scratch, member.size())
        try:
            call_7zip(reader, functools.partial(reader.extract_to, os.fspath(folder), [member.index()]))
        except pybit7z.BitException as error:
            shutil.rmtree(folder, ignore_errors=True)
            require_space(self.scratch, member.size())
            raise UserError(f"damaged ({error}); download the archive again") from None
        return next(folder.iterdir())  # named after the member, as far as the disk allows such names

    def _unlock(self, reader, label):
        """Give the reader the password that opens its archive. Raises UserError if none does."""
        sizes = sorted((member.size(), member.index()) for member in reader.items() if member.is_encrypted())
        smallest = [index for size, index in sizes if size][:2]  # the second is for an archive whose first is damaged

        def opens(password):
            reader.set_password(password)
            for index in smallest:
                try:
                    call_7zip(reader, functools.partial(reader.test_item, index))
                    return True
                except pybit7z.BitException:
                    continue
            return not smallest

        password = next(filter(opens, self.passwords), None)
        while password is None and self.may_ask:
            self.bar.clear()
            typed = getpass.getpass(f"Password of {printable(label)} (Enter to leave out what is encrypted): ")
            self.may_ask = bool(typed)
            if typed and opens(typed):
                password = typed
            elif typed:
                print("That does not open it.", file=sys.stderr)
        if password is None:
            problem = "none of the given passwords opens it" if self.passwords else "needs a password"
            raise UserError(f"{problem}; put them into --password-file or {PASSWORD_VARIABLE}, one per line")
        # Tried first on the next archive, which most often has the same.
        self.passwords = [password, *(other for other in self.passwords if other != password)]


def call_7zip(reader: pybit7z.BitArchiveReader, call: Callable[[], Any]) -> Any:
    """Return call(), interruptible by Ctrl-C and signals: an exception must never pass through 7-Zip's own code."""
    stopped = []
    before = {number: signal.signal(number, lambda number, frame: stopped.append(number))
              for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
              if signal.getsignal(number) != signal.SIG_IGN}
    reader.set_progress_callback(lambda done: not stopped)
    try:
        return call()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if stopped:
            raise KeyboardInterrupt if stopped[0] == signal.SIGINT else Terminated(stopped[0])
