"""Frames: the same pictures as a plain decode, the same choice every time, nothing made twice."""
import csv
import random
import unicodedata
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

import extract_faces_from_videos
import extract_frames_from_videos
import predict
from first_impressions.common.command_line import UserError
from first_impressions.extraction import clip_faces
from first_impressions.extraction.frames import FrameSettings, choose_frames, decode_wanted
from first_impressions.extraction.packets import list_packets
from first_impressions.extraction.sources import read_source, source_of
from make_media import plain_decode, portrait, read_frames, rotate_clip, set_pixel_aspect, write_clip
from read_back import contents

SCRIPT = "pre-processing/extract_frames_from_videos.py"
KINDS = {
    "plain.mp4": {},
    "references.mp4": dict(options={"bf": "4", "b-pyramid": "normal", "preset": "medium"}, key_distance=20),
    "open_group.mkv": dict(options={"x264-params": "open-gop=1:bframes=3"}),
    "intra_refresh.mp4": dict(options={"intra-refresh": "1"}, key_distance=20),
    "stream.ts": {},
    "packed.avi": dict(codec="mpeg4", options={"bf": "2"}),
    "old.mpg": dict(codec="mpeg2video", options={"bf": "2"}),
    "vp8.webm": dict(codec="libvpx", options={"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "8"}),
    "vp9.webm": dict(codec="libvpx-vp9", options={"cpu-used": "8"}),
    "hevc.mp4": dict(codec="libx265", options={"x265-params": "log-level=none"}),
    "motion.avi": dict(codec="mjpeg", pixel_format="yuvj420p"),
    "ten_bits.mp4": dict(pixel_format="yuv420p10le"),
    "grey.mp4": dict(pixel_format="gray"),
    "variable.mp4": dict(times=np.cumsum(np.random.default_rng(0).integers(5, 120, 60)).tolist()),
    "edit_list.mp4": dict(shift=-600, container_options={"avoid_negative_ts": "disabled"}),
    "odd.mp4": dict(size=(97, 63), pixel_format="yuv444p"),
    "pixel.mkv": dict(codec="ffv1", size=(1, 1)),
}


def jpeg(picture):
    return cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Folder of clips of many codecs, 60 frames each (45 behind an edit list), and one of 4 frames."""
    folder = tmp_path_factory.mktemp("clips")
    for name, options in KINDS.items():
        write_clip(folder / name, **options)
    write_clip(folder / "short.mp4", frames=4)
    return folder


def test_pictures_are_those_of_a_plain_decode(clips, tmp_path, run_script):
    run_script(SCRIPT, clips, tmp_path / "frames", 7)
    assert (tmp_path / "frames" / "failures.csv").read_text() == "input,reason\n"
    for path in clips.iterdir():
        pictures = plain_decode(path)
        made = list((tmp_path / "frames").glob(f"{path.stem}__frame_*.jpg"))
        assert len(made) == min(7, len(pictures)), path.name
        for frame in made:
            index = int(frame.stem.rsplit("_", 1)[1])
            data = frame.read_bytes()
            end_of_note = 4 + int.from_bytes(data[4:6], "big")
            assert read_source(frame) == source_of(path)
            assert data[:2] + data[end_of_note:] == jpeg(pictures[index]), f"{path.name}, frame {index}"


def test_times_of_the_pictures(clips):
    for path in clips.iterdir():
        packets = list_packets(path)
        times = (np.array(KINDS["variable.mp4"]["times"]) / 1000 if path.stem == "variable"
                 else np.arange(len(packets.drawable)) / 25)
        assert np.allclose(packets.seconds, times - times[0], atol=0.002), path.name


def test_little_is_decoded(clips):
    # Of 60 frames with a key frame every 12 the one wanted needs its group at most; without B-frames that nothing
    # refers to even less.
    path = clips / "references.mp4"
    packets = list_packets(path)
    decoded = []
    for index in (0, 25, 59):
        decoded += [found for found, _ in decode_wanted(path, packets, {index})]
    assert decoded == [0, 25, 59]
    assert packets.clean.sum() >= 3


def test_av1_is_decoded_from_its_key_frames(tmp_path):
    path = write_clip(tmp_path / "av1.mp4", codec="libsvtav1", options={"preset": "12", "svtav1-params": "lp=1"})
    packets, pictures = list_packets(path), plain_decode(path)
    assert packets.timed and packets.clean.sum() == 5
    for wanted in ({0}, {25}, {59}, {3, 40, 41}):
        assert {index for index, _ in decode_wanted(path, packets, set(wanted))} == wanted
    assert all(np.array_equal(picture, pictures[index]) for index, picture in read_frames(path, 9))


def test_choice_is_seeded_nested_and_uniform(tmp_path):
    draws = [choose_frames(f"clip{clip}", range(100), 10, 0) for clip in range(200)]
    for clip in range(5):
        assert draws[clip] < choose_frames(f"clip{clip}", range(100), 30, 0)
        assert draws[clip] != choose_frames(f"clip{clip}", range(100), 10, 1)
    counts = np.bincount([index for draw in draws for index in draw], minlength=100)
    assert counts.sum() == 2000 and np.abs(counts.reshape(10, 10).sum(1) - 200).max() < 60
    # Frames that cannot be read change nothing for the others.
    whole = choose_frames("clip", range(100), 10, 0)
    lost = random.Random(0).choice(sorted(whole))
    assert whole - {lost} < choose_frames("clip", [index for index in range(100) if index != lost], 10, 0)


def test_second_run_and_other_workers(clips, tmp_path, run):
    few = tmp_path / "few"

    def output_of(target, *arguments):
        status, output, errors = run(extract_frames_from_videos, clips, target, *arguments)
        assert status == 0, errors
        return output

    first = output_of(few, 3, "--workers", 1)
    assert f"{3 * len(KINDS) + 3} frames made" in first
    assert first.splitlines()[-1].startswith(f"Frames: {few}   next: python pre-processing/extract_faces")
    assert "0 frames made" in output_of(few, 3, "--workers", 2)
    # A half-finished clip is completed, more frames are added, and the way there does not matter.
    for path in list(few.glob("plain__frame_*"))[:2]:
        path.unlink()
    more = output_of(few, 5, "--workers", 2)
    assert f"{2 * len(KINDS) + 3} frames made, {3 * len(KINDS) + 1} there already" in more
    output_of(tmp_path / "at_once", 5, "--workers", 1)
    assert contents(few, "*.jpg") == contents(tmp_path / "at_once", "*.jpg")
    status, _, errors = run(extract_frames_from_videos, clips, few, 5, "--seed", 1)
    assert status == 2 and "seed 0 there, 1 now" in errors


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_rotation(tmp_path, degrees):
    plain = write_clip(tmp_path / "clip.mp4", frames=3)
    pictures = plain_decode(plain)
    rotate_clip(plain, degrees)
    found = dict(read_frames(plain, 3))
    for index, picture in enumerate(pictures):
        assert np.array_equal(found[index], np.rot90(picture, -degrees // 90)), index


@pytest.mark.parametrize("name, aspect, size", [
    ("wide.mp4", Fraction(2), (192, 64)), ("dv.ts", Fraction(8, 9), (96, 72)), ("high.avi", Fraction(1, 2), (96, 128))])
def test_pixels_become_square(tmp_path, name, aspect, size):
    codec = "mpeg4" if name == "high.avi" else "libx264"
    clip = write_clip(tmp_path / name, frames=12, codec=codec, pixel_aspect=aspect)
    pictures = plain_decode(clip)
    for index, picture in read_frames(clip, 3):
        assert np.array_equal(picture, cv2.resize(pictures[index], size, interpolation=cv2.INTER_CUBIC))


def test_pixels_of_the_container_and_of_rotated_clips(tmp_path, run):
    (tmp_path / "videos").mkdir()
    for name, aspect in (("square", (1, 1)), ("container", (1, 2)), ("absurd", (1000, 1))):
        set_pixel_aspect(write_clip(tmp_path / "videos" / f"{name}.mp4", frames=2, pixel_aspect=Fraction(2)), *aspect)
    rotate_clip(write_clip(tmp_path / "videos" / "rotated.mp4", frames=2, pixel_aspect=Fraction(2)), 90)
    assert run(extract_frames_from_videos, "videos", "frames", 1, "--workers", 1)[0] == 0
    sizes = {path.name.split("__")[0]: cv2.imread(str(path)).shape[1::-1]
             for path in (tmp_path / "frames").glob("*.jpg")}
    assert sizes == {"square": (96, 64), "container": (96, 128), "absurd": (96, 64), "rotated": (64, 192)}
    problems = (tmp_path / "frames" / "failures.csv").read_text().splitlines()
    assert len(problems) == 2 and "absurd.mp4" in problems[1] and "1000:1" in problems[1]


def test_nested_folders_and_equal_names(tmp_path, run):
    (tmp_path / "videos" / "train-1" / "part").mkdir(parents=True)
    (tmp_path / "videos" / "train-2").mkdir()
    write_clip(tmp_path / "videos" / "train-1" / "part" / "a.001.mp4", frames=3)
    write_clip(tmp_path / "videos" / "train-2" / "a.002.MP4", frames=3, container_format="mp4")
    (tmp_path / "videos" / "notes.txt").write_text("no clip")
    assert run(extract_frames_from_videos, "videos", "frames", 2, "--workers", 1)[0] == 0
    assert {path.name.split("__")[0] for path in (tmp_path / "frames").glob("*.jpg")} == {"a.001", "a.002"}
    write_clip(tmp_path / "videos" / "train-2" / "a.001.avi", frames=3, codec="mpeg4")
    status, _, errors = run(extract_frames_from_videos, "videos", "frames", 2)
    assert status == 2 and len(errors.splitlines()) == 1
    assert "train-1/part/a.001.mp4 and one in videos/train-2" in errors
    (tmp_path / "videos" / "train-2" / "a.001.avi").unlink()
    # The same letters, written in the two ways of Unicode.
    for folder, form in (("train-1", "NFC"), ("train-2", "NFD")):
        (tmp_path / "videos" / folder / unicodedata.normalize(form, "José.mp4")).touch()
    status, _, errors = run(extract_frames_from_videos, "videos", "frames", 2)
    assert status == 2 and "/Jos" in errors and "train-1" in errors and "train-2" in errors


ENCRYPTED = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": 32 * "7", "encryption_kid": 32 * "a"}


def blank_pictures(path, first):
    """Overwrite the codes of the pictures of an MP4 clip, from the first one on, with nonsense."""
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for place, size in places[first:]:
        data[place + 4:place + size] = b"\xff" * (size - 4)
    path.write_bytes(data)


def test_clips_that_cannot_be_decoded_do_not_vanish(tmp_path, run):
    (tmp_path / "videos").mkdir()
    for name in ("none", "some", "whole"):
        write_clip(tmp_path / "videos" / f"{name}.mp4", frames=20, options={"preset": "ultrafast"})
    blank_pictures(tmp_path / "videos" / "none.mp4", 0)
    blank_pictures(tmp_path / "videos" / "some.mp4", 3)
    write_clip(tmp_path / "videos" / "locked.mp4", frames=20, container_options=ENCRYPTED)
    for script, target, made in ((extract_frames_from_videos, "frames", "8 frames"),
                                 (extract_faces_from_videos, "faces", "0 faces")):
        _, output, _ = run(script, "videos", target, 5, "--workers", 1)
        assert f"{made} made, 0 there already" in output
        reasons = (tmp_path / target / "failures.csv").read_text()
        assert "none.mp4,none of its 20 frames could be decoded" in reasons
        assert "some.mp4,only 3 of 20 frames could be decoded" in reasons
        assert 'locked.mp4,"is encrypted;' in reasons
    assert "0 frames made, 8 there already" in run(extract_frames_from_videos, "videos", "frames", 5)[1]
    status, _, errors = run(predict, "pretrained", "videos", "--out", "scores.csv", "--workers", 1)
    with open(tmp_path / "scores.csv") as file:
        problems = {row["clip"]: row["problem"] for row in csv.DictReader(file)}
    assert status == 1 and "none of its 20 frames" in problems["videos/none.mp4"]
    none_found = "no face found, upright or turned, by either detector"
    assert problems["videos/some.mp4"].startswith(f"{none_found}; only 3 of 20 frames could be decoded")
    assert problems["videos/whole.mp4"] == none_found


def test_cut_off_clips_are_scored_with_a_note_and_growing_ones_refused(tmp_path, run, monkeypatch):
    whole = write_clip(tmp_path / "whole.mkv", 50, (160, 160), picture=lambda *_: portrait(160)).read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[:len(whole) // 2])
    status, _, errors = run(predict, "pretrained", "whole.mkv", "cut.mkv", "--out", "scores.csv", "--workers", 1)
    with open(tmp_path / "scores.csv") as file:
        complete, cut = csv.DictReader(file)
    assert status == 0 and complete["note"] == complete["problem"] == cut["problem"] == "" and cut["openness"]
    assert cut["note"].startswith("seems cut off") and f"warning: cut.mkv: {cut['note']}" in errors

    def list_while_it_grows(path):
        packets = list_packets(path)
        with open(path, "ab") as file:
            file.write(whole)
        return packets

    monkeypatch.setattr(clip_faces, "list_packets", list_while_it_grows)
    with pytest.raises(UserError, match="was changed while it was read"):
        settings = clip_faces.FaceSettings(size=64, frames=FrameSettings(2))
        clip_faces.faces_of_file(str(tmp_path / "cut.mkv"), settings, str(tmp_path))


def test_real_clips(chalearn_dir):
    for path in sorted((chalearn_dir / "clips" / "test" / "videos").glob("*.mp4"))[:2]:
        pictures = plain_decode(path)
        for index, picture in read_frames(path, 10):
            assert np.array_equal(picture, pictures[index]), f"{path.name}, frame {index}"
