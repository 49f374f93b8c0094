"""From a clip to the faces in its frames, in one pass: to chips on disk, or in memory."""
import math
import os
import re
import tempfile
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from first_impressions.common.command_line import UserError, counted
from first_impressions.common.constants import CLIP_SUFFIXES, FOUND_BY_CNN, NO_FACE, clip_stem, face_name, frame_name
from first_impressions.extraction.detectors import DETECTORS, Box, FoundFace, align_face, resized
from first_impressions.extraction.faces import (
    MOST_FRAMES,
    CropSettings,
    find_faces,
    look_again,
    read_picture,
    with_further_faces,
    write_chips,
)
from first_impressions.extraction.frames import (
    FrameSettings,
    check_clip_name,
    choose_frames,
    earlier_frames,
    finished,
    read_chosen,
    read_frames,
    watched_clip,
)
from first_impressions.extraction.packets import Packets, list_packets
from first_impressions.extraction.people import describe_face, number_people
from first_impressions.extraction.sources import encode_jpeg, source_of
from first_impressions.extraction.tracking import FaceTracker
from first_impressions.jobs.worker_pool import heartbeat

PORTION_BYTES = 20_000_000  # of pictures that are searched one after the other: 8 of 1280 x 720 pixels
KEPT_HEIGHT = 720  # pixels, of the picture that is kept to be annotated


class FrameFaces(NamedTuple):
    """A frame of a clip: its index, its picture (uint8 RGB H x W x 3), the faces in it, the largest first, and what
    failures.csv says of it, "" for nothing."""
    index: int
    picture: np.ndarray
    faces: list[FoundFace]
    reason: str


def find_clip_faces(path: str, packets: Packets, frames: FrameSettings, crop: CropSettings,
                    pick: Callable[[set[int]], set[int]] = set, without_face: Container[int] = (),
                    with_face: Container[int] = ()) -> Iterator[FrameFaces]:
    """Yield the FrameFaces of those of the frames drawn from a clip that pick(frames drawn) returns, and of the further
    ones that must be searched for that; if no frame has a face, a few of them again after a second look.

    without_face: frames that are known to need no search; with_face: frames whose faces are known.
    """
    clip, is_tracked, faces_in = clip_stem(path), DETECTORS[crop.detector].find is None, {}
    tracker = FaceTracker(earlier_frames(clip, frames.choose(clip, packets), frames.seed) if is_tracked else {})

    def pick_with_lineage(chosen):
        picked = pick(chosen)
        return picked.union(*(tracker.earlier.get(index, ()) for index in picked)).difference(without_face)

    def search(index, picture):
        if not is_tracked:
            return find_faces(picture, detector=crop.detector)
        faces = tracker.find_faces(index, picture)
        return with_further_faces(picture, faces) if crop.find_all else faces

    for portion in _portions(read_chosen(path, packets, frames, pick_with_lineage)):
        faces_in.update((index, search(index, picture)) for index, picture in portion)
        for index, picture in portion:
            yield FrameFaces(index, picture, faces_in[index], "" if faces_in[index] else NO_FACE)
    if not faces_in or any(faces_in.values()):
        return
    drawn = frames.choose(clip, packets)
    again = choose_frames(clip, drawn, MOST_FRAMES, frames.seed)
    if any(index in with_face for index in drawn - again):
        return
    pictures = list(read_frames(path, packets, again))
    # A run that was killed may have left some of the chips of a second look.
    if not any(index in with_face and find_faces(picture) for index, picture in pictures):
        for index, picture in pictures:
            if index not in with_face:
                yield FrameFaces(index, picture, *look_again(picture, crop.detector))


def _portions(pictures):
    """Yield lists of what is read, in portions, so that decoder, detector and landmarks do not take turns at every
    frame: each has megabytes of its own, which the others drive out of the processor's cache."""
    portion = []
    for index, picture in pictures:
        portion.append((index, picture))
        if len(portion) * picture.nbytes >= PORTION_BYTES:
            yield portion
            portion = []
    if portion:
        yield portion


def extract_clip_faces(path: str, face_dir: str, frames: FrameSettings, crop: CropSettings,
                       known: dict[str, list[str]]) -> tuple[int, int, list[str]]:
    """Write the chips of one clip to face_dir; return (made, present, problems) as Job.run asks.

    known: as of failures.known_failures: frames without a face need no second search. Call it inside
    target_folder.open_target. Raises UserError for a clip that cannot be read, OSError for a full disk.
    """
    clip, source, present = clip_stem(path), source_of(path), set()
    lines = [re.fullmatch(r"frame ([0-9]+): (.*)", line, re.DOTALL) for line in known.get(os.path.abspath(path), [])]
    before = {int(line[1]): line[2] for line in lines if line}
    reasons = {}    # by frame, those of the frames that are drawn

    def stem(index):
        return Path(frame_name(clip, index)).stem

    def missing(chosen):
        present.update(finished(chosen, face_dir, lambda index: face_name(stem(index)), source))
        reasons.update({i: before[i] for i in chosen if (before.get(i) == FOUND_BY_CNN if i in present else
                                                      NO_FACE in before.get(i, ""))})
        return chosen - present - reasons.keys()

    with watched_clip(path, face_dir) as made:
        packets = list_packets(path)
        check_clip_name(path, packets, face_dir)
        for frame in find_clip_faces(path, packets, frames, crop, missing, reasons, present):
            if frame.index in present:
                continue
            made += write_chips(frame.picture, frame.faces, face_dir, stem(frame.index), crop, source)
            if frame.reason:
                reasons[frame.index] = frame.reason
            heartbeat()
    problems = frames.problems(packets) + [f"frame {index}: {reason}" for index, reason in sorted(reasons.items())]
    return len(made), len(present), problems


@dataclass(frozen=True, kw_only=True)
class FaceSettings(CropSettings):
    """How faces become chips, and which faces of which frames are taken.

    keep_picture: also return a picture of a frame with a face; min_confidence: less confident faces are
    left out, None: none; most_seconds: longer clips are refused, None: none.
    """
    frames: FrameSettings
    keep_picture: bool = False
    min_confidence: float | None = None
    most_seconds: float | None = None


class Face(NamedTuple):
    """A face: the index of its frame, the frame's time in seconds (0 for a picture, NaN if the clip does not tell),
    the number of its person from 1, its box in pixels of the frame, the detector's confidence and name, and where its
    JPEG begins and ends in the file of chips."""
    frame: int
    seconds: float
    person: int
    box: Box
    confidence: float
    detector: str
    chip: tuple[int, int]


class KeptPicture(NamedTuple):
    """A frame to be annotated: bytes of a JPEG file, at most KEPT_HEIGHT high, and the box of each of its people."""
    jpeg: bytes
    boxes: dict[int, Box]


@dataclass
class FileFaces:
    """The faces of a clip or picture: the path of the file of their chips, the number of its frames, its faces in the
    order of frames and people, the most further faces seen in one of its frames, which are not among its faces, why it
    has none, with keep_picture the frame with a face that is nearest to its middle, sentences on what is wrong with the
    file although it could be read, and the length of a clip in seconds (0: a picture, or unknown)."""
    chips: str
    frames: int = 0
    faces: list[Face] = field(default_factory=list)
    others: int = 0
    no_face: str = NO_FACE
    picture: KeptPicture | None = None
    notes: list[str] = field(default_factory=list)
    length: float = 0.0


def faces_of_file(path: str, settings: FaceSettings, chip_dir: str) -> FileFaces:
    """Return the FileFaces of a clip or picture file. The chips go into a new file in chip_dir, so that memory does not
    grow with the length of a clip; whoever takes the answer deletes it, and chip_dir with what errors leave there.

    Raises UserError for a file that cannot be read or that changes meanwhile, OSError for one that cannot be opened and
    for a full disk.
    """
    indices, descriptors, kept, least_distance = set(), [], None, math.inf
    with watched_clip(path, chip_dir), tempfile.NamedTemporaryFile(dir=chip_dir, delete=False) as chips:
        found = FileFaces(chips.name)
        for frame, seconds, distance in _frames_of_file(path, settings, found):
            indices.add(frame.index)
            found.no_face = frame.reason if NO_FACE in frame.reason else NO_FACE
            clear = [face for face in frame.faces
                     if settings.min_confidence is None or face.confidence >= settings.min_confidence]
            taken = clear[:None if settings.find_all else 1]
            found.others = max(found.others, len(clear) - len(taken))
            for face in taken:
                # Networks are trained on chips that went through the JPEG files that the scripts write.
                begin = chips.tell()
                chip = align_face(frame.picture, face.box, settings.predictor, settings.size, settings.padding)
                chips.write(encode_jpeg(chip))
                found.faces.append(Face(frame.index, seconds, 1, face.box, float(face.confidence), face.detector,
                                        (begin, chips.tell())))
                if settings.find_all:
                    descriptors.append(describe_face(frame.picture, face.box, settings.predictor))
            if taken and settings.keep_picture and distance < least_distance:
                kept, least_distance = frame, distance
    found.frames = len(indices)
    if descriptors:
        people = number_people(np.array(descriptors), [(face.frame, face.box.left) for face in found.faces])
        found.faces = [face._replace(person=person) for face, person in zip(found.faces, people)]
    found.faces.sort(key=lambda face: (face.frame, face.person))
    if kept:
        scale = min(1, KEPT_HEIGHT / kept.picture.shape[0])
        found.picture = KeptPicture(encode_jpeg(resized(kept.picture, scale)), {
            face.person: face.box.scaled(scale) for face in found.faces if face.frame == kept.index})
    if found.others:
        found.notes.append(f"{counted(found.others, 'other face')} in the picture")
    return found


def _frames_of_file(path: str, settings: FaceSettings, found: FileFaces) -> Iterator[tuple[FrameFaces, float, float]]:
    """Yield each frame with its faces, its time in seconds and how many frames it is from the clip's middle; note what
    else is known of the file."""
    if os.path.splitext(path)[1].lower() in CLIP_SUFFIXES:
        packets = list_packets(path)
        seconds = packets.seconds.tolist()
        found.length, middle = packets.length, len(packets.drawable) / 2
        if settings.most_seconds and found.length > settings.most_seconds:
            raise UserError(f"lasts {found.length / 60:.1f} minutes; at most {settings.most_seconds / 60:g} are taken")
        for frame in find_clip_faces(path, packets, settings.frames, settings):
            yield (frame, seconds[frame.index] if frame.index < len(seconds) else math.nan,
                   abs(frame.index - middle))
        found.notes += [*packets.notes, *filter(None, (packets.guess, packets.hdr))]
    else:
        picture = read_picture(path)
        faces, reason = find_faces(picture, settings.find_all, settings.detector), ""
        if not faces:
            faces, reason = look_again(picture, settings.detector)
        yield FrameFaces(0, picture, faces, reason), 0.0, 0.0
