"""The model that comes with the suite, and checkpoints that can be given away like it."""
import json
import os
import shutil

import cv2
import pandas
import pytest
import torch

from checkpoint import load_checkpoint
from conftest import REPOSITORY
from gaussian_process import LEAST_CLIPS, LEAST_SPEAKERS
from labels import TRAITS

SHIPPED = REPOSITORY / "pretrained" / "model.pt"


def names_in(value):
    """Return all texts in plain data, but for keys of dictionaries."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [name for item in value for name in names_in(item)]
    return [value] if isinstance(value, str) else []


def test_shipped_model_keeps_nobody():
    assert SHIPPED.stat().st_size <= 6_000_000
    content = torch.load(SHIPPED, weights_only=True)
    checkpoint = load_checkpoint(SHIPPED)
    assert checkpoint.config["memory"] == "centres" and checkpoint.clips == [] and checkpoint.speakers == []
    state = checkpoint.network
    assert (state["memory.clips"] >= LEAST_CLIPS).all() and LEAST_CLIPS >= 10
    assert (state["memory.speakers"] >= LEAST_SPEAKERS).all() and LEAST_SPEAKERS >= 5
    assert len(state["memory.points"]) >= 100 and state["memory.descriptors"].numel() == 0
    # No tensor has a row for each of the 6,000 clips or 2,624 speakers.
    assert max(max(value.shape, default=0) for value in state.values()) == 8448
    known = {"FaceResNet29_v1.0", "centres", "dlib", *TRAITS}
    assert [name for name in names_in({key: value for key, value in content.items() if key != "preprocessing"})
            if name not in known] == ["train"]
    assert len(checkpoint.label_quantiles["openness"]) == 101 and checkpoint.intervals is not None


def test_shipped_model_scores_the_demos_picture(tmp_path, run_script):
    import skimage.data
    cv2.imwrite(str(tmp_path / "astronaut.png"), skimage.data.astronaut()[:, :, ::-1])
    result = run_script("predict.py", "pretrained", "astronaut.png", "--out", "o.json")
    row = json.loads((tmp_path / "o.json").read_text())[0]
    assert "1 of 1 files scored" in result.stdout
    assert all(0.3 < row[trait] < 0.9 for trait in TRAITS)


def test_shipped_model_is_an_experiment_like_any_other(tmp_path, chip_data, run_script):
    data = tmp_path / "data"
    for split in ("train", "test"):
        shutil.copytree(chip_data / split, data / split)
        (data / split / "faces" / "preprocessing.json").write_text('{"size": 224, "padding": 0.5}')
    labels = data / "train" / "labels.csv"
    first = run_script("evaluate.py", "pretrained", "--data-dir", data)
    assert "keeps no names of its training clips" in first.stderr and "speakers in training" not in first.stdout
    assert (tmp_path / "runs" / "pretrained" / "evaluation_test" / "metrics.json").exists()
    second = run_script("evaluate.py", "pretrained", "--data-dir", data, "--train-labels", labels)
    assert "speakers in training" in second.stdout
    run_script("export.py", "pretrained", "--format", "torch")
    assert (tmp_path / "runs" / "pretrained" / "model.pt2").stat().st_size > 10**7
    assert sorted(os.listdir(SHIPPED.parent)) == ["LICENSE", "MODEL_CARD.md", "make.sh", "model.pt"]
    refused = run_script("train.py", 2, "pretrained", "FaceResNet29_v1.0", "true", 16, "--data-dir", chip_data,
                         check=False)
    assert refused.returncode == 2 and "comes with the suite" in refused.stderr


@pytest.fixture(scope="module")
def experiments(chip_data, tmp_path_factory):
    from conftest import run_script_in
    folder = tmp_path_factory.mktemp("given")
    for form in ("centres", "exact"):
        run_script_in(folder, "train.py", 3, form, "FaceResNet29_v1.0", "true", 16, "--memory", form, "--components",
                      64, "--data-dir", chip_data)
    return folder


def test_a_checkpoint_given_away_scores_the_same_and_names_nobody(experiments, chip_data, run_script):
    run_script("export.py", "centres", "--format", "checkpoint", cwd=experiments)
    (experiments / "runs" / "friend").mkdir()
    os.replace(experiments / "runs" / "centres" / "model.pt", experiments / "runs" / "friend" / "model.pt")
    given = experiments / "runs" / "friend" / "model.pt"
    assert b"speaker0" not in given.read_bytes()
    assert b"speaker0" in (experiments / "runs" / "centres" / "checkpoint_last.pt").read_bytes()
    tables = []
    for name in ("centres", "friend"):
        run_script("evaluate.py", name, "--data-dir", chip_data, cwd=experiments)
        tables.append(pandas.read_csv(experiments / "runs" / name / "evaluation_test" / "predictions.csv", index_col=0))
    difference = (tables[0][list(TRAITS)] - tables[1][list(TRAITS)]).abs().to_numpy().max()
    assert 0 < difference < 1e-3  # half precision
    card = (experiments / "runs" / "centres" / "MODEL_CARD.md").read_text()
    assert "48 clips" not in card and "64 clips of 17 speakers" in card and "Test clips (16)" in card


def test_rows_of_people_are_not_given_away(experiments, run_script):
    refused = run_script("export.py", "exact", "--format", "checkpoint", cwd=experiments, check=False)
    assert refused.returncode == 2 and "can be recognised" in refused.stderr
    assert not (experiments / "runs" / "exact" / "model.pt").exists()
    assert "can be recognised" in (experiments / "runs" / "exact" / "MODEL_CARD.md").read_text()
