"""The arguments and the search for clips that the two scripts that read clips share."""
import argparse
from collections.abc import Iterator
from pathlib import Path

from first_impressions.common.command_line import UserError, positive_int, seed_number
from first_impressions.common.constants import CLIP_SUFFIXES
from first_impressions.jobs.target_folder import count_files, find_files
from first_impressions.jobs.worker_pool import Known


def add_clip_options(parser: argparse.ArgumentParser, target: str, target_help: str) -> None:
    """Add the arguments VIDEO_DIR, the target folder (its name in lower case) and N, and the option --seed."""
    parser.add_argument("video_dir", metavar="VIDEO_DIR", help="folder with clips, nested folders included")
    parser.add_argument(target, metavar=target.upper(), help=target_help)
    parser.add_argument("number_of_frames", metavar="N", type=positive_int, help="frames to draw from each clip")
    parser.add_argument("--seed", type=seed_number, default=0, help="another seed draws other frames")


def count_clips(video_dir: str, target: str) -> int:
    """Return the number of clips in a folder. Raises UserError where there are none, or two of one name."""
    def find():
        return find_files(video_dir, CLIP_SUFFIXES, exclude=target)

    total = count_files(find, lambda path: Path(path).stem, "clips")
    if not total:
        raise UserError(f"{video_dir}: no clip found in it (a clip's name ends in .mp4, .avi, .mkv, .webm, ...)")
    return total


def find_clips(video_dir: str, target: str) -> Iterator[tuple[str, Known]]:
    """Yield (path, known) for each clip in a folder, as worker_pool.map_files takes them."""
    for path, problem in find_files(video_dir, CLIP_SUFFIXES, exclude=target):
        yield path, None if problem is None else (None, problem)
