"""dlib's face detector and landmarks, and the boxes they work with: no other module handles dlib's own rectangles."""
import functools
import hashlib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import dlib
import numpy as np

from first_impressions.common.command_line import UserError
from first_impressions.common.constants import FACE_SIZE
from first_impressions.common.files import packaged_model
from first_impressions.jobs.worker_pool import heartbeat

PADDING = 0.5
# The finest search is at full size with one upsampling, as far as that is not over this longest side. Pictures of more
# than half of it are searched at full size, then in tiles of twice the size: memory stays a third.
FINEST_SIDE = 4096
TILE = 1024
# The detector gives the boxes of the smallest faces this width in pixels, and those of larger ones this width times a
# power of PYRAMID_STEP.
SMALLEST_BOX = 72
PYRAMID_STEP = 6 / 5
SAME_FACE = 0.4     # overlap of two boxes of one face, at least
# The CNN detector takes 5 microseconds a pixel: pictures are brought to this many, but not enlarged by more than
# CNN_ENLARGEMENT. It finds faces of CNN_SMALLEST pixels. Of 60 portraits without a face for the HOG detector it found
# one in 47 at 155,000 pixels, in 43 at a quarter of these. Weaker faces than CNN_CONFIDENCE are not taken.
CNN_PIXELS = 150_000
CNN_ENLARGEMENT = 2.5
CNN_CONFIDENCE = 0.6
CNN_SMALLEST = 40


class Box(NamedTuple):
    """A rectangle in pixels of a picture. The pixels at its edges belong to it. It may reach out of the picture."""
    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left + 1

    @property
    def height(self) -> int:
        return self.bottom - self.top + 1

    @property
    def area(self) -> int:
        return max(0, self.width) * max(0, self.height)

    @property
    def centre(self) -> tuple[int, int]:
        """x and y of the pixel in the middle."""
        return (self.left + self.right + 1) // 2, (self.top + self.bottom + 1) // 2

    def overlap(self, other: "Box") -> float:
        """Return the area that two boxes share, in parts of the area of both together (IoU)."""
        shared = Box(*map(max, self[:2], other[:2]), *map(min, self[2:], other[2:])).area
        return shared / (self.area + other.area - shared)

    def scaled(self, factor: float) -> "Box":
        return Box(*(round(edge * factor) for edge in self))

    def moved(self, x: int, y: int) -> "Box":
        return Box(self.left + x, self.top + y, self.right + x, self.bottom + y)


class FoundFace(NamedTuple):
    """A face in a picture.

    box: in pixels of the picture; detector: "hog" or "cnn"; confidence: that of the HOG detector at the scale
    at which the face was found, how far it lies above the detector's threshold (King 2015, Max-Margin Object Detection,
    https://arxiv.org/abs/1502.00046). It has no unit and is not a probability. Usual are 0.3 to 2.4, the median is 1.2
    (9 in 10 of 200 frames of 20 clips); below 0 are faces that two scales found at one place. Those of the CNN
    detector are CNN_CONFIDENCE to 1.1.
    """
    box: Box
    confidence: float
    detector: str = "hog"


def resized(picture: np.ndarray, factor: float) -> np.ndarray:
    """Return a picture of another size, uint8 H x W or H x W x 3."""
    size = [max(1, round(length * factor)) for length in picture.shape[1::-1]]
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)


def _box(rectangle):
    return Box(rectangle.left(), rectangle.top(), rectangle.right(), rectangle.bottom())


# Pictures are uint8, grey H x W or RGB H x W x 3, C-contiguous; the faces found come the largest first, of equally
# large ones the most confident one.

@functools.cache  # once in a process
def _hog_detector():
    return dlib.get_frontal_face_detector()


@functools.cache
def _cnn_detector():
    return dlib.cnn_face_detection_model_v1(str(packaged_model("mmod_human_face_detector.dat")))


def find_hog(picture: np.ndarray, threshold: float, scale: float = 1.0) -> list[FoundFace]:
    """Return the faces of SMALLEST_BOX pixels and more, their edges multiplied by scale, that dlib's detector of
    frontal faces finds: a linear filter on histograms of gradients (HOG), over a pyramid of scales."""
    heartbeat()
    boxes, scores, _ = _hog_detector().run(picture, 0, threshold)
    return _largest_first(FoundFace(_box(box).scaled(scale), score) for box, score in zip(boxes, scores))


def find_finest(picture: np.ndarray, width: float = 0.0) -> list[FoundFace]:
    """Return the faces of at least a width in pixels that the HOG detector has at full size with one upsampling.

    Confidences and boxes are the same (at a width, rarely a pixel off); the larger faces take a quarter of the time:
    the picture is made smaller as dlib does it, and only the larger faces of its pyramid are searched. Boxes come in
    steps of PYRAMID_STEP. So in a picture made smaller in another way the other one of two faces of nearly one size may
    be the larger.
    """
    heartbeat()
    scale = max(1.0, max(picture.shape[:2]) / FINEST_SIDE)
    searched = resized(picture, 1 / scale)
    upsampling = int(2 * max(searched.shape[:2]) <= FINEST_SIDE)
    doubling, pyramid = dlib.pyramid_down(2), dlib.pyramid_down(6)
    if upsampling:
        corner = doubling.rect_up(dlib.rectangle(0, 0, searched.shape[1] - 1, searched.shape[0] - 1))
        searched = dlib.resize_image(searched, corner.bottom() + 1, corner.right() + 1)
    steps = math.floor(math.log(max(1.0, width / scale * (1 + upsampling) / SMALLEST_BOX), PYRAMID_STEP))
    for _ in range(steps):
        searched = pyramid(searched)
    boxes, scores, _ = _hog_detector().run(searched, 0, 0.0)
    found = []
    for box, score in zip(boxes, scores):
        if steps:
            # A box has whole pixels at the step where it was found. From there it is rounded once, as dlib does it.
            further = round(math.log(box.width() / SMALLEST_BOX, PYRAMID_STEP))
            box = pyramid.rect_up(pyramid.rect_down(box, further), steps + further)
        found.append(FoundFace(_box(doubling.rect_down(box, upsampling)).scaled(scale), score))
    return _largest_first(found)


def find_small(picture: np.ndarray) -> list[FoundFace]:
    """Return the faces of a picture that are too small for find_finest without upsampling, as confident as in the
    picture at twice the size; none if that has an upsampling."""
    scale = max(1.0, max(picture.shape[:2]) / FINEST_SIDE)
    if 2 * max(picture.shape[:2]) <= FINEST_SIDE:
        return []
    picture = resized(picture, 1 / scale)
    shared = 2 * SMALLEST_BOX  # by two tiles: each small face is whole in one of them
    found = []
    for top in range(0, max(1, picture.shape[0] - shared), TILE):
        for left in range(0, max(1, picture.shape[1] - shared), TILE):
            tile = resized(picture[top:top + TILE + shared, left:left + TILE + shared], 2)
            found += [face._replace(box=face.box.moved(left, top)) for face in find_hog(tile, 0.0, 0.5)
                      if face.box.width <= SMALLEST_BOX]
    found.sort(key=lambda face: -face.confidence)
    faces = [face for place, face in enumerate(found)
             if all(face.box.overlap(better.box) < SAME_FACE for better in found[:place])]
    return _largest_first(face._replace(box=face.box.scaled(scale)) for face in faces)


def find_cnn(picture: np.ndarray) -> list[FoundFace]:
    """Return the faces in an RGB picture that dlib's convolutional network finds (King 2016,
    http://blog.dlib.net/2016/10/): also dark, tilted and partly hidden ones, a hundred times slower."""
    heartbeat()
    factor = min(CNN_ENLARGEMENT, math.sqrt(CNN_PIXELS / (picture.shape[0] * picture.shape[1])))
    if min(picture.shape[:2]) * factor < CNN_SMALLEST:  # smaller ones are not valid input for the network
        return []
    return _largest_first(FoundFace(_box(face.rect).scaled(1 / factor), face.confidence, "cnn")
                          for face in _cnn_detector()(resized(picture, factor), 0) if face.confidence >= CNN_CONFIDENCE)


def _largest_first(faces):
    return sorted(faces, key=lambda face: -face.box.area)


class DetectorChoice(NamedTuple):
    """A value of --detector. find: the search of each picture; None: that of the HOG detector, at several scales and,
    in clips, near the faces of other frames (faces.py, tracking.py)."""
    help: str
    find: Callable[[np.ndarray], list[FoundFace]] | None = None


DETECTORS = {
    "auto": DetectorChoice("asks cnn if hog finds no face in any frame of a file"),
    "hog": DetectorChoice("is for frontal faces"),
    "cnn": DetectorChoice("is a hundred times slower", find_cnn),
}
DETECTOR_HELP = "dlib's face detector: " + ", ".join(f"{name} {choice.help}" for name, choice in DETECTORS.items())


def find_predictor(path: str | os.PathLike | None = None) -> str:
    """Return the path of a landmark model, default the 5-point one. Raises UserError if it cannot be loaded."""
    path = os.path.abspath(path or packaged_model("shape_predictor_5_face_landmarks.dat"))
    load_predictor(path)
    return path


def predictor_note(path: str | os.PathLike) -> str:
    """Return what preprocessing.json says of a landmark model: its name and the beginning of its SHA-256."""
    return f"{Path(path).name} sha256:{hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]}"


@functools.lru_cache(maxsize=2)
def load_predictor(path: str | None = None) -> dlib.shape_predictor:
    """Return a landmark model of dlib, default the 5-point one, loaded once in a process. Raises UserError for a file
    that is missing or no such model."""
    if path is None:
        return load_predictor(find_predictor())
    try:
        predictor = dlib.shape_predictor(path)
    except RuntimeError as error:
        raise UserError(f"{path}: no landmark model of dlib ({str(error).splitlines()[0]}); name one of 5 or 68 "
                        "points") from None
    points = predictor(np.zeros((100, 100), np.uint8), dlib.rectangle(10, 10, 90, 90)).num_parts
    if points not in (5, 68):
        raise UserError(f"{path}: a model of {points} landmarks; alignment needs one of 5 or 68")
    return predictor


def face_size(picture: np.ndarray, box: Box) -> float:
    """Return the width in pixels of the face in a box, by the 5-point landmarks: finer than the steps of boxes.

    It is that of the mean face that fits the landmarks best, as for chips. picture: uint8 RGB array H x W x 3.
    """
    landmarks = load_predictor()(picture, dlib.rectangle(*box))
    return dlib.get_face_chip_details(landmarks, size=100, padding=0.0).rect.width()


def align_face(picture: np.ndarray, box: Box, predictor: str | None = None, size: int = FACE_SIZE,
               padding: float = PADDING) -> np.ndarray:
    """Return the face in a box, turned upright by its landmarks, as uint8 RGB array size x size x 3.

    picture: uint8 RGB array H x W x 3, C-contiguous; predictor: path of the landmark model, None for the 5-point one;
    padding: margin around the landmarks, in parts of the face's size.
    """
    landmarks = load_predictor(predictor)(picture, dlib.rectangle(*box))
    return dlib.get_face_chip(picture, landmarks, size=size, padding=padding)
