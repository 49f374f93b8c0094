"""The face in the frames of one clip: where it was in an earlier frame is where it is looked for first."""
from typing import NamedTuple

import cv2
import numpy as np

from first_impressions.extraction.detectors import PYRAMID_STEP, Box, FoundFace, find_finest
from first_impressions.extraction.faces import faces_from_width, faces_near, search_faces, true_faces

# In another scene the largest face may be elsewhere. Two frames show one scene if their thumbnails differ by no more
# than this, in grey levels on average: of frames of one clip 98 in 100 do, frames of different clips differ by 38 and
# more.
SAME_SCENE = 16
THUMBNAIL = (16, 9)
# A person who was alone in the scene is searched at the finest scale down to this part of the earlier width: what is
# smaller is nobody of the scene, and its search takes four times as long.
LEAST_WIDTH = 0.5
# Of several people the one with the largest face is settled among faces that are at least this part as wide as it.
NEAR_SIZE = 0.75


class Sighting(NamedTuple):
    """What a frame tells later ones: where its largest face is, whether it is the only one (else the larger of several
    must be looked for anew), and a thumbnail by which its scene is known again."""
    face: Box
    is_alone: bool
    thumbnail: np.ndarray


class FaceTracker:
    """Finds the faces in frames of one clip.

    earlier: for each frame those to learn from, the nearest first, as frames.earlier_frames gives them. What is found
    in a frame depends on nothing but its picture and theirs. All these must have been searched before it, but for those
    without a face.
    """

    def __init__(self, earlier: dict[int, list[int]]):
        self.earlier = earlier
        self.sightings: dict[int, Sighting] = {}  # none for a frame without a face

    def find_faces(self, index: int, picture: np.ndarray) -> list[FoundFace]:
        """Return the faces in a frame, the largest first, as faces.find_faces does; of several faces the smaller
        may be left out."""
        thumbnail = _thumbnail(picture)
        earlier = self.earlier.get(index, ())
        before = next((self.sightings[frame] for frame in earlier if frame in self.sightings), None)
        if before is not None and np.abs(thumbnail - before.thumbnail).mean() > SAME_SCENE:
            before = None
        if before is not None and before.is_alone:
            found = faces_near(picture, before.face)
            if len(found) == 1:
                self.sightings[index] = Sighting(found[0].box, True, thumbnail)
                return found
        # If several people were seen once, one may only be hidden.
        is_alone = before is None or before.is_alone
        faces = [] if is_alone else _settle(picture, [before.face.width])
        if not faces:
            least = LEAST_WIDTH * before.face.width if before is not None and is_alone else 0.0
            faces, doubtful, smallest = search_faces(picture, least)
            widths = [face.box.width for face in faces]
            is_alone = is_alone and len(faces) + len(doubtful) == 1
            if before is None and is_alone and widths[0] < smallest * PYRAMID_STEP:
                # Smaller faces cannot have been found there.
                is_alone = len(faces_from_width(picture, NEAR_SIZE * widths[0])) < 2
            if faces and not is_alone:
                faces = _settle(picture, widths) or faces
        if faces:
            self.sightings[index] = Sighting(faces[0].box, is_alone, thumbnail)
        return faces


def _thumbnail(picture):
    step = max(1, max(picture.shape[:2]) // 160)
    small = np.ascontiguousarray(picture[step // 2::step, step // 2::step])
    return cv2.resize(small, THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.int16)


def _settle(picture, widths):
    """Return the faces of nearly a width in pixels and larger as the finest search has them, the largest first: of the
    first of several widths at which there are any."""
    found = (true_faces(picture, find_finest(picture, NEAR_SIZE * width)) for width in widths)
    return next(filter(None, found), [])
