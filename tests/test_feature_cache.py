"""The cache of features: what is computed, what is read, and what kills and damage leave."""
import dataclasses
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import train
from conftest import REPOSITORY, write_chips
from dataset import FaceDataset
from first_impressions.common.device import Machine
from first_impressions.data.chips import read_chip
from first_impressions.data.splits import load_split
from first_impressions.networks.network import build_network, sides_of_clip
from first_impressions.networks.settings import Settings
from first_impressions.prediction.scoring import score_clip
from first_impressions.training import feature_cache, inputs
from first_impressions.training.feature_cache import StoredFeatures, features_of_dataset
from first_impressions.training.inputs import ClipFeatures
from model_architectures import architecture_named

MACHINE = Machine(torch.device("cpu"), cache="float32")


class Touch:
    """What makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def rows_of(split, backbone, key, machine, batch_size=64):
    parts, clips, faces = features_of_dataset(FaceDataset(split), backbone, key, machine, batch_size)
    return ClipFeatures(split, clips, machine, parts, faces)


def mean_colour(chips, sides=None):
    return chips.float().mean((2, 3))


def test_rows_of_clips_are_means_reused_and_made_anew(tmp_path):
    data = write_chips(tmp_path / "data", {"train": 5}, faces_a_clip=3)
    calls = []

    def network(chips, sides):
        calls.append(len(chips))
        return mean_colour(chips)

    def rows():
        return rows_of(load_split(data, "train"), network, "test weights 1", MACHINE)

    first, split = rows(), load_split(data, "train")
    assert calls == [15] and len(first) == 5 and first.faces.tolist() == [3] * 5
    numbers = np.arange(5)
    values = first.features(numbers), first.features(numbers, form=1)
    chips = {clip: torch.stack([read_chip(path, 224) for path in faces["path"]])
             for clip, faces in split.faces.groupby("clip")}
    assert torch.allclose(values[0], torch.stack([mean_colour(chips[clip]).mean(0) for clip in first.clips]), atol=1e-4)
    assert torch.allclose(values[1], torch.stack([mean_colour(chips[clip])[1] for clip in first.clips]), atol=1e-4)
    rows()
    assert calls == [15]  # from the disk
    os.utime(split.faces["path"][0], ns=(1, 1))
    rows()
    assert calls == [15, 3]  # the clip of which a face changed
    path, = (data / "train" / "features").glob("*.sqlite")
    for size in (200, 10_000):
        path.write_bytes(path.read_bytes()[:size])
        again = rows()
        assert calls.pop() == 15  # a truncated cache is made anew
    assert torch.equal(values[0], again.features(numbers)) and torch.equal(values[1], again.features(numbers, form=1))
    uncached = rows_of(split, network, "test weights 1", dataclasses.replace(MACHINE, cache="off"))
    assert torch.equal(values[0], uncached.features(numbers)) and list(uncached.clips) == list(first.clips)


def test_interrupted_rows_go_on(tmp_path, monkeypatch):
    """Killed between two batches: the clips that were written are not computed again, and the rows are the same."""
    data = write_chips(tmp_path / "data", {"train": 9}, faces_a_clip=3)
    monkeypatch.setattr(feature_cache, "SECONDS_BETWEEN_COMMITS", 0)
    split, seen = load_split(data, "train"), []

    def network(chips, sides):
        if len(seen) == 4:
            seen.append("killed")
            raise KeyboardInterrupt
        seen.append(len(chips))
        return mean_colour(chips)

    with pytest.raises(KeyboardInterrupt):
        rows_of(split, network, "key", MACHINE, 4)
    rows = rows_of(split, network, "key", MACHINE, 4)
    assert seen[:5] == [4, 4, 4, 4, "killed"] and sum(seen[5:]) == 27 - 15  # five clips of three faces were written
    whole = rows_of(split, mean_colour, "key", dataclasses.replace(MACHINE, cache="off"))
    assert torch.equal(rows.features(np.arange(9)), whole.features(np.arange(9))) and rows.faces.tolist() == [3] * 9


def test_faces_in_turn_score_the_same_on_every_way(tmp_path):
    """Clips of five faces and more are seen in turn as they are and mirrored, but for the middle face: from cached
    features, from chips in memory in batches, and written out by hand."""
    split = load_split(write_chips(tmp_path / "data", {"train": 4}, faces_a_clip=5), "train")
    torch.manual_seed(0)    # one of 100 random heads gives the same scores for all inputs
    network = build_network(architecture_named("FaceResNet29_v1.0"), Settings(memory="none", l1=8, l2=8, components=8),
                            "dlib").eval()
    machine = dataclasses.replace(MACHINE, cache="off", precision="float32")
    source = inputs.make_samples(network, FaceDataset(split), machine)
    scores, alone = (inputs.score_rows(network, source, alone) for alone in (False, True))
    assert sides_of_clip(4).tolist() == [[0.5, 0.5]] * 4
    assert sides_of_clip(6).tolist() == [[1, 0], [0, 1], [1, 0], [0.5, 0.5], [0, 1], [1, 0]]
    for row, clip in enumerate(source.clips):
        chips = torch.stack([read_chip(path, 224) for path in split.faces["path"][split.faces["clip"] == clip]])
        of_clip, of_faces = score_clip(network, chips.split([2, 3]), 5)
        np.testing.assert_allclose(of_clip, scores[row], atol=1e-5)
        np.testing.assert_allclose(of_faces[2], alone[row], atol=1e-5)
        with torch.inference_mode():
            np.testing.assert_allclose(of_faces, network.scores_of_faces(chips), atol=1e-5)
            seen = [chips[[0]], chips[[1]].flip(-1), chips[[2]], chips[[2]].flip(-1), chips[[3]], chips[[4]].flip(-1)]
            features = network.features(torch.cat(seen)) * torch.tensor([2, 2, 1, 1, 2, 2])[:, None]
            by_hand = network(network.represent(features.sum(0, keepdim=True) / 10))[0]
        np.testing.assert_allclose(of_clip, by_hand, atol=1e-5)
        assert np.abs(of_clip - of_faces.mean(0)).max() > 1e-7


def test_cached_rows_run_no_code(tmp_path):
    data = write_chips(tmp_path / "data", {"train": 3})

    def rows():
        return rows_of(load_split(data, "train"), mean_colour, "test weights 1", MACHINE)

    rows()
    cache, mark = next((data / "train" / "features").glob("*.sqlite")), tmp_path / "it_ran"
    np.save(cache, np.array([Touch(mark)], dtype=object), allow_pickle=True)
    assert len(rows()) == 3 and not mark.exists()  # refused and made anew


def test_only_new_and_changed_clips_are_computed(run, tmp_path, monkeypatch):
    """Whatever is done with the faces, each goes through the backbone once: other splits of the same clips, the final
    run on two folders, clips that came, changed and went."""
    data, seen, compute = write_chips(tmp_path / "data", {"train": 24, "valid": 8}), [], inputs.features_of_chips

    def count(network, chips, sides):
        seen.append(len(chips))
        return compute(network, chips, sides)

    monkeypatch.setattr(inputs, "features_of_chips", count)

    def faces_of_training(name, final_run="false", *options):
        seen.clear()
        status, _, errors = run(train, 1, name, "FaceResNet29_v1.0", final_run, 8, "--l1", 8, "--l2", 8, "--components",
                                8, "--data-dir", data, *options)
        assert status == 0, errors
        return sum(seen)

    assert faces_of_training("first") == 64
    assert faces_of_training("speakers", "false", "--val-split", "speaker") == 0
    assert faces_of_training("final", "true") == 0
    more = write_chips(tmp_path / "more", {"train": 5}, faces_a_clip=3, seed=1)
    table = (more / "train" / "labels.csv").read_text().replace("speaker", "another").splitlines(keepends=True)
    with open(data / "train" / "labels.csv", "a") as file:
        file.writelines(table[1:])
    for path in (more / "train" / "faces").iterdir():
        path.rename(data / "train" / "faces" / path.name.replace("speaker", "another"))
    changed, *_, removed = sorted((data / "train" / "faces").glob("speaker*"))
    os.utime(changed, ns=(1, 1))
    assert faces_of_training("more", "true") == 15 + 2
    for path in removed.parent.glob(removed.name.split("__frame_")[0] + "*"):
        path.unlink()
    assert faces_of_training("fewer", "true") == 0


SLOW = """
import sys, time
sys.path.insert(0, sys.argv[1])
from dataset import FaceDataset
import torch
from first_impressions.common.device import Machine
from first_impressions.data.splits import load_split
from first_impressions.training import feature_cache

def slow(chips, sides):
    time.sleep(0.05)
    return chips.float().mean((2, 3))

feature_cache.SECONDS_BETWEEN_COMMITS = 0.2
feature_cache.features_of_dataset(FaceDataset(load_split(sys.argv[2], "train")), slow, "key",
                                  Machine(torch.device("cpu"), cache="float32"), 4)
"""


def test_a_kill_leaves_what_was_written_and_others_read_meanwhile(tmp_path):
    data = write_chips(tmp_path / "data", {"train": 60}, faces_a_clip=4)
    split, seen = load_split(data, "train"), []
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(REPOSITORY), str(data)])
    try:
        found, until = np.zeros(1, dtype=bool), time.monotonic() + 60
        while found.sum() < 12 and process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
            for path in (data / "train" / "features").glob("*.sqlite"):
                stored = StoredFeatures(path, "float32")
                found = stored.find(feature_cache.names_and_stamps(split.faces))
                if found.any():
                    assert np.isfinite(stored[np.flatnonzero(found), 0]).all()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 12 <= found.sum() < 60

    def count(chips, sides):
        seen.append(len(chips))
        return mean_colour(chips)

    rows = rows_of(split, count, "key", MACHINE)
    assert 0 < sum(seen) <= 4 * (60 - found.sum())
    whole = rows_of(split, mean_colour, "key", dataclasses.replace(MACHINE, cache="off"))
    assert torch.equal(rows.features(np.arange(60)), whole.features(np.arange(60)))
