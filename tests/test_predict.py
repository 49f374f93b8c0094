"""Clips, pictures and folders scored by a trained experiment."""
import fcntl
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pandas
import pytest
import torch
from matplotlib.axes import Axes

import evaluate
import predict
from conftest import REPOSITORY, listen_to_ctrl_c, run_script_in
from first_impressions.common.constants import MEANS_COLUMN, TRAITS, face_name, frame_name
from first_impressions.common.device import Machine
from first_impressions.data.chips import read_chip
from first_impressions.networks.checkpoint import load_experiment
from first_impressions.prediction.drawings import MOST_POINTS, plot_course
from first_impressions.prediction.tables import COLUMNS, PIECE_COLUMNS
from make_media import portrait, write_clip


@pytest.fixture(scope="module")
def trained(demo_data, tmp_path_factory):
    """Folder with runs/demo, trained on the demo's faces."""
    folder = tmp_path_factory.mktemp("trained")
    run_script_in(folder, "train.py", 30, "demo", "FaceResNet29_v1.0", "true", 16, "--data-dir", demo_data, "--l1", 64,
                  "--l2", 16, "--heads", 1)
    return folder


def test_scores_equal_those_of_the_files(run, trained, demo_data, tmp_path):
    """The same frames by way of face chips on disk and in memory."""
    test = tmp_path / "data" / "test"
    test.mkdir(parents=True)
    shutil.copy(demo_data / "test" / "labels.csv", test)
    run_script_in(trained, "pre-processing/extract_faces_from_videos.py", demo_data / "test" / "videos",
                  test / "faces", 3)
    assert run(evaluate, "demo", "--data-dir", tmp_path / "data", "--runs-dir", trained / "runs")[0] == 0
    files = pandas.read_csv(trained / "runs" / "demo" / "evaluation_test" / "predictions.csv", index_col="clip")
    result = run_script_in(trained, "predict.py", "demo", demo_data / "test" / "videos", "--frames", 3,
                           "--all-columns", "--out", tmp_path / "o.csv")
    memory = pandas.read_csv(tmp_path / "o.csv")
    memory.index = [os.path.splitext(os.path.basename(path))[0] for path in memory["clip"]]
    assert sorted(memory.index) == sorted(files.index) and (memory["faces"] <= 3).all()
    difference = np.abs(memory.loc[files.index, list(TRAITS)].to_numpy() - files[list(TRAITS)].to_numpy())
    print(f"largest difference: {difference.max():.4f}")
    assert difference.max() < 1e-3
    # Each face, as an exported model scores it (test_export), and in bfloat16.
    network, _ = load_experiment("demo", trained / "runs", Machine(torch.device("cpu"), "float32"))
    chips = sorted((test / "faces").glob("*.jpg"))
    with torch.no_grad():
        expected = network.scores_of_faces(torch.stack([read_chip(path, 224) for path in chips])).numpy()
    expected = pandas.DataFrame(expected, index=[path.name for path in chips])
    for precision, most in (("float32", 1e-3), ("bfloat16", 0.03)):
        assert run(predict, "demo", demo_data / "test" / "videos", "--frames", 3, "--per-frame", "f.csv", "--precision",
                   precision, "--runs-dir", trained / "runs")[0] == 0
        faces = pandas.read_csv("f.csv")
        names = [face_name(Path(frame_name(Path(clip).stem, frame)).stem)
                 for clip, frame in zip(faces["clip"], faces["frame"])]
        difference = np.abs(faces[list(TRAITS)].to_numpy() - expected.loc[names].to_numpy()).max()
        print(f"largest difference of a face in {precision}: {difference:.5f}")
        assert (precision == "float32" or difference > 1e-4) and difference < most
    assert "6 of 6 files scored" in result.stdout


def test_scores_of_real_clips_equal_those_of_the_files(run, trained, chalearn_dir, tmp_path):
    data = tmp_path / "data" / "test"
    clips = sorted((chalearn_dir / "clips" / "test" / "videos").glob("*.mp4"))[:1]
    (data / "videos").mkdir(parents=True)
    for clip in clips:
        os.symlink(clip, data / "videos" / clip.name)
    shutil.copy(chalearn_dir / "clips" / "test" / "annotation_test.pkl", data)
    run_script_in(tmp_path, "pre-processing/extract_frames_from_videos.py", data / "videos", data / "frames", 4)
    run_script_in(tmp_path, "pre-processing/extract_faces_from_frames.py", data / "frames", data / "faces")
    assert run(evaluate, "demo", "--data-dir", tmp_path / "data", "--runs-dir", trained / "runs")[0] == 0
    files = pandas.read_csv(trained / "runs" / "demo" / "evaluation_test" / "predictions.csv", index_col="clip")
    assert run(predict, "demo", *clips, "--frames", 4, "--out", tmp_path / "o.json", "--runs-dir",
               trained / "runs")[0] == 0
    rows = json.loads((tmp_path / "o.json").read_text())
    memory = {os.path.splitext(os.path.basename(row["clip"]))[0]: row for row in rows}
    for clip in files.index:
        for trait in TRAITS:
            assert memory[clip][trait] == pytest.approx(files.loc[clip, trait], abs=1e-3)


def test_pictures_faces_and_broken_files(run, trained, demo_data, tmp_path):
    frame = cv2.imread(str(next((demo_data / "test" / "frames").glob("*.jpg"))))
    folder = tmp_path / "mixed"
    folder.mkdir()
    cv2.imwrite(str(folder / "two.png"), np.hstack([frame, frame]))
    cv2.imwrite(str(folder / "nobody.png"), np.full((200, 300, 3), 127, np.uint8))
    (folder / "broken.mp4").write_text("no clip")
    (folder / "notes.txt").write_text("not mine")
    status, output, errors = run(predict, "demo", folder, "--faces", "all", "--out", tmp_path / "o.csv", "--annotate",
                                 tmp_path / "pictures", "--explain", tmp_path / "maps", "--runs-dir", trained / "runs")
    table = pandas.read_csv(tmp_path / "o.csv")
    two = table[table["clip"].str.endswith("two.png")]
    assert two["person"].tolist() == [1, 2]
    assert np.abs(np.diff(two[list(TRAITS)].to_numpy(), axis=0)).max() < 0.05  # the same face twice
    problem = table.loc[table["clip"].str.endswith("nobody.png"), "problem"]
    assert problem.str.startswith("no face found").tolist() == [True]
    assert status == 0 and "broken.mp4" in errors and "Traceback" not in errors and "1 of 3 files scored" in output
    assert cv2.imread(str(tmp_path / "maps" / "two_heat_maps.png")).shape[1] >= 6 * 224
    assert cv2.imread(str(tmp_path / "pictures" / "two_scores.jpg")).shape[1] > 2 * frame.shape[1]


def test_a_pipe_is_not_waited_for(run, trained, tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "link.mp4").symlink_to("nothing.mp4")
    start = time.monotonic()
    status, _, errors = run(predict, "demo", "pipe.mp4", "link.mp4", "--runs-dir", trained / "runs")
    assert status == 1 and errors.count("neither a file nor a folder") == 2 and time.monotonic() - start < 20


@pytest.mark.parametrize("arguments, complaint", [
    (["demo", "nowhere.mp4"], "nowhere.mp4"),
    (["nobody", "."], "trained are demo"),
    (["demo", ".", "--out", "table.csv", "--per-frame", "./table.csv"], "are one file"),
    (["demo", ".", "--out", f"{__file__}/table.csv"], "cannot be made"),
    (["demo", ".", "--min-confidence", "nan"], "not a number"),
    (["demo", ".", "--every", "soon"], "not a number of seconds"),
    (["demo", ".", "--every", "1e-320"], "not a number of seconds"),
    (["demo", ".", "--predictor", __file__], "no landmark model"),
])
def test_wrong_arguments(run, trained, arguments, complaint):
    status, output, errors = run(predict, *arguments, "--runs-dir", trained / "runs")
    assert status == 2 and complaint in errors and len(errors.splitlines()) == 1 and not output


def test_tables_of_others_are_not_replaced(run, tmp_path):
    shutil.copy(REPOSITORY / "tests" / "foreign" / "web.webp", tmp_path)
    labels = f"clip,{','.join(TRAITS)}\na,.5,.5,.5,.5,.5\n"
    for name, content in (("labels.csv", labels), ("labels.json", '[{"clip": "a", "openness": 0.5}]')):
        (tmp_path / name).write_text(content)
        status, _, errors = run(predict, "pretrained", "web.webp", "--out", name)
        assert status == 2 and "is not a table of predict.py" in errors and (tmp_path / name).read_text() == content
    for name in ("new/scores.csv", "new/scores.json"):
        for _ in range(2):
            assert run(predict, "pretrained", "web.webp", "--out", name, "--per-frame", f"{name}.csv")[0] == 0


@pytest.mark.parametrize("codec, container, options", [
    ("libx264", "mp4", {"crf": "5"}), ("mpeg4", "avi", {"qmin": "1", "qmax": "1"})])
def test_course_of_a_clip(run, trained, tmp_path, codec, container, options):
    """The times of the frames, and the middle one in the annotated picture, of more frames than are kept in memory."""
    def picture(index, width, height):
        image = np.full((height, width, 3), 90, np.uint8)
        image[:, :height] = portrait(height)
        image[:, height:] = index + 30
        return image

    clip = write_clip(tmp_path / f"clip.{container}", frames=200, size=(320, 240), picture=picture, codec=codec,
                      options=options)
    status, output, errors = run(predict, "demo", clip, "--every", "0.04", "--per-frame", "frames.csv", "--annotate",
                                 "pictures", "--out", "scores.csv", "--runs-dir", trained / "runs")
    assert status == 0, errors
    table = pandas.read_csv(tmp_path / "frames.csv")
    assert len(table) > 190 and np.allclose(table["seconds"], table["frame"] / 25, atol=0.001)
    annotated = cv2.imread(str(tmp_path / "pictures" / "clip_scores.jpg"))
    assert abs(np.median(annotated[:240, 260:310]) - 30 - 100) <= 8

    status, _, errors = run(predict, "demo", clip, "--min-confidence", "99", "--runs-dir", trained / "runs")
    assert status == 1 and "no face found with a detection score of at least 99" in errors


def test_files_of_one_name_and_named_twice(run, trained, tmp_path):
    for name in ("one/face.png", "one/face.jpg", "two/face.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / name), portrait(300))
    status, output, _ = run(predict, "demo", "one", "two", "two/face.jpg", "./two/face.jpg", "--annotate", "pictures",
                            "--runs-dir", trained / "runs")
    assert status == 0 and "3 of 3 files scored" in output
    assert all(name in output for name in ("one/face.png", "one/face.jpg", "two/face.jpg"))
    assert sorted(os.listdir(tmp_path / "pictures")) == ["face.jpg_scores.jpg", "face.png_scores.jpg",
                                                          "face_scores.jpg"]
    status, output, errors = run(predict, "demo", "--plot", "course", "one/face.png", "--runs-dir", trained / "runs")
    assert status == 0 and "no course" in errors and "results:" not in output
    status, _, errors = run(predict, "two/face.jpg", "--runs-dir", trained / "runs")
    assert status == 2 and "predict.py pretrained clip.mp4" in errors


def forty_clips(folder):
    """Return the paths of forty equal clips with a face, enough to be stopped in the middle."""
    picture = np.hstack([portrait(240), np.zeros((240, 80, 3), np.uint8)])
    clip = write_clip(folder / "clip.mp4", size=(320, 240), picture=lambda *_: picture)
    return [shutil.copy(clip, folder / f"{number}.mp4") for number in range(40)]


@pytest.mark.parametrize("number, status", [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_stopped_run_leaves_no_faces_behind(trained, tmp_path, number, status):
    clips = forty_clips(tmp_path)
    process = subprocess.Popen([sys.executable, REPOSITORY / "predict.py", "demo", *clips, "--workers", "1", "--frames",
                                "60", "--runs-dir", trained / "runs"], stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "TMPDIR": str(tmp_path)}, preexec_fn=listen_to_ctrl_c)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("face-chips-*/tmp*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert list(tmp_path.glob("face-chips-*/tmp*"))
    process.send_signal(number)
    if number != signal.SIGINT:
        process.send_signal(signal.SIGHUP)  # a terminal that closes may send it twice
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (status, 129 if number != signal.SIGINT else status)  # of two the lower number counts
    assert "stopped by" in errors and "Traceback" not in errors
    assert not list(tmp_path.glob("face-chips-*"))


def test_scores_are_kept_when_the_terminal_closes(trained, tmp_path):
    clips = forty_clips(tmp_path)
    master, terminal = os.openpty()
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))

    def take_terminal():
        listen_to_ctrl_c()
        os.setsid()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

    process = subprocess.Popen([sys.executable, REPOSITORY / "predict.py", "demo", *clips, "--workers", "1", "--frames",
                                "30", "--runs-dir", trained / "runs", "--out", tmp_path / "scores.csv"],
                               stdin=terminal, stdout=terminal, stderr=terminal, preexec_fn=take_terminal,
                               env={**os.environ, "TMPDIR": str(tmp_path)})
    os.close(terminal)
    shown = b""
    while not re.search(rb" ([3-9]|\d\d)/40 ", shown):  # the bar, which counts a file before its scores are taken in
        shown += os.read(master, 1000)
    os.close(master)
    assert process.wait(timeout=60) == 129
    assert 2 <= len(pandas.read_csv(tmp_path / "scores.csv")) < 40 and not list(tmp_path.glob("face-chips-*"))


def test_long_clips_in_pieces(run, tmp_path):
    portrait_clip = REPOSITORY / "tests" / "foreign" / "wide_854x480.mp4"
    with av.open(str(portrait_clip)) as source, av.open(str(tmp_path / "long.mp4"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        step = source.streams.video[0].duration
        for _ in range(50):
            for packet in packets:
                packet.stream = stream
                target.mux(packet)
                packet.pts, packet.dts = packet.pts + step, packet.dts + step
    status, output, errors = run(predict, "pretrained", "long.mp4", "--piece", 15, "--frames", 2, "--out", "o.csv",
                                 "--plot", "course")
    table = pandas.read_csv(tmp_path / "o.csv")
    assert status == 0 and len(table) == 1 + 4 and (tmp_path / "course" / "long_course.png").exists()
    whole, pieces = table.iloc[0], table.iloc[1:]
    assert pieces["piece"].tolist() == [1, 2, 3, 4] and pieces["end"].iloc[-1] == pytest.approx(66.7, abs=0.2)
    assert np.allclose(whole[list(TRAITS)].astype(float), pieces[list(TRAITS)].mean(), atol=1e-5)
    assert np.isnan(whole["low_openness"]) and (pieces["low_openness"] < pieces["openness"]).all()
    # Whole, it has no interval of a short clip, and a note says why.
    assert run(predict, "pretrained", "long.mp4", "--frames", 2, "--out", "o.csv")[0] == 0
    table = pandas.read_csv(tmp_path / "o.csv")
    assert len(table) == 1 and table["low_openness"].isna().all() and "--piece 15" in table["note"][0]
    assert list(table.columns) == [name for name in COLUMNS if name not in PIECE_COLUMNS]


def test_a_course_says_that_its_points_are_means(monkeypatch):
    titles = []
    set_all = Axes.set
    monkeypatch.setattr(Axes, "set", lambda axes, **named: titles.append(named.get("title")) or set_all(axes, **named))
    face = {"person": 1, "seconds": 0.0, **dict.fromkeys(TRAITS, 0.5)}
    for number, title in ((MOST_POINTS, None), (3 * MOST_POINTS, "each point: the mean of about 3.0 faces")):
        people = [{"person": 1, MEANS_COLUMN: "neuroticism"}]
        scores = SimpleNamespace(people=people, rows=people, faces=[face] * number)
        assert plot_course(scores).size and titles.pop() == title


def test_from_python_on_standard_input(run_script, run, tmp_path):
    """The lines of docs/evaluation_and_prediction.md, as they stand there."""
    text = (REPOSITORY / "docs" / "evaluation_and_prediction.md").read_text()
    code = re.search(r"```python\n(import first_impressions.*?)```", text, re.DOTALL)[1]
    assert len(code.splitlines()) == 5
    (tmp_path / "clips").mkdir()
    for name in ("wide_854x480.mp4", "web.webp"):
        shutil.copy(REPOSITORY / "tests" / "foreign" / name, tmp_path / "clips")
    done = subprocess.run([sys.executable, "-"], input=code, cwd=tmp_path, text=True, capture_output=True,
                          env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, timeout=120)
    assert done.returncode == 0, done.stderr
    table = pandas.read_csv(tmp_path / "scores.csv")
    assert run(predict, "pretrained", "clips", "--all-columns", "--out", "o.csv")[0] == 0
    expected = pandas.read_csv(tmp_path / "o.csv")
    assert list(table.columns) == list(expected.columns) and np.allclose(table[list(TRAITS)], expected[list(TRAITS)])
