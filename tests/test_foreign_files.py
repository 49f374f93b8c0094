"""Files that the suite did not make, and pictures of every width: read on every way in, with the same faces.

The oracle of the pixels is Pillow, through VideoFrame.to_image, not the suite's own conversion.
"""
import collections
import os
import random
import shutil
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

import app
import extract_faces_from_frames
import extract_faces_from_videos
import extract_frames_from_videos
import predict
from first_impressions.common.constants import CLIP_SUFFIXES, TRAITS
from first_impressions.extraction.frames import FrameSettings
from first_impressions.prediction.scoring import load_scorer
from make_media import read_frames, write_clip
from read_back import overlap, rows_of

FOREIGN = Path(__file__).with_name("foreign")
FILES = sorted(path.name for path in FOREIGN.iterdir() if path.name != "README.md")
CLIPS = [name for name in FILES if Path(name).suffix in CLIP_SUFFIXES]
# Of the same portrait; one in HDR, one at a variable rate with a changing picture, one GIF of 256 colours.
FURTHEST_FROM_MEDIAN = 0.075


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    """Rows of predict.py's table and of its table of faces, with every picture drawn, by file name."""
    folder = tmp_path_factory.mktemp("scores")
    status = predict.main(["pretrained", str(FOREIGN), "--all-columns", "--out", str(folder / "out.csv"), "--per-frame",
                           str(folder / "frames.csv"), "--annotate", str(folder), "--explain", str(folder),
                           "--plot", str(folder)])
    assert status == 0
    faces = collections.defaultdict(dict)
    for row in rows_of(folder / "frames.csv"):
        faces[os.path.basename(row["clip"])][int(row["frame"])] = [
            int(row[edge]) for edge in ("left", "top", "right", "bottom")]
    return {os.path.basename(row["clip"]): row for row in rows_of(folder / "out.csv")}, faces, folder


def test_every_foreign_file_is_scored_alike(scores):
    rows, faces, folder = scores
    assert sorted(name for name, row in rows.items() if not row["problem"]) == FILES
    table = np.array([[float(rows[name][trait]) for trait in TRAITS] for name in FILES])
    assert np.abs(table - np.median(table, axis=0)).max() < FURTHEST_FROM_MEDIAN
    for name in FILES:
        assert len(faces[name]) == int(rows[name]["frames"]), name
    assert {len(list(folder.glob(f"*_{kind}"))) for kind in ("scores.jpg", "heat_maps.png")} == {len(FILES)}


def test_shipped_model_gives_the_golden_scores(scores):
    """On every machine and from version to version: pictures, and clips of ten faces. Frames, faces or a model that
    change on purpose come with a new table."""
    for golden in rows_of(Path(__file__).with_name("golden_scores.csv")):
        row = scores[0][golden["file"]]
        assert [float(row[trait]) for trait in TRAITS] == pytest.approx(
            [float(golden[trait]) for trait in TRAITS], abs=1e-3), golden["file"]


def test_every_way_in_finds_the_same_faces(scores, tmp_path, run):
    _, faces, _ = scores
    assert run(extract_frames_from_videos, FOREIGN, "frames", 10)[0] == 0
    assert run(extract_faces_from_frames, "frames", "two_steps")[0] == 0
    assert run(extract_faces_from_videos, FOREIGN, "one_pass", 10)[0] == 0
    assert run(predict, "pretrained", "frames", "--per-frame", "boxes.csv")[0] == 0
    boxes = {os.path.basename(row["clip"]): [int(row[edge]) for edge in ("left", "top", "right", "bottom")]
             for row in rows_of(tmp_path / "boxes.csv")}
    count, others = 0, []
    for name in CLIPS:
        for index, box in faces[name].items():
            count, frame = count + 1, f"{Path(name).stem}__frame_{index}"
            chips = [cv2.imread(str(tmp_path / folder / f"{frame}_aligned.jpg")).astype(float)
                     for folder in ("two_steps", "one_pass")]
            # A clip's faces are searched near the one before: a box may be a step of the detector's sizes off.
            if overlap(boxes[f"{frame}.jpg"], box) < 0.5 or np.abs(chips[0] - chips[1]).mean() > 15:
                others.append(frame)
    # dlib also takes a patch of the space suit for a face as large as the real one, with a score a little over 0.
    assert count > 130 and not others, others


def test_the_page_scores_foreign_files(long_run):
    names = FILES if long_run else FILES[::3]
    paths = [str(FOREIGN / name) for name in names]
    page = app.App(load_scorer("pretrained", "runs"), FrameSettings(10), 2, 10**9, 10**6, 50)
    *_, (progress, results) = page.score(paths, False)
    assert "Not scored" not in results and results.count("<img") >= 2 * len(names)


def exact(path):
    """Return all pictures of a clip as Pillow has them, BGR."""
    with av.open(str(path)) as container:
        return [np.array(frame.to_image())[:, :, ::-1] for frame in container.decode(video=0)]


SIZES = [(width, 40) for width in range(16, 201)] + [(40, height) for height in range(16, 201, 7)] + [
    (width, random.Random(width).choice((16, 90, 126, 270))) for width in range(208, 4097, 97)] + [(30, 4096)]


def test_every_width_and_height(tmp_path):
    assert len(SIZES) > 250
    for width, height in SIZES:
        path = write_clip(tmp_path / "clip.mkv", frames=2, size=(width, height), codec="ffv1", pixel_format="bgr0")
        pictures = exact(path)
        found = dict(read_frames(path, 2))
        assert len(found) == 2
        for index, picture in found.items():
            assert picture.flags["C_CONTIGUOUS"] and picture.shape == (height, width, 3), (width, height)
            assert np.array_equal(picture, pictures[index]), (width, height)


@pytest.mark.parametrize("width", [426, 854, 1080])
def test_anamorphic_clips_of_odd_widths(tmp_path, width):
    path = write_clip(tmp_path / "clip.mp4", frames=2, size=(width, 64), pixel_aspect=Fraction(4, 3))
    pictures = dict(read_frames(path, 2)).values()
    assert {picture.shape for picture in pictures} == {(64, round(width * 4 / 3), 3)}
    assert all(picture.flags["C_CONTIGUOUS"] for picture in pictures)


def test_errors_that_nobody_thought_of_are_short_and_said(tmp_path, run, monkeypatch):
    # A model file that loads and then refuses every picture, as dlib did with clips of odd widths.
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "sitecustomize.py").write_text(
        "import dlib\ndef refuse(*_, **__):\n    raise TypeError('incompatible arguments ' * 200)\n"
        "dlib.get_face_chip = refuse\n")
    (tmp_path / "clips").mkdir()
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(FOREIGN / "small_426x240.mp4", tmp_path / "clips" / name)
    status, _, errors = run(predict, "pretrained", "clips", "--out", "scores.csv")
    assert status == 1 and "2 of 2 files failed for an unexpected reason" in errors
    reasons = [row["problem"] for row in rows_of(tmp_path / "scores.csv")]
    assert len(reasons) == 2 and all(len(reason) <= 200 and reason.endswith("...") for reason in reasons)
    status, _, errors = run(extract_faces_from_videos, "clips", "faces", 2)
    assert status == 2 and "2 of 2 clips failed for an unexpected reason" in errors
