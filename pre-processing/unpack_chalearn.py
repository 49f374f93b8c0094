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
archives is unpacked, an archive inside an archive at most as one unfinished file at a time. What could not be unpacked
and which clips are missing stands in DATA_DIR/failures.csv.
"""
import errno
import getpass
import io
import os
import re
import shutil
import signal
import stat
import struct
import sys
import tempfile
import zipfile
import zlib
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pybit7z

import process_files
from command_line import UserError, make_parser, printable, progress_bar, run_script

DOWNLOADS = {
    "train": [*(f"train-{number}.zip" for number in range(1, 7)), "train-annotation.zip"],
    "valid": ["val-1.zip", "val-2.zip", "val-annotation-e.zip"],
    "test": ["test-1e.zip", "test-2e.zip", "test-annotation-e.zip"],
}
# As in dataset.py, whose import takes seconds (PyTorch).
ANNOTATION_FILES = {"train": "annotation_training.pkl", "valid": "annotation_validation.pkl",
                    "test": "annotation_test.pkl"}
CLIPS = {"train": 6000, "valid": 2000, "test": 2000}
PASSWORD_VARIABLE = "CHALEARN_PASSWORD"
# Far more than any file of the challenge needs: what declares to be larger is no clip.
FILE_LIMIT = 2**30
DEPTH_LIMIT = 4
# Folder in DATA_DIR for what is not complete yet.
SCRATCH = ".unpacking"
# So much of the disk stays free.
RESERVE = 100 * 2**20
ENCRYPTED = 1
AES = 99
PLAIN_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, struct.error, OverflowError)


class Slice(io.RawIOBase):
    """A part of an open file as a file of its own: an archive stored in another one is read where it lies."""

    def __init__(self, file, start, size):
        super().__init__()
        self.file, self.start, self.size, self.position = file, start, size, 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=os.SEEK_SET):
        self.position = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence])
        return self.position

    def readinto(self, buffer):
        count = max(0, min(len(buffer), self.size - self.position))
        self.file.seek(self.start + self.position)
        count = self.file.readinto(memoryview(buffer)[:count])
        self.position += count
        return count


@dataclass
class Archive:
    """An open archive. label: its name for messages, the names of the archives around it first; path: the file that
    7-Zip can open, None where it lies inside another one; reader: 7-Zip's, made when it is first needed; copy: the copy
    that was made for 7-Zip, deleted when the archive is closed."""
    label: str
    file: object
    content: zipfile.ZipFile
    path: str | None
    reader: object = None
    copy: str | None = None

    def close(self):
        self.reader = None
        self.content.close()
        self.file.close()
        if self.copy is not None:
            os.unlink(self.copy)


@dataclass
class Run:
    """What a run needs everywhere: where to write, how to decrypt (may_ask: the user can be asked for a password), and
    what it has done so far (checksums: what was written where, to notice two clips of one name)."""
    data_dir: Path
    library: object
    passwords: list
    may_ask: bool
    failures: object
    bar: object
    made: int = 0
    present: int = 0
    problems: list = field(default_factory=list)
    checksums: dict = field(default_factory=dict)

    @property
    def scratch(self):
        return self.data_dir / SCRATCH

    def fail(self, name, reason):
        self.failures.add(name, reason)
        self.problems.append(f"{name}: {reason}")


# ---------------------------------------------------------------- archives

def open_archive(file, label, path=None):
    """Return the Archive in an open binary file. Raises UserError where it is none, or damaged."""
    try:
        return Archive(label, file, zipfile.ZipFile(file), path)
    except DAMAGE as error:
        file.close()
        raise UserError(f"{label}: damaged or no zip archive ({error}); download it again") from None


def open_stored(archive, member):
    """Return the Archive stored uncompressed in another one, read in place."""
    archive.file.seek(member.header_offset)
    header = archive.file.read(30)
    label = f"{archive.label}/{member.filename}"
    if len(header) < 30 or header[:4] != b"PK\3\4":
        raise UserError(f"{label}: its entry in {archive.label} is damaged; download that again")
    name_length, extra_length = struct.unpack("<HH", header[26:])
    start = member.header_offset + 30 + name_length + extra_length
    return open_archive(io.BufferedReader(Slice(archive.file, start, member.file_size)), label)


def can_lie_in_place(member):
    return member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & ENCRYPTED


def kind_of(member, split):
    """Return "clip", "annotation", "archive" or None for what is not unpacked, and the name to write it under."""
    name = member.filename.replace("\\", "/").rsplit("/", 1)[-1]
    if member.is_dir() or name.startswith(".") or "__MACOSX" in member.filename:
        return None, name
    if name.lower().endswith(".zip"):
        return "archive", name
    if name.lower().endswith(".mp4"):
        return "clip", name
    return ("annotation" if name == ANNOTATION_FILES[split] else None), name


def refusal(member):
    """Return why a member of an archive must not be unpacked, or None."""
    parts = member.filename.replace("\\", "/").split("/")
    if parts[0] == "" or ".." in parts or re.match(r"[A-Za-z]:", parts[0]):
        return "refused: its name leads out of the folder"
    if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
        return "refused: a link or special file"
    if member.file_size > FILE_LIMIT and not member.filename.lower().endswith(".zip"):
        return f"refused: declares {member.file_size / 1e9:.1f} GB"
    return None


def survey(archive, split, depth=1):
    """Look at what an archive holds without unpacking anything.

    Return (clips, bytes of clips and annotations, closed archives, bytes of closed archives, bytes of the largest): the
    archives that are encrypted or compressed inside this one stay closed; an archive stored inside is looked into.
    """
    totals = [0, 0, 0, 0, 0]
    for member in archive.content.infolist():
        kind, _ = kind_of(member, split)
        if kind is None or refusal(member):
            continue
        if kind != "archive":
            totals[0] += kind == "clip"
            totals[1] += member.file_size
        elif can_lie_in_place(member) and depth < DEPTH_LIMIT:
            try:
                with closing(open_stored(archive, member)) as inner:
                    found = survey(inner, split, depth + 1)
            except UserError:  # the run itself reports it
                continue
            totals = [a + b for a, b in zip(totals[:4], found[:4])] + [max(totals[4], found[4])]
        else:
            totals[2:4] = totals[2] + 1, totals[3] + member.file_size
            totals[4] = max(totals[4], member.file_size)
    return totals


# ---------------------------------------------------------------- passwords

def given_passwords(password_file):
    """Return the passwords in the file, one a line, or in the variable CHALEARN_PASSWORD; an empty list for neither."""
    if password_file is None:
        text = os.environ.get(PASSWORD_VARIABLE, "")
    else:
        try:
            text = Path(password_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{password_file}: cannot be read ({error}); write one password a line") from None
    return [line for line in text.splitlines() if line]


def unlock(run, archive):
    """Give archive.reader the password that opens it. Raises UserError where none does."""
    smallest = sorted((m for m in archive.content.infolist() if m.flag_bits & ENCRYPTED and m.file_size),
                      key=lambda member: member.file_size)[:2]
    indices = [find_index(archive, member) for member in smallest]

    def opens(password):
        archive.reader.set_password(password)
        for index in indices:  # the second is for an archive whose first is damaged
            try:
                call_7zip(archive.reader, lambda: archive.reader.test([index]))
                return True
            except pybit7z.BitException:
                continue
        return not indices

    for password in run.passwords:
        if opens(password):
            # Tried first on the next archive, which most often has the same.
            run.passwords.remove(password)
            run.passwords.insert(0, password)
            return
    while run.may_ask:
        run.bar.clear()
        password = getpass.getpass(f"Password of {printable(archive.label)} (Enter to leave out what is encrypted): ")
        if not password:
            run.may_ask = False
        elif opens(password):
            run.passwords.insert(0, password)
            return
        else:
            print("That does not open it.", file=sys.stderr)
    problem = "none of the given passwords opens it" if run.passwords else "needs a password"
    raise UserError(f"{archive.label}: {problem}; put them into --password-file or {PASSWORD_VARIABLE}, one a line")


# ---------------------------------------------------------------- one file

def call_7zip(reader, call):
    """Return call(), interruptible by Ctrl-C and SIGTERM: an exception must never pass through 7-Zip's own code."""
    stopped = []
    before = {number: signal.signal(number, lambda number, frame: stopped.append(number))
              for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN}
    reader.set_progress_callback(lambda done: not stopped)
    try:
        return call()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if stopped:
            raise process_files.Terminated if stopped[0] == signal.SIGTERM else KeyboardInterrupt


def find_index(archive, member):
    """Return 7-Zip's number of a member. Both list the members in the order of the archive's directory."""
    index = archive.content.infolist().index(member)
    if archive.reader.item_at(index).size() != member.file_size:
        raise UserError(f"{archive.label}: its directory contradicts itself; download it again")
    return index


def open_with_7zip(run, archive):
    """Set archive.reader. Raises UserError where the archive is damaged or no password opens it."""
    if archive.path is None:
        # 7-Zip opens files, not parts of files.
        require_space(run, archive.file.seek(0, os.SEEK_END))
        archive.file.seek(0)
        with tempfile.NamedTemporaryFile(dir=run.scratch, delete=False) as copy:
            archive.copy = archive.path = copy.name
            shutil.copyfileobj(archive.file, copy, 2**20)
    try:
        archive.reader = pybit7z.BitArchiveReader(run.library, archive.path, pybit7z.FormatZip)
        archive.reader.set_retain_directories(False)
    except pybit7z.BitException as error:
        raise UserError(f"{archive.label}: damaged ({error}); download it again") from None
    if any(member.flag_bits & ENCRYPTED for member in archive.content.infolist()):
        unlock(run, archive)


def extract(run, archive, member, path):
    """Write a member to path, its checksum checked. Raises UserError where it is damaged or cannot be decrypted."""
    label = f"{archive.label}/{member.filename}"
    require_space(run, member.file_size)
    if member.compress_type in PLAIN_METHODS and not member.flag_bits & ENCRYPTED:
        try:
            with archive.content.open(member) as source, open(path, "wb") as target:
                shutil.copyfileobj(source, target, 2**20)
        except DAMAGE as error:
            raise UserError(f"{label}: damaged ({error}); download the archive again") from None
        return
    if archive.reader is None:
        open_with_7zip(run, archive)
    index = find_index(archive, member)
    folder = run.scratch / "7zip"
    try:
        call_7zip(archive.reader, lambda: archive.reader.extract_to(os.fspath(folder), [index]))
        # 7-Zip names the file after the member, as far as the disk allows such names.
        os.replace(next(folder.iterdir()), path)
    except pybit7z.BitException as error:
        shutil.rmtree(folder, ignore_errors=True)
        require_space(run, member.file_size)
        raise UserError(f"{label}: damaged ({error}); download the archive again") from None


def is_same(path, member):
    """Return True where the file has the size and the checksum that the archive gives for the member."""
    try:
        if os.stat(path).st_size != member.file_size:
            return False
        if member.compress_type == AES and member.CRC == 0:  # AES checks by other means and gives no checksum
            return True
        checksum = 0
        with open(path, "rb") as file:
            while block := file.read(2**20):
                checksum = zlib.crc32(block, checksum)
    except FileNotFoundError:
        return False
    return checksum == member.CRC


def free_space(folder):
    """Return the free bytes of the disk that the folder lies on, or will lie on."""
    while not folder.exists():
        folder = folder.absolute().parent
    return shutil.disk_usage(folder).free


def require_space(run, needed):
    """Raise OSError (no space left) where the data folder's disk has less than the needed bytes and a reserve."""
    if free_space(run.data_dir) < needed + RESERVE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(run.data_dir))


# ---------------------------------------------------------------- all of them

def unpack_archive(run, archive, split, depth=1):
    """Unpack what an archive and the archives inside it hold for one split."""
    members = []
    for member in archive.content.infolist():
        kind, name = kind_of(member, split)
        reason = kind and refusal(member)
        if reason:
            run.fail(f"{archive.label}/{member.filename}", reason)
        elif kind:
            members.append((member, kind, name))
    for member, kind, name in members:
        try:
            if kind == "archive":
                unpack_inner(run, archive, member, split, depth)
            else:
                unpack_file(run, archive, member, split, name if kind == "annotation" else os.path.join("videos", name))
        except UserError as error:
            label, _, reason = str(error).partition(": ")
            run.fail(label, reason)
            if label == archive.label:  # the next member would meet the same
                return
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            run.fail(f"{archive.label}/{member.filename}", error.strerror or str(error))


def unpack_inner(run, archive, member, split, depth):
    label = f"{archive.label}/{member.filename}"
    if depth >= DEPTH_LIMIT:
        raise UserError(f"{label}: refused, an archive {DEPTH_LIMIT} archives deep")
    if can_lie_in_place(member):
        with closing(open_stored(archive, member)) as inner:
            unpack_archive(run, inner, split, depth + 1)
        return
    path = run.scratch / f"archive-{depth}.tmp"
    try:
        extract(run, archive, member, path)
        with closing(open_archive(open(path, "rb"), label, os.fspath(path))) as inner:
            unpack_archive(run, inner, split, depth + 1)
    finally:
        path.unlink(missing_ok=True)


def unpack_file(run, archive, member, split, name):
    """Write a clip or an annotation file to the split's folder, unless it is there."""
    path = run.data_dir / split / name
    label = f"{archive.label}/{member.filename}"
    *before, other = run.checksums.setdefault(path, (member.CRC, member.file_size, label))
    if before != [member.CRC, member.file_size]:
        raise UserError(f"{label}: has the name of {other} and another content; only that one was unpacked")
    if is_same(path, member):
        run.present += 1
    else:
        unfinished = run.scratch / "file.tmp"
        extract(run, archive, member, unfinished)
        os.replace(unfinished, path)
        run.made += 1
    run.bar.update(member.file_size)


def plain_name(name):
    """Return an archive's name without its ending and without the e of encrypted ones, which not all copies bear."""
    return re.sub(r"-?e?\.zip$", "", name)


def find_downloads(download_dir):
    """Return {split: [paths of its archives that are there]}. Raises UserError where there is none at all."""
    if not download_dir.is_dir():
        raise UserError(f"{download_dir}: no such folder")
    archives = sorted(path for path in download_dir.iterdir() if path.suffix == ".zip" and path.is_file())
    found = {split: [path for path in archives if plain_name(path.name) in map(plain_name, names)]
             for split, names in DOWNLOADS.items()}
    if not any(found.values()):
        names = ", ".join(name for names in DOWNLOADS.values() for name in names)
        raise UserError(f"{download_dir}: holds none of the challenge's archives; keep their names: {names}")
    return found


def missing_clips(run, split):
    """Return (number of clips in the split's folder, names of the labelled clips that are not there)."""
    there = {path.stem for path in (run.data_dir / split / "videos").iterdir() if path.suffix.lower() == ".mp4"}
    annotation = run.data_dir / split / ANNOTATION_FILES[split]
    if not annotation.is_file():
        return len(there), []
    from dataset import read_labels
    try:
        labels = read_labels(annotation)
    except UserError as error:
        run.fail(annotation, str(error).partition(": ")[2])
        return len(there), []
    return len(there), sorted(set(labels.index) - there)


def report(run, split, found):
    """Print what of a split is there and what is missing; list the missing clips in failures.csv."""
    there, missing = missing_clips(run, split)
    lines = []
    absent = [name for name in DOWNLOADS[split] if plain_name(name) not in {plain_name(path.name) for path in found}]
    if absent:
        lines.append("not downloaded: " + ", ".join(absent))
    if missing:
        lines.append(f"{len(missing)} labelled clips are missing, the first is {missing[0]}")
        for clip in missing:
            run.failures.add(run.data_dir / split / "videos" / f"{clip}.mp4", "missing: labelled, but in no archive")
    if not (run.data_dir / split / ANNOTATION_FILES[split]).is_file():
        lines.append(f"{ANNOTATION_FILES[split]} is missing")
    print(f"{split:6s}{there} of {CLIPS[split]} clips" + "".join(f"; {line}" for line in lines))


def print_dry_run(surveys, data_dir):
    """Print what a run would unpack; surveys: {split: what survey() found in its archives, added up}."""
    for split, (clips, size, closed, closed_size, _) in surveys.items():
        inside = f" and {closed} encrypted or compressed archives of {closed_size / 1e9:.2f} GB" if closed else ""
        print(f"{split:6s}{clips} clips, {size / 1e9:.2f} GB with the labels{inside}")
    print(f"Dry run: nothing was written to {printable(data_dir)}; next: the same command without --dry-run.")


def look_at(found):
    """Return {split: what survey() finds in its archives, added up}; an archive that cannot be read counts nothing."""
    surveys = {}
    for split, paths in found.items():
        surveys[split] = [0, 0, 0, 0, 0]
        for path in paths:
            try:
                with closing(open_archive(open(path, "rb"), path.name)) as archive:
                    totals = survey(archive, split)
            except (UserError, OSError) as error:
                print(f"warning: {printable(error)}", file=sys.stderr)
                continue
            surveys[split] = [a + b for a, b in zip(surveys[split][:4], totals)] + [max(surveys[split][4], totals[4])]
    return surveys


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def unpack(run, found):
    """Unpack all archives, the encrypted ones first, so that passwords are asked for at once.

    Return the exit status: 0, or 130 and 143 for a run that was stopped.
    """
    def stop(*_):
        raise process_files.Terminated

    before = signal.signal(signal.SIGTERM, stop)
    status = 0
    try:
        archives = []
        for split, paths in found.items():
            (run.data_dir / split / "videos").mkdir(parents=True, exist_ok=True)
            for path in paths:
                try:
                    archive = open_archive(open(path, "rb"), path.name, os.fspath(path))
                    encrypted = any(member.flag_bits & ENCRYPTED for member in archive.content.infolist())
                    archives.append((not encrypted, archive, split))
                except UserError as error:
                    run.fail(path.name, str(error).partition(": ")[2])
                except OSError as error:
                    run.fail(path.name, error.strerror)
        for _, archive, split in sorted(archives, key=lambda entry: entry[0]):
            with closing(archive):
                unpack_archive(run, archive, split)
    except KeyboardInterrupt as error:
        status = 143 if isinstance(error, process_files.Terminated) else 130
    finally:
        run.bar.close()
        signal.signal(signal.SIGTERM, before)
    return status


def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("download_dir", type=Path, metavar="DOWNLOAD_DIR", help="folder with the challenge's archives")
    parser.add_argument("data_dir", type=Path, metavar="DATA_DIR", help="data folder to lay out")
    parser.add_argument("--password-file", metavar="FILE", help="file with the passwords, one a line (default: the "
                        f"variable {PASSWORD_VARIABLE}, else they are asked for)")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be unpacked")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    found = find_downloads(args.download_dir)
    process_files.check_folders(args.download_dir, args.data_dir)
    passwords = given_passwords(args.password_file)
    surveys = look_at(found)
    if args.dry_run:
        print_dry_run(surveys, args.data_dir)
        return 0
    # The clips of the archives inside are about as large as these: video does not compress.
    needed = sum(max(0, size + closed_size - size_of(args.data_dir / split / "videos"))
                 for split, (_, size, _, closed_size, _) in surveys.items())
    needed += max(totals[4] for totals in surveys.values())
    free = free_space(args.data_dir)
    if needed and free < needed + RESERVE:
        raise UserError(f"{args.data_dir}: what is still to be unpacked takes {needed / 1e9:.2f} GB and a reserve of "
                        f"{RESERVE / 1e9:.1f} GB, but {free / 1e9:.2f} GB are free; make room or name another disk")
    with process_files.open_target(args.data_dir, None), pybit7z.lib7zip_context() as library:
        bar = progress_bar(total=sum(totals[1] + totals[3] for totals in surveys.values()), unit="B", unit_scale=True)
        # What a killed run left; only one run at a time gets here.
        shutil.rmtree(args.data_dir / SCRATCH, ignore_errors=True)
        (args.data_dir / SCRATCH).mkdir()
        run = Run(args.data_dir, library, passwords, sys.stdin.isatty(), process_files.Failures(args.data_dir), bar)
        status = unpack(run, found)
        for split, paths in found.items():
            if not status:
                report(run, split, paths)
        run.failures.close(complete=not status)
        shutil.rmtree(args.data_dir / SCRATCH)
    print(f"{run.made} files unpacked, {run.present} were there already.")
    if status:
        print("Stopped; run the same command again to go on.")
        return status
    if run.problems:
        raise UserError(f"{len(run.problems)} files could not be unpacked, the first is {run.problems[0]} "
                        f"({args.data_dir / process_files.FAILURES} lists them all)")
    print(f"Clips: {printable(args.data_dir)}/{{train,valid,test}}/videos   next: python "
          f"pre-processing/extract_frames_from_videos.py {printable(args.data_dir / 'train' / 'videos')} "
          f"{printable(args.data_dir / 'train' / 'frames')} 30")
    return 0


if __name__ == "__main__":
    run_script(main)
