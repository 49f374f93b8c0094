"""Measure the pre-processing against named baselines in the same run.

    python benchmarks/preprocessing.py ../shared/chalearn/clips
    python benchmarks/preprocessing.py CLIP_DIR --frames-of 5 --memory
    python benchmarks/preprocessing.py CLIP_DIR --parts

Times are CPU seconds (user and system) of one process, so a busy machine disturbs them little; only the comparison of
two workers with one takes wall time and wants a quiet machine. Each function returns rows
(name, baseline name, baseline seconds, our seconds, ratio, goal).
"""
import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pre-processing"))

import first_impressions.common.startup  # noqa: F401  (before torch)

import av
import cv2
import dlib
import numpy as np
from pass_parts import measure_parts, seconds_of_parts

from first_impressions.common.constants import CLIP_SUFFIXES
from first_impressions.extraction.detectors import Box, find_predictor
from first_impressions.extraction.faces import (
    CropSettings,
    extract_faces,
    find_faces,
    read_picture,
    write_chips,
)
from first_impressions.extraction.frames import (
    FrameSettings,
    choose_frames,
    earlier_frames,
    extract_frames,
    read_chosen,
)
from first_impressions.extraction.packets import list_packets
from first_impressions.extraction.sources import encode_jpeg
from first_impressions.extraction.tracking import FaceTracker
from first_impressions.jobs.target_folder import find_files, open_target

REPOSITORY = Path(__file__).resolve().parents[1]
FRAME_SCRIPT = REPOSITORY / "pre-processing" / "extract_frames_from_videos.py"
FACE_SCRIPT = REPOSITORY / "pre-processing" / "extract_faces_from_frames.py"
ONE_PASS_SCRIPT = REPOSITORY / "pre-processing" / "extract_faces_from_videos.py"


def list_clips(clip_dir):
    """Return the paths of the clips in a folder, sorted."""
    return sorted(path for path, problem in find_files(clip_dir, CLIP_SUFFIXES) if not problem)


def child_seconds(command):
    """Run a command and return the CPU seconds, user and system, of its processes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _row(name, baseline, baseline_seconds, seconds, goal):
    return name, baseline, baseline_seconds, seconds, seconds / baseline_seconds, goal


def measure_frames(clip_dir, numbers_of_frames=(30, 1), goals=(0.85, 0.45)):
    """Clip to JPEG files, summed over all clips in a folder, against a full decode of them on one thread: by the ffmpeg
    command if it is installed (sound and all, as a user would), and by PyAV without any conversion."""
    clips = list_clips(clip_dir)
    plain = 0.0
    for clip in clips:
        begin = time.process_time()
        with av.open(clip) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for _ in container.decode(video=0):
                pass
        plain += time.process_time() - begin
    ffmpeg = None
    if shutil.which("ffmpeg"):
        ffmpeg = sum(child_seconds(["ffmpeg", "-threads", "1", "-i", clip, "-f", "null", "-"]) for clip in clips)
    rows = []
    for number, goal in zip(numbers_of_frames, goals):
        with tempfile.TemporaryDirectory() as folder, open_target(folder, {}):
            begin = time.process_time()
            for clip in clips:
                extract_frames(clip, folder, FrameSettings(number))
            seconds = time.process_time() - begin
        name = f"frames, N = {number}, {len(clips)} clips"
        if ffmpeg:
            rows.append(_row(name, "ffmpeg -threads 1 -i CLIP -f null -", ffmpeg, seconds, goal))
        rows.append(_row(name, "full decode by PyAV, no sound, nothing written", plain, seconds, None))
    return rows


class Agreement:
    """How often the largest face found in a picture is that of the detector alone."""

    def __init__(self):
        self.frames = self.with_face = self.same = self.none = 0

    def count(self, alone, found):
        self.frames += 1
        if alone:
            self.with_face += 1
            self.none += not found
            largest = max(alone, key=lambda face: face.area())
            largest = Box(largest.left(), largest.top(), largest.right(), largest.bottom())
            self.same += bool(found) and found[0].box.overlap(largest) > 0.5

    def __str__(self):
        return (f"{self.with_face} of {self.frames} frames have a face for the detector alone; the same largest one "
                f"(IoU > 0.5) in {self.same}, none in {self.none}")


def _timed(function, *arguments):
    begin = time.process_time()
    result = function(*arguments)
    return time.process_time() - begin, result


def measure_faces(clip_dir, frames_of_each=30):
    """From JPEG frame to JPEG chip, and in one pass from decoded picture to JPEG chip, against dlib's detector alone at
    full size with one upsampling, and how they agree."""
    predictor = find_predictor()
    alone_detector = dlib.get_frontal_face_detector()
    find_faces(np.zeros((80, 80, 3), np.uint8))  # what is loaded once in a process is no part of a frame's time
    frames, crop = FrameSettings(frames_of_each), CropSettings(predictor)
    seconds, two_steps, one_pass = np.zeros(3), Agreement(), Agreement()
    with tempfile.TemporaryDirectory() as folder, open_target(folder, {}):
        for clip in list_clips(clip_dir):
            packets, stem = list_packets(clip), Path(clip).stem
            chosen = choose_frames(stem, packets.drawable, frames_of_each, 0)
            tracker = FaceTracker(earlier_frames(stem, chosen, 0))

            def to_chip_in_one_pass(index, picture, tracker=tracker, stem=stem):
                faces = tracker.find_faces(index, picture)
                write_chips(picture, faces, folder, f"{stem}_{index}", crop, stem)
                return faces

            for index, picture in read_chosen(clip, packets, frames):
                path = Path(folder, "frame.jpg")
                path.write_bytes(encode_jpeg(picture, frames.quality))
                read = read_picture(path)
                alone_seconds, alone = _timed(alone_detector, read, 1)
                two_steps_seconds, _ = _timed(extract_faces, str(path), folder, folder, crop)
                one_pass_seconds, found = _timed(to_chip_in_one_pass, index, picture)
                seconds += alone_seconds, two_steps_seconds, one_pass_seconds
                two_steps.count(alone, find_faces(read))
                one_pass.count(alone, found)
    print(f"Faces in two steps: {two_steps}.\nFaces in one pass: {one_pass}.")
    baseline = "dlib's detector alone, full size, one upsampling"
    return [_row(f"faces, {two_steps.frames} frames", baseline, seconds[0], seconds[1], 1 / 15),
            _row(f"faces in one pass, {two_steps.frames} frames", baseline, seconds[0], seconds[2], 1 / 25)]


# ---------------------------------------------------------------- two people, cuts

MADE_SIZE = (1280, 720)      # width and height in pixels of the made pictures
LARGER_FACE = 260            # width in pixels of the larger of two faces in them
SIZE_RATIOS = (0.65, 0.8, 0.9, 0.95)


def _person_frames(clip, number_of_frames):
    """Return (RGB pictures of frames drawn from a clip, centre and width in pixels of its face: medians)."""
    frames = read_chosen(clip, list_packets(clip), FrameSettings(number_of_frames))
    pictures = [picture for _, picture in frames]
    faces = [found[0].box for picture in pictures[::3] if (found := find_faces(picture)) ]
    if not faces:
        return None
    return pictures, np.median([(*face.centre, face.width) for face in faces], axis=0)


def _place(canvas, picture, person, centre, width):
    """Draw a picture into a canvas so that the person's face has this width and its centre lies in the canvas's."""
    x, y, face_width = person
    scale = width / face_width
    matrix = np.float32([[scale, 0, centre[0] - scale * x], [0, scale, centre[1] - scale * y]])
    cv2.warpAffine(picture, matrix, canvas.shape[1::-1], canvas, cv2.INTER_LINEAR, cv2.BORDER_CONSTANT, (90, 90, 90))


def _two_people(left, right, left_width, right_width):
    """Yield RGB pictures of two people side by side, each in its half; width of a face in pixels: of each of them."""
    half = (MADE_SIZE[1], MADE_SIZE[0] // 2, 3)
    for first, second in zip(left[0], right[0]):
        halves = [np.empty(half, np.uint8) for _ in range(2)]
        _place(halves[0], first, left[1], (half[1] / 2, half[0] / 2), left_width)
        _place(halves[1], second, right[1], (half[1] / 2, half[0] / 2), right_width)
        yield np.ascontiguousarray(np.hstack(halves))


def _faces_of(stem, pictures):
    """Yield for pictures that are the frames drawn from one clip: (boxes by the detector alone, faces by the tracker),
    the largest first."""
    indices = range(0, 12 * len(pictures), 12)
    tracker, alone = FaceTracker(earlier_frames(stem, indices, 0)), dlib.get_frontal_face_detector()
    for index, picture in zip(indices, pictures):
        boxes = sorted(alone(picture, 1), key=lambda box: -box.area())
        yield boxes, tracker.find_faces(index, picture)


def measure_largest(clip_dir, frames_of_each=15):
    """Print how often the larger one of two faces is taken, in the one pass and by dlib's detector alone (full size,
    one upsampling): in made clips that show the person of a clip twice, at two distances, so that it is known which
    face is the larger one. And how often both take the same one in clips with a cut to another clip or to two people.
    Nothing of them is written."""
    people = [person for clip in list_clips(clip_dir) if (person := _person_frames(clip, frames_of_each))]
    for ratio in SIZE_RATIOS:
        frames, by_detector, by_us = 0, 0, 0
        for number, person in enumerate(people):
            widths = [LARGER_FACE, ratio * LARGER_FACE][::1 if number % 2 else -1]
            for boxes, faces in _faces_of(f"twice{number}", list(_two_people(person, person, *widths))):
                frames += 1
                is_left = number % 2 == 1
                by_detector += bool(boxes) and (boxes[0].center().x < MADE_SIZE[0] / 2) == is_left
                by_us += bool(faces) and (faces[0].box.centre[0] < MADE_SIZE[0] / 2) == is_left
        print(f"A person twice, the smaller face {ratio} of the larger: in {frames} frames the larger one is taken in "
              f"{by_us}, by the detector alone in {by_detector}.", flush=True)
    agreement, half = Agreement(), frames_of_each // 2
    for number, (first, second) in enumerate(zip(people[::2], people[1::2])):
        two = list(_two_people(second, first, LARGER_FACE, 0.65 * LARGER_FACE))
        pictures = first[0][:half] + (two if number % 2 else second[0])[half:]
        for boxes, faces in _faces_of(f"cut{number}", pictures):
            agreement.count(boxes, faces)
    print(f"A cut, to another person or to two: {agreement}.", flush=True)


# ---------------------------------------------------------------- whole scripts

def measure_one_pass(clip_dir, number_of_frames=30):
    """The script from clips to faces against the two scripts one after the other: CPU seconds of whole runs with one
    worker, start and all; and how far the chips differ."""
    with tempfile.TemporaryDirectory() as folder:
        frames, faces, in_one_pass = (Path(folder, name) for name in ("frames", "faces", "one_pass"))
        number = str(number_of_frames)
        two_scripts = child_seconds([sys.executable, FRAME_SCRIPT, clip_dir, frames, number, "--workers", "1"])
        two_scripts += child_seconds([sys.executable, FACE_SCRIPT, frames, faces, "--workers", "1"])
        one = child_seconds([sys.executable, ONE_PASS_SCRIPT, clip_dir, in_one_pass, number, "--workers", "1"])
        chips, others = ({path.name: path for path in made.glob("*.jpg")} for made in (faces, in_one_pass))
        differences = [np.abs(cv2.imread(str(chips[name])).astype(int) - cv2.imread(str(others[name]))).mean()
                       for name in chips.keys() & others.keys()]
        print(f"One pass: {len(others)} chips, {len(chips)} in two steps, {len(differences)} of the same frames; mean "
              f"difference {np.mean(differences):.1f} grey levels; on disk {_megabytes(frames):.0f} MB of frames less, "
              f"{_megabytes(in_one_pass):.1f} MB of chips")
    return [_row(f"clips to faces, N = {number}", "the frame script, then the face script", two_scripts, one, 0.7)]


def measure_start(clip):
    """Return the CPU seconds that the script from clips to faces takes beside its work: of a whole run over one clip
    with N = 1, without that clip's."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "clips").mkdir()
        Path(folder, "clips", Path(clip).name).symlink_to(Path(clip).resolve())
        whole = child_seconds([sys.executable, ONE_PASS_SCRIPT, Path(folder, "clips"), Path(folder, "faces"), "1",
                               "--workers", "1"])
    return whole - seconds_of_parts([clip], 1).sum()


def _megabytes(folder):
    return sum(path.stat().st_size for path in folder.glob("*.jpg")) / 1e6


def measure_workers(clip_dir, number_of_frames=30, script=FRAME_SCRIPT):
    """Wall time of a script with two workers against one, and of two runs side by side against one after the other: no
    number of workers can do better than that. Each is the better of two, over four links to every clip: of twenty clips
    the start and the last ones, for which a worker waits, would be a tenth of the time."""
    def seconds(workers, runs=1):
        best = float("inf")
        for _ in range(2):
            with tempfile.TemporaryDirectory() as folder:
                clips = Path(folder, "clips")
                clips.mkdir()
                for clip in list_clips(clip_dir):
                    for number in range(4):
                        (clips / f"{number}_{Path(clip).name}").symlink_to(Path(clip).resolve())
                begin = time.perf_counter()
                started = [subprocess.Popen([sys.executable, script, clips, Path(folder, f"target{run}"),
                                             str(number_of_frames), "--workers", str(workers)],
                                            stdout=subprocess.DEVNULL) for run in range(runs)]
                if any([process.wait() for process in started]):
                    raise SystemExit(f"{script.name} failed")
                best = min(best, time.perf_counter() - begin)
        return best
    one = seconds(1)
    two, side_by_side = seconds(2), seconds(1, runs=2)
    kind = "frames" if script == FRAME_SCRIPT else "clips to faces"
    return [_row(f"{kind}, N = {number_of_frames}, two workers", "one worker", one, two, 1 / 1.8),
            _row("two runs of one worker, side by side", "the same, one after the other", 2 * one, side_by_side, None)]


def measure_memory(numbers_of_files=(100, 10_000, 100_000)):
    """Print the peak memory of the scripts, the larger of parent and worker, over folders of one-byte files: each of
    them goes through a worker and costs a line in failures.csv."""
    script_of = {"frames": FRAME_SCRIPT, "faces": FACE_SCRIPT, "one pass": ONE_PASS_SCRIPT}
    measure = ("import resource,subprocess,sys; s=subprocess.run(sys.argv[1:],stdout=subprocess.DEVNULL); "
               "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024); sys.exit(s.returncode)")
    for kind, script in script_of.items():
        for number in numbers_of_files:
            with tempfile.TemporaryDirectory() as folder:
                source, target = Path(folder, "source"), Path(folder, "target")
                source.mkdir()
                suffix = ".jpg" if kind == "faces" else ".mp4"
                for place in range(number):
                    (source / f"file{place:06}{suffix}").write_bytes(b"x")
                command = [sys.executable, "-c", measure, sys.executable, script, source, target]
                command += [] if kind == "faces" else ["1"]
                first, second = (subprocess.run(command, capture_output=True, text=True).stdout for _ in range(2))
                print(f"Memory: {kind}, {number} files: peak {first.strip()} MB, second run {second.strip()} MB",
                      flush=True)


def print_table(rows):
    print(f"{'what':38} {'against':48} {'baseline':>9} {'ours':>9} {'ratio':>7} {'goal':>7}")
    for name, baseline, baseline_seconds, seconds, ratio, goal in rows:
        print(f"{name:38} {baseline:48} {baseline_seconds:8.2f}s {seconds:8.2f}s {ratio:7.3f} "
              + (f"{goal:7.3f}" if goal else f"{'':7}"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip_dir", metavar="CLIP_DIR", help="folder with clips that show faces")
    parser.add_argument("--frames-of", type=int, default=30, metavar="N",
                        help="frames of each clip in the measure of the faces")
    parser.add_argument("--parts", action="store_true", help="only measure the parts of the one pass (N = 10 "
                        "and 30), and the detector alone against the two steps")
    parser.add_argument("--two-people", action="store_true", help="only measure how often the larger one of two faces "
                        "is taken in made clips, and the same face as by the detector alone in clips with a cut")
    parser.add_argument("--memory", action="store_true", help="also measure the peak memory over up to 100,000 files")
    arguments = parser.parse_args()
    if arguments.parts:
        clips = list_clips(arguments.clip_dir)
        measure_parts(clips)
        print(f"start of the script and of its worker, once: {measure_start(clips[0]):.2f} CPU s")
        print_table(measure_faces(arguments.clip_dir, 10))
        raise SystemExit
    if arguments.two_people:
        measure_largest(arguments.clip_dir)
        raise SystemExit
    print_table([*measure_frames(arguments.clip_dir), *measure_faces(arguments.clip_dir, arguments.frames_of),
                 *measure_one_pass(arguments.clip_dir), *measure_workers(arguments.clip_dir),
                 *measure_workers(arguments.clip_dir, script=ONE_PASS_SCRIPT)])
    if arguments.memory:
        measure_memory()
