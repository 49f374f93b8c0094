"""Unpack the downloads of the ChaLearn First Impressions V2 challenge into a data folder.

    python pre-processing/unpack_chalearn.py DOWNLOAD_DIR DATA_DIR
    python pre-processing/unpack_chalearn.py ~/Downloads data --password-file passwords.txt

DOWNLOAD_DIR holds the archives under their own names: train-1.zip to train-6.zip, val-1.zip, val-2.zip, test-1e.zip,
test-2e.zip, train-annotation.zip, val-annotation-e.zip, test-annotation-e.zip. Those with an e are encrypted, some of
the archives inside them once more with another password; the challenge gives the passwords to those who register. They
are read from --password-file (one per line), else from the variable CHALEARN_PASSWORD (one per line), else asked for.

Writes DATA_DIR/{train,valid,test}/videos/*.mp4 and each split's annotation_*.pkl. A file appears under its name when it
is complete and its checksum is right; the same command started again goes on where it was stopped. Nothing else of the
archives is unpacked; an archive inside an archive is, one at a time, in DATA_DIR/.unfinished until its clips are there.
Damaged files are listed in DATA_DIR/failures.csv, official clips that are missing or differ in differing_clips.csv.
"""
import argparse
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import first_impressions.common.startup  # noqa: F401  (before torch)

import pybit7z

from first_impressions.common.command_line import UserError, counted, make_parser, printable, run_script, stop_status
from first_impressions.common.constants import SPLITS
from first_impressions.common.files import make_folder
from first_impressions.data.archives import PASSWORD_VARIABLE, RESERVE, Unpacker
from first_impressions.data.official_clips import DIFFERING_CLIPS, verify_clips
from first_impressions.jobs.failures import Failures
from first_impressions.jobs.target_folder import FAILURES, check_folders, open_target

DOWNLOADS = {
    "train": [*(f"train-{number}.zip" for number in range(1, 7)), "train-annotation.zip"],
    "valid": ["val-1.zip", "val-2.zip", "val-annotation-e.zip"],
    "test": ["test-1e.zip", "test-2e.zip", "test-annotation-e.zip"],
}


def plain_name(name: str) -> str:
    """Return an archive's name without its ending and without the e of encrypted ones, which not all copies bear."""
    return re.sub(r"-?e?\.zip$", "", name)


def find_downloads(download_dir: Path) -> dict[Path, str]:
    """Return the split of each of the challenge's archives that is there; print which are not. Raises UserError if none
    is."""
    archives = sorted(path for path in download_dir.glob("*.zip") if path.is_file())
    found = {path: split for split, names in DOWNLOADS.items() for path in archives
             if plain_name(path.name) in map(plain_name, names)}
    there = {plain_name(path.name) for path in found}
    absent = ", ".join(name for names in DOWNLOADS.values() for name in names if plain_name(name) not in there)
    if not found:
        raise UserError(f"{download_dir}: contains none of the challenge's archives; keep their names: {absent}")
    if absent:
        print(f"Not downloaded: {absent}")
    return found


def read_passwords(password_file: str | None) -> list[str]:
    """Return the passwords in the file, or in the variable CHALEARN_PASSWORD, one per line."""
    try:
        text = (os.environ.get(PASSWORD_VARIABLE, "") if password_file is None
                else Path(password_file).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{password_file}: cannot be read ({error}); write one password per line") from None
    return list(filter(None, text.splitlines()))


def check_space(size: int, data_dir: Path) -> None:
    """Raise UserError if the disk is too small for what is still to be unpacked of archives of this size in bytes."""
    needed = size - sum(path.stat().st_size for split in SPLITS for path in (data_dir / split / "videos").glob("*"))
    free = shutil.disk_usage(data_dir).free
    if needed > 0 and free < needed + RESERVE:
        raise UserError(f"{data_dir}: what is still to be unpacked takes {needed / 1e9:.2f} GB and a reserve of "
                        f"{RESERVE / 1e9:.1f} GB, but {free / 1e9:.2f} GB are free; make room or name another disk")


def unpack(unpacker: Unpacker) -> int:
    """Unpack the archives, list what could not be unpacked, compare the clips with the official ones. Return the exit
    status: 0, or that of a run that was stopped."""
    status = 0
    for split in SPLITS:
        make_folder(unpacker.data_dir / split / "videos", "remove what is in the way, or name another data folder")
    failures = Failures(unpacker.data_dir)
    try:
        unpacker.unpack_all()
    except KeyboardInterrupt as error:
        status = stop_status(error)
    for label, reason in unpacker.problems:
        failures.add(label, reason)
    failures.close(complete=not status)
    if not status:
        verify_clips(unpacker.data_dir, unpacker.data_dir / DIFFERING_CLIPS)
    return status


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("download_dir", type=Path, metavar="DOWNLOAD_DIR", help="folder with the challenge's archives")
    parser.add_argument("data_dir", type=Path, metavar="DATA_DIR", help="data folder to lay out")
    parser.add_argument("--password-file", metavar="FILE", help="file with the passwords, one per line (default: the "
                        f"variable {PASSWORD_VARIABLE}, else they are asked for)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    check_folders(args.download_dir, args.data_dir)
    found, passwords = find_downloads(args.download_dir), read_passwords(args.password_file)
    with pybit7z.lib7zip_context() as library:
        unpacker = Unpacker(library, args.data_dir, passwords, sys.stdin.isatty())
        for path, split in found.items():
            unpacker.attempt(path.name, unpacker.add, path, split)
        with open_target(args.data_dir, None):
            check_space(unpacker.size, args.data_dir)
            status = unpack(unpacker)
    print(f"{counted(unpacker.made, 'file')} unpacked, {unpacker.present} there already.")
    if status:
        print("Stopped; run the same command again to go on.")
        return status
    if unpacker.problems:
        raise UserError(f"{counted(len(unpacker.problems), 'file')} could not be unpacked, the first is "
                        f"{': '.join(unpacker.problems[0])} ({args.data_dir / FAILURES} lists them all)")
    folders = [str(args.data_dir / "train" / name) for name in ("videos", "faces")]
    following = shlex.join(["python", "pre-processing/extract_faces_from_videos.py", *folders, "30"])
    print(f"Clips: {printable(args.data_dir)}/{{train,valid,test}}/videos   next: {printable(following)}")
    return 0


if __name__ == "__main__":
    run_script(main)
