"""Draw N random frames from every clip in a folder and write them as JPEG files.

    python pre-processing/extract_frames_from_videos.py data/train/videos data/train/frames 30
    python pre-processing/extract_frames_from_videos.py VIDEO_DIR FRAME_DIR 30 --workers 8
    python pre-processing/extract_frames_from_videos.py VIDEO_DIR FRAME_DIR 30 --ray-address auto

Clips are found in nested folders too. A frame is written as FRAME_DIR/<clip>__frame_<index>.jpg, the index counted from
0 in display order. Which frames are drawn depends only on the seed, the clip's name and its frames: 10 of a clip are
among 30 of it, so running again with a larger N adds frames, and running again with the same N makes nothing new.
Unreadable clips are listed in FRAME_DIR/failures.csv.
"""
import argparse
import functools
import os
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import first_impressions.common.startup  # noqa: F401  (before torch)

from clip_options import add_clip_options, run_on_clips
from first_impressions.common.command_line import make_parser, printable, run_script
from first_impressions.extraction.frames import FrameSettings, extract_frames
from first_impressions.jobs.job import Job, add_job_options


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add_clip_options(parser, "frame_dir", "folder to write the frames to")
    add_job_options(parser, "clip")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    settings = FrameSettings.from_options(args, quality=args.quality)
    function = functools.partial(extract_frames, frame_dir=os.path.abspath(args.frame_dir), settings=settings)
    job = Job(args.frame_dir, "clip", "frame", args.workers, args.ray_address)
    run_on_clips(job, function, args.video_dir, {**settings.noted(), "quality": args.quality})
    face_dir = os.path.normpath(os.path.join(args.frame_dir, "..", "faces"))
    following = shlex.join(["python", "pre-processing/extract_faces_from_frames.py", args.frame_dir, face_dir])
    return job.report(printable(following))


if __name__ == "__main__":
    run_script(main)
