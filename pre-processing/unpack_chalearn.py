"""Unpack the downloads of the ChaLearn First Impressions V2 challenge into a data folder.

    python pre-processing/unpack_chalearn.py DOWNLOAD_DIR DATA_DIR
    python pre-processing/unpack_chalearn.py ~/Downloads data --dry-run
    python pre-processing/unpack_chalearn.py ~/Downloads data --password-file passwords.txt

DOWNLOAD_DIR holds the archives under their own names: train-1.zip to train-6.zip, val-1.zip, val-2.zip, test-1e.zip,
test-2e.zip, train-annotation.zip, val-annotation-e.zip, test-annotation-e.zip. Those with an e are encrypted, some of
the archives inside them once more with another password; the challenge gives the passwords to those who register. They
are read from --password-file (one a line), else from the variable CHALEARN_PASSWORD (one a line), else asked for.

Writes DATA_DIR/{train,valid,test}/videos/*.mp4 and each split's annotation_*.pkl. A file appears under its name when it
is complete and its checksum is right; the same command started again goes on where it was stopped. Nothing else of the
archives is unpacked, an archive inside an archive at most as one unfinished file at a time. Damaged files and missing
clips are listed in DATA_DIR/failures.csv.
"""
import argparse
import os
import re
import shlex
import shutil
import sys
from contextlib import closing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from command_line import (
    UserError,
    counted,
    disk_error,
    make_parser,
    printable,
    progress_bar,
    run_script,
    stop_status,
)

import pybit7z

from conventions import ANNOTATION_FILES
from failures import Failures
from labels import read_labels
from read_archives import Contents, open_archive, survey
from target_folder import FAILURES, check_folders, open_target
from unpack_archives import PASSWORD_VARIABLE, RESERVE, Run, Unpacker, free_space, unpack_archive

DOWNLOADS = {
    "train": [*(f"train-{number}.zip" for number in range(1, 7)), "train-annotation.zip"],
    "valid": ["val-1.zip", "val-2.zip", "val-annotation-e.zip"],
    "test": ["test-1e.zip", "test-2e.zip", "test-annotation-e.zip"],
}
CLIPS = {"train": 6000, "valid": 2000, "test": 2000}
# Folder in DATA_DIR for what is not complete yet.
SCRATCH = ".unpacking"


# ---------------------------------------------------------------- downloads

def plain_name(name: str) -> str:
    """Return an archive's name without its ending and without the e of encrypted ones, which not all copies bear."""
    return re.sub(r"-?e?\.zip$", "", name)


def find_downloads(download_dir: Path) -> dict[str, list[Path]]:
    """Return the archives of each split that are there. Raises UserError where there is none at all."""
    archives = sorted(path for path in download_dir.iterdir() if path.suffix == ".zip" and path.is_file())
    found = {split: [path for path in archives if plain_name(path.name) in map(plain_name, names)]
             for split, names in DOWNLOADS.items()}
    if not any(found.values()):
        names = ", ".join(name for names in DOWNLOADS.values() for name in names)
        raise UserError(f"{download_dir}: holds none of the challenge's archives; keep their names: {names}")
    return found


def read_passwords(password_file: str | None) -> list[str]:
    """Return the passwords in the file, one a line, or in the variable CHALEARN_PASSWORD; an empty list for neither."""
    if password_file is None:
        text = os.environ.get(PASSWORD_VARIABLE, "")
    else:
        try:
            text = Path(password_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "no UTF-8 text"
            raise UserError(f"{password_file}: cannot be read ({reason}); write one password a line") from None
    return [line for line in text.splitlines() if line]


def survey_downloads(found: dict[str, list[Path]]) -> dict[str, Contents]:
    """Return what the archives of each split hold; an archive that cannot be read counts nothing."""
    surveys = {split: Contents() for split in found}
    for split, paths in found.items():
        for path in paths:
            try:
                with closing(open_archive(open(path, "rb"), path.name)) as archive:
                    surveys[split].add(survey(archive, ANNOTATION_FILES[split]))
            except (UserError, OSError) as error:
                print(f"warning: {printable(error)}", file=sys.stderr)
    return surveys


def print_dry_run(surveys: dict[str, Contents], data_dir: Path) -> None:
    """Print what a run would unpack."""
    for split, contents in surveys.items():
        closed = counted(contents.closed, "encrypted or compressed archive")
        inside = f" and {closed} of {contents.closed_size / 1e9:.2f} GB" if contents.closed else ""
        print(f"{split:6s}{counted(contents.clips, 'clip')}, {contents.size / 1e9:.2f} GB with the labels{inside}")
    print(f"Dry run: nothing was written to {printable(data_dir)}; next: the same command without --dry-run.")


def check_space(surveys: dict[str, Contents], data_dir: Path) -> None:
    """Raise UserError where the disk is too small for what is still to be unpacked."""
    # The clips of the archives inside are about as large as these: video does not compress.
    needed = sum(max(0, contents.size + contents.closed_size - size_of(data_dir / split / "videos"))
                 for split, contents in surveys.items())
    needed += max(contents.largest for contents in surveys.values())
    free = free_space(data_dir)
    if needed and free < needed + RESERVE:
        raise UserError(f"{data_dir}: what is still to be unpacked takes {needed / 1e9:.2f} GB and a reserve of "
                        f"{RESERVE / 1e9:.1f} GB, but {free / 1e9:.2f} GB are free; make room or name another disk")


def make_folders(folders: list[Path]) -> None:
    """Make folders. Raises UserError where a file is in the way, or the place cannot be written."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if disk_error(error):
                raise
            raise UserError(f"{folder}: cannot be made ({error.strerror}); remove what is in the way, or name another "
                            "data folder") from None


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# ---------------------------------------------------------------- unpacking

def unpack(run: Run, found: dict[str, list[Path]]) -> int:
    """Unpack all archives, the encrypted ones first, so that passwords are asked for at once.

    Return the exit status: 0, or that of a run that was stopped.
    """
    try:
        archives = []
        for split, paths in found.items():
            for path in paths:
                try:
                    archives.append((open_archive(open(path, "rb"), path.name, os.fspath(path)), split))
                except UserError as error:
                    run.fail(path.name, str(error).partition(": ")[2])
                except OSError as error:
                    run.fail(path.name, error.strerror)
        for archive, split in sorted(archives, key=lambda entry: not entry[0].is_encrypted):
            with closing(archive):
                unpack_archive(run, archive, split)
    except KeyboardInterrupt as error:
        return stop_status(error)
    finally:
        run.unpacker.bar.close()
    return 0


# ---------------------------------------------------------------- what is missing

def missing_clips(run: Run, split: str) -> tuple[int, list[str]]:
    """Return the number of clips in the split's folder, and the labelled clips that are not there."""
    there = {path.stem for path in (run.data_dir / split / "videos").iterdir() if path.suffix.lower() == ".mp4"}
    annotation = run.data_dir / split / ANNOTATION_FILES[split]
    if not annotation.is_file():
        return len(there), []
    try:
        labels = read_labels(annotation)
    except UserError as error:
        run.fail(annotation, str(error).partition(": ")[2])
        return len(there), []
    return len(there), sorted(set(labels.index) - there)


def report(run: Run, split: str, found: list[Path]) -> None:
    """Print what of a split is there and what is missing; list the missing clips in failures.csv."""
    there, missing = missing_clips(run, split)
    lines = []
    absent = [name for name in DOWNLOADS[split] if plain_name(name) not in {plain_name(path.name) for path in found}]
    if absent:
        lines.append("not downloaded: " + ", ".join(absent))
    if missing:
        lines.append(f"{counted(len(missing), 'labelled clip')} missing, the first is {missing[0]}")
        for clip in missing:
            run.failures.add(run.data_dir / split / "videos" / f"{clip}.mp4", "missing: labelled, but in no archive")
    if not (run.data_dir / split / ANNOTATION_FILES[split]).is_file():
        lines.append(f"{ANNOTATION_FILES[split]} is missing")
    print(f"{split:6s}{there} of {CLIPS[split]} clips" + "".join(f"; {line}" for line in lines))


# ---------------------------------------------------------------- the script

def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("download_dir", type=Path, metavar="DOWNLOAD_DIR", help="folder with the challenge's archives")
    parser.add_argument("data_dir", type=Path, metavar="DATA_DIR", help="data folder to lay out")
    parser.add_argument("--password-file", metavar="FILE", help="file with the passwords, one a line (default: the "
                        f"variable {PASSWORD_VARIABLE}, else they are asked for)")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be unpacked")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    check_folders(args.download_dir, args.data_dir)
    found = find_downloads(args.download_dir)
    passwords = read_passwords(args.password_file)
    surveys = survey_downloads(found)
    if args.dry_run:
        print_dry_run(surveys, args.data_dir)
        return 0
    check_space(surveys, args.data_dir)
    scratch = args.data_dir / SCRATCH
    with open_target(args.data_dir, None), pybit7z.lib7zip_context() as library:
        bar = progress_bar(total=sum(contents.size + contents.closed_size for contents in surveys.values()), unit="B",
                           unit_scale=True)
        shutil.rmtree(scratch, ignore_errors=True)  # what a killed run left; only one run at a time gets here
        make_folders([scratch, *(args.data_dir / split / "videos" for split in found)])
        unpacker = Unpacker(scratch, library, passwords, sys.stdin.isatty(), bar)
        run = Run(args.data_dir, unpacker, Failures(args.data_dir))
        status = unpack(run, found)
        for split, paths in found.items():
            if not status:
                report(run, split, paths)
        run.failures.close(complete=not status)
        shutil.rmtree(scratch)
    print(f"{counted(run.made, 'file')} unpacked, {run.present} {'was' if run.present == 1 else 'were'} there already.")
    if status:
        print("Stopped; run the same command again to go on.")
        return status
    if run.problems:
        raise UserError(f"{counted(len(run.problems), 'file')} could not be unpacked, the first is {run.problems[0]} "
                        f"({args.data_dir / FAILURES} lists them all)")
    folders = [str(args.data_dir / "train" / name) for name in ("videos", "faces")]
    following = shlex.join(["python", "pre-processing/extract_faces_from_videos.py", *folders, "30"])
    print(f"Clips: {printable(args.data_dir)}/{{train,valid,test}}/videos   next: {printable(following)}")
    return 0


if __name__ == "__main__":
    run_script(main)
