"""The JPEG files of frames and faces, and in them what they were made of: two clips of one name must not become one."""
import os
import struct
import unicodedata
from pathlib import Path

import cv2
import numpy as np

from first_impressions.common.command_line import UserError
from first_impressions.common.constants import FACE_MARK, FRAME_MARK, JPEG_QUALITY
from first_impressions.jobs.target_folder import find_files

COMMENT = b"\xff\xfe"   # marker of a comment segment (ITU-T T.81, B.2.4.5), here the first one of the file
MARK = "made of "


def source_of(path: str | os.PathLike) -> str:
    """Return the name and size of a clip or picture: they stay if it is moved or copied."""
    name = unicodedata.normalize("NFC", os.path.basename(path))  # macOS writes names in another form
    return f"{name}, {os.stat(path).st_size} bytes"


def source_of_frame(path: str | os.PathLike, stem: str) -> str:
    """Return the clip that a frame notes; "" for a frame that notes none, and the source_of a picture that is not a
    clip's. stem: of the frame's name."""
    return read_source(path) or ("" if FRAME_MARK in stem else source_of(path))


def encode_jpeg(picture: np.ndarray, quality: int = JPEG_QUALITY, source: str = "") -> bytes:
    """Return the JPEG file of a picture, uint8 RGB H x W x 3, that notes what it was made of, unless source is "".
    Raises UserError if it is too large for one."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise UserError(f"a picture of {picture.shape[1]} x {picture.shape[0]} pixels cannot be written as JPEG")
    jpeg = data.tobytes()
    if not source:
        return jpeg
    text = (MARK + source).encode(errors="surrogateescape")
    return jpeg[:2] + COMMENT + struct.pack(">H", len(text) + 2) + text + jpeg[2:]


def read_source(path: str | os.PathLike) -> str | None:
    """Return what encode_jpeg noted in a file; None if it notes nothing."""
    with open(path, "rb") as file:
        head = file.read(1024)
    if head[2:4] != COMMENT:
        return None
    text = head[6:4 + struct.unpack(">H", head[4:6])[0]].decode(errors="surrogateescape")
    return text.removeprefix(MARK) if text.startswith(MARK) else None


class Sources:
    """What the chips in a folder were made of: one of each clip, or of each picture that is not of a clip."""

    def __init__(self, face_dir: str | os.PathLike):
        self.chips, self.problems = {}, {}
        for path, _ in find_files(face_dir, [".jpg"]):
            self.chips.setdefault(_clip_of(os.path.relpath(path, face_dir).rpartition(FACE_MARK)[0]), path)

    def problem(self, path: str, stem: str) -> str | None:
        """Return a problem if there are chips of a frame's clip that were made of another file. stem: of the frame."""
        clip = _clip_of(stem)
        if clip in self.chips and clip not in self.problems:
            try:
                self.problems[clip] = check_source(self.chips[clip], source_of_frame(path, stem))
            except UserError as error:
                self.problems[clip] = str(error)
            except OSError:
                return None  # whoever reads the picture says why it cannot be read
        return self.problems.get(clip)


def _clip_of(stem):
    return stem.rpartition(FRAME_MARK)[0] or stem


def check_source(made: str | os.PathLike, source: str) -> None:
    """Raise UserError if a frame or face notes another source; those of older versions note none."""
    before = read_source(made)
    if source and before not in (None, source):
        raise UserError(f"is another file ({source}) than the one that {Path(made).name} was made of ({before}); "
                        "rename it, name another target folder, or delete what was made of the old file")
