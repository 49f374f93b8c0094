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

# isort: split
from clip_options import add_clip_options, count_clips, find_clips
from first_impressions.common.command_line import make_parser, printable, run_script
from first_impressions.extraction.frames import FrameSettings, extract_frames
from first_impressions.jobs.job import Batch, add_batch_options, print_summary, run_batch
from first_impressions.jobs.target_folder import check_folders, open_target


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add_clip_options(parser, "frame_dir", "folder to write the frames to")
    add_batch_options(parser, "clip")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    check_folders(args.video_dir, args.frame_dir)
    settings = FrameSettings.from_options(args, quality=args.quality)
    noted = {**settings.noted(), "quality": args.quality}
    total, passed_over = count_clips(args.video_dir, args.frame_dir)
    function = functools.partial(extract_frames, frame_dir=os.path.abspath(args.frame_dir), settings=settings)
    batch = Batch(function, find_clips(args.video_dir, args.frame_dir), total, args.frame_dir, "clip", "frame",
                  passed_over=passed_over)
    with open_target(args.frame_dir, noted):
        summary = run_batch(batch, args.workers, args.ray_address)
    face_dir = os.path.normpath(os.path.join(args.frame_dir, "..", "faces"))
    following = shlex.join(["python", "pre-processing/extract_faces_from_frames.py", args.frame_dir, face_dir])
    print_summary(batch, summary, printable(following))
    return summary.status


if __name__ == "__main__":
    run_script(main)
