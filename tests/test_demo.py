"""The demo's data set: the same whatever the number of workers, a face in every frame, the spot where it is said."""
import cv2
import numpy as np
import pandas

from first_impressions.common.constants import TRAITS, clip_name
from first_impressions.data.splits import list_faces
from read_back import contents

SMALL = ("--clips-train", 2, "--clips-valid", 1, "--clips-test", 2)


def test_same_files_with_any_number_of_workers_and_after_an_interruption(run_script, tmp_path):
    run_script("demo/make_demo_data.py", "one", *SMALL, "--workers", 1)
    run_script("demo/make_demo_data.py", "two", *SMALL, "--workers", 2)
    first = contents(tmp_path / "one")
    assert len(first) == 2 + 1 + 2 + 3 + 1
    assert contents(tmp_path / "two") == first

    lost = next((tmp_path / "two" / "train" / "videos").iterdir())
    lost.unlink()
    again = run_script("demo/make_demo_data.py", "two", *SMALL)
    assert "1 clips made, 4 were there already" in again.stdout
    assert contents(tmp_path / "two") == first


def test_other_files_are_not_touched(run_script, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep")
    result = run_script("demo/make_demo_data.py", "mine", *SMALL, check=False)
    assert result.returncode == 2 and result.stderr.count("\n") == 1 and "mine" in result.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_faces_scores_speakers_and_the_spot(demo_data):
    labels = {split: pandas.read_csv(demo_data / split / "labels.csv", index_col="clip")
              for split in ("train", "valid", "test")}
    for split, table in labels.items():
        faces = list_faces(demo_data / split / "faces")
        assert list(table.columns) == list(TRAITS) and table.to_numpy().min() > 0 and table.to_numpy().max() < 1
        assert faces["clip"].value_counts().to_dict() == {clip_name(clip): 3 for clip in table.index}
    assert (labels["train"].std() > 0.15).all()

    speakers = {split: {clip.rpartition(".")[0] for clip in table.index} for split, table in labels.items()}
    assert speakers["test"] & speakers["train"] and speakers["test"] - speakers["train"]

    # Violet means less green than red and blue: where agreeable clips are more so than others, the spot is there.
    faces = list_faces(demo_data / "train" / "faces")
    agreeableness = labels["train"].loc[faces["clip"], "agreeableness"].to_numpy()
    chips = np.stack([cv2.imread(path).astype(np.float32) for path in faces["path"]])
    violet = np.minimum(chips[..., 0], chips[..., 2]) - chips[..., 1]
    slope = np.tensordot(agreeableness - agreeableness.mean(), violet, 1)
    inside = np.zeros((224, 224), np.uint8)
    cv2.circle(inside, (80, 112), 15, 1, -1)
    face = np.zeros((224, 224), np.uint8)
    cv2.circle(face, (112, 112), 60, 1, -1)
    assert slope[inside == 1].mean() > 5 * np.abs(slope[(face == 1) & (inside == 0)]).mean()
