"""Labels of every kind, good and bad, and the face folders."""
import io
import json
import os
import pickle
import random
import re

import numpy as np
import pandas
import pytest
import torch

import evaluate
import predict
from conftest import REPOSITORY, write_chips
from dataset import FaceDataset
from first_impressions.common.command_line import UserError
from first_impressions.common.constants import TRAITS, clip_name
from first_impressions.common.device import Machine
from first_impressions.data.chips import chip_loader, epoch_batches
from first_impressions.data.labels import read_labels, read_scores, speakers_of
from first_impressions.data.splits import join_splits, list_faces, load_split, split_by_speaker
from first_impressions.extraction.detectors import find_predictor
from first_impressions.networks.checkpoint import find_checkpoint, load_checkpoint

FOREIGN = REPOSITORY / "tests" / "foreign"
MACHINE = Machine(torch.device("cpu"), cache="float32")
HEADER = "clip," + ",".join(TRAITS) + "\n"


def test_official_labels(chalearn_dir):
    labels, _ = read_labels(chalearn_dir / "annotation_training.pkl")
    assert labels.shape == (6000, 5)
    assert labels.mean().round(3).tolist() == [0.566, 0.523, 0.476, 0.548, 0.520]


class _Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def good_content():
    return {trait: {"abc.000.mp4": 0.25, "abc.001.mp4": np.float64(0.75)} for trait in TRAITS}


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_pickled_labels_are_read_and_code_in_them_is_not_run(tmp_path, protocol):
    good = tmp_path / "good.pkl"
    content = good_content()
    good.write_bytes(pickle.dumps({**content, "interview": content["openness"]}, protocol))
    assert read_labels(good)[0].loc["abc.001"].tolist() == [0.75] * 5

    mark = tmp_path / "it_ran"
    for place in ("top", "trait", "score", "name"):
        evil = good_content()
        if place == "top":
            evil = _Touch(mark)
        elif place == "trait":
            evil["openness"] = _Touch(mark)
        elif place == "score":
            evil["openness"]["abc.000.mp4"] = _Touch(mark)
        else:
            evil["openness"] = {("abc", _Touch(mark)): 0.5}
        path = tmp_path / f"{place}.pkl"
        path.write_bytes(pickle.dumps(evil, protocol))
        with pytest.raises(UserError, match="system"):
            read_labels(path)
        assert not mark.exists()


def test_official_file_with_a_call_in_it_is_refused(chalearn_dir, tmp_path):
    data = (chalearn_dir / "annotation_training.pkl").read_bytes()
    mark = tmp_path / "it_ran"
    evil = tmp_path / "annotation_training.pkl"
    call = f"cposix\nsystem\n(S'touch {mark}'\ntR0".encode()
    evil.write_bytes(data[:2] + call + data[2:])
    with pytest.raises(UserError, match="posix.system"):
        read_labels(evil)
    assert not mark.exists()


@pytest.mark.parametrize("text, complaint", [
    ("", "cannot be read"),
    (HEADER, "contains no clip"),
    ("clip,openness\na,0.5\n", "no column for conscientiousness"),
    ("name," + ",".join(TRAITS) + "\na,1,1,1,1,1\n", "no column `clip`"),
    (HEADER + "a,0.5,0.5,0.5,0.5,\n", "neuroticism"),
    (HEADER + "a,0.5,0.5,0.5,0.5,NaN\n", "not a number"),
    (HEADER + "a,0.5,0.5,1.7,0.5,0.5\n", r"extraversion: 1.7 is outside"),
    (HEADER + "a,0.5,high,0.5,0.5,0.5\n", "'high'"),
    (HEADER + "a.mp4,0.5,0.5,0.5,0.5,0.5\na,0.5,0.5,0.5,0.5,0.5\n", "a is listed twice"),
])
def test_wrong_labels_are_named(tmp_path, text, complaint):
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=complaint) as caught:
        read_labels(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [
    "\ufeff" + HEADER + "a.mp4,0,0.25,0.5,0.75,1\n",
    HEADER.replace(",", ";") + "a.mp4;0;0.25;0.5;0.75;1\n",
    HEADER.replace(",", "\t") + "a\t0\t0.25\t0.5\t0.75\t1\n",
    "VideoName,ValueOpenness,ValueConscientiousness,ValueExtraversion,ValueAgreeableness,ValueNeuroticism\n"
    "a.mp4,0,0.25,0.5,0.75,1\n",
])
def test_other_dialects_of_csv(tmp_path, text):
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    assert read_scores(path).loc["a"].tolist() == [0, 0.25, 0.5, 0.75, 1]


def test_names():
    assert clip_name("train/J4GQm9j0JZ0.003.mp4") == clip_name("J4GQm9j0JZ0.003") == "J4GQm9j0JZ0.003"
    assert speakers_of(["J4GQm9j0JZ0.003", "J4GQm9j0JZ0.001", "holiday"]) == ["J4GQm9j0JZ0", "J4GQm9j0JZ0", "holiday"]


def test_split_checks(tmp_path):
    data = write_chips(tmp_path / "data", {"train": 4})
    (data / "train" / "faces" / "my__frame_clip.000__frame_7_aligned.jpg").touch()
    assert "my__frame_clip.000" in set(list_faces(data / "train" / "faces")["clip"])
    with pytest.raises(UserError, match="no label for 1 clip.*my__frame_clip.000"):
        load_split(data, "train")
    (data / "train" / "faces" / "my__frame_clip.000__frame_7_aligned.jpg").unlink()
    with open(data / "train" / "labels.csv", "a") as file:
        file.write("nobody.000.mp4,0.5,0.5,0.5,0.5,0.5\n")
    split = load_split(data, "train")
    assert split.clips_without_face == ["nobody.000"] and len(split.labels) == 5
    assert FaceDataset(split).labels.shape == (8, 5)
    with pytest.raises(UserError, match="valid"):
        load_split(data, "valid")


def test_faces_made_in_another_way_are_refused(tmp_path, run):
    write_chips(tmp_path / "data", {"train": 2, "valid": 2, "test": 3})
    trained_on = load_checkpoint(find_checkpoint(tmp_path / "pretrained")).preprocessing

    def note(split, **settings):
        noted = json.dumps({key: value for key, value in {**trained_on, **settings}.items() if value is not None})
        (tmp_path / "data" / split / "faces" / "preprocessing.json").write_text(noted)

    for settings, complaint in (
            ({"faces": "all"}, "--faces all"), ({"padding": 0.25}, "--padding 0.25"), ({"size": 112}, "--size 112"),
            ({"predictor": "other.dat sha256:0"}, "PREDICTOR other.dat sha256:0"), ({"detector": "cnn"}, "--detector")):
        note("test", **settings)
        status, _, errors = run(evaluate, "pretrained", "--data-dir", "data")
        assert status == 2 and f"the faces of test were made with {complaint}" in errors, settings
        note("train"), note("valid", **settings)
        with pytest.raises(UserError, match=f"the faces of train .* those of valid with {[*settings.values()][0]}"):
            join_splits(load_split(tmp_path / "data", "train"), load_split(tmp_path / "data", "valid"))
    # The detectors hog (not noted, as in older folders) and auto agree, and what is not noted is not compared.
    note("test", detector="auto", predictor=None)
    status, _, errors = run(evaluate, "pretrained", "--data-dir", "data")
    assert status == 0, errors
    status, _, errors = run(predict, "pretrained", FOREIGN, "--predictor", find_predictor().replace("_5_", "_68_"))
    assert status == 2 and "PREDICTOR shape_predictor_68" in errors and "shape_predictor_5" in errors


def test_speakers_are_kept_apart(chip_data):
    first, second = split_by_speaker(load_split(chip_data, "train"), 0.3, seed=1)
    assert not set(first.speakers) & set(second.speakers)
    assert len(first.labels) + len(second.labels) == 48 and 8 <= len(second.labels) <= 15


def test_pictures_keep_their_places(chip_data):
    """The original's mistake: pictures reshaped to channels first, which scrambles every pixel."""
    import cv2
    split = load_split(chip_data, "train")
    chip, label = FaceDataset(split)[3]
    expected = cv2.cvtColor(cv2.imread(split.faces["path"][3]), cv2.COLOR_BGR2RGB)
    assert chip.shape == (3, 224, 224) and chip.dtype == torch.uint8
    assert label.tolist() == split.labels.loc[split.faces["clip"][3]].astype(np.float32).tolist()
    difference = np.abs(chip.permute(1, 2, 0).numpy().astype(int) - expected)
    assert difference.max() == 0


def test_a_network_and_a_loop_of_ones_own(chip_data):
    """The ten lines of docs/training.md, as they stand there."""
    text = (REPOSITORY / "docs" / "training.md").read_text()
    code = re.search(r"```python\n(from dataset import FaceDataset.*?)```", text, re.DOTALL)[1]
    assert len(code.splitlines()) == 10
    found = {"DATA": str(chip_data)}
    torch.manual_seed(0)
    exec(code.replace('"data"', "DATA"), found)
    assert found["loss"].isfinite() and found["chips"].shape[1:] == (3, 224, 224)
    assert len(found["loader"]) == 3  # 96 chips


def test_broken_chip_is_named_and_left_out(tmp_path, capsys):
    data = write_chips(tmp_path / "data", {"train": 3})
    split = load_split(data, "train")
    with open(split.faces["path"][1], "r+b") as file:
        file.truncate(30)
    (chips, rows), = chip_loader(FaceDataset(split), [[0, 1, 2]], 0, torch.device("cpu"))
    assert rows.tolist() == [0, 2] and len(chips) == 2
    assert split.faces["path"][1] in capsys.readouterr().err


def test_every_epoch_is_shuffled_anew_and_repeatable():
    first, again, next_epoch = (epoch_batches(100, 32, 5, epoch) for epoch in (0, 0, 1))
    assert first == again != next_epoch
    assert sorted(sum(first, [])) == list(range(100)) != sum(first, [])
    halves = [sum(epoch_batches(101, 10, 5, 0, rank, 2), []) for rank in (0, 1)]
    assert len(halves[0]) == len(halves[1]) == 51 and set(halves[0] + halves[1]) == set(range(101))


def test_fuzzed_label_files(tmp_path, long_run):
    """Mutated label files are read or refused in one line, whatever the mutation."""
    generator = random.Random(3)
    pickled = pickle.dumps({trait: {f"clip{n}.000.mp4": n / 40 for n in range(40)} for trait in TRAITS}, 2)
    table = io.StringIO()
    scores = {trait: np.linspace(0, 1, 40) for trait in TRAITS}
    pandas.DataFrame({"clip": [f"clip{n}.mp4" for n in range(40)], **scores}).to_csv(table, index=False)
    refused = 0
    count = 10_000 if long_run else 2000
    for number in range(count):
        suffix, data = (".pkl", pickled) if number % 2 else (".csv", table.getvalue().encode())
        data = bytearray(data)
        for _ in range(generator.choice([1, 1, 2, 5, 20])):
            where = generator.randrange(len(data))
            kind = generator.randrange(4)
            if kind == 0:
                data[where] = generator.randrange(256)
            elif kind == 1:
                del data[where:where + generator.randrange(1, 50)]
            elif kind == 2:
                data[where:where] = generator.randbytes(generator.randrange(1, 20))
            else:
                data[where] ^= 1 << generator.randrange(8)
            if not data:
                data = bytearray(b"x")
        path = tmp_path / f"mutated{suffix}"
        path.write_bytes(data)
        try:
            read_labels(path)
        except UserError:
            refused += 1
    assert count / 4 < refused
    print(f"{count} mutated label files: {refused} refused, {count - refused} read")
