"""From a clip to the faces in its frames, in one pass: to chips on disk, or in memory."""
import os
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import dlib
import numpy as np

from clip_packets import Packets, list_packets
from face_tracker import FaceTracker
from failures import KnownFailures
from find_faces import (
    CropSettings,
    align_face,
    edges_of,
    encode_jpeg,
    find_faces,
    load_models,
    read_picture,
    write_chips,
)
from labels import CLIP_SUFFIXES, NO_FACE, face_name, frame_name
from read_clips import (
    FrameSettings,
    check_clip_name,
    choose_frames,
    earlier_frames,
    read_chosen,
    watched_clip,
)
from target_folder import is_finished
from worker_pool import heartbeat

KEPT_HEIGHT = 720  # pixels, of the pictures that are kept to be annotated


class FrameFaces(NamedTuple):
    """A frame of a clip: its index, its picture (uint8 RGB H x W x 3) and the rectangles of its faces, the largest
    first."""
    index: int
    picture: np.ndarray
    rectangles: list[dlib.rectangle]


def find_clip_faces(path: str, packets: Packets, frames: FrameSettings, crop: CropSettings,
                    pick: Callable[[set[int]], set[int]] = set, without_face: Container[int] = (),
                    ) -> Iterator[FrameFaces]:
    """Yield the FrameFaces of those of the frames drawn from a clip that pick(frames drawn) returns, and of the further
    ones that must be searched for that. without_face: frames that are known to need no search."""
    tracker = FaceTracker(load_models(crop.predictor), {})

    def pick_with_lineage(chosen):
        picked = pick(chosen)
        if crop.find_all:  # each frame is searched whole
            return picked
        # Set by the first call; a frame that replaces one that cannot be decoded learns from none.
        tracker.earlier = tracker.earlier or earlier_frames(Path(path).stem, chosen, frames.seed)
        further = set().union(*map(tracker.lineage, picked))
        return picked | {index for index in further if index not in without_face}

    for index, picture in read_chosen(path, packets, frames, pick_with_lineage):
        picture = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
        if crop.find_all:
            yield FrameFaces(index, picture, find_faces(picture, tracker.models, find_all=True))
        else:
            yield FrameFaces(index, picture, tracker.find_faces(index, picture))


# ---------------------------------------------------------------- to disk

def no_face_in(index: int) -> str:
    """Return the reason in failures.csv for a clip's frame without a face."""
    return f"frame {index}: {NO_FACE}"


@dataclass(frozen=True)
class ClipJob:
    """What is made of every clip. known: frames without a face that need no second search; dry_run: make nothing."""
    face_dir: str
    frames: FrameSettings
    crop: CropSettings
    known: KnownFailures
    dry_run: bool = False


def extract_clip_faces(path: str, job: ClipJob) -> tuple[int, int, list[str]]:
    """Write the chips of one clip to job.face_dir; return (made, present, problems) as batch.Batch asks.

    Call it inside target_folder.open_target. Raises UserError for a clip that cannot be read, OSError for a full disk.
    """
    clip = Path(path).stem
    present, empty, done = set(), set(), set()

    def stem(index):
        return Path(frame_name(clip, index)).stem

    def missing(chosen):
        rest = chosen - done
        present.update(i for i in rest if is_finished(os.path.join(job.face_dir, face_name(stem(i)))))
        empty.update(i for i in rest - present if job.known.holds(path, no_face_in(i)))
        return rest - present - empty

    with watched_clip(path, job.face_dir) as made:
        packets = list_packets(path)
        check_clip_name(path, packets, job.face_dir)
        to_make = missing(choose_frames(clip, packets.drawable, job.frames.number_of_frames, job.frames.seed))
        if to_make and not job.dry_run:
            for frame in find_clip_faces(path, packets, job.frames, job.crop, missing, empty):
                if frame.index in present:
                    continue
                done.add(frame.index)
                if frame.rectangles:
                    made += write_chips(frame.picture, frame.rectangles, job.face_dir, stem(frame.index), job.crop)
                else:
                    empty.add(frame.index)
                heartbeat()
    problems = ([packets.problem] if packets.problem else []) + [no_face_in(index) for index in sorted(empty)]
    return len(to_make) if job.dry_run else len(made), len(present), problems


# ---------------------------------------------------------------- in memory

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
    crop = CropSettings(settings.predictor, settings.size, settings.padding, settings.find_all)
    models = load_models(crop.predictor)
    faces, kept, count = [], [], 0
    for frame in _frames_of_file(path, FrameSettings(settings.number_of_frames, settings.seed), crop):
        count += 1
        rectangles = frame.rectangles[:1]
        if crop.find_all:
            rectangles = sorted(frame.rectangles, key=lambda box: box.left())
        for number, rectangle in enumerate(rectangles):
            chip = align_face(frame.picture, rectangle, models, crop.size, crop.padding)
            faces.append((frame.index, number, _through_jpeg(chip)))
        if rectangles and settings.keep_picture:
            kept.append(_keep(frame.picture, rectangles))
    return count, faces, kept[len(kept) // 2] if kept else None


def _frames_of_file(path: str, frames: FrameSettings, crop: CropSettings) -> Iterator[FrameFaces]:
    if os.path.splitext(path)[1].lower() in CLIP_SUFFIXES:
        yield from find_clip_faces(path, list_packets(path), frames, crop)
    else:
        picture = read_picture(path)
        yield FrameFaces(0, picture, find_faces(picture, load_models(crop.predictor), crop.find_all))


def _through_jpeg(chip):
    """Return a chip as it comes back from the JPEG file that the scripts write: networks are trained on these."""
    return cv2.imdecode(encode_jpeg(chip), cv2.IMREAD_COLOR_RGB)


def _keep(picture: np.ndarray, rectangles: list[dlib.rectangle]) -> KeptPicture:
    scale = min(1, KEPT_HEIGHT / picture.shape[0])
    size = [max(1, round(length * scale)) for length in picture.shape[1::-1]]
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    boxes = [tuple(round(edge * scale) for edge in edges_of(box)) for box in rectangles]
    return KeptPicture(encode_jpeg(small).tobytes(), boxes)
