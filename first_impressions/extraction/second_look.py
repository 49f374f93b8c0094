"""The frames and pictures that are looked at again, since no face was found in their file."""
import os

from first_impressions.common.constants import FACE_MARK, FRAME_MARK, NO_FACE
from first_impressions.extraction.faces import FOUND_BY_CNN, stem_of
from first_impressions.extraction.frames import choose_frames
from first_impressions.jobs.failures import read_failures
from first_impressions.jobs.target_folder import find_files

MOST_FRAMES = 3     # of a clip are looked at again: the first ones of the draw, which stay the same if more are drawn


def find_second_look(frame_dir: str, face_dir: str) -> tuple[dict[str, list[str]], set[str]]:
    """Return {path: reasons} of failures.csv, and of these the paths to look at again: of clips without a face
    a few frames, as many and the same as of a clip in one pass, and pictures that are not of a clip."""
    failures, frames, by_cnn = read_failures(face_dir), {}, set()
    for path, (reason, *_) in failures.items():
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
    return failures, {path for clip, of_clip in frames.items()
                      for path, reason in map(of_clip.get, choose_frames(os.path.basename(clip), of_clip, MOST_FRAMES,
                                                                         0))
                      if reason == NO_FACE}
