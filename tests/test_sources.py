"""Two clips of one name do not become one clip: frames and faces note the file that they were made of."""
import shutil

import cv2
import numpy as np

import extract_faces_from_frames
import extract_faces_from_videos
import extract_frames_from_videos
from first_impressions.extraction.sources import read_source
from make_media import portrait, write_clip
from read_back import contents, failures_in


def person(size):
    def picture(index, width, height):
        frame = np.full((height, width, 3), 90, np.uint8)
        frame[20:20 + size, 40 + index:40 + index + size] = portrait(size)
        return frame
    return picture


def test_two_clips_of_one_name_in_two_runs(tmp_path, run):
    for name, size in (("anna", 300), ("ben", 280)):
        (tmp_path / name).mkdir()
        write_clip(tmp_path / name / "take1.mp4", frames=4, size=(480, 360), picture=person(size))
    write_clip(tmp_path / "ben" / "take2.mp4", frames=4, size=(480, 360), picture=person(280))
    shutil.copytree(tmp_path / "anna", tmp_path / "copied")
    sizes = {name: (tmp_path / name / "take1.mp4").stat().st_size for name in ("anna", "ben")}
    for script, target in ((extract_faces_from_videos, "faces"), (extract_frames_from_videos, "frames")):
        assert run(script, "anna", target, 2)[0] == 0
        made = contents(tmp_path / target, "*.jpg")
        status, output, _ = run(script, "ben", target, 4)
        assert status == 0 and f"4 {target} made, 0 there already" in output and "Problems: 1 clip" in output
        assert contents(tmp_path / target, "take1*.jpg") == made
        [(_, reason)] = failures_in(tmp_path / target)
        assert all(f"take1.mp4, {size} bytes" in reason for size in sizes.values()) and "rename it" in reason
        assert "2 there already" in run(script, "copied", target, 2)[1] and not failures_in(tmp_path / target)

    # Frames tell the faces made of them which clip they are of.
    assert run(extract_frames_from_videos, "ben", "frames_of_ben", 4)[0] == 0
    assert run(extract_faces_from_frames, "frames", "two_steps")[0] == 0
    made = contents(tmp_path / "two_steps", "*.jpg")
    assert {read_source(tmp_path / "two_steps" / name).rpartition(", ")[2] for name in made if "take1" in name} == {
        f"{sizes['anna']} bytes"}
    assert run(extract_faces_from_frames, "frames_of_ben", "two_steps")[0] == 0
    assert contents(tmp_path / "two_steps", "*.jpg") == made and len(failures_in(tmp_path / "two_steps")) == 4

    # Faces of older versions note nothing; pictures that are not of a clip are told apart, too.
    for name, data in contents(tmp_path / "faces", "*.jpg").items():
        (tmp_path / "faces" / name).write_bytes(data[:2] + data[6 + data[5] - 2:])
        assert cv2.imread(str(tmp_path / "faces" / name)).shape == (224, 224, 3)
    assert "2 faces made, 6 there already" in run(extract_faces_from_videos, "ben", "faces", 4)[1]
    for name, size in (("a", 300), ("b", 280)):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "me.png"), person(size)(0, 480, 360))
        assert run(extract_faces_from_frames, name, "pictures")[0] == 2 * (name == "b")
    assert "me.png" in failures_in(tmp_path / "pictures")[0][1]
