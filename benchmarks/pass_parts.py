"""What the way from clips to faces in one pass spends its time on, part by part, beside the decoding that nothing can
do without. It is called by benchmarks/preprocessing.py --parts."""
import collections
import contextlib
import functools
import inspect
import tempfile
import time
import unittest.mock

import cv2
import dlib
import numpy as np
import pandas

from first_impressions.common.constants import clip_stem
from first_impressions.extraction import clip_faces, detectors, faces, frames, tracking
from first_impressions.extraction.detectors import find_predictor
from first_impressions.extraction.faces import CropSettings
from first_impressions.extraction.frames import FrameSettings
from first_impressions.jobs.failures import known_failures
from first_impressions.jobs.target_folder import open_target

DECODING, REST = "decoding of the frames drawn, and of those they need", "the rest"
TIMED = {
    "list of the packets": [(clip_faces, "list_packets")],
    DECODING: [(frames, "decode_wanted"), (frames, "_decode_everything")],
    "conversion to RGB": [(frames, "_to_picture")],
    "resizing, grey": [(detectors, "resized"), (faces, "resized"), (tracking, "_thumbnail"), (cv2, "cvtColor")],
    "detector": [*((detectors, name) for name in ("find_hog", "find_finest", "find_small")), (tracking, "find_finest")],
    "landmarks": [(detectors, "align_face"), (detectors, "face_size")],
    "chips": [(dlib, "get_face_chip")],
    "JPEG files": [(faces, "encode_jpeg"), (faces, "write_file")],
}


class Parts:
    """CPU seconds of parts of this process: of a part without those that are called by it."""

    def __init__(self):
        self.seconds, self.running, self.since = collections.Counter(), [REST], time.process_time()

    @contextlib.contextmanager
    def part(self, name):
        self._switch()
        self.running.append(name)
        try:
            yield
        finally:
            self._switch()
            self.running.pop()

    def _switch(self):
        now = time.process_time()
        self.seconds[self.running[-1]] += now - self.since
        self.since = now

    def timed(self, name, function):
        """Return a function that does the same and counts its time for a part."""
        @functools.wraps(function)
        def call(*arguments, **options):
            with self.part(name):
                return function(*arguments, **options)

        @functools.wraps(function)
        def iterate(*arguments, **options):
            iterator, end = function(*arguments, **options), object()
            while True:
                with self.part(name):
                    item = next(iterator, end)
                if item is end:
                    return
                yield item

        return iterate if inspect.isgeneratorfunction(function) else call


def seconds_of_parts(clips: list[str], number_of_frames: int) -> pandas.Series:
    """Return the CPU seconds of each part of making the faces of some clips, in this process."""
    crop = CropSettings(find_predictor())
    faces.find_faces(np.zeros((80, 80, 3), np.uint8))  # the detector is loaded once in a process
    with tempfile.TemporaryDirectory() as folder, open_target(folder, {}), contextlib.ExitStack() as stack:
        job = folder, FrameSettings(number_of_frames), crop, known_failures(folder)
        parts = Parts()
        for name, places in TIMED.items():
            for owner, attribute in places:
                function = parts.timed(name, getattr(owner, attribute))
                stack.enter_context(unittest.mock.patch.object(owner, attribute, function))
        with parts.part(REST):
            for clip in clips:
                clip_faces.extract_clip_faces(clip, *job)
    return pandas.Series({name: parts.seconds[name] for name in (*TIMED, REST)})


def seconds_of_decoding(clips: list[str], number_of_frames: int) -> float:
    """Return the CPU seconds of decoding the very same frames, with nothing done to them."""
    begin = time.process_time()
    for clip in clips:
        packets = frames.list_packets(clip)
        wanted = frames.choose_frames(clip_stem(clip), packets.drawable, number_of_frames, 0)
        for _ in frames.decode_wanted(clip, packets, wanted):
            pass
    return time.process_time() - begin


def measure_parts(clips: list[str], numbers_of_frames: tuple[int, ...] = (10, 30)) -> None:
    """Print the CPU seconds of each part, and how many times its decoding the one pass takes, for some N."""
    table = pandas.DataFrame({f"N = {number}": seconds_of_parts(clips, number) for number in numbers_of_frames})
    total = table.sum()
    table.loc["one pass"] = total
    table.loc["the same decoding alone, with the list of the packets"] = [
        seconds_of_decoding(clips, number) for number in numbers_of_frames]
    table.loc["one pass / decoding in it"] = total / table.loc[DECODING]
    table.loc["one pass / decoding alone"] = total / table.iloc[-2]
    print(f"CPU seconds of {len(clips)} clips, one core:\n{table.round(2).to_string()}", flush=True)
