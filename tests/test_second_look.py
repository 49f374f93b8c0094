"""Files in which no face was found are looked at again: turned, and by the CNN detector."""
import json
import os
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest

import extract_faces_from_frames
import extract_faces_from_videos
import extract_frames_from_videos
import predict
from conftest import REPOSITORY, linux_only
from first_impressions.common.constants import FOUND_BY_CNN
from first_impressions.extraction.faces import find_faces, look_again
from make_media import portrait, write_clip
from read_back import failures_in
from test_preprocessing_faults import CLUSTER, with_folders

SIZE = (480, 360)
TURN = "no face found; one is found if the picture is turned by 90 degrees clockwise: turn the file"


def scene(face):
    """Return a BGR picture of a face on a flat ground."""
    picture = np.full((*SIZE[::-1], 3), 90, np.uint8)
    picture[30:330, 90:390] = face
    return picture


def half_hidden(*_):
    """Return a picture of a face behind a wall, which the HOG detector does not find."""
    face = portrait(300)
    face[:, :150] = 30
    return scene(face)


def on_its_side(*_):
    return cv2.rotate(scene(portrait(300)), cv2.ROTATE_90_COUNTERCLOCKWISE)


def seen_once(index, *_):
    return scene(portrait(300)) if index == 3 else half_hidden()


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    write_clip(folder / "hidden.mp4", frames=5, size=SIZE, picture=half_hidden)
    write_clip(folder / "once.mp4", frames=5, size=SIZE, picture=seen_once)
    write_clip(folder / "side.mp4", frames=5, size=SIZE[::-1], picture=on_its_side)
    return folder


def content_of(folder):
    """Return the names of the chips in a folder, and its failures by input."""
    reasons = {}
    for name, reason in failures_in(folder):
        reasons.setdefault(name, []).append(reason)
    return sorted(path.name for path in folder.rglob("*.jpg")), reasons


def test_hidden_and_turned_faces_on_both_ways(clips, tmp_path, run):
    assert not find_faces(half_hidden())
    status, output, _ = run(extract_faces_from_videos, clips, "one", 5)
    assert status == 0 and "No face found: 11 frames, face found by the CNN detector alone: 3 frames" in output
    chips, reasons = content_of(tmp_path / "one")
    hidden = [name for name in chips if name.startswith("hidden")]
    assert len(hidden) == 3 and sorted(set(chips) - set(hidden)) == ["once__frame_3_aligned.jpg"]
    of_hidden = sorted(line.partition(": ")[2] for line in reasons["hidden.mp4"])
    assert of_hidden == 3 * [FOUND_BY_CNN] + 2 * ["no face found"]
    assert sum(TURN in line for line in reasons["side.mp4"]) == 3 and len(reasons["once.mp4"]) == 4
    assert json.loads((tmp_path / "one" / "preprocessing.json").read_text())["detector"] == "auto"

    # A run that was killed: the list is not written, one of the chips is.
    whole = {path.name: path.read_bytes() for path in (tmp_path / "one").glob("*.jpg")}
    (tmp_path / "one" / "failures.csv").unlink()
    for name in hidden[1:]:
        (tmp_path / "one" / name).unlink()
    assert "2 faces made, 2 there already" in run(extract_faces_from_videos, clips, "one", 5)[1]
    assert whole == {path.name: path.read_bytes() for path in (tmp_path / "one").glob("*.jpg")}

    assert run(extract_frames_from_videos, clips, "frames", 5)[0] == 0
    for attempt in range(2):
        status, output, _ = run(extract_faces_from_frames, "frames", "two")
        assert status == 0 and "face found by the CNN detector alone: 3 frames" in output, attempt
        assert content_of(tmp_path / "two")[0] == chips
        in_two_steps = content_of(tmp_path / "two")[1].items()
        found = {f"{name.rpartition('__')[0]}.mp4: {lines[0]}" for name, lines in in_two_steps}
        assert found == {f"{name}: {line.partition(': ')[2]}" for name, lines in reasons.items() for line in lines}
    for name in hidden[1:]:  # killed in the second look
        (tmp_path / "two" / name).unlink()
    lines = [f"{path},no face found\n" for path in (tmp_path / "frames").glob("hidden*")]
    (tmp_path / "two" / "failures.csv").write_text("".join(["input,reason\n", *lines]))
    os.utime(tmp_path / "two" / "failures.csv", (2**33, 2**33))
    assert run(extract_faces_from_frames, "frames", "two")[0] == 0
    assert content_of(tmp_path / "two")[0] == chips


@linux_only
def test_second_look_over_ray(clips, tmp_path, run, long_run):
    if not long_run:
        pytest.skip("only with --long; test_one_pass.py has a cluster in the short run")
    assert run(extract_frames_from_videos, clips, "frames", 1)[0] == 0
    assert run(extract_faces_from_frames, "frames", "here")[0] == 0
    (tmp_path / "cluster.py").write_text(CLUSTER)
    environment = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    command = [sys.executable, "cluster.py", REPOSITORY / "pre-processing" / "extract_faces_from_frames.py", "frames",
               tmp_path / "there"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert "status: 0" in result.stdout, result.stdout + result.stderr
    assert "face found by the CNN detector alone" in result.stdout
    assert with_folders(tmp_path / "there") == with_folders(tmp_path / "here")


def test_the_detector_of_a_folder_stays(clips, tmp_path, run):
    assert run(extract_faces_from_videos, clips, "faces", 2, "--detector", "hog")[0] == 0
    assert "detector" not in json.loads((tmp_path / "faces" / "preprocessing.json").read_text())  # as in older folders
    assert run(extract_faces_from_videos, clips, "faces", 5)[0] == 0
    chips, reasons = content_of(tmp_path / "faces")
    assert chips == ["once__frame_3_aligned.jpg"] and sum(TURN in line for line in reasons["side.mp4"]) >= 3
    status, _, errors = run(extract_faces_from_videos, clips, "faces", 5, "--detector", "cnn")
    assert status == 2 and "detector not noted there, cnn now" in errors
    (tmp_path / "clips").mkdir()
    shutil.copy(clips / "hidden.mp4", tmp_path / "clips")
    assert run(extract_faces_from_videos, "clips", "cnn", 2, "--detector", "cnn")[0] == 0
    assert len(content_of(tmp_path / "cnn")[0]) == 2


@pytest.mark.parametrize("turn, degrees", [(cv2.ROTATE_90_COUNTERCLOCKWISE, 90), (cv2.ROTATE_90_CLOCKWISE, 270)])
def test_a_tilted_face_on_its_side_is_not_taken_for_an_upright_one(turn, degrees):
    """The CNN detector finds it as it lies there, and the HOG detector is not sure of it even in the turned picture."""
    tilted = cv2.warpAffine(portrait(300), cv2.getRotationMatrix2D((150, 150), -12, 1), (300, 300))
    picture = np.ascontiguousarray(cv2.rotate(scene(tilted), turn)[:, :, ::-1])
    faces, reason = look_again(picture, "auto")
    assert not faces and f"turned by {degrees} degrees" in reason


def test_predict_says_which_detector_found_the_face(clips, tmp_path, run):
    cv2.imwrite(str(tmp_path / "side.png"), on_its_side())
    cv2.imwrite(str(tmp_path / "hidden.png"), half_hidden())
    two = np.hstack([scene(portrait(300)), scene(portrait(300))])
    cv2.imwrite(str(tmp_path / "two.png"), two)
    paths = [clips / "hidden.mp4", clips / "side.mp4", "side.png", "hidden.png", "two.png"]
    status, _, errors = run(predict, "pretrained", *paths, "--all-columns", "--out", "scores.json", "--per-frame",
                            "frames.json")
    rows = {os.path.basename(row["clip"]): row for row in json.loads((tmp_path / "scores.json").read_text())}
    assert status == 0 and rows["side.png"]["problem"] == rows["side.mp4"]["problem"] == TURN and TURN in errors
    assert [rows[name]["detector"] for name in ("hidden.mp4", "hidden.png", "two.png")] == ["cnn", "cnn", "hog"]
    assert (rows["hidden.mp4"]["frames"], rows["hidden.mp4"]["faces"]) == (5, 3)
    assert [rows[name]["others"] for name in ("hidden.png", "two.png")] == [0, 1]
    assert rows["two.png"]["note"] == "1 other face in the picture"
    assert {row["detector"] for row in json.loads((tmp_path / "frames.json").read_text())} == {"cnn", "hog"}
    status, _, errors = run(predict, "pretrained", "hidden.png", "--detector", "hog")
    assert status == 1 and "no face found, upright or turned" in errors
