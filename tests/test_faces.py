"""Faces: found, aligned, the largest first, searched once."""
import csv
import json
import random

import cv2
import dlib
import numpy as np
import pytest

import extract_faces_from_frames
from conftest import REPOSITORY
from first_impressions.extraction.detectors import Box, face_size, find_finest, find_predictor, load_predictor
from first_impressions.extraction.faces import find_faces, read_picture, with_further_faces
from first_impressions.extraction.frames import earlier_frames
from first_impressions.extraction.tracking import FaceTracker
from first_impressions.jobs.worker_pool import ProcessPool
from make_media import portrait

SCRIPT = "pre-processing/extract_faces_from_frames.py"


def detector_alone(picture, upsampling=1):
    """Return [(box, score)] of dlib's own detector: the oracle."""
    boxes, scores, _ = dlib.get_frontal_face_detector().run(picture, upsampling, 0.0)
    return [(Box(box.left(), box.top(), box.right(), box.bottom()), score) for box, score in zip(boxes, scores)]


def scene(*faces, width=1280, height=720):
    """Return a BGR picture with portraits (left, top, size) on a flat ground."""
    picture = np.full((height, width, 3), 90, np.uint8)
    for left, top, size in faces:
        picture[top:top + size, left:left + size] = portrait(size)
    return picture


@pytest.fixture
def frames(tmp_path):
    folder = tmp_path / "frames"
    (folder / "shard").mkdir(parents=True)
    cv2.imwrite(str(folder / "one__frame_3.jpg"), scene((300, 60, 600)))
    cv2.imwrite(str(folder / "two__frame_10.png"), scene((30, 100, 600), (700, 200, 400)))
    cv2.imwrite(str(folder / "shard" / "three__frame_4.jpg"), scene((600, 20, 640)))
    cv2.imwrite(str(folder / "none__frame_0.jpg"), scene())
    return folder


def test_faces_of_a_folder(frames, tmp_path, run_script):
    faces = tmp_path / "faces"
    run_script(SCRIPT, frames, faces, "--workers", 2)
    assert {str(path.relative_to(faces)) for path in faces.rglob("*.jpg")} == {
        "one__frame_3_aligned.jpg", "two__frame_10_aligned.jpg", "shard/three__frame_4_aligned.jpg"}
    assert list(csv.reader((faces / "failures.csv").open())) == [
        ["input", "reason"],
        [str(frames / "none__frame_0.jpg"), "no face found, upright or turned, by either detector"]]
    settings = json.loads((faces / "preprocessing.json").read_text())
    assert (settings["size"], settings["padding"]) == (224, 0.5)
    for path in faces.rglob("*.jpg"):
        chip = cv2.imread(str(path))
        assert chip.shape == (224, 224, 3)
        # Aligned: the eyes and the nose of dlib's mean face, whatever the place and size in the frame.
        landmarks = load_predictor()(chip, dlib.rectangle(50, 50, 174, 174))
        points = np.array([[point.x, point.y] for point in landmarks.parts()])
        assert abs(points[:4, 1].mean() - 85) < 25 and abs(points[4, 0] - 112) < 25


def test_second_run_searches_nothing_but_what_changed(frames, tmp_path, run, monkeypatch):
    faces = tmp_path / "faces"

    def output_of(*more):
        status, output, errors = run(extract_faces_from_frames, frames, faces, *more)
        assert status == 0, errors
        return output

    output_of()
    before = {path: path.stat().st_mtime_ns for path in faces.rglob("*.jpg")}
    with monkeypatch.context() as without_workers:
        without_workers.setattr(ProcessPool, "submit", lambda *_: pytest.fail("a frame is searched again"))
        again = output_of()
    assert "0 faces made, 3 there already" in again and "No face found: 1 frame;" in again
    cv2.imwrite(str(frames / "none__frame_0.jpg"), scene((300, 60, 600)))
    assert "1 face made, 3 there already" in output_of()
    assert (faces / "failures.csv").read_text() == "input,reason\n"
    assert before.items() <= {path: path.stat().st_mtime_ns for path in faces.rglob("*.jpg")}.items()
    status, _, errors = run(extract_faces_from_frames, frames, faces, "--size", 112)
    assert status == 2 and "size 224 there, 112 now" in errors


def test_one_clip_in_two_folders_is_refused(frames, tmp_path, run):
    for folder in ("p1", "p2"):
        (frames / folder).mkdir()
        (frames / folder / f"two__frame_{folder[1]}.jpg").touch()
    (frames / "two__frame_10.png").unlink()
    status, _, errors = run(extract_faces_from_frames, frames, tmp_path / "faces")
    assert status == 2 and len(errors.splitlines()) == 1
    assert all(text in errors for text in ("clip two ", str(frames / "p1"), str(frames / "p2")))
    assert not (tmp_path / "faces").exists()


def test_all_faces_and_workers(frames, tmp_path, run):
    for workers in (1, 2):
        assert run(extract_faces_from_frames, frames, tmp_path / f"faces{workers}", "--faces", "all",
                   "--workers", workers, "--size", 150)[0] == 0
    made = [{str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*")}
            for folder in (tmp_path / "faces1", tmp_path / "faces2")]
    assert made[0] == made[1]
    assert {"two__frame_10_aligned.jpg", "two__frame_10_aligned_2.jpg"} <= set(made[0])
    assert "two__frame_10_aligned_3.jpg" not in made[0]


def test_a_folder_of_many_faces():
    picture = scene(*[(20 + 210 * column, 10 + 175 * row, 170) for row in range(4) for column in range(6)])
    picture = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    faces = find_faces(picture, find_all=True)
    assert len(faces) == 24 and all(face.confidence > 0 for face in faces)
    sizes = [face_size(picture, face.box) for face in faces]  # all within a step of the detector
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("size, ratio", [(330, 0.95), (330, 0.9), (600, 0.95), (420, 0.85), (520, 0.8)])
def test_the_largest_of_faces_of_nearly_one_size(size, ratio):
    # The detector's boxes come in steps of a fifth: most of these pairs have boxes of one width.
    for sizes in ((size, round(ratio * size)), (round(ratio * size), size)):
        picture = cv2.cvtColor(scene((10, 40, sizes[0]), (650, 60, sizes[1])), cv2.COLOR_BGR2RGB)
        faces = find_faces(picture)
        assert (faces[0].box.centre[0] < 640) == (sizes[0] > sizes[1])


def test_all_faces_have_the_boxes_of_the_largest_alone():
    tracker = FaceTracker(earlier_frames("clip", range(3), 0))
    for index in range(3):
        picture = cv2.cvtColor(scene((10 + 9 * index, 40, 600), (700, 100, 180)), cv2.COLOR_BGR2RGB)
        for largest in (find_faces(picture), tracker.find_faces(index, picture)):
            faces = with_further_faces(picture, largest)
            assert faces[0] == largest[0] and len(faces) == 2
        assert find_faces(picture, find_all=True)[0] == find_faces(picture)[0]


@pytest.mark.parametrize("width", [1280, 2100])
def test_small_faces_in_large_pictures(width):
    faces = ((900, 300, 90), (300, 500, 110))  # of 37 and 45 pixels; two tiles have the first one
    picture = cv2.cvtColor(scene(*faces, width=width, height=720), cv2.COLOR_BGR2RGB)
    found = find_faces(picture)
    assert [face.box.left // 100 for face in found] == [3, 9] and all(36 <= face.box.width < 60 for face in found)


@pytest.mark.parametrize("size", [600, 300, 120])
def test_coarse_search_agrees_with_the_detector_alone(size):
    picture = cv2.cvtColor(scene((500, 50, size)), cv2.COLOR_BGR2RGB)
    alone = max((box for box, _ in detector_alone(picture)), key=lambda box: box.area)
    assert find_faces(picture)[0].box.overlap(alone) > 0.5


@pytest.mark.parametrize("width, height, small", [(1280, 720, (510, 0, 110)),     # with one upsampling
                                                  (2400, 1351, (1100, 10, 260))])  # without
def test_faces_from_a_width_are_those_of_the_finest_search(width, height, small):
    picture = cv2.cvtColor(scene((5, 20, 500), (620, 200, 450), small, width=width, height=height), cv2.COLOR_BGR2RGB)
    alone = detector_alone(picture, int(width < 2048))
    expected = sorted((box, round(score, 6)) for box, score in alone if box.width > 130)
    found = find_finest(picture, 130)
    assert len(expected) == 2 < len(alone)
    assert sorted((face.box, round(face.confidence, 6)) for face in found) == expected


def test_the_finest_search_is_that_of_the_detector_alone():
    for size in (147, 213, 254, 306, 369):
        picture = np.ascontiguousarray(portrait(size)[:, size // 3:, ::-1])  # the face at the edge, partly outside
        alone = detector_alone(picture)
        found = find_finest(picture)
        assert [(face.box, face.confidence) for face in found] == alone and len(alone) == 1


def test_a_box_measures_as_dlib_does():
    chance = random.Random(0)
    for _ in range(300):
        corners = [[chance.randint(-200, 200) for _ in range(2)] for _ in range(2)]
        first, second = (Box(*corner, *(edge + chance.randint(0, 300) for edge in corner)) for corner in corners)
        own, other = dlib.rectangle(*first), dlib.rectangle(*second)
        assert (first.width, first.height, first.area) == (own.width(), own.height(), own.area())
        assert first.centre == (own.center().x, own.center().y)
        assert dlib.rectangle(*first.moved(7, -9)) == dlib.translate_rect(own, dlib.point(7, -9))
        shared = own.intersect(other).area()
        assert first.overlap(second) == second.overlap(first) == shared / (own.area() + other.area() - shared)
    assert Box(-1, 2, 8, 11).scaled(1.5) == (-2, 3, 12, 16)


def test_no_other_module_handles_boxes_of_dlib():
    sources = (REPOSITORY / "first_impressions").rglob("*.py")
    assert [path.stem for path in sources if "dlib.rectangle" in path.read_text()] == ["detectors"]


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_orientation(tmp_path, orientation):
    from PIL import Image
    upright = Image.fromarray(np.ascontiguousarray(scene((100, 40, 400), width=640, height=480)[..., ::-1]))
    turned = upright.rotate({1: 0, 3: 180, 6: 90, 8: 270}[orientation], expand=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned.save(tmp_path / "picture.jpg", exif=exif, quality=95)
    picture = read_picture(tmp_path / "picture.jpg")
    assert picture.shape == (480, 640, 3) and find_faces(picture)


def test_predictor_argument(frames, tmp_path, run):
    (tmp_path / "wrong.dat").write_bytes(b"not a model")
    for name in ("wrong.dat", "missing.dat", "frames"):
        status, _, errors = run(extract_faces_from_frames, frames, tmp_path / "faces", tmp_path / name)
        assert status == 2 and len(errors.splitlines()) == 1 and name in errors
    path_68 = find_predictor().replace("_5_", "_68_")
    for path in (frames / "two__frame_10.png", frames / "shard" / "three__frame_4.jpg"):
        path.unlink()
    assert run(extract_faces_from_frames, frames, tmp_path / "faces", path_68, "--workers", 1)[0] == 0
    assert "68" in json.loads((tmp_path / "faces" / "preprocessing.json").read_text())["predictor"]
