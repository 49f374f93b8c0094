"""The challenge's archives, made here with the same names, nesting and encryption, and unpacked by the real script."""
import io
import os
import pickle
import pty
import random
import select
import signal
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pybit7z
import pytest

import unpack_chalearn
from conftest import listen_to_ctrl_c
from first_impressions.common.constants import ANNOTATION_FILES, TRAITS
from read_back import contents, rows_of

SCRIPT = "pre-processing/unpack_chalearn.py"
OUTER, INNER = "outer pass", "inner.Pass!"


def clip_bytes(name, size=20_000):
    return random.Random(name).randbytes(size)


def plain_zip(files, method=zipfile.ZIP_STORED):
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return target.getvalue()


def encrypted_zip(path, files, password, aes=False, compressed=False):
    """Write an archive with 7-Zip: the old zip encryption, as the challenge's, or AES. files: {name: bytes}."""
    with pybit7z.lib7zip_context() as library:
        writer = pybit7z.BitArchiveWriter(library, pybit7z.FormatZip)
        writer.set_password(password)
        level = pybit7z.BitCompressionLevel.Fast if compressed else pybit7z.BitCompressionLevel.Nothing
        writer.set_compression_level(level)
        writer.set_overwrite_mode(pybit7z.OverwriteMode.Overwrite)
        if aes:
            writer.set_format_property("em", pybit7z.BitPropVariant("AES256"))
        for name, content in files.items():
            writer.add_file(content, name)
        writer.compress_to(str(path))
    return path.read_bytes()


def annotation(clips):
    return pickle.dumps({trait: {f"{clip}.mp4": 0.5 for clip in clips} for trait in (*TRAITS, "interview")}, protocol=2)


def read_tree(folder):
    return {name: data for name, data in contents(folder).items() if not name.endswith("differing_clips.csv")}


@pytest.fixture(scope="module")
def downloads(tmp_path_factory):
    """A folder with all kinds of archives the challenge has, and {path in the data folder: content} of the result."""
    folder = tmp_path_factory.mktemp("downloads")
    names = {"train": [f"-AmMDnVl4s{i}.{i:03d}" for i in range(8)], "valid": [f"_uNup91ZYw{i}.002" for i in range(4)],
             "test": [f"test video_{i}.001" for i in range(6)]}
    result = {f"{split}/videos/{clip}.mp4": clip_bytes(clip) for split, clips in names.items() for clip in clips}
    result.update({f"{split}/{ANNOTATION_FILES[split]}": annotation(clips) for split, clips in names.items()})
    clips = {split: [(f"{clip}.mp4", clip_bytes(clip)) for clip in names[split]] for split in names}

    inner = {"train-1/training80_01.zip": plain_zip(dict(clips["train"][:3])),
             "train-1/training80_02.zip": plain_zip(dict(clips["train"][3:5]), zipfile.ZIP_DEFLATED)}
    (folder / "train-1.zip").write_bytes(plain_zip({**inner, "train-1/.DS_Store": b"x", "__MACOSX/._a.mp4": b"x"}))
    deflated = plain_zip({"training80_03.zip": plain_zip(dict(clips["train"][5:]))}, zipfile.ZIP_DEFLATED)
    (folder / "train-2.zip").write_bytes(deflated)
    (folder / "train-annotation.zip").write_bytes(plain_zip({ANNOTATION_FILES["train"]: annotation(names["train"])}))
    (folder / "val-1.zip").write_bytes(plain_zip(dict(clips["valid"][:2])))
    with zipfile.ZipFile(folder / "val-2.zip", "w") as archive:  # encrypted inside an archive that is not
        archive.writestr("validation80_02.zip", encrypted_zip(folder / "x", dict(clips["valid"][2:]), INNER))
    encrypted_zip(folder / "val-annotation-e.zip", {f"a/{ANNOTATION_FILES['valid']}": annotation(names["valid"])},
                  OUTER, compressed=True)
    first = {"test-1/test80_01.zip": encrypted_zip(folder / "x", dict(clips["test"][:2]), INNER),
             "test-1/test80_02.zip": encrypted_zip(folder / "x", dict(clips["test"][2:4]), INNER, compressed=True)}
    encrypted_zip(folder / "test-1e.zip", first, OUTER)
    second = {"test80_03.zip": encrypted_zip(folder / "x", dict(clips["test"][4:]), INNER, aes=True)}
    encrypted_zip(folder / "test-2e.zip", second, OUTER, aes=True)
    encrypted_zip(folder / "test-annotation-e.zip", {ANNOTATION_FILES["test"]: annotation(names["test"])},
                  INNER, aes=True)
    (folder / "x").unlink()
    with zipfile.ZipFile(folder / "test-1e.zip") as archive:  # really the old encryption: the standard library reads it
        assert archive.read("test-1/test80_01.zip", pwd=OUTER.encode()) == first["test-1/test80_01.zip"]
    return folder, result


def test_whole_layout_then_resumed_and_repaired(run_script, run, monkeypatch, downloads, tmp_path):
    folder, result = downloads
    monkeypatch.setenv("CHALEARN_PASSWORD", f"{OUTER}\n{INNER}")
    first = run_script(SCRIPT, folder, "data")
    tree = read_tree(tmp_path / "data")
    assert tree.pop("failures.csv") == b"input,reason\r\n"
    assert b"test,test video_0.001,not an official clip\n" in (tmp_path / "data/differing_clips.csv").read_bytes()
    assert "train: 0 of 6000 official clips; 6000 missing; 8 not an official clip" in first.stdout
    assert tree == result
    assert "Not downloaded: train-3.zip, train-4.zip, train-5.zip, train-6.zip\n" in first.stdout
    assert f"{len(result)} files unpacked, 0 there already" in first.stdout

    times = {name: (tmp_path / "data" / name).stat().st_ctime_ns for name in result}
    damaged, lost = "test/videos/test video_1.001.mp4", "train/videos/-AmMDnVl4s6.006.mp4"
    (tmp_path / "data" / damaged).write_bytes(bytes(20_000))
    (tmp_path / "data" / lost).unlink()
    (tmp_path / "passwords").write_text(f"wrong\n{INNER}\n{OUTER}\n")
    monkeypatch.delenv("CHALEARN_PASSWORD")
    status, output, _ = run(unpack_chalearn, folder, "data", "--password-file", "passwords")
    assert status == 0 and f"2 files unpacked, {len(result) - 2} there already" in output
    assert {name: content for name, content in read_tree(tmp_path / "data").items() if name != "failures.csv"} == result
    changed = {name for name in result if (tmp_path / "data" / name).stat().st_ctime_ns != times[name]}
    assert changed == {damaged, lost}


def test_without_the_password_everything_else_is_unpacked(run, monkeypatch, downloads, tmp_path):
    folder, result = downloads
    monkeypatch.setenv("CHALEARN_PASSWORD", OUTER)
    status, _, errors = run(unpack_chalearn, folder, "data")
    assert status == 2 and errors.count("\n") == 1 and "none of the given passwords opens it" in errors
    tree = read_tree(tmp_path / "data")
    locked = {name for name in result if "test" in name} | {f"valid/videos/_uNup91ZYw{i}.002.mp4" for i in (2, 3)}
    assert set(tree) == set(result) - locked | {"failures.csv"}
    rows = dict(row.values() for row in rows_of(tmp_path / "data" / "failures.csv"))
    assert "password" in rows["test-1e.zip/test-1/test80_01.zip"] and "password" in rows["test-annotation-e.zip"]

    monkeypatch.delenv("CHALEARN_PASSWORD")
    status, _, errors = run(unpack_chalearn, folder, "data2")
    assert status == 2 and "needs a password" in errors
    status, _, errors = run(unpack_chalearn, folder, "data3", "--password-file", "nowhere")
    assert status == 2 and "nowhere" in errors and not (tmp_path / "data3").exists()


def test_password_typed_at_the_prompt(downloads, tmp_path):
    folder, result = downloads
    script = Path(__file__).resolve().parent.parent / SCRIPT
    process, terminal = pty.fork()
    if process == 0:
        os.environ.pop("CHALEARN_PASSWORD", None)
        os.execv(sys.executable, [sys.executable, str(script), str(folder), str(tmp_path / "data")])
    output = b""
    answers = {b"Password of val-annotation-e.zip (": b"oops\n", b"does not open it": OUTER.encode() + b"\n",
               b"Password of test-1e.zip/test-1/test80_01.zip": INNER.encode() + b"\n"}
    while select.select([terminal], [], [], 60)[0]:
        try:
            block = os.read(terminal, 1000)
        except OSError:  # the other side has ended
            break
        output += block
        for prompt in [prompt for prompt in answers if prompt in output]:
            time.sleep(0.2)  # getpass throws away what was typed before it asks
            os.write(terminal, answers.pop(prompt))
    else:
        os.kill(process, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0, output.decode()
    assert not answers and OUTER.encode() not in output
    assert set(read_tree(tmp_path / "data")) == set(result) | {"failures.csv"}


def test_evil_and_damaged_members(run_script, tmp_path):
    folder = tmp_path / "downloads"
    folder.mkdir()
    link = zipfile.ZipInfo("link.mp4")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(folder / "train-1.zip", "w") as archive:
        for name in ("../../up.mp4", "/tmp/absolute.mp4", "C:\\windows.mp4", "a\\..\\..\\back.mp4", "good.000.mp4"):
            archive.writestr(name, clip_bytes(name))
        archive.writestr(link, "/etc/passwd")
        archive.writestr("long" * 80 + ".mp4", b"x")
        archive.writestr("inside.zip", plain_zip({"../evil.mp4": b"x", "fine.000.mp4": clip_bytes("fine")}))
    broken = bytearray(plain_zip({"broken.000.mp4": clip_bytes("broken"), "whole.000.mp4": clip_bytes("whole")}))
    broken[10_000] ^= 1
    (folder / "train-2.zip").write_bytes(broken)
    (folder / "train-3.zip").write_bytes(plain_zip({"good.000.mp4": b"another clip of this name"}))
    bomb = bytearray(plain_zip({"bomb.000.mp4": bytes(50_000_000)}, zipfile.ZIP_DEFLATED))
    (folder / "train-4.zip").write_bytes(bomb.replace(struct.pack("<I", 50_000_000), struct.pack("<I", 1000)))
    (folder / "train-5.zip").write_bytes(b"<html>Please log in</html>")
    half = plain_zip({"half.000.mp4": clip_bytes("half")})
    (folder / "train-6.zip").write_bytes(half[:len(half) // 2])
    locked = bytearray(encrypted_zip(tmp_path / "x", {f"{i}.000.mp4": clip_bytes(str(i)) for i in range(4)}, OUTER))
    locked[30_000] ^= 1
    (folder / "test-1e.zip").write_bytes(locked)
    (folder / "other.zip").write_bytes(b"not ours")

    run = run_script(SCRIPT, folder, "data", env={"CHALEARN_PASSWORD": OUTER}, check=False)
    assert run.returncode == 2 and "Traceback" not in run.stderr
    tree = read_tree(tmp_path)
    there = {"train": ["good", "fine", "whole"],
             "test": [str(i) for i in range(4) if f"data/test/videos/{i}.000.mp4" in tree]}
    assert len(there["test"]) == 3
    expected = {f"data/{split}/videos/{name}.000.mp4" for split, names in there.items() for name in names}
    assert {name for name in tree if not name.startswith("downloads/")} == expected | {"data/failures.csv", "x"}
    assert tree["data/train/videos/good.000.mp4"] == clip_bytes("good.000.mp4")
    rows = [tuple(row.values()) for row in rows_of(tmp_path / "data" / "failures.csv")]
    reasons = {name.rpartition("/")[2]: reason for name, reason in rows}
    assert [name for name, reason in rows if "leads out of the folder" in reason] == [
        "train-1.zip/../../up.mp4", "train-1.zip//tmp/absolute.mp4", "train-1.zip/C:/windows.mp4".replace("/w", "\\w"),
        "train-1.zip/a\\..\\..\\back.mp4", "train-1.zip/inside.zip/../evil.mp4"]
    assert "link" in reasons["link.mp4"] and "too long" in reasons["long" * 80 + ".mp4"]
    assert "damaged" in reasons["broken.000.mp4"] and "damaged" in reasons["bomb.000.mp4"]
    assert "another content" in reasons["good.000.mp4"]
    assert "damaged" in reasons["train-5.zip"] and "damaged" in reasons["train-6.zip"]
    assert len(rows) == 13


def test_a_full_disk_is_seen_before_anything_is_written(run_script, tmp_path):
    folder = tmp_path / "downloads"
    folder.mkdir()
    files = {f"clip{i}.000.mp4": b"x" * 1234 for i in range(2000)}
    # Each declares a gigabyte: two terabytes, or twenty in ten archives.
    forged = plain_zip(files).replace(struct.pack("<I", 1234), struct.pack("<I", 10**9))
    for number in range(1, 7):
        (folder / f"train-{number}.zip").write_bytes(forged)
    run = run_script(SCRIPT, folder, "data", check=False)
    assert run.returncode == 2 and "takes 12000.00 GB" in run.stderr
    assert not read_tree(tmp_path / "data")


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """(folder with an archive that takes a while to unpack, {name of a clip in it: content})."""
    folder = tmp_path_factory.mktemp("large")
    files = {f"clip{i}.000.mp4": clip_bytes(str(i), 2_000_000) for i in range(30)}
    inner = encrypted_zip(folder / "x", files, INNER)
    (folder / "x").unlink()
    encrypted_zip(folder / "test-1e.zip", {"test80_01.zip": inner}, OUTER)
    return folder, files


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_stopped_and_started_again(run, monkeypatch, large, tmp_path, number, status):
    folder, files = large
    script = Path(__file__).resolve().parent.parent / SCRIPT
    monkeypatch.setenv("CHALEARN_PASSWORD", f"{OUTER}\n{INNER}")
    process = subprocess.Popen([sys.executable, script, folder, tmp_path / "data"], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=listen_to_ctrl_c)
    scratch = tmp_path / "data" / ".unfinished"
    waited = time.monotonic() + 60
    while not list(scratch.glob("*/*.zip")) and time.monotonic() < waited:
        time.sleep(0.01)
    if number == signal.SIGTERM:  # a little later: the clips, not the archive around them
        while not list((tmp_path / "data" / "test" / "videos").glob("*.mp4")) and time.monotonic() < waited:
            time.sleep(0.01)
    process.send_signal(number)
    output, errors = process.communicate(timeout=10)
    assert process.returncode == status and "Traceback" not in errors
    for name, content in read_tree(tmp_path / "data").items():
        assert name.startswith(".un") or content == files.get(Path(name).name) or name == "failures.csv"
    assert number == signal.SIGKILL or not scratch.exists()

    assert run(unpack_chalearn, folder, "data")[0] == 0
    tree = read_tree(tmp_path / "data")
    assert {Path(name).name: content for name, content in tree.items() if name != "failures.csv"} == files


def test_wrong_arguments(run_script, run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "train-1.zip").write_bytes(plain_zip({"a.000.mp4": b"x"}))
    (tmp_path / "taken" / "train").mkdir(parents=True)
    (tmp_path / "taken" / "train" / "videos").touch()
    for arguments, word in ((("nowhere", "data"), "nowhere"), (("empty", "data"), "train-1.zip"),
                            (("file", "data"), "is not a folder"), (("downloads", "file"), "file: cannot be made"),
                            (("downloads", "file/data"), "Not a directory"), (("downloads", 300 * "x"), "too long"),
                            (("downloads", "data", "--password-file", "empty"), "empty: cannot be read"),
                            (("downloads", "taken"), "taken/train/videos: cannot be made")):
        status, _, errors = run(unpack_chalearn, *arguments)
        assert status == 2 and errors.count("\n") == 1 and word in errors, errors
    (tmp_path / "downloads" / "train-1.zip").write_bytes(b"no archive")
    refused = run_script(SCRIPT, "downloads", "data", check=False)
    assert refused.returncode == 2 and "1 file could not be unpacked" in refused.stderr
