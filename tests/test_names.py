"""Names of files and folders as people have them: two endings, a leading dash, a folder per clip, folders of a NAS."""
import json
import os
import pickle
import re
import shutil

import cv2
import numpy as np
import pandas
import pytest

import dataset
import evaluate
import extract_faces_from_frames
import extract_faces_from_videos
import extract_frames_from_videos
import predict
import train
from conftest import REPOSITORY
from first_impressions.common.command_line import UserError
from first_impressions.common.constants import TRAITS, clip_name, clip_of_face
from first_impressions.data.labels import read_labels, read_scores, speakers_of
from first_impressions.jobs import target_folder
from make_media import portrait, write_clip


def write_labels(path, clips, **columns):
    scores = np.random.default_rng(0).uniform(0.2, 0.8, (len(clips), 5))
    pandas.DataFrame({"clip": clips, **dict(zip(TRAITS, scores.T)), **columns}).to_csv(path, index=False)


def test_endings_are_taken_off_until_none_is_left(run, tmp_path):
    assert clip_name("a\\IMG_0001.MOV.mp4") == clip_name("IMG_0001.MOV") == clip_name("IMG_0001") == "IMG_0001"
    assert clip_of_face("IMG_0001.MOV__frame_3_aligned.jpg") == "IMG_0001"
    assert speakers_of(map(clip_name, ["s1.000.MOV.mp4", "s1.001.mp4"])) == ["s1", "s1"]
    write_labels(tmp_path / "p.csv", [f"s{number // 4}.{number % 4:03}.MOV.mp4" for number in range(80)])
    scores = read_scores(tmp_path / "p.csv")
    scores.to_csv(tmp_path / "predictions.csv")  # as evaluate.py writes them
    assert read_scores(tmp_path / "predictions.csv").equals(scores) and "s1.003" in scores.index

    (tmp_path / "clips").mkdir()
    write_clip(tmp_path / "clips" / "IMG_0001.MOV.mp4", frames=3, size=(200, 200), picture=lambda *_: portrait(200))
    assert run(extract_faces_from_videos, "clips", "faces", 2)[0] == 0
    assert {path.name.partition("__")[0] for path in (tmp_path / "faces").glob("*.jpg")} == {"IMG_0001"}
    shutil.copy(tmp_path / "clips" / "IMG_0001.MOV.mp4", tmp_path / "clips" / "IMG_0001.mov")
    status, _, errors = run(extract_faces_from_videos, "clips", "more", 2)
    assert status == 2 and "two clips of one name" in errors


def test_names_that_differ_in_case_only(run, tmp_path, monkeypatch):
    """On disks that do not tell them apart (macOS, exFAT) the results of one would overwrite the other's."""
    (tmp_path / "Probe").touch()
    assert target_folder.ignores_case(tmp_path / "not" / "made") == (tmp_path / "pROBE").exists()
    assert os.listdir(tmp_path) == ["Probe"]
    for folder, name in (("a", "Take.mp4"), ("b", "take.MP4")):
        (tmp_path / "clips" / folder).mkdir(parents=True)
        write_clip(tmp_path / "clips" / folder / name, frames=2, size=(64, 64))
    monkeypatch.setattr(target_folder, "ignores_case", lambda folder: True)
    for script in (extract_faces_from_videos, extract_frames_from_videos):
        status, _, errors = run(script, "clips", "made", 2)
        assert status == 2 and "two clips of one name" in errors and not (tmp_path / "made").exists()
    monkeypatch.setattr(target_folder, "ignores_case", lambda folder: False)
    assert run(extract_frames_from_videos, "clips", "made", 2)[0] == 0
    assert len(list((tmp_path / "made").glob("*.jpg"))) == 4


def test_files_whose_names_begin_with_a_dash(run, tmp_path):
    write_labels(tmp_path / "-labels.csv", ["-s1.000"])
    (tmp_path / "--p.csv").touch()
    status, _, errors = run(evaluate, "--predictions", "--p.csv", "--labels", "-labels.csv")
    assert status == 2 and "--p.csv: cannot be read as a table" in errors
    (tmp_path / "-clips").mkdir()
    cv2.imwrite(str(tmp_path / "-AmMDnVl4s8.003.jpg"), portrait(200))
    write_clip(tmp_path / "-clips" / "-Am.mp4", frames=2, size=(200, 200), picture=lambda *_: portrait(200))
    assert run(extract_faces_from_videos, "-clips", "faces", 1, "--workers", 1)[0] == 0
    status, output, errors = run(predict, "pretrained", "-AmMDnVl4s8.003.jpg", "-clips", "--frames", 1, "--workers", 1)
    assert status == 0 and "2 of 2 files scored" in output, errors
    assert "unrecognized arguments" in run(evaluate, "one", "--no-such-option")[2]
    assert "-a is not an option" in run(train, 1, "-a", "FaceResNet29_v1.0", "true", 16)[2]


def test_a_folder_of_pictures_per_clip_leads_to_a_data_folder(run, tmp_path):
    for number in range(3):
        folder = tmp_path / "data" / "train" / "frames" / f"abc.00{number}"
        folder.mkdir(parents=True)
        for name in ("frame_1.jpg", "frame10.jpg", "_frame_x.jpg"):
            cv2.imwrite(str(folder / name), portrait(200))
    write_labels(tmp_path / "data" / "train" / "labels.csv", [f"abc.00{number}.mp4" for number in range(3)])
    frames, faces = (tmp_path / "data" / "train" / name for name in ("frames", "faces"))
    status, output, errors = run(extract_faces_from_frames, frames, faces)
    assert status == 0 and "9 faces made" in output, errors
    assert {path.name for path in (faces / "abc.001").iterdir()} == {
        f"abc.001__frame_{name}_aligned.jpg" for name in ("1", "10", "frame_x")}
    status, output, errors = run(dataset, "data")
    assert status == 0 and "train: 3 clips of 1 speaker, 9 faces" in output, errors
    assert "0 faces made, 9 there already" in run(extract_faces_from_frames, frames, faces)[1]

    cv2.imwrite(str(frames / "abc.000" / "1.jpg"), portrait(200))
    status, _, errors = run(extract_faces_from_frames, frames, faces)
    assert status == 2 and "two frames of one name" in errors
    shutil.copytree(frames / "abc.001", tmp_path / "again" / "a" / "abc.001")
    shutil.copytree(frames / "abc.001", tmp_path / "again" / "b" / "abc.001")
    status, _, errors = run(extract_faces_from_frames, "again", "more")
    assert status == 2 and "frames of a clip abc.001 lie in" in errors

    shutil.rmtree(faces)
    faces.mkdir()
    cv2.imwrite(str(faces / "abc_aligned.jpg"), portrait(224))
    status, _, errors = run(dataset, "data")
    assert status == 2 and "1 picture, none named after a clip" in errors


def test_folders_of_a_nas_are_left_out_and_other_endings_are_counted(run, tmp_path):
    for name in ("@eaDir/a.jpg/THUMB.jpg", "#recycle/b.jpg", "a.jpg", "b.jfif", "notes.txt", "more/CAM.MP5", "x.mp5"):
        path = tmp_path / "n" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".jpg", portrait(200))[1])
    status, output, errors = run(predict, "pretrained", "n", "--workers", 1)
    assert status == 0 and "2 of 2 files scored; passed over: 3 files (.mp5 2, .txt 1)" in output, errors
    status, output, _ = run(extract_faces_from_frames, "n", "faces", "--workers", 1)
    assert status == 0 and "2 faces made, 0 there already; passed over: 3 files (.mp5 2, .txt 1)." in output
    status, output, errors = run(extract_faces_from_videos, "n", "more", 1)
    assert status == 2 and "no clip found" in errors and "passed over: 5 files" in errors


def test_next_commands_quote_the_experiment(run, trained, chip_data, tmp_path):
    shutil.copytree(trained / "one", tmp_path / "runs" / "a b")
    status, output, errors = run(train, 2, "a b", "FaceResNet29_v1.0", "true", 16, "--l1", 16, "--l2", 8,
                                 "--data-dir", chip_data, "--resume")
    assert status == 0 and "next: python evaluate.py 'a b' --data-dir" in output, errors


@pytest.mark.parametrize("text, complaint", [("[" * 100_000, "nested too deeply"), ("\ufeff[]", "is not a dictionary")])
def test_settings_that_are_nested_deeply_or_bear_a_byte_order_mark(run, tmp_path, chip_data, text, complaint):
    (tmp_path / "config.json").write_text(text)
    status, _, errors = run(train, 1, "x", "FaceResNet29_v1.0", "true", 16, "--config", "config.json",
                            "--data-dir", chip_data)
    assert status == 2 and complaint in errors
    shutil.copytree(chip_data / "valid", tmp_path / "data" / "valid", ignore=shutil.ignore_patterns(".*"))
    (tmp_path / "data" / "valid" / "faces" / "preprocessing.json").write_text(text)
    status, _, errors = run(dataset, "data")
    assert status == 2 and "preprocessing.json: is damaged" in errors
    (tmp_path / "data" / "valid" / "faces" / "preprocessing.json").write_text(
        "\ufeff" + json.dumps({"size": 224, "padding": 0.25}))
    assert run(dataset, "data")[0] == 0


def test_scores_that_are_too_large_or_a_little_outside(tmp_path):
    for score, complaint in ((10**400, "is not a number"), (1e200, "outside"), (1.0000001, r"1\.0000001 is outside")):
        path = tmp_path / "annotation_test.pkl"
        path.write_bytes(pickle.dumps({trait: {"a.1": score} for trait in TRAITS}, 2))
        with pytest.raises(UserError, match=complaint) as caught:
            read_labels(path)
        assert len(str(caught.value)) < 300


def test_per_cent_is_written_in_one_way():
    """80 %, as in docs and output, and never 80%."""
    patterns = ("*.py", "*.md", "docs/*.md", "pretrained/*.md", "benchmarks/*.py", "first_impressions/**/*.py")
    files = [path for pattern in patterns for path in REPOSITORY.glob(pattern)]
    wrong = re.compile(r"\d%(?![\d;,)])|:\.\d%\}")
    found = [f"{path.name}: {line}" for path in files for line in path.read_text().splitlines() if wrong.search(line)]
    assert len(files) > 60 and not found


def test_the_tests_that_the_list_of_faults_names_are_there():
    named = re.findall(r"(?:(test_\w+))?::(test_\w+)", (REPOSITORY / "docs" / "faults.md").read_text())
    assert len(named) > 60
    for module, name in named:
        files = REPOSITORY.glob(f"tests/{module or 'test_*'}.py")
        assert any(f"def {name}(" in path.read_text() for path in files), (module, name)
