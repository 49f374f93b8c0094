"""A second look at a file in which no face was found: turned pictures, and dlib's CNN detector."""
import os

import cv2
import numpy as np

from first_impressions.common.constants import FACE_MARK, FRAME_MARK, NO_FACE
from first_impressions.extraction.detectors import SMALLEST_BOX, FoundFace, Models, load_cnn, load_models, resized
from first_impressions.extraction.faces import (
    CLEAR_SCORE,
    CropSettings,
    read_picture,
    stem_of,
    true_faces,
    write_chips,
)
from first_impressions.extraction.frames import choose_frames
from first_impressions.extraction.sources import source_of_frame
from first_impressions.jobs.failures import read_failures
from first_impressions.jobs.target_folder import find_files

MOST_FRAMES = 3     # of a clip are looked at again: the first ones of the draw, which stay the same if more are drawn
TURNED_SIDE = 960   # longest side in pixels of the pictures that are turned; faces of a twelfth of it are found
FOUND_BY_CNN = "face found by the CNN detector alone"


def look_again(picture: np.ndarray, models: Models, detector: str) -> tuple[list[FoundFace], str]:
    """Return (faces, reason): those that a second look at a picture finds, uint8 RGB H x W x 3, by the CNN detector,
    the largest first, and a line for failures.csv, in any case. detector: as in CropSettings; with "auto" the CNN
    detector is asked if the picture shows no face when it is turned.

    It is asked last: it also finds faces that lie on their side, which the landmarks cannot turn upright.
    """
    scale = TURNED_SIDE / max(picture.shape[:2])
    small = resized(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), scale)
    for quarters in (1, 2, 3) if min(small.shape) >= SMALLEST_BOX else ():
        if models.detector.find(np.ascontiguousarray(np.rot90(small, -quarters)), CLEAR_SCORE):
            return [], (f"{NO_FACE}; one is found if the picture is turned by {90 * quarters} degrees clockwise: "
                        "turn the file")
    faces = true_faces(picture, load_cnn().find(picture), models) if detector == "auto" else []
    if faces:
        return faces, FOUND_BY_CNN
    return [], f"{NO_FACE}, upright or turned" + (", by either detector" if detector == "auto" else "")


def extract_faces_again(path: str, frame_dir: str, face_dir: str, settings: CropSettings) -> tuple[int, int, list[str]]:
    """Do as faces.extract_faces with one of the frames of a clip in none of which it found a face."""
    picture = read_picture(path)
    faces, reason = look_again(picture, load_models(settings.predictor), settings.detector)
    stem = stem_of(path, frame_dir)
    names = write_chips(picture, faces, face_dir, stem, settings, source_of_frame(path, stem))
    return len(names), 0, [reason]


def find_second_look(frame_dir: str, face_dir: str) -> tuple[list[list[str]], set[str]]:
    """Return the lines [path, reason] of failures.csv, and of these the paths to look at again: of clips without a face
    a few frames, as many and the same as of a clip in one pass, and pictures that are not of a clip."""
    lines, frames, by_cnn = list(read_failures(face_dir)), {}, set()
    for path, reason in lines:
        stem = stem_of(path, frame_dir)
        clip, _, index = stem.rpartition(FRAME_MARK)
        if NO_FACE in reason or reason == FOUND_BY_CNN:
            of_clip = frames.setdefault(clip or path, {})
            of_clip[int(index) if clip and index.isdecimal() else -len(of_clip)] = path, reason
        if reason == FOUND_BY_CNN:
            by_cnn.add(stem)
    for path, _ in find_files(face_dir, [".jpg"]):
        stem = os.path.relpath(path, face_dir).rpartition(FACE_MARK)[0]
        if stem not in by_cnn:
            frames.pop(stem.rpartition(FRAME_MARK)[0], None)
    return lines, {path for clip, of_clip in frames.items()
                   for path, reason in map(of_clip.get, choose_frames(os.path.basename(clip), of_clip, MOST_FRAMES, 0))
                   if reason == NO_FACE}
