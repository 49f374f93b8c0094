"""The model that comes with the suite, and checkpoints that can be given away like it."""
import json
import os
import shutil

import cv2
import pandas
import pytest
import torch

import evaluate
import export
import train
from conftest import REPOSITORY, signals_kept
from first_impressions.common.constants import TRAITS
from first_impressions.data.labels import SPEAKER_REGEX
from first_impressions.data.official_clips import official_clips
from first_impressions.networks.checkpoint import load_checkpoint
from first_impressions.networks.gaussian_process import LEAST_CLIPS, LEAST_SPEAKERS

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
    assert checkpoint.config.memory == "centres" and checkpoint.clips == [] and checkpoint.speakers == []
    state = checkpoint.network
    assert (state["memory.clips"] >= LEAST_CLIPS).all() and LEAST_CLIPS >= 10
    assert (state["memory.speakers"] >= LEAST_SPEAKERS).all() and LEAST_SPEAKERS >= 5
    assert len(state["memory.points"]) >= 100 and state["memory.descriptors"].numel() == 0
    # No tensor has a row for each of the 6,000 clips or 2,624 speakers.
    assert max(max(value.shape, default=0) for value in state.values()) == 8448
    known = {"FaceResNet29_v1.0", "face_resnet29", "l1", "l2", "centres", "dlib", SPEAKER_REGEX, *TRAITS}
    assert [name for name in names_in({key: value for key, value in content.items() if key != "preprocessing"})
            if name not in known] == ["train"]
    assert len(checkpoint.label_quantiles["openness"]) == 101 and checkpoint.intervals is not None


def test_shipped_model_scores_the_demos_picture(tmp_path, run_script):
    import skimage.data
    cv2.imwrite(str(tmp_path / "astronaut.png"), skimage.data.astronaut()[:, :, ::-1])
    result = run_script("predict.py", "pretrained", "astronaut.png", "--all-columns", "--out", "o.json")
    row = json.loads((tmp_path / "o.json").read_text())[0]
    assert "1 of 1 files scored" in result.stdout
    assert all(0.3 < row[trait] < 0.9 for trait in TRAITS)


def test_shipped_model_is_an_experiment_like_any_other(tmp_path, chip_data, run):
    data = tmp_path / "data"
    for split in ("train", "test"):
        shutil.copytree(chip_data / split, data / split)
        (data / split / "faces" / "preprocessing.json").write_text('{"size": 224, "padding": 0.5}')
    labels = data / "train" / "labels.csv"
    status, output, errors = run(evaluate, "pretrained", "--data-dir", data)
    assert status == 0 and "stores no names of its training clips" in errors and "speakers in training" not in output
    assert (tmp_path / "runs" / "pretrained" / "evaluation_test" / "metrics.json").exists()
    status, output, _ = run(evaluate, "pretrained", "--data-dir", data, "--train-labels", labels)
    assert status == 0 and "speakers in training" in output
    # Clips of the challenge that it has learned from are counted, and their speakers known, by the list of all clips.
    table = pandas.read_csv(data / "test" / "labels.csv")
    official = official_clips()
    names = [*official.index[official["split"] == "train"][:3], *official.index[official["split"] == "test"][:13]]
    for old, new in zip(table["clip"].str.removesuffix(".mp4"), names):
        for face in (data / "test" / "faces").glob(f"{old}__frame_*"):
            face.rename(face.with_name(face.name.replace(old, new)))
    table.assign(clip=names).to_csv(data / "test" / "labels.csv", index=False)
    status, output, errors = run(evaluate, "pretrained", "--data-dir", data)
    assert status == 0 and "3 of these 16 clips are among those" in errors and "speakers in training" in output
    assert run(export, "pretrained", "--format", "torch")[0] == 0
    assert (tmp_path / "runs" / "pretrained" / "model.pt2").stat().st_size > 10**7
    assert sorted(os.listdir(SHIPPED.parent)) == ["LICENSE", "MODEL_CARD.md", "make.sh", "model.pt"]
    status, _, errors = run(train, 2, "pretrained", "FaceResNet29_v1.0", "true", 16, "--data-dir", chip_data)
    assert status == 2 and "comes with the suite" in errors


@pytest.fixture(scope="module")
def experiments(chip_data, tmp_path_factory):
    """Folder runs/ with two small trainings, `centres` and `exact`."""
    runs = tmp_path_factory.mktemp("given") / "runs"
    for form in ("centres", "exact"):
        with signals_kept():
            train.main(["2", form, "FaceResNet29_v1.0", "true", "16", "--memory", form, "--components", "64",
                        "--data-dir", str(chip_data), "--runs-dir", str(runs)])
    return runs


def test_a_checkpoint_given_away_scores_the_same_and_names_nobody(experiments, chip_data, run):
    assert run(export, "centres", "--format", "checkpoint", "--runs-dir", experiments)[0] == 0
    (experiments / "friend").mkdir()
    os.replace(experiments / "centres" / "model.pt", experiments / "friend" / "model.pt")
    given = experiments / "friend" / "model.pt"
    assert b"speaker0" not in given.read_bytes()
    assert b"speaker0" in (experiments / "centres" / "checkpoint_last.pt").read_bytes()
    tables = []
    for name in ("centres", "friend"):
        assert run(evaluate, name, "--data-dir", chip_data, "--runs-dir", experiments)[0] == 0
        tables.append(pandas.read_csv(experiments / name / "evaluation_test" / "predictions.csv", index_col=0))
    difference = (tables[0][list(TRAITS)] - tables[1][list(TRAITS)]).abs().to_numpy().max()
    assert 0 < difference < 1e-3  # half precision
    arguments = (2, "friend", "FaceResNet29_v1.0", "true", 16, "--data-dir", chip_data, "--runs-dir", experiments)
    status, _, errors = run(train, *arguments)
    assert status == 2 and "--overwrite" in errors and given.exists()
    card = (experiments / "centres" / "MODEL_CARD.md").read_text()
    assert "48 clips" not in card and "64 clips of 17 speakers" in card and "Test clips (16)" in card


def test_rows_of_people_are_not_given_away(experiments, run):
    status, _, errors = run(export, "exact", "--format", "checkpoint", "--runs-dir", experiments)
    assert status == 2 and "can be recognised" in errors
    assert not (experiments / "exact" / "model.pt").exists()
    assert "can be recognised" in (experiments / "exact" / "MODEL_CARD.md").read_text()
