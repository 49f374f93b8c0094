"""The arguments and the search for clips that the two scripts that read clips share."""
import argparse
from collections import Counter
from collections.abc import Iterator

from first_impressions.common.command_line import UserError
from first_impressions.common.constants import CLIP_SUFFIXES, clip_stem
from first_impressions.extraction.frames import add_frame_options
from first_impressions.jobs.target_folder import count_files, find_files, say_passed_over
from first_impressions.jobs.worker_pool import Known


def add_clip_options(parser: argparse.ArgumentParser, target: str, target_help: str) -> None:
    """Add the arguments VIDEO_DIR and the target folder (its name in lower case), and the options on frames."""
    parser.add_argument("video_dir", metavar="VIDEO_DIR", help="folder with clips, nested folders included")
    parser.add_argument(target, metavar=target.upper(), help=target_help)
    add_frame_options(parser)


def count_clips(video_dir: str, target: str) -> tuple[int, Counter]:
    """Return the number of clips in a folder, and of the files with other endings, by ending. Raises UserError if there
    is no clip, or two of one name."""
    passed_over = Counter()
    total = count_files(find_files(video_dir, CLIP_SUFFIXES, target, passed_over), clip_stem, "clips", target)
    if not total:
        raise UserError(f"{video_dir}: no clip found in it (a clip's name ends in .mp4, .avi, .mkv, .webm, ...)"
                        + say_passed_over(passed_over))
    return total, passed_over


def find_clips(video_dir: str, target: str) -> Iterator[tuple[str, Known]]:
    """Yield (path, known) for each clip in a folder, as worker_pool.map_files takes them."""
    for path, problem in find_files(video_dir, CLIP_SUFFIXES, exclude=target):
        yield path, None if problem is None else (None, problem)
