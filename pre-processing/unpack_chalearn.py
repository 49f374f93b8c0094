"""Unpack the downloads of the ChaLearn First Impressions V2 challenge into a data folder.

    python pre-processing/unpack_chalearn.py DOWNLOAD_DIR DATA_DIR
    python pre-processing/unpack_chalearn.py ~/Downloads data --password-file passwords.txt

DOWNLOAD_DIR holds the archives under their own names: train-1.zip to train-6.zip, val-1.zip, val-2.zip, test-1e.zip,
test-2e.zip, train-annotation.zip, val-annotation-e.zip, test-annotation-e.zip. Those with an e are encrypted, some of
the archives inside them once more with another password; the challenge gives the passwords to those who register. They
are read from --password-file (one per line), else from the variable CHALEARN_PASSWORD (one per line), else asked for.

Writes DATA_DIR/{train,valid,test}/videos/*.mp4 and each split's annotation_*.pkl. A file appears under its name when it
is complete and its checksum is right; the same command started again goes on where it was stopped. Nothing else of the
archives is unpacked; an archive inside an archive is, one at a time, in DATA_DIR/.unpacking until its clips are there.
Damaged files and labelled clips that are in no archive are listed in DATA_DIR/failures.csv. In the end all clips are
compared with the 10,000 official ones; those that are missing or differ are listed in DATA_DIR/differing_clips.csv.
"""
import argparse
import os
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import first_impressions.common.startup  # noqa: F401  (before torch)

# isort: split
import pybit7z

from first_impressions.common.command_line import (
    UserError,
    counted,
    make_parser,
    printable,
    progress_bar,
    run_script,
    stop_status,
)
from first_impressions.common.constants import ANNOTATION_FILES, SPLITS, clip_name
from first_impressions.common.files import make_folder
from first_impressions.data.archives import PASSWORD_VARIABLE, RESERVE, Unpacker, kind_of, open_archive, refusal
from first_impressions.data.labels import read_labels
from first_impressions.data.official_clips import DIFFERING_CLIPS, official_clips, verify_clips
from first_impressions.jobs.failures import Failures
from first_impressions.jobs.target_folder import FAILURES, check_folders, open_target

DOWNLOADS = {
    "train": [*(f"train-{number}.zip" for number in range(1, 7)), "train-annotation.zip"],
    "valid": ["val-1.zip", "val-2.zip", "val-annotation-e.zip"],
    "test": ["test-1e.zip", "test-2e.zip", "test-annotation-e.zip"],
}
# Folder in DATA_DIR for what is not complete yet.
SCRATCH = ".unpacking"


@dataclass(frozen=True)
class Download:
    """A downloaded archive. size: bytes of what is unpacked from it, archives in it included; largest: of the largest
    of these. An archive that cannot be read has size 0; the run itself reports it."""
    path: Path
    split: str
    size: int = 0
    largest: int = 0
    encrypted: bool = False


def plain_name(name: str) -> str:
    """Return an archive's name without its ending and without the e of encrypted ones, which not all copies bear."""
    return re.sub(r"-?e?\.zip$", "", name)


def look_into(library: pybit7z.Bit7zLibrary, path: Path, split: str) -> Download:
    """Return what is known of an archive before anything is unpacked."""
    try:
        reader = open_archive(library, path)
    except UserError as error:
        print(f"warning: {printable(path.name)}: {printable(error)}", file=sys.stderr)
        return Download(path, split)
    kinds = [(kind_of(member, split), member.size()) for member in reader.items() if not refusal(member)]
    return Download(path, split, sum(size for kind, size in kinds if kind),
                    max((size for kind, size in kinds if kind == "archive"), default=0), reader.has_encrypted_items())


def find_downloads(library: pybit7z.Bit7zLibrary, download_dir: Path) -> list[Download]:
    """Return the archives that are there, the encrypted ones first, so that passwords are asked for at once. Raises
    UserError if there is none at all."""
    split_of = {plain_name(name): split for split, names in DOWNLOADS.items() for name in names}
    found = [look_into(library, path, split_of[plain_name(path.name)]) for path in sorted(download_dir.glob("*.zip"))
             if plain_name(path.name) in split_of and path.is_file()]
    if not found:
        names = ", ".join(name for names in DOWNLOADS.values() for name in names)
        raise UserError(f"{download_dir}: contains none of the challenge's archives; keep their names: {names}")
    return sorted(found, key=lambda download: (not download.encrypted, SPLITS.index(download.split)))


def read_passwords(password_file: str | None) -> list[str]:
    """Return the passwords in the file, or in the variable CHALEARN_PASSWORD, one per line; an empty list for neither.
    """
    if password_file is None:
        text = os.environ.get(PASSWORD_VARIABLE, "")
    else:
        try:
            text = Path(password_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise UserError(f"{password_file}: cannot be read ({reason}); write one password per line") from None
    return [line for line in text.splitlines() if line]


def check_space(found: list[Download], data_dir: Path) -> None:
    """Raise UserError if the disk is too small for what is still to be unpacked."""
    # The clips in an archive are about as large as the archive: video does not compress.
    needed = max(download.largest for download in found) + sum(
        max(0, sum(download.size for download in found if download.split == split)
            - sum(path.stat().st_size for path in (data_dir / split / "videos").glob("*")))
        for split in SPLITS)
    free = shutil.disk_usage(next(path for path in (data_dir, *data_dir.absolute().parents) if path.exists())).free
    if needed and free < needed + RESERVE:
        raise UserError(f"{data_dir}: what is still to be unpacked takes {needed / 1e9:.2f} GB and a reserve of "
                        f"{RESERVE / 1e9:.1f} GB, but {free / 1e9:.2f} GB are free; make room or name another disk")


def report(unpacker: Unpacker, split: str, found: list[Download]) -> None:
    """Print what of a split is there and what is missing; list the missing clips in failures.csv."""
    videos, annotation = (unpacker.data_dir / split / name for name in ("videos", ANNOTATION_FILES[split]))
    there = {clip_name(path) for path in videos.glob("*.mp4")}
    names = {plain_name(download.path.name) for download in found}
    absent = [name for name in DOWNLOADS[split] if plain_name(name) not in names]
    labelled, lines = set(), ["not downloaded: " + ", ".join(absent)] if absent else []
    if annotation.is_file():
        unpacker.attempt(annotation, lambda: labelled.update(read_labels(annotation).index))
    else:
        lines.append(f"{annotation.name} is missing")
    missing = sorted(labelled - there)
    for clip in missing:
        unpacker.failures.add(videos / f"{clip}.mp4", "missing: labelled, but in no archive")
    if missing:
        lines.append(f"{counted(len(missing), 'labelled clip')} missing, the first is {missing[0]}")
    total = (official_clips()["split"] == split).sum()
    print(f"{split:6s}{len(there)} of {total} clips" + "".join(f"; {line}" for line in lines))


def unpack(unpacker: Unpacker, found: list[Download]) -> int:
    """Unpack all archives and report what is there. Return the exit status: 0, or that of a run that was stopped."""
    status = 0
    try:
        for download in found:
            unpacker.attempt(download.path.name, unpacker.unpack_archive, download.path, download.path.name,
                             download.split)
    except KeyboardInterrupt as error:
        status = stop_status(error)
    finally:
        unpacker.bar.close()
    for split in SPLITS if not status else ():
        report(unpacker, split, found)
    unpacker.failures.close(complete=not status)
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
    passwords, scratch = read_passwords(args.password_file), args.data_dir / SCRATCH
    with pybit7z.lib7zip_context() as library:
        found = find_downloads(library, args.download_dir)
        check_space(found, args.data_dir)
        with open_target(args.data_dir, None):
            shutil.rmtree(scratch, ignore_errors=True)  # what a killed run left; only one run at a time gets here
            for folder in (scratch, *(args.data_dir / split / "videos" for split in SPLITS)):
                make_folder(folder, "remove what is in the way, or name another data folder")
            bar = progress_bar(total=sum(download.size for download in found), unit="B", unit_scale=True)
            unpacker = Unpacker(library, args.data_dir, scratch, passwords, sys.stdin.isatty(),
                                Failures(args.data_dir), bar)
            status = unpack(unpacker, found)
            shutil.rmtree(scratch)
    print(f"{counted(unpacker.made, 'file')} unpacked, {unpacker.present} "
          f"{'was' if unpacker.present == 1 else 'were'} there already.")
    if status:
        print("Stopped; run the same command again to go on.")
        return status
    if unpacker.problems:
        raise UserError(f"{counted(len(unpacker.problems), 'file')} could not be unpacked, the first is "
                        f"{unpacker.problems[0]} ({args.data_dir / FAILURES} lists them all)")
    folders = [str(args.data_dir / "train" / name) for name in ("videos", "faces")]
    following = shlex.join(["python", "pre-processing/extract_faces_from_videos.py", *folders, "30"])
    print(f"Clips: {printable(args.data_dir)}/{{train,valid,test}}/videos   next: {printable(following)}")
    return 0


if __name__ == "__main__":
    run_script(main)
