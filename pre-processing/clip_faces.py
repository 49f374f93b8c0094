"""From a clip or picture file to its faces in memory, the same as the two scripts write to disk."""
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import dlib
import numpy as np

from find_faces import align_face, edges_of, encode_jpeg, find_faces, load_models, read_picture
from labels import CLIP_SUFFIXES
from read_clips import read_frames

KEPT_HEIGHT = 720  # pixels, of the pictures that are kept to be annotated


@dataclass(frozen=True)
class FaceSettings:
    """Which frames of a clip are drawn, and how its faces are found and cut.

    number_of_frames, seed: as in read_clips; size: width and height of a chip in pixels; padding: margin around the
    landmarks, in parts of the face's size; find_all: all faces of a frame, not only the largest; predictor: path of the
    landmark model, None for the 5-point one; keep_picture: also return a picture of the middle frame with a face.
    """
    number_of_frames: int
    seed: int
    size: int
    padding: float
    find_all: bool = False
    predictor: str | None = None
    keep_picture: bool = False


class KeptPicture(NamedTuple):
    """A frame to be annotated: bytes of a JPEG file, at most KEPT_HEIGHT high, and (left, top, right, bottom) of its
    faces in pixels, in the order of the face numbers."""
    jpeg: bytes
    boxes: list[tuple[int, int, int, int]]


def faces_of_file(path: str, settings: FaceSettings,
                  ) -> tuple[int, list[tuple[int, int, np.ndarray]], KeptPicture | None]:
    """Return (number of frames, faces, picture) of a clip or picture file.

    faces: list of (frame index, face number, chip uint8 RGB size x size x 3); the faces of a frame are numbered from 0,
    from left to right. picture: None, or with keep_picture that of the middle frame with a face. Raises UserError for a
    file that cannot be read, OSError for one that cannot be opened.
    """
    models = load_models(settings.predictor)
    faces, kept, count = [], [], 0
    for index, picture in _pictures_of_file(path, settings):
        count += 1
        rectangles = find_faces(picture, models, settings.find_all)
        rectangles = sorted(rectangles, key=lambda box: box.left()) if settings.find_all else rectangles[:1]
        for number, rectangle in enumerate(rectangles):
            chip = align_face(picture, rectangle, models, settings.size, settings.padding)
            faces.append((index, number, _through_jpeg(chip)))
        if rectangles and settings.keep_picture:
            kept.append(_keep(picture, rectangles))
    return count, faces, kept[len(kept) // 2] if kept else None


def _pictures_of_file(path: str, settings: FaceSettings) -> Iterator[tuple[int, np.ndarray]]:
    if os.path.splitext(path)[1].lower() in CLIP_SUFFIXES:
        for index, picture in read_frames(path, settings.number_of_frames, settings.seed):
            yield index, _through_jpeg(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
    else:
        yield 0, read_picture(path)


def _through_jpeg(picture):
    """Return an RGB picture as it comes back from the JPEG file that the scripts write: networks are trained on it."""
    return cv2.imdecode(encode_jpeg(picture), cv2.IMREAD_COLOR_RGB)


def _keep(picture: np.ndarray, rectangles: list[dlib.rectangle]) -> KeptPicture:
    scale = min(1, KEPT_HEIGHT / picture.shape[0])
    size = [max(1, round(length * scale)) for length in picture.shape[1::-1]]
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    boxes = [tuple(round(edge * scale) for edge in edges_of(box)) for box in rectangles]
    return KeptPicture(encode_jpeg(small).tobytes(), boxes)
