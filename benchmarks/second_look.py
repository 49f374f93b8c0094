"""What the second look at pictures and clips without a face gives, and what it costs.

    python benchmarks/second_look.py WORK_DIR --sheets SHEET_DIR    faces found in 150 pictures, CPU seconds, sheets
    python benchmarks/second_look.py WORK_DIR --clips CLIP_DIR      CPU seconds for 1,000 clips
    python benchmarks/second_look.py WORK_DIR --accuracy            of clips whose faces it alone finds

WORK_DIR is that of benchmarks/accuracy.py: portraits of ChaLearn's training clips, and the faces in them. Each call
first prints how many portraits and clips have no face by the first detector, and how many after the second look, which
is for clips in none of whose pictures the first detector finds a face. Sheets show people: keep them to yourself.
"""
import collections
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import first_impressions.common.startup  # noqa: F401  (before torch)

import av
import cv2
import numpy as np
import pandas
from portraits import load_portraits, measure_part, train_once
from preprocessing import ONE_PASS_SCRIPT, child_seconds, list_clips

from first_impressions.common.command_line import make_parser, positive_int, run_script
from first_impressions.common.constants import FOUND_BY_CNN, FRAME_MARK, NO_FACE, clip_of_face
from first_impressions.extraction.detectors import align_face, find_cnn
from first_impressions.extraction.faces import find_faces, look_again, read_picture
from first_impressions.jobs.failures import read_failures

SEED = 21
FACELESS_CLIPS = 6      # in a thousand: 12 of the 2,000 official validation clips have no face for the first detector
CLIP_SECONDS, CLIP_RATE, CLIP_SIZE = 15, 30, (1280, 720)


def pictures_without_face(work_dir: Path) -> pandas.DataFrame:
    """Print the counts of pictures and clips without a face; return the pictures in which the first detector finds
    none: columns path, clip, by_cnn (the second one found a face), of_faceless_clip."""
    face_dir = work_dir / "train" / "faces"
    rows = [(path, os.path.basename(path).rpartition(FRAME_MARK)[0], reason == FOUND_BY_CNN)
            for path, (reason, *_) in read_failures(face_dir).items() if NO_FACE in reason or reason == FOUND_BY_CNN]
    table = pandas.DataFrame(rows, columns=["path", "clip", "by_cnn"])
    faces = collections.Counter(clip_of_face(name) for name in os.listdir(face_dir))
    faces.pop(None, None)
    by_first = faces - collections.Counter(table["clip"][table["by_cnn"]])
    clips = faces.keys() | set(table["clip"])
    table["of_faceless_clip"] = ~table["clip"].isin(by_first.keys())
    print(f"First detector: no face in {len(table)} of {by_first.total() + len(table)} pictures, in all pictures of "
          f"{len(clips - by_first.keys())} of {len(clips)} clips; after the second look {len(clips - faces.keys())} "
          "clips are without one.", flush=True)
    return table


# ---------------------------------------------------------------- pictures

def drawn(table: pandas.DataFrame, number: int) -> list[str]:
    """Return the paths of pictures drawn from those without a face."""
    return np.random.default_rng(SEED).choice(sorted(table["path"]), min(number, len(table)), replace=False).tolist()


def measure_pictures(paths: list[str], sheet_dir: Path) -> None:
    """Look again at pictures without a face; print what is found and the CPU seconds of a picture."""
    find_cnn(np.zeros((80, 80, 3), np.uint8))  # the network is loaded once in a process
    counts, seconds, tiles = collections.Counter(), [], {"found": [], "missed": []}
    for path in paths:
        picture = read_picture(path)
        begin = time.process_time()
        faces, reason = look_again(picture, "auto")
        seconds.append(time.process_time() - begin)
        counts["found" if faces else "turned" if "turned by" in reason else "missed"] += 1
        chip = align_face(picture, faces[0].box) if faces else np.zeros_like(picture)
        if faces:
            cv2.rectangle(picture, faces[0].box[:2], faces[0].box[2:], (0, 255, 0), 1)
        tiles["found" if faces else "missed"].append(np.hstack([cv2.resize(picture, (150, 200)),
                                                                cv2.resize(chip, (200, 200))]))
    print(f"Second look at {len(paths)} of the pictures: a face in {counts['found']}, taken for turned "
          f"{counts['turned']}, nothing in {counts['missed']}; CPU seconds each: {np.mean(seconds):.2f} on average, "
          f"{np.max(seconds):.2f} at most.")
    sheet_dir.mkdir(parents=True, exist_ok=True)
    for name, some in tiles.items():
        for start in range(0, len(some), 30):
            sheet = some[start:start + 30]
            sheet += [np.zeros_like(sheet[0])] * (-len(sheet) % 5)
            rows = [np.hstack(sheet[place:place + 5]) for place in range(0, len(sheet), 5)]
            cv2.imwrite(str(sheet_dir / f"{name}_{start:03}.png"), cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR))


# ---------------------------------------------------------------- clips

def faceless_frames(table: pandas.DataFrame, number: int) -> list[list[np.ndarray]]:
    """Return for some clips without a face the pictures of a clip of CLIP_SIZE made of their portraits, uint8 RGB: in
    full height, the edges drawn out. Clips in which the first detector finds a face at this size are left out."""
    chosen = []
    for _, paths in table[table["of_faceless_clip"]].groupby("clip")["path"]:
        pictures = []
        for path in sorted(paths):
            picture = read_picture(path)
            width = round(picture.shape[1] * CLIP_SIZE[1] / picture.shape[0])
            picture = cv2.resize(picture, (width, CLIP_SIZE[1]), interpolation=cv2.INTER_CUBIC)
            left = (CLIP_SIZE[0] - width) // 2
            pictures.append(cv2.copyMakeBorder(picture, 0, 0, left, CLIP_SIZE[0] - width - left, cv2.BORDER_REPLICATE))
        if not any(find_faces(picture) for picture in pictures):
            chosen.append(pictures)
        if len(chosen) == number:
            break
    return chosen


def write_clip(path: Path, pictures: list[np.ndarray]) -> None:
    """Write a clip in H.264 that shows the pictures one after the other."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=CLIP_RATE)
        stream.width, stream.height, stream.pix_fmt = *CLIP_SIZE, "yuv420p"
        for number in range(CLIP_SECONDS * CLIP_RATE):
            picture = pictures[number * len(pictures) // (CLIP_SECONDS * CLIP_RATE)]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def run_seconds(clip_dir: Path, detector: str, number_of_frames: int) -> float:
    """Print and return the CPU seconds of the script from clips to faces over a folder."""
    with tempfile.TemporaryDirectory() as target:
        seconds = child_seconds([sys.executable, ONE_PASS_SCRIPT, clip_dir, target, str(number_of_frames),
                                 "--workers", "1", "--detector", detector])
        number = len(os.listdir(clip_dir))
        with_face = {clip_of_face(name) for name in os.listdir(target)} - {None}
    print(f"{number} clips, N = {number_of_frames}, --detector {detector}: {seconds:.1f} CPU s, "
          f"{number - len(with_face)} clips without a face", flush=True)
    return seconds


def measure_clips(table: pandas.DataFrame, clip_dir: Path, number: int, number_of_frames: int = 10) -> None:
    """Print the CPU seconds of whole runs with the first detector alone and with the second look: over clips without a
    face, as many as there are in a thousand clips, and over a folder of clips that holds their share, the others links
    to the clips of a folder. The difference in the folder is smaller than the noise of a busy machine."""
    clips, made = list_clips(clip_dir), faceless_frames(table, FACELESS_CLIPS)
    with tempfile.TemporaryDirectory() as folder:
        alone, whole = Path(folder, "alone"), Path(folder, "whole")
        for source in (alone, whole):
            source.mkdir()
        for place, pictures in enumerate(made):
            write_clip(alone / f"made{place}.mp4", pictures)
            if place < round(number * FACELESS_CLIPS / 1000):
                (whole / f"made{place}.mp4").symlink_to(alone / f"made{place}.mp4")
        for place in range(number - len(os.listdir(whole))):
            clip = clips[place % len(clips)]
            (whole / f"{place:04}_{Path(clip).name}").symlink_to(Path(clip).resolve())
        without, added = (run_seconds(alone, detector, number_of_frames) for detector in ("hog", "auto"))
        of_whole = run_seconds(whole, "hog", number_of_frames)
        run_seconds(whole, "auto", number_of_frames)
    added -= without
    print(f"To a thousand clips with {len(made)} without a face the second look adds {added:.1f} CPU s, "
          f"{100 * added / (1000 / number * of_whole):.1f} %.")


# ---------------------------------------------------------------- accuracy

def measure_accuracy(table: pandas.DataFrame, work_dir: Path, seeds: int) -> None:
    """Print the accuracy of the clips whose faces the CNN detector alone finds, by networks that have seen none of
    them: means over the networks, the interval over speakers of the first one."""
    portraits = load_portraits(work_dir)
    clips = sorted(set(table["clip"][table["by_cnn"]]))
    others = sorted(set(portraits.source.clips) - set(clips))
    constant = portraits.split.labels.loc[others].mean()
    figures = pandas.DataFrame([measure_part(train_once(portraits, others, {}, seed), portraits, clips, constant)
                                for seed in range(seeds)])
    mean, first = figures.mean(), figures.iloc[0]
    print(f"{len(clips)} clips of {portraits.split.speakers.loc[clips].nunique()} speakers whose faces the CNN "
          f"detector alone finds: accuracy {mean['accuracy']:.4f}, constant {mean['constant']:.4f}, gain "
          f"{mean['gain']:+.4f} [{first['gain_low']:+.4f}, {first['gain_high']:+.4f}]")


def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("work_dir", metavar="WORK_DIR", type=Path)
    parser.add_argument("--pictures", type=positive_int, default=150, metavar="N", help="pictures drawn from those "
                        "without a face")
    parser.add_argument("--sheets", type=Path, metavar="SHEET_DIR", help="look again at these pictures, and write "
                        "sheets of them to a folder")
    parser.add_argument("--clips", metavar="CLIP_DIR", help="measure whole runs over links to the clips of a folder")
    parser.add_argument("--number", type=positive_int, default=1000, help="clips in these runs")
    parser.add_argument("--accuracy", action="store_true", help="accuracy of clips whose faces the CNN "
                        "detector alone finds")
    parser.add_argument("--seeds", type=positive_int, default=3, help="trainings of each figure")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    table = pictures_without_face(args.work_dir)
    if args.sheets:
        measure_pictures(drawn(table, args.pictures), args.sheets)
    if args.clips:
        measure_clips(table, args.clips, args.number)
    if args.accuracy:
        measure_accuracy(table, args.work_dir, args.seeds)


if __name__ == "__main__":
    run_script(main)
