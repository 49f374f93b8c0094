"""What the two scripts that read clips share: the arguments, and the run over the clips of a folder."""
import argparse
from collections.abc import Callable

from first_impressions.common.command_line import UserError
from first_impressions.common.constants import CLIP_SUFFIXES, clip_stem
from first_impressions.extraction.frames import add_frame_options
from first_impressions.jobs.job import Job
from first_impressions.jobs.target_folder import check_folders, count_files, find_files, open_target, say_passed_over


def add_clip_options(parser: argparse.ArgumentParser, target: str, target_help: str) -> None:
    """Add the arguments VIDEO_DIR and the target folder (its name in lower case), and the options on frames."""
    parser.add_argument("video_dir", metavar="VIDEO_DIR", help="folder with clips, nested folders included")
    parser.add_argument(target, metavar=target.upper(), help=target_help)
    add_frame_options(parser)


def run_on_clips(job: Job, function: Callable, video_dir: str, settings: dict) -> None:
    """Run a function, as Job.run takes it, on the clips in a folder and the folders below it, and note the settings in
    the target folder. Raises UserError if there is no clip, or two of one name."""
    check_folders(video_dir, job.target)
    found = find_files(video_dir, CLIP_SUFFIXES, job.target, job.passed_over)
    total = count_files(found, clip_stem, "clips", job.target)
    if not total:
        raise UserError(f"{video_dir}: no clip found in it (a clip's name ends in .mp4, .avi, .mkv, .webm, ...)"
                        + say_passed_over(job.passed_over))
    items = ((path, None if problem is None else (None, problem))
             for path, problem in find_files(video_dir, CLIP_SUFFIXES, job.target))
    with open_target(job.target, settings):
        job.run(function, items, total)
