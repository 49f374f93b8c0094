"""Unpack what the challenge's zip archives hold, plain or encrypted, also inside one another.

Python's zipfile reads what is plain, 7-Zip (pybit7z) what is encrypted. A file appears under its name when it is
complete and its checksum is right.
"""
import errno
import getpass
import os
import shutil
import signal
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from command_line import Terminated, UserError, disk_error, printable

import pybit7z
from tqdm import tqdm

from conventions import ANNOTATION_FILES
from failures import Failures
from read_archives import (
    DEPTH_LIMIT,
    ENCRYPTED,
    Archive,
    can_lie_in_place,
    kind_of,
    open_archive,
    open_stored,
    refusal,
)

PASSWORD_VARIABLE = "CHALEARN_PASSWORD"
# So many bytes of the disk stay free.
RESERVE = 100 * 2**20
AES = 99
PLAIN_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)


# ---------------------------------------------------------------- space

def free_space(folder: Path) -> int:
    """Return the free bytes of the disk that the folder lies on, or will lie on."""
    while not folder.exists():
        folder = folder.absolute().parent
    return shutil.disk_usage(folder).free


def require_space(folder: Path, needed: int) -> None:
    """Raise OSError (no space left) where the folder's disk has less than the needed bytes and a reserve."""
    if free_space(folder) < needed + RESERVE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(folder))


# ---------------------------------------------------------------- unpacking one member

@dataclass
class Unpacker:
    """Writes members of archives to files.

    scratch: folder for what is not complete; library: 7-Zip's; passwords: those to try, the last that opened an archive
    first; may_ask: the user can be asked for one; bar: progress bar, hidden while the user is asked.
    """
    scratch: Path
    library: object
    passwords: list[str]
    may_ask: bool
    bar: tqdm

    def extract(self, archive: Archive, member: zipfile.ZipInfo, path: Path) -> None:
        """Write a member to path, its checksum checked. Raises UserError where it is damaged or cannot be decrypted,
        OSError where the disk is full."""
        label = f"{archive.label}/{member.filename}"
        require_space(self.scratch, member.file_size)
        if member.compress_type in PLAIN_METHODS and not member.flag_bits & ENCRYPTED:
            try:
                with archive.content.open(member) as source, open(path, "wb") as target:
                    shutil.copyfileobj(source, target, 2**20)
            except OSError:
                raise
            except Exception as error:
                raise UserError(f"{label}: damaged ({error}); download the archive again") from None
            return
        if archive.reader is None:
            self._open_with_7zip(archive)
        index = _find_index(archive, member)
        folder = self.scratch / "7zip"
        try:
            _call_7zip(archive.reader, lambda: archive.reader.extract_to(os.fspath(folder), [index]))
            # 7-Zip names the file after the member, as far as the disk allows such names.
            os.replace(next(folder.iterdir()), path)
        except pybit7z.BitException as error:
            shutil.rmtree(folder, ignore_errors=True)
            require_space(self.scratch, member.file_size)
            raise UserError(f"{label}: damaged ({error}); download the archive again") from None

    def _open_with_7zip(self, archive):
        """Set archive.reader. Raises UserError where the archive is damaged or no password opens it."""
        if archive.path is None:
            # 7-Zip opens files, not parts of files.
            require_space(self.scratch, archive.file.seek(0, os.SEEK_END))
            archive.file.seek(0)
            with tempfile.NamedTemporaryFile(dir=self.scratch, delete=False) as copy:
                archive.copy = archive.path = copy.name
                shutil.copyfileobj(archive.file, copy, 2**20)
        try:
            archive.reader = pybit7z.BitArchiveReader(self.library, archive.path, pybit7z.FormatZip)
            archive.reader.set_retain_directories(False)
        except pybit7z.BitException as error:
            raise UserError(f"{archive.label}: damaged ({error}); download it again") from None
        if archive.is_encrypted:
            self._unlock(archive)

    def _unlock(self, archive):
        """Give archive.reader the password that opens it. Raises UserError where none does."""
        smallest = sorted((m for m in archive.content.infolist() if m.flag_bits & ENCRYPTED and m.file_size),
                          key=lambda member: member.file_size)[:2]
        indices = [_find_index(archive, member) for member in smallest]

        def opens(password):
            archive.reader.set_password(password)
            for index in indices:  # the second is for an archive whose first is damaged
                try:
                    _call_7zip(archive.reader, lambda index=index: archive.reader.test([index]))
                    return True
                except pybit7z.BitException:
                    continue
            return not indices

        for password in self.passwords:
            if opens(password):
                # Tried first on the next archive, which most often has the same.
                self.passwords.remove(password)
                self.passwords.insert(0, password)
                return
        while self.may_ask:
            self.bar.clear()
            prompt = f"Password of {printable(archive.label)} (Enter to leave out what is encrypted): "
            password = getpass.getpass(prompt)
            if not password:
                self.may_ask = False
            elif opens(password):
                self.passwords.insert(0, password)
                return
            else:
                print("That does not open it.", file=sys.stderr)
        problem = "none of the given passwords opens it" if self.passwords else "needs a password"
        raise UserError(f"{archive.label}: {problem}; put them into --password-file or {PASSWORD_VARIABLE}, one a line")


def _call_7zip(reader: pybit7z.BitArchiveReader, call: Callable[[], Any]) -> Any:
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


def _find_index(archive, member):
    """Return 7-Zip's number of a member. Both list the members in the order of the archive's directory."""
    index = archive.content.infolist().index(member)
    if archive.reader.item_at(index).size() != member.file_size:
        raise UserError(f"{archive.label}: its directory contradicts itself; download it again")
    return index


def is_same(path: Path, member: zipfile.ZipInfo) -> bool:
    """Return True where the file has the size and the checksum that the archive gives for the member."""
    try:
        if os.stat(path).st_size != member.file_size:
            return False
        if member.compress_type == AES and member.CRC == 0:  # AES checks by other means and gives no checksum
            return True
        checksum = 0
        with open(path, "rb") as file:
            while block := file.read(2**20):
                checksum = zlib.crc32(block, checksum)
    except FileNotFoundError:
        return False
    return checksum == member.CRC


# ---------------------------------------------------------------- unpacking all members

@dataclass
class Run:
    """Where a run writes, and what it has done so far (checksums: what was written where, to notice two clips of one
    name)."""
    data_dir: Path
    unpacker: Unpacker
    failures: Failures
    made: int = 0
    present: int = 0
    problems: list[str] = field(default_factory=list)
    checksums: dict[Path, tuple[int, int, str]] = field(default_factory=dict)

    def fail(self, name: object, reason: str) -> None:
        self.failures.add(name, reason)
        self.problems.append(f"{name}: {reason}")


def unpack_archive(run: Run, archive: Archive, split: str, depth: int = 1) -> None:
    """Unpack what an archive and the archives inside it hold for one split."""
    members = []
    for member in archive.content.infolist():
        kind, name = kind_of(member, ANNOTATION_FILES[split])
        reason = kind and refusal(member)
        if reason:
            run.fail(f"{archive.label}/{member.filename}", reason)
        elif kind:
            members.append((member, kind, name))
    for member, kind, name in members:
        try:
            if kind == "archive":
                unpack_inner(run, archive, member, split, depth)
            else:
                folder = run.data_dir / split if kind == "annotation" else run.data_dir / split / "videos"
                unpack_file(run, archive, member, folder / name)
        except UserError as error:
            label, _, reason = str(error).partition(": ")
            run.fail(label, reason)
            if label == archive.label:  # the next member would meet the same
                return
        except OSError as error:
            if disk_error(error):
                raise
            run.fail(f"{archive.label}/{member.filename}", error.strerror or str(error))


def unpack_inner(run: Run, archive: Archive, member: zipfile.ZipInfo, split: str, depth: int) -> None:
    """Unpack what the archive that is a member of another one holds."""
    label = f"{archive.label}/{member.filename}"
    if depth >= DEPTH_LIMIT:
        raise UserError(f"{label}: refused, an archive {DEPTH_LIMIT} archives deep")
    if can_lie_in_place(member):
        with closing(open_stored(archive, member)) as inner:
            unpack_archive(run, inner, split, depth + 1)
        return
    path = run.unpacker.scratch / f"archive-{depth}.tmp"
    try:
        run.unpacker.extract(archive, member, path)
        with closing(open_archive(open(path, "rb"), label, os.fspath(path))) as inner:
            unpack_archive(run, inner, split, depth + 1)
    finally:
        path.unlink(missing_ok=True)


def unpack_file(run: Run, archive: Archive, member: zipfile.ZipInfo, path: Path) -> None:
    """Write a clip or an annotation file, unless it is there."""
    label = f"{archive.label}/{member.filename}"
    *before, other = run.checksums.setdefault(path, (member.CRC, member.file_size, label))
    if before != [member.CRC, member.file_size]:
        raise UserError(f"{label}: has the name of {other} and another content; only that one was unpacked")
    if is_same(path, member):
        run.present += 1
    else:
        unfinished = run.unpacker.scratch / "file.tmp"
        run.unpacker.extract(archive, member, unfinished)
        os.replace(unfinished, path)
        run.made += 1
    run.unpacker.bar.update(member.file_size)
