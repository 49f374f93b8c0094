"""From clips to faces in one pass: the frames and faces of the two scripts, the same files whatever happens."""
import os
import random
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

import extract_faces_from_frames
import extract_faces_from_videos
from conftest import REPOSITORY, linux_only, run_script_in
from first_impressions.extraction import clip_faces
from first_impressions.extraction.clip_faces import extract_clip_faces
from first_impressions.extraction.faces import CropSettings
from first_impressions.extraction.frames import FrameSettings, choose_frames, earlier_frames
from first_impressions.extraction.tracking import FaceTracker
from first_impressions.jobs.failures import known_failures
from first_impressions.jobs.target_folder import open_target
from make_media import portrait, write_clip
from read_back import contents, failures_in
from test_faces import detector_alone
from test_preprocessing_faults import CLUSTER, all_gone, start, with_folders

SCRIPT = "pre-processing/extract_faces_from_videos.py"
FRAMES = "pre-processing/extract_frames_from_videos.py"


def scene(width, height, *faces, grey=90):
    """Return a BGR picture with portraits (left, top, size) on a flat ground."""
    picture = np.full((height, width, 3), grey, np.uint8)
    for left, top, size in faces:
        picture[top:top + size, left:left + size] = portrait(size)
    return picture


def person(index, width, height):
    """A person who moves, comes nearer and is not there in every tenth frame."""
    return scene(width, height, *([(40 + 3 * index, 20, 400 + index)] if index % 10 else []))


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Folder of clips of 40 frames: three show a person in nine frames of ten, one shows nobody, one is not a clip."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(3):
        write_clip(folder / f"person{number}.mp4", frames=40, size=(640, 480), picture=person)
    write_clip(folder / "nobody.mp4", frames=40, size=(160, 90))
    (folder / "broken.mp4").write_text("no clip")
    return folder


@pytest.fixture(scope="module")
def undisturbed(clips, tmp_path_factory):
    """Folder with the faces in 12 frames of each clip."""
    folder = tmp_path_factory.mktemp("undisturbed") / "faces"
    run_script_in(folder.parent, SCRIPT, clips, folder, 12, "--workers", 1)
    return folder


@pytest.fixture(scope="module")
def frames(clips, tmp_path_factory):
    """Folder with 12 frames of each clip."""
    folder = tmp_path_factory.mktemp("frames") / "frames"
    run_script_in(folder.parent, FRAMES, clips, folder, 12)
    return folder


def difference(first, second):
    """Return the mean difference of two JPEG files in grey levels."""
    pictures = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).astype(float) for data in (first, second)]
    return np.abs(pictures[0] - pictures[1]).mean()


@pytest.mark.parametrize("which", ["largest", "all"])
def test_frames_and_faces_of_the_two_scripts(clips, frames, undisturbed, tmp_path, run, which):
    assert run(extract_faces_from_frames, frames, "faces", "--faces", which)[0] == 0
    one_pass = undisturbed
    if which == "all":
        one_pass = tmp_path / "one_pass"
        assert run(extract_faces_from_videos, clips, one_pass, 12, "--faces", "all")[0] == 0
    expected, found = contents(tmp_path / "faces", "*.jpg"), contents(one_pass, "*.jpg")
    assert 24 < len(expected) and set(found) == set(expected)
    differences = [difference(found[name], expected[name]) for name in expected]
    assert np.mean(differences) < 5 and max(differences) < 15  # grey levels
    empty = [(f"{name.rpartition('__frame_')[0]}.mp4", f"frame {name.rpartition('_')[2][:-4]}: {reason}")
             for name, reason in failures_in(tmp_path / "faces")]
    reasons = failures_in(one_pass)
    assert sorted(empty) == [line for line in reasons if "frame" in line[1]] and ("nobody.mp4", empty[0][1]) in reasons
    assert len(reasons) == len(empty) + 1 and reasons[0][0] == "broken.mp4"


def test_same_files_on_every_way(clips, undisturbed, tmp_path, run):
    status, again, _ = run(extract_faces_from_videos, clips, undisturbed, 12)
    assert status == 0
    assert "0 faces made" in again and "No face found: " in again and "other problems: 1" in again
    # Few frames first, then chips lost, then more frames, by other workers.
    faces = tmp_path / "faces"
    assert run(extract_faces_from_videos, clips, faces, 5, "--workers", 2)[0] == 0
    before = {path: path.stat().st_mtime_ns for path in faces.glob("*.jpg")}
    lost = random.Random(1).sample(sorted(before), 4)
    for path in lost:
        path.unlink()
        del before[path]
    status, more, _ = run(extract_faces_from_videos, clips, faces, 12, "--workers", 2)
    made = len(contents(undisturbed, "*.jpg")) - len(before)
    assert status == 0 and f"{made} faces made, {len(before)} there already" in more
    assert with_folders(faces) == with_folders(undisturbed)
    assert before.items() <= {path: path.stat().st_mtime_ns for path in faces.glob("*.jpg")}.items()
    for other in (["--seed", 1], ["--size", 112]):
        status, _, errors = run(extract_faces_from_videos, clips, faces, 12, *other)
        assert status == 2 and f"{other[0][2:]} {'0' if other[1] == 1 else '224'} there" in errors


def test_frames_without_a_face_are_searched_once(clips, tmp_path, run, monkeypatch):
    (tmp_path / "clips").mkdir()
    clip = tmp_path / "clips" / "nobody.mp4"
    clip.write_bytes((clips / "nobody.mp4").read_bytes())
    for attempt in range(2):
        status, output, _ = run(extract_faces_from_videos, tmp_path / "clips", "faces", 3)
        assert status == 0 and "No face found: 3 frames" in output, attempt
    searched = []
    monkeypatch.setattr(FaceTracker, "find_faces", lambda self, index, picture: searched.append(index) or [])
    monkeypatch.setattr(clip_faces, "look_again", lambda *_: searched.append("again") or ([], "none"))
    with open_target(tmp_path / "faces", None):
        job = str(tmp_path / "faces"), FrameSettings(3), CropSettings()
        made, present, problems = extract_clip_faces(str(clip), *job, known_failures(tmp_path / "faces"))
        assert (made, present, len(problems), searched) == (0, 0, 3, [])
        clip.write_bytes(clip.read_bytes())
        extract_clip_faces(str(clip), *job, known_failures(tmp_path / "faces"))
        assert len(searched) == 6 and searched.count("again") == 3


def test_what_a_frame_learns_from_stays_when_more_are_drawn():
    few, many = (choose_frames("clip", range(400), number, 0) for number in (10, 100))
    earlier = earlier_frames("clip", many, 0)
    assert earlier_frames("clip", few, 0).items() <= earlier.items()
    assert all(others == sorted(others, reverse=True) and max(others, default=-1) < index
               for index, others in earlier.items())
    assert sum(not others for others in earlier.values()) < 15


def two_people(index):
    return scene(1280, 720, (40 + 4 * index, 40, 640), (860, 200 + index, 330))


def overtaking(index):  # who is behind comes to the front
    return scene(1280, 720, (20, 100, 380), (500, 5, 260 + 11 * index))


def cut(index):  # to two people: at the place of the first one another one who is farther away than the third
    return scene(1280, 720, (100, 60, 500)) if index < 20 else scene(
        1280, 720, (110 + index, 80, 440), (620, 20, 640), grey=160)


@pytest.mark.parametrize("picture, from_index", [(two_people, 99), (overtaking, 11), (cut, 20)])
def test_the_largest_face_stays_the_largest(picture, from_index):  # on the right from an index on
    tracker = FaceTracker(earlier_frames("clip", range(40), 0))
    for index in range(0, 40):
        frame = np.ascontiguousarray(picture(index)[..., ::-1])
        found = tracker.find_faces(index, frame)
        on_right = index >= from_index
        if index != 11:  # faces of 380 and 381 pixels
            assert (found[0].box.left > 500) == on_right, index
        if index % 4 == 0:  # the detector alone takes its time; 12: just overtaken, 20: just cut
            boxes = [box for box, _ in detector_alone(frame) if (box.left > 500) == on_right]
            assert found[0].box.overlap(max(boxes, key=lambda box: box.area)) > 0.5, index


@pytest.mark.parametrize("ratio", [0.8, 0.9])
def test_the_largest_of_two_has_the_box_of_the_detector_alone(ratio):
    tracker = FaceTracker(earlier_frames("clip", range(12), 0))
    for index in range(12):
        size = 520 + 6 * index
        frame = scene(1280, 720, (10, 20 + 3 * index, size), (640 + 2 * index, 90, int(ratio * size)))
        frame = np.ascontiguousarray(frame[..., ::-1])
        expected = max((box for box, _ in detector_alone(frame) if box.left < 640), key=lambda box: box.area)
        assert tracker.find_faces(index, frame)[0].box.overlap(expected) > 0.9, index


def test_killed_at_any_moment(clips, undisturbed, tmp_path, run, long_run):
    chance, cut_short = random.Random(3), 0
    for attempt in range(20 if long_run else 2):
        folder = tmp_path / f"faces{attempt}"
        process = start(tmp_path, REPOSITORY / SCRIPT, clips, folder, 12)
        while not list(folder.glob("*.jpg")) and process.poll() is None:
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        kill = os.kill if attempt % 2 else os.killpg  # the parent alone: its workers must follow
        kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert all_gone(process.pid)
        left = contents(folder, "*.jpg")
        assert left.items() <= contents(undisturbed, "*.jpg").items(), "a chip that is not whole, or another one"
        cut_short += len(left) < len(contents(undisturbed, "*.jpg"))
        assert run(extract_faces_from_videos, clips, folder, 12)[0] == 0
        assert with_folders(folder) == with_folders(undisturbed)
    assert cut_short


@linux_only
def test_ray_cluster(clips, undisturbed, tmp_path):
    (tmp_path / "cluster.py").write_text(CLUSTER)
    environment = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    command = [sys.executable, "cluster.py", REPOSITORY / SCRIPT, clips, "12", tmp_path / "faces"]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert "status: 0" in result.stdout, result.stdout + result.stderr
    assert with_folders(tmp_path / "faces") == with_folders(undisturbed)
