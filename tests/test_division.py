"""One folder of somebody's own clips: looked at before there are faces, divided by speakers, with nothing lost."""
import os
import shutil

import numpy as np
import pandas
import pytest

import dataset
from face_options import next_command
from first_impressions.common.command_line import UserError
from first_impressions.common.constants import TRAITS
from first_impressions.data.labels import read_labels
from first_impressions.data.splits import draw_parts, load_split
from read_back import contents


@pytest.fixture
def own(tmp_path):
    """Folder with labels, empty clips and chips of 20 clips of 10 people, named as anna-take3."""
    folder = tmp_path / "own"
    (folder / "videos" / "more").mkdir(parents=True)
    (folder / "faces").mkdir()
    (folder / "faces" / "preprocessing.json").write_text('{"size": 224, "padding": 0.4}')
    clips = [f"person{number % 10}-take{number:02}" for number in range(20)]
    scores = np.random.default_rng(0).uniform(0.2, 0.8, (20, 5))
    pandas.DataFrame({"clip": [f"{clip}.mp4" for clip in clips], **dict(zip(TRAITS, scores.T))}).to_csv(
        folder / "labels.csv", index=False)
    for number, clip in enumerate(clips):
        (folder / "videos" / ("more" if number % 2 else "") / f"{clip}.mp4").write_text(clip)
        (folder / "faces" / f"{clip}__frame_3_aligned.jpg").write_text(clip)
    (folder / "videos" / "stranger.mp4").touch()
    return folder


RULE = ("--speaker-regex", "(.*)-take[0-9]+")


def test_a_folder_is_divided_by_speakers_and_nothing_is_moved(run, own, monkeypatch):
    before = contents(own)
    status, output, errors = run(dataset, own, "--split", "3:1:1", *RULE)
    assert status == 0 and "train: 12 clips of 6 speakers\nvalid: 4 clips of 2 speakers\ntest: 4" in output, errors
    assert "left out: 1 clip without a label (the first: stranger)" in output
    assert "warning: test has fewer than 20 speakers: evaluate.py will give no p value" in errors
    splits = {name: load_split(own, name) for name in ("train", "valid", "test")}
    assert sum(split.speakers.nunique() for split in splits.values()) == 10  # without --speaker-regex
    assert {len(split.faces) for split in splits.values()} == {12, 4} and splits["test"].preprocessing["padding"] == 0.4
    labels, _ = read_labels(own / "labels.csv")
    for split in splits.values():
        assert (split.labels == labels.loc[split.labels.index]).all(axis=None)
    status, output, errors = run(dataset, own)
    assert status == 0 and "speakers: person" in output and "no name matches" not in output, errors
    assert "no speaker is in two splits" in output and "next:" not in output
    linked = contents(own)
    for clip in labels.index:
        assert [data for name, data in linked.items() if clip in name] == [clip.encode()] * 4

    assert run(dataset, own, "--split", "3:1:1", *RULE)[2].startswith(f"{own}/train: is there already")
    for name in splits:
        shutil.rmtree(own / name)
    assert contents(own) == before
    # The same seed gives the same folders; a disk without hard links gets links that survive a move.
    monkeypatch.setattr(os, "link", lambda *_: os.stat("/no such file"))
    assert run(dataset, own, "--split", "3:1:1", *RULE)[0] == 0
    assert os.path.islink(next((own / "train" / "videos").rglob("*.mp4")))
    moved = own.rename(own.with_name("moved"))
    assert contents(moved) == linked
    table = pandas.read_csv(moved / "train" / "labels.csv")
    known = table["speaker"].iat[0]
    table.replace({"speaker": {known: splits["test"].speakers.iat[0]}}).to_csv(moved / "train" / "labels.csv")
    shutil.rmtree(moved / "valid" / "faces")
    output = run(dataset, moved)[1]
    assert "1 speaker of test in train, too: 50 % of its clips" in output
    command = f"python pre-processing/extract_faces_from_videos.py {moved}/valid/videos {moved}/valid/faces 10"
    assert f"next: {command}" in output and next_command(f"{moved}/train/faces") == command
    (moved / "valid" / "frames").mkdir()
    assert next_command(f"{moved}/test/faces").endswith(f"_from_frames.py {moved}/valid/frames {moved}/valid/faces")
    shutil.rmtree(moved / "valid")
    assert next_command(f"{moved}/test/faces").startswith("python train_resnet_raytune_hyperparams.py")
    (moved / "valid").mkdir()
    for name in splits:
        shutil.rmtree(moved / name)

    def refuse(source, target):
        raise PermissionError(1, "Operation not permitted", target)  # as FAT does

    monkeypatch.setattr(os, "symlink", refuse)
    status, _, errors = run(dataset, moved, "--split", "3:1:1", *RULE)
    assert status == 2 and "its disk does not support links" in errors and contents(moved) == before


def test_draws_differ_by_seed_and_need_three_speakers(run, own):
    _, speakers = read_labels(own / "labels.csv", RULE[1])
    assert len({tuple(draw_parts(speakers, {"test": 4, "valid": 4}, seed)) for seed in range(5)}) > 1
    assert draw_parts(speakers[:6], {"test": 0.06, "valid": 0.06}, 0).nunique() == 3
    for arguments, complaint in ((("3:1",), "three whole numbers"), (("3:1:0",), "three whole numbers"),
                                 (("3:1:1", "--speaker-regex", "(person)"), "are of 1 speaker, 3 are needed")):
        status, _, errors = run(dataset, own, "--split", *arguments)
        assert status == 2 and complaint in errors and not (own / "train").exists(), errors


def test_labels_are_checked_before_there_are_faces(run, own):
    shutil.rmtree(own / "faces")
    os.rename(own / "labels.csv", own / "Labels.csv")
    status, _, errors = run(dataset, own, "--split", "3:1:1", *RULE)
    assert status == 2 and "there is Labels.csv: if Labels.csv holds the labels, rename it to labels.csv" in errors
    (own.parent / "data").mkdir()
    data = own.rename(own.parent / "data" / "train").parent
    (data / "train" / "labels.xlsx").touch()
    status, _, errors = run(dataset, data)
    assert status == 2 and "labels.xlsx: export labels.xlsx as labels.csv" in errors
    os.rename(data / "train" / "Labels.csv", data / "train" / "labels.csv")
    status, _, errors = run(dataset, "dta")
    assert status == 2 and "dta: no such folder" in errors
    with pytest.raises(UserError, match="^nowhere: no such folder; .*--data-dir names another folder"):
        load_split("nowhere", "train")
    status, output, _ = run(dataset, "data")
    assert status == 0 and "train: 20 labelled clips of 20 speakers, no faces yet" in output
    assert "person0-take00 -> person0-take00" in output and "no name matches --speaker-regex" in output
    assert "videos without a label: 1 (the first: stranger)" in output and "valid: not there" in output
    assert "next: python pre-processing/extract_faces_from_videos.py data/train/videos data/train/faces 10" in output
