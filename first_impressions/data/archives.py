"""Zip archives of the challenge, plain or encrypted, also inside one another, unpacked by 7-Zip (pybit7z).

An archive inside another one is unpacked to a scratch folder, one at a time, and opened there. A file appears under its
name when it is complete and its checksum is right.
"""
import contextlib
import errno
import getpass
import os
import re
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pybit7z
from tqdm import tqdm

from first_impressions.common.command_line import UserError, disk_error, printable, progress_bar
from first_impressions.common.constants import ANNOTATION_FILES
from first_impressions.jobs.target_folder import SCRATCH, check_name

PASSWORD_VARIABLE = "CHALEARN_PASSWORD"
RESERVE = 100 * 2**20   # bytes of disk space to keep free
FILE_LIMIT = 2**30      # bytes; a member that declares more is not a clip
DEPTH_LIMIT = 4         # archives inside archives


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


def members_of(reader: pybit7z.BitArchiveReader, split: str,
               ) -> Iterator[tuple[pybit7z.BitArchiveItem, Path | None, str | None]]:
    """Yield (item, place, problem) of the members that are unpacked for a split. place: path in the data folder, None
    for an archive; problem: why it is refused, or None."""
    for item in reader.items():
        parts = item.path().replace("\\", "/").split("/")
        name, suffix, problem = parts[-1], os.path.splitext(parts[-1])[1].lower(), None
        is_wanted = suffix in (".mp4", ".zip") or name == ANNOTATION_FILES[split]
        if not is_wanted or item.is_dir() or name.startswith(".") or "__MACOSX" in parts:
            continue
        place = None if suffix == ".zip" else Path(split, "videos" if suffix == ".mp4" else "", name)
        if parts[0] == "" or ".." in parts or re.match(r"[A-Za-z]:", parts[0]):
            problem = "refused: its name leads out of the folder"
        elif stat.S_IFMT(item.attributes() >> 16) not in (0, stat.S_IFREG):
            problem = "refused: a link or special file"
        elif place and item.size() > FILE_LIMIT:
            problem = f"refused: declares {item.size() / 1e9:.1f} GB"
        yield item, place, problem


def is_same(path: Path, item: pybit7z.BitArchiveItem) -> bool:
    """Return True if the file has the size and the checksum that the archive gives for the member."""
    if not path.is_file() or path.stat().st_size != item.size():
        return False
    # AES checks by other means and gives no checksum.
    return (item.is_encrypted() and item.crc() == 0) or zlib.crc32(path.read_bytes()) == item.crc()


@dataclass
class Unpacker:
    """A run that unpacks archives into a data folder.

    passwords: those to try; may_ask: the user can be asked for one; archives: (name, split, reader) of those to unpack;
    size: bytes of what they declare; bar: progress bar, hidden while the user is asked; problems: (label, reason) of
    what could not be unpacked; written: {path: (checksum, size, label)}, to notice two clips of one name.
    """
    library: pybit7z.Bit7zLibrary
    data_dir: Path
    passwords: list[str]
    may_ask: bool
    archives: list[tuple[str, str, pybit7z.BitArchiveReader]] = field(default_factory=list)
    size: int = 0
    bar: tqdm | None = None
    made: int = 0
    present: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)
    written: dict[Path, tuple[int, int, str]] = field(default_factory=dict)

    def add(self, path: Path, split: str) -> None:
        """Open an archive that is to be unpacked."""
        reader = open_archive(self.library, path)
        self.archives.append((path.name, split, reader))
        self.size += sum(item.size() for item, _, problem in members_of(reader, split) if not problem)

    def unpack_all(self) -> None:
        """Unpack the archives, those first that need a password. Call it inside target_folder.open_target."""
        with progress_bar(total=self.size, unit="B", unit_scale=True) as self.bar:
            for name, split, reader in sorted(self.archives, key=lambda archive: not archive[2].has_encrypted_items()):
                self.attempt(name, self.unpack_archive, reader, name, split)

    def attempt(self, label: str, function: Callable[..., None], *arguments) -> None:
        """Call the function; note a failure of it under the label. Raises OSError if the disk is full."""
        try:
            function(*arguments)
        except (UserError, OSError) as error:
            if disk_error(error):
                raise
            self.problems.append((label, getattr(error, "strerror", None) or str(error)))

    def unpack_archive(self, reader: pybit7z.BitArchiveReader, label: str, split: str, depth: int = 1) -> None:
        """Unpack what an archive and the archives inside it contain for one split. label: its name for messages."""
        if depth > DEPTH_LIMIT:
            raise UserError(f"refused, more than {DEPTH_LIMIT} archives deep")
        if reader.has_encrypted_items():
            self._unlock(reader, label)
        for item, place, problem in members_of(reader, split):
            name = f"{label}/{item.path()}"
            if problem:
                self.problems.append((name, problem))
            elif place:
                self.attempt(name, self._unpack_file, reader, item, self.data_dir / place, name)
            else:
                self.attempt(name, self._unpack_inner, reader, item, name, split, depth + 1)

    def _unpack_inner(self, reader, item, label, split, depth):
        with self._extracted(reader, item) as path:
            self.unpack_archive(open_archive(self.library, path), label, split, depth)

    def _unpack_file(self, reader, item, path, label):
        check_name(path.parent, path.name)
        *before, other = self.written.setdefault(path, (item.crc(), item.size(), label))
        if before != [item.crc(), item.size()]:
            raise UserError(f"has the name of {other} and another content; only that one was unpacked")
        if is_same(path, item):
            self.present += 1
        else:
            with self._extracted(reader, item) as unfinished:
                os.replace(unfinished, path)
            self.made += 1
        self.bar.update(item.size())

    def _require_space(self, item):
        if shutil.disk_usage(self.data_dir).free < item.size() + RESERVE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(self.data_dir))

    @contextlib.contextmanager
    def _extracted(self, reader, item):
        """Yield the path that a member was written to, its checksum checked; remove what is left there."""
        self._require_space(item)
        with tempfile.TemporaryDirectory(suffix=".tmp", dir=self.data_dir / SCRATCH) as folder:
            try:
                reader.extract_to(folder, [item.index()])
            except pybit7z.BitException as error:
                shutil.rmtree(folder, ignore_errors=True)
                self._require_space(item)   # somebody else may have filled the disk meanwhile
                raise UserError(f"damaged ({error}); download the archive again") from None
            yield next(Path(folder).iterdir())  # named after the member, as far as the disk allows such names

    def _unlock(self, reader, label):
        """Give the reader the password that opens its archive. Raises UserError if none does."""
        sizes = sorted((item.size(), item.index()) for item in reader.items() if item.is_encrypted() and item.size())
        for password in self._candidates(label):
            reader.set_password(password)
            for _, index in sizes[:2]:  # the second is for an archive whose smallest member is damaged
                with contextlib.suppress(pybit7z.BitException):
                    reader.test_item(index)
                    if password not in self.passwords:
                        self.passwords.append(password)
                    return
        problem = "none of the given passwords opens it" if self.passwords else "needs a password"
        raise UserError(f"{problem}; put them into --password-file or {PASSWORD_VARIABLE}, one per line")

    def _candidates(self, label):
        """Yield the passwords known so far, then those that the user types, until he types none."""
        yield from self.passwords
        while self.may_ask:
            self.bar.clear()
            typed = getpass.getpass(f"Password of {printable(label)} (Enter to leave out what is encrypted): ")
            self.may_ask = bool(typed)
            if typed:
                yield typed
                print("That does not open it.", file=sys.stderr)
