"""Measure the pre-processing against named baselines in the same run.

    python benchmarks/preprocessing.py ../shared/chalearn/clips
    python benchmarks/preprocessing.py CLIP_DIR --frames-of 5 --memory

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

import av

from find_faces import CropSettings, extract_faces, find_faces, find_predictor, load_models, overlap, read_picture
from labels import CLIP_SUFFIXES
from read_clips import FrameSettings, extract_frames
from target_folder import find_files, open_target

REPOSITORY = Path(__file__).resolve().parents[1]
FRAME_SCRIPT = REPOSITORY / "pre-processing" / "extract_frames_from_videos.py"
FACE_SCRIPT = REPOSITORY / "pre-processing" / "extract_faces_from_frames.py"


def _clips(clip_dir):
    return sorted(path for path, problem in find_files(clip_dir, CLIP_SUFFIXES) if not problem)


def _child_seconds(command):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _row(name, baseline, baseline_seconds, seconds, goal):
    return name, baseline, baseline_seconds, seconds, seconds / baseline_seconds, goal


def measure_frames(clip_dir, numbers_of_frames=(30, 1), goals=(0.85, 0.45)):
    """Clip to JPEG files, summed over all clips in a folder, against a full decode of them on one thread: by the ffmpeg
    command where it is installed (sound and all, as a user would), and by PyAV without any conversion."""
    clips = _clips(clip_dir)
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
        ffmpeg = sum(_child_seconds(["ffmpeg", "-threads", "1", "-i", clip, "-f", "null", "-"]) for clip in clips)
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


def measure_faces(clip_dir, frames_of_each=15):
    """JPEG frame to JPEG chip against dlib's detector alone at full size with one upsampling, and how the two agree."""
    predictor = find_predictor()
    models = load_models(predictor)  # once in a process of any length: not part of a frame's time
    alone_seconds = our_seconds = 0.0
    frames = with_face = fewer = same = 0
    with tempfile.TemporaryDirectory() as folder:
        frame_dir, face_dir = Path(folder, "frames"), Path(folder, "faces")
        with open_target(frame_dir, {}):
            for clip in _clips(clip_dir):
                extract_frames(clip, str(frame_dir), FrameSettings(frames_of_each))
        with open_target(face_dir, {}):
            for path in sorted(frame_dir.glob("*.jpg")):
                picture = read_picture(path)
                begin = time.process_time()
                alone = models.detector(picture, 1)
                alone_seconds += time.process_time() - begin
                begin = time.process_time()
                extract_faces(str(path), str(frame_dir), str(face_dir), CropSettings(predictor))
                our_seconds += time.process_time() - begin
                found = find_faces(picture, models)
                frames += 1
                if alone:
                    with_face += 1
                    largest = max(alone, key=lambda rectangle: rectangle.area())
                    if not found:
                        fewer += 1
                    else:
                        same += overlap(found[0], largest) > 0.5
    print(f"Faces: {with_face} of {frames} frames have one for the detector alone; the same largest one (IoU > 0.5) in "
          f"{same}, none in {fewer}.")
    baseline = "dlib's detector alone, full size, one upsampling"
    return [_row(f"faces, {frames} frames", baseline, alone_seconds, our_seconds, 1 / 15)]


def measure_workers(clip_dir, number_of_frames=30):
    """Wall time of the frame script with two workers against one, and of two runs side by side against one after the
    other: no number of workers can do better than that. Each is the better of two, over four links to every clip: of
    twenty clips the start and the last ones, for which a worker waits, would be a tenth of the time."""
    def seconds(workers, runs=1):
        best = float("inf")
        for _ in range(2):
            with tempfile.TemporaryDirectory() as folder:
                clips = Path(folder, "clips")
                clips.mkdir()
                for clip in _clips(clip_dir):
                    for number in range(4):
                        (clips / f"{number}_{Path(clip).name}").symlink_to(Path(clip).resolve())
                begin = time.perf_counter()
                started = [subprocess.Popen([sys.executable, FRAME_SCRIPT, clips, Path(folder, f"frames{run}"),
                                             str(number_of_frames), "--workers", str(workers)],
                                            stdout=subprocess.DEVNULL) for run in range(runs)]
                if any([process.wait() for process in started]):
                    raise SystemExit(f"{FRAME_SCRIPT.name} failed")
                best = min(best, time.perf_counter() - begin)
        return best
    one = seconds(1)
    two, side_by_side = seconds(2), seconds(1, runs=2)
    return [_row(f"frames, N = {number_of_frames}, two workers", "one worker", one, two, 1 / 1.8),
            _row("two runs of one worker, side by side", "the same, one after the other", 2 * one, side_by_side, None)]


def measure_memory(numbers_of_files=(100, 10_000, 100_000)):
    """Print the peak memory of both scripts, the larger of parent and worker, over folders of one-byte files: each of
    them goes through a worker and costs a line in failures.csv."""
    script_of = {"frames": FRAME_SCRIPT, "faces": FACE_SCRIPT}
    measure = ("import resource,subprocess,sys; s=subprocess.run(sys.argv[1:],stdout=subprocess.DEVNULL); "
               "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024); sys.exit(s.returncode)")
    for kind, script in script_of.items():
        for number in numbers_of_files:
            with tempfile.TemporaryDirectory() as folder:
                source, target = Path(folder, "source"), Path(folder, "target")
                source.mkdir()
                suffix = ".mp4" if kind == "frames" else ".jpg"
                for place in range(number):
                    (source / f"file{place:06}{suffix}").write_bytes(b"x")
                command = [sys.executable, "-c", measure, sys.executable, script, source, target]
                command += ["1"] if kind == "frames" else []
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
    parser.add_argument("--frames-of", type=int, default=5, metavar="N",
                        help="frames of each clip in the measure of the faces")
    parser.add_argument("--memory", action="store_true", help="also measure the peak memory over up to 100,000 files")
    arguments = parser.parse_args()
    print_table([*measure_frames(arguments.clip_dir), *measure_faces(arguments.clip_dir, arguments.frames_of),
                 *measure_workers(arguments.clip_dir)])
    if arguments.memory:
        measure_memory()
