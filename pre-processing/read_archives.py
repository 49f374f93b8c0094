"""Zip archives, also inside one another: open them and look at what they hold; nothing is unpacked here."""
import io
import os
import re
import stat
import struct
import zipfile
from contextlib import closing
from dataclasses import dataclass
from typing import BinaryIO

from command_line import UserError

import pybit7z

# Far more than any file of the challenge needs: what declares to be larger is no clip.
FILE_LIMIT = 2**30
# Archives inside archives are looked into as deep as this.
DEPTH_LIMIT = 4
ENCRYPTED = 1  # flag of a member


class Slice(io.RawIOBase):
    """A part of an open file as a file of its own: an archive stored in another one is read where it lies."""

    def __init__(self, file: BinaryIO, start: int, size: int):
        super().__init__()
        self.file, self.start, self.size, self.position = file, start, size, 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=os.SEEK_SET):
        self.position = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence])
        return self.position

    def readinto(self, buffer):
        count = max(0, min(len(buffer), self.size - self.position))
        self.file.seek(self.start + self.position)
        count = self.file.readinto(memoryview(buffer)[:count])
        self.position += count
        return count


@dataclass
class Archive:
    """An open archive. label: its name for messages, the names of the archives around it first; path: the file that
    7-Zip can open, None where it lies inside another one; reader: 7-Zip's, made when it is first needed; copy: the copy
    that was made for 7-Zip, deleted when the archive is closed."""
    label: str
    file: BinaryIO
    content: zipfile.ZipFile
    path: str | None
    reader: pybit7z.BitArchiveReader | None = None
    copy: str | None = None

    @property
    def is_encrypted(self) -> bool:
        return any(member.flag_bits & ENCRYPTED for member in self.content.infolist())

    def close(self) -> None:
        self.reader = None
        self.content.close()
        self.file.close()
        if self.copy is not None:
            os.unlink(self.copy)


# ---------------------------------------------------------------- opening

def open_archive(file: BinaryIO, label: str, path: str | None = None) -> Archive:
    """Return the Archive in an open binary file. Raises UserError where it is none, or damaged."""
    try:
        return Archive(label, file, zipfile.ZipFile(file), path)
    except Exception as error:
        file.close()
        raise UserError(f"{label}: damaged or no zip archive ({error}); download it again") from None


def open_stored(archive: Archive, member: zipfile.ZipInfo) -> Archive:
    """Return the Archive stored uncompressed in another one, read in place. Raises UserError where it is damaged."""
    archive.file.seek(member.header_offset)
    header = archive.file.read(30)
    label = f"{archive.label}/{member.filename}"
    if len(header) < 30 or header[:4] != b"PK\3\4":
        raise UserError(f"{label}: its entry in {archive.label} is damaged; download that again")
    name_length, extra_length = struct.unpack("<HH", header[26:])
    start = member.header_offset + 30 + name_length + extra_length
    return open_archive(io.BufferedReader(Slice(archive.file, start, member.file_size)), label)


def can_lie_in_place(member: zipfile.ZipInfo) -> bool:
    """Return True for an archive that open_stored can read."""
    return member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & ENCRYPTED


# ---------------------------------------------------------------- looking, without unpacking

def kind_of(member: zipfile.ZipInfo, annotation_file: str) -> tuple[str | None, str]:
    """Return "clip", "annotation", "archive" or None for what is not unpacked, and the name to write it under."""
    name = member.filename.replace("\\", "/").rsplit("/", 1)[-1]
    if member.is_dir() or name.startswith(".") or "__MACOSX" in member.filename:
        return None, name
    if name.lower().endswith(".zip"):
        return "archive", name
    if name.lower().endswith(".mp4"):
        return "clip", name
    return ("annotation" if name == annotation_file else None), name


def refusal(member: zipfile.ZipInfo) -> str | None:
    """Return why a member of an archive must not be unpacked, or None."""
    parts = member.filename.replace("\\", "/").split("/")
    if parts[0] == "" or ".." in parts or re.match(r"[A-Za-z]:", parts[0]):
        return "refused: its name leads out of the folder"
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
        return "refused: a link or special file"
    if member.file_size > FILE_LIMIT and not member.filename.lower().endswith(".zip"):
        return f"refused: declares {member.file_size / 1e9:.1f} GB"
    return None


@dataclass
class Contents:
    """What archives hold: clips, and the bytes of them and of the labels; archives that are encrypted or compressed
    inside them and stay closed when they are surveyed, their bytes, and the bytes of the largest."""
    clips: int = 0
    size: int = 0
    closed: int = 0
    closed_size: int = 0
    largest: int = 0

    def add(self, other: "Contents") -> None:
        self.clips += other.clips
        self.size += other.size
        self.closed += other.closed
        self.closed_size += other.closed_size
        self.largest = max(self.largest, other.largest)


def survey(archive: Archive, annotation_file: str, depth: int = 1) -> Contents:
    """Look at what an archive holds without unpacking anything; an archive stored inside it is looked into."""
    contents = Contents()
    for member in archive.content.infolist():
        kind, _ = kind_of(member, annotation_file)
        if kind is None or refusal(member):
            continue
        if kind != "archive":
            contents.add(Contents(int(kind == "clip"), member.file_size))
        elif can_lie_in_place(member) and depth < DEPTH_LIMIT:
            try:
                with closing(open_stored(archive, member)) as inner:
                    contents.add(survey(inner, annotation_file, depth + 1))
            except UserError:  # the run itself reports it
                continue
        else:
            contents.add(Contents(0, 0, 1, member.file_size, member.file_size))
    return contents
