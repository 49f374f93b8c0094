"""Exported models, ONNX and torch.export, give the scores of the network they were made from."""
import csv
import json
import re
import shutil
from dataclasses import replace

import cv2
import numpy as np
import onnxruntime
import pytest
import torch

import export
import predict
from conftest import REPOSITORY
from first_impressions.common.constants import TRAITS
from first_impressions.common.files import packaged_model
from first_impressions.networks.checkpoint import Checkpoint
from first_impressions.networks.network import build_network
from first_impressions.networks.settings import Settings
from model_architectures import architecture_named

CONFIG = Settings(l1=16, l2=8, dropout=0.2, heads=2, components=20)


@pytest.fixture(scope="module", params=[("ResNet18_v1.0", "none"), ("FaceResNet29_v1.0", "dlib")],
                ids=["resnet18", "face29"])
def experiment(request, tmp_path_factory):
    """(runs folder with the untrained experiment `small`, its network): heads of random numbers are as good a test."""
    name, weights = request.param
    torch.manual_seed(0)
    config = replace(CONFIG, memory="exact", memory_weight=0.5) if name == "FaceResNet29_v1.0" else CONFIG
    network = build_network(architecture_named(name), config, weights).eval()
    with torch.no_grad():
        features = network.features(torch.randint(0, 256, (12, 3, 224, 224), dtype=torch.uint8))
        network.projection.fit(features)
        if network.memory is not None:
            network.memory.fit_exact(network.represent(features), torch.rand(12, 5), 0.3)
    checkpoint = Checkpoint(architecture_named(name), config, {"size": 224, "padding": 0.25}, network.state_dict(),
                            dict.fromkeys(TRAITS, 0.5), ["a.1"], ["a"], "train", 1, {})
    runs = tmp_path_factory.mktemp("runs")
    (runs / "small").mkdir()
    checkpoint.save(runs / "small" / "checkpoint_best.pt")
    return runs, checkpoint.build("small")


@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_exported_model_gives_the_networks_scores(experiment, run_script, run, form):
    runs, network = experiment
    arguments = ["small", "--format", form, "--runs-dir", runs]
    if network.memory is None:
        status, output, errors = run(export, *arguments)
        assert status == 0, errors
    else:
        result = run_script("export.py", *arguments)
        output, errors = result.stdout, result.stderr
    assert "exported" in output
    expected = ["contains descriptors of the training clips' faces"] if network.memory is not None else []
    assert [line for line in errors.splitlines() if not any(words in line for words in expected)] == []
    assert len(errors.splitlines()) == len(expected)
    if form == "onnx":
        session = onnxruntime.InferenceSession(runs / "small" / "model.onnx")
        assert session.get_inputs()[0].shape == ["N", 3, 224, 224]
        metadata = session.get_modelmeta().custom_metadata_map

        def exported(chips):
            return session.run(None, {"chips": chips.numpy()})[0]
    else:
        files = {"metadata.json": ""}
        module = torch.export.load(runs / "small" / "model.pt2", extra_files=files).module()
        metadata = json.loads(files["metadata.json"])

        def exported(chips):
            return module(chips).detach().numpy()
    assert metadata["traits"].split(",") == list(TRAITS)
    assert json.loads(metadata["preprocessing"]) == {"size": 224, "padding": 0.25}
    for number in (1, 3):
        # Smooth pictures and noise: noise alone would hide a wrong resize behind its mean.
        chips = torch.randint(0, 256, (number, 3, 224, 224), dtype=torch.uint8,
                              generator=torch.Generator().manual_seed(number))
        chips[0, 0] = torch.arange(224, dtype=torch.uint8)
        with torch.no_grad():
            expected = network.scores_of_faces(chips).numpy()
        scores = exported(chips)
        assert scores.dtype == np.float32 and scores.shape == (number, 5)
        assert np.abs(scores - expected).max() < 1e-4


def test_an_unknown_experiment_is_one_line(run):
    status, _, errors = run(export, "missing")
    assert status == 2 and len(errors.splitlines()) == 1 and "no such experiment" in errors
    assert "did you mean pretrained? " in run(export, "pretraind")[2] and "--runs-dir names another" in errors


def crop_by_numbers(picture, points, size, padding):
    """The crop as docs/evaluation_and_prediction.md describes it in numbers."""
    target = np.array([(0.8596, 0.2135), (0.6461, 0.2290), (0.1206, 0.2137), (0.3341, 0.2291), (0.4901, 0.6278)])
    target = (target + padding) / (1 + 2 * padding) * size
    # Umeyama, IEEE Transactions on Pattern Analysis and Machine Intelligence 13, 1991: the least-squares similarity.
    centred = points - points.mean(0), target - target.mean(0)
    u, strengths, v = np.linalg.svd(centred[1].T @ centred[0])
    turn = strengths.sum() / (centred[0] ** 2).sum() * (u @ v)
    matrix = np.hstack([turn, (target.mean(0) - turn @ points.mean(0))[:, None]])
    return cv2.warpAffine(picture, matrix, (size, size), flags=cv2.INTER_LINEAR)


def test_a_picture_is_scored_outside_the_suite(run, tmp_path):
    """The lines of the docs as they stand there, against predict.py; and the crop in numbers, against dlib's."""
    assert run(export, "pretrained", "--out", "model.onnx")[0] == 0
    shutil.copy(REPOSITORY / "tests" / "foreign" / "from_chrome.jfif", tmp_path / "picture.jpg")
    shutil.copy(packaged_model("shape_predictor_5_face_landmarks.dat"), tmp_path)
    text = (REPOSITORY / "docs" / "evaluation_and_prediction.md").read_text()
    code, found = re.search(r"```python\n(import cv2, dlib, onnxruntime.*?)```", text, re.DOTALL)[1], {}
    exec(code, found)
    assert run(predict, "pretrained", "picture.jpg", "--out", "scores.csv")[0] == 0
    with open(tmp_path / "scores.csv") as file:
        row, = csv.DictReader(file)
    # The docs search at full size, predict.py may find the box at another scale: the landmarks differ a little.
    assert found["scores"][0].tolist() == pytest.approx([float(row[trait]) for trait in TRAITS], abs=0.02)
    points = np.array([(point.x, point.y) for point in found["points"].parts()], float)
    difference = np.abs(crop_by_numbers(found["picture"], points, 224, 0.5) - found["chip"].astype(float))
    assert difference.mean() < 5
