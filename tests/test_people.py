"""The same person over all frames of a clip, also when people change places, leave and come back."""
import json

import av
import cv2
import numpy as np
import pytest

import predict
from make_media import read_frames

FRAMES = 24


def write_clip(path, pictures):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4, options={"crf": "20"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for number, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def two_people(chalearn_dir):
    """The pictures of two real clips of two people, 640 x 360 px."""
    clips = [chalearn_dir / "clips" / "test" / "videos" / f"{name}.mp4"
             for name in ("9hqH1PJ6cG8.001", "BWAEpai6FK0.003")]
    return [[cv2.resize(picture, (640, 360)) for _, picture in read_frames(clip, FRAMES)] for clip in clips]


@pytest.mark.parametrize("kind", ["swap", "leave"])
def test_people_are_known_again(two_people, kind, tmp_path, run):
    first, second = two_people
    empty = np.full_like(first[0], 90)
    pictures, expected = [], {}
    for number in range(FRAMES):
        half = number >= FRAMES // 2
        if kind == "swap":
            sides = (second[number], first[number]) if half else (first[number], second[number])
            expected[number] = (2, 1) if half else (1, 2)
        else:
            away = FRAMES // 3 <= number < 2 * FRAMES // 3
            sides = (empty if away else first[number], second[number])
            expected[number] = (None, 2) if away else (1, 2)
        pictures.append(np.hstack(sides))
    write_clip(tmp_path / "both.mp4", pictures)
    assert run(predict, "pretrained", "both.mp4", "--faces", "all", "--every", "0.25", "--all-columns", "--out",
               "people.json", "--per-frame", "frames.json", "--plot", "course", "--annotate", "annotated",
               "--min-confidence", "0.2")[0] == 0
    people, frames = (json.loads((tmp_path / name).read_text()) for name in ("people.json", "frames.json"))
    assert [row["person"] for row in people] == [1, 2]
    assert people[1]["faces"] >= FRAMES - 3 and people[0]["frames"] == FRAMES
    assert len(frames) >= 0.9 * sum(person is not None for pair in expected.values() for person in pair)
    for row in frames:
        side = (row["left"] + row["right"]) / 2 > 640
        assert row["person"] == expected[row["frame"]][side], row
        assert row["confidence"] >= 0.2 and row["seconds"] == pytest.approx(row["frame"] / 4, abs=0.01)
    for row in people:
        for trait in ("openness", "neuroticism"):
            assert row[f"low_{trait}"] < row[trait] < row[f"high_{trait}"] and 0 <= row[f"percentile_{trait}"] <= 100
    assert cv2.imread(str(tmp_path / "course" / "both_course.png")).shape[0] > 400  # a panel for each of two
    assert cv2.imread(str(tmp_path / "annotated" / "both_scores.jpg")).shape[1] > 1280
