"""Feed mutated clips and pictures to the functions of the pre-processing scripts, in their own worker processes.

    python tests/fuzz_media.py 2000
    python tests/fuzz_media.py 2000 --seed 5 --folder /tmp/fuzz

Each file is a small real clip or picture with bytes changed, cut, doubled or moved. It is worked on as by the scripts:
the parent must live, a worker that dies or stalls costs its file. Prints how the files ended; files whose worker died
or whose error was not foreseen are kept in the folder.
"""
import argparse
import contextlib
import functools
import random
import resource
import sys
import tempfile
from pathlib import Path

import cv2
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pre-processing"))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from first_impressions.common.constants import CLIP_SUFFIXES
from first_impressions.extraction.faces import CropSettings, extract_faces
from first_impressions.extraction.frames import FrameSettings, extract_frames
from first_impressions.jobs.target_folder import open_target
from first_impressions.jobs.worker_pool import map_files
from make_media import portrait, write_clip


def make_seeds(folder):
    """Write small clips and pictures of the usual kinds to a folder and return their paths."""
    folder.mkdir()
    write_clip(folder / "h264.mp4", frames=20)
    write_clip(folder / "h264.mkv", frames=20, options={"bf": "3"})
    write_clip(folder / "h264.ts", frames=20)
    write_clip(folder / "mpeg4.avi", frames=20, codec="mpeg4")
    write_clip(folder / "vp9.webm", frames=20, codec="libvpx-vp9", options={"cpu-used": "8"})
    write_clip(folder / "hevc.mp4", frames=20, codec="libx265", options={"x265-params": "log-level=none"})
    cv2.imwrite(str(folder / "face.jpg"), portrait(240))
    cv2.imwrite(str(folder / "face.png"), portrait(240))
    picture = Image.open(folder / "face.jpg")
    picture.save(folder / "progressive.jpg", progressive=True)
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    picture.save(folder / "face.webp")
    picture.save(folder / "face.tiff")
    return sorted(folder.iterdir())


def mutate(data, chance):
    """Return the bytes with one to twenty changes of random kinds and places; half of the places are in the header."""
    data = bytearray(data)
    for _ in range(chance.choice([1, 2, 5, 20])):
        place = chance.randrange(min(len(data), 600) if chance.random() < 0.5 else len(data))
        length = chance.choice([1, 2, 4, 16, 200])
        kind = chance.randrange(6)
        if kind == 0:
            data[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            data[place:place + length] = chance.randbytes(length)
        elif kind == 2:
            numbers = [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\x80\0\0\0"]
            data[place:place + 4] = chance.choice(numbers)
        elif kind == 3:
            del data[place:place + length]
        elif kind == 4:
            data[place:place] = data[place:place + length]
        elif chance.random() < 0.2:
            del data[max(1, place):]
        if not data:
            data = bytearray(b"\0")
    return bytes(data)


def mutated_files(seeds, folder, number_of_files, seed):
    for number in range(number_of_files):
        original = seeds[number % len(seeds)]
        path = folder / f"{number:05}_{original.name}"
        path.write_bytes(mutate(original.read_bytes(), random.Random(f"{seed}/{number}")))
        yield str(path), None


def work_on(path, target):
    """Do what the script for this kind of file does."""
    if Path(path).suffix in CLIP_SUFFIXES:
        return extract_frames(path, target, FrameSettings(number_of_frames=10))
    return extract_faces(path, str(Path(path).parent), target, CropSettings(size=64, padding=0.25))


def fuzz(folder, number_of_files, seed=0, workers=None):
    """Work on mutated files; return how many gave files, were refused with a reason, died and failed unexpectedly, and
    the peak memory of a worker in MB. Files that are kept in the folder are those of the last two kinds."""
    folder = Path(folder)
    seeds = make_seeds(folder / "seeds")
    (folder / "mutated").mkdir()
    counts = {"files": 0, "good": 0, "refused": 0, "died": 0, "unexpected": 0}
    target = folder / "target"
    with open_target(target, {}):
        items = mutated_files(seeds, folder / "mutated", number_of_files, seed)
        work = functools.partial(work_on, target=str(target))
        with contextlib.closing(map_files(work, items, workers)) as results:
            for path, result, problem in results:
                counts["files"] += 1
                if problem is None and not result[2]:
                    kind = "good"
                elif problem is None or not problem.startswith(("unexpected", "its process", "no progress")):
                    kind = "refused"
                else:
                    kind = "unexpected" if problem.startswith("unexpected") else "died"
                    print(f"{path}: {problem}", flush=True)
                counts[kind] += 1
                if kind in ("good", "refused"):
                    Path(path).unlink()
    counts["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    return counts


if __name__ == "__main__":
    import fuzz_media  # the workers import it by this name

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=int, help="number of mutated files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="default: a new temporary folder")
    arguments = parser.parse_args()
    target_folder = Path(arguments.folder or tempfile.mkdtemp())
    target_folder.mkdir(parents=True, exist_ok=True)
    print(target_folder, fuzz_media.fuzz(target_folder, arguments.files, arguments.seed))
