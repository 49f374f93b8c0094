"""People of a clip, re-identified across frames by dlib's face recognition."""
import collections
import functools

import dlib
import numpy as np

from first_impressions.common.files import packaged_model
from first_impressions.extraction.detectors import Box, align_face

# dlib's descriptors of one person's faces are nearer than this, those of two people are farther apart (King 2017,
# http://blog.dlib.net/2017/02/high-quality-face-recognition-with-deep.html).
SAME_PERSON = 0.6
CHIP_SIZE, CHIP_PADDING = 150, 0.25     # of the faces that dlib's network was trained on
BLOCK = 500     # faces that are told apart at once: the time grows with their square


@functools.lru_cache(maxsize=1)
def load_recognition() -> dlib.face_recognition_model_v1:
    """Return dlib's face recognition network; loaded once in a process. Raises UserError if it is not installed."""
    return dlib.face_recognition_model_v1(str(packaged_model("dlib_face_recognition_resnet_model_v1.dat")))


def describe_face(picture: np.ndarray, box: Box, predictor: str | None) -> np.ndarray:
    """Return dlib's descriptor, float64 128, of the face in a box of a picture, uint8 RGB H x W x 3. predictor: path of
    the landmark model."""
    chip = align_face(picture, box, predictor, CHIP_SIZE, CHIP_PADDING)
    return np.array(load_recognition().compute_face_descriptor(chip))


def number_people(descriptors: np.ndarray, places: list[tuple[int, int]]) -> list[int]:
    """Return the person of each face, from 1 in the order of appearance, in the same frame from left to right.

    descriptors: float N x 128; places: of each face the frame and its left edge in pixels. Faces in one frame are never
    one person: of two faces as alike as that, the left one is the first.
    """
    order = sorted(range(len(places)), key=places.__getitem__)
    numbers, people, seen = {}, {}, collections.Counter()
    for face, group in zip(order, _group(descriptors[order])):
        alike = places[face][0], group
        people[face] = numbers.setdefault((group, seen[alike]), len(numbers) + 1)
        seen[alike] += 1
    return [people[face] for face in range(len(places))]


def _group(descriptors):
    """Return the group of each descriptor, by Chinese whispers (Biemann, TextGraphs 2006), in blocks with the mean
    descriptors of the groups known so far."""
    members, groups = [], []
    for start in range(0, len(descriptors), BLOCK):
        block = descriptors[start:start + BLOCK]
        known = [np.mean(rows, axis=0) for rows in members]
        labels = dlib.chinese_whispers_clustering([dlib.vector(row) for row in [*known, *block]], SAME_PERSON)
        group_of = {}
        for group, label in enumerate(labels[:len(known)]):
            group_of.setdefault(label, group)
        for label, row in zip(labels[len(known):], block):
            if label not in group_of:
                group_of[label] = len(members)
                members.append([])
            groups.append(group_of[label])
            members[groups[-1]].append(row)
    return groups
