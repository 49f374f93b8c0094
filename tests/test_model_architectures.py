"""Networks, weights and checkpoints."""
import dataclasses
import os
import random
import zipfile

import cv2
import numpy as np
import pytest
import torch

from first_impressions.common.command_line import UserError
from first_impressions.common.constants import DEFAULT_PREPROCESSING, TRAITS
from first_impressions.common.files import packaged_model
from first_impressions.networks.checkpoint import FORMAT, Checkpoint, load_checkpoint
from first_impressions.networks.face_resnet29 import FACE_INPUT_SIZE, FACE_WEIGHTS, read_face_weights
from first_impressions.networks.gaussian_process import GaussianProcess
from first_impressions.networks.network import build_network, load_network_state
from first_impressions.networks.settings import Settings
from first_impressions.networks.weights import load_file
from first_impressions.training.loop import parameter_groups
from model_architectures import ARCHITECTURES, architecture_named, load_model, load_trained

SMALL = Settings(l1=16, l2=8, l3=4, memory="none", memory_weight=0.0)
LIGHT = ["ResNet18_v1.0", "ResNet18_v2.0", "ResNet18_v3.0", "ResNet34_v2.0", "ResNet101_v2.0", "FaceResNet29_v1.0",
         "FaceResNet29_v2.0", "FaceResNet29_v3.0"]


def test_names_of_the_original_are_there():
    assert set(ARCHITECTURES) >= {"ResNet18_v1.0", "ResNet18_v2.0", "ResNet18_v3.0", "ResNet34_v1.0", "ResNet34_v2.0",
                                  "ResNet50_v1.0", "ResNet101_v1.0", "ResNet101_v2.0", "ResNet152_v1.0"}
    with pytest.raises(UserError, match="ResNet18_v1.0.*ResNet152_v1.0"):
        build_network(architecture_named("ResNet19"), SMALL)


@pytest.mark.parametrize("name", LIGHT)
def test_what_is_frozen_stays_and_what_is_not_learns(name):
    torch.manual_seed(0)
    network = build_network(architecture_named(name), SMALL, "none")
    chips = torch.randint(0, 256, (4, 3, 224, 224), dtype=torch.uint8)
    if network.frozen:
        with torch.no_grad():
            network.projection.fit(network.eval().features(chips))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    optimizer = torch.optim.AdamW(parameter_groups(network, Settings(lr=0.01, weight_decay=0.0, backbone_lr_factor=0.1,
                                                            layer_decay=0.5)))
    network.train()
    for _ in range(2):
        optimizer.zero_grad()
        (network(chips) - 0.9).square().mean().backward()
        optimizer.step()
    trained = ARCHITECTURES[name].trained
    for key, value in network.state_dict().items():
        free = key.startswith(("heads.", "standardise.", *(f"backbone.{stage}." for stage in trained)))
        if not free:
            assert torch.equal(value, before[key]), key
        elif key.endswith("weight") and value.ndim > 1:
            assert not torch.equal(value, before[key]), key
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert all(rates[stage] < rates["heads"] for stage in trained)


def test_exact_memory_is_gaussian_process_regression():
    """Against the textbook's formulas, written down anew; a checkpoint of it comes back whole, a damaged one not."""
    torch.manual_seed(0)
    config = dataclasses.replace(SMALL, memory="exact", memory_weight=1.0)
    network = build_network(architecture_named("FaceResNet29_v1.0"), config, "dlib").eval()
    width = network.memory.width
    generator = np.random.default_rng(0)
    features = generator.normal(size=(40, width)) * generator.uniform(0.1, 3, width) + 1
    features[:, -128:] *= 0.02
    targets = generator.uniform(0.2, 0.8, (40, 5))
    other = features[:7] + 0.3 * generator.normal(size=(7, width)) * features.std(0)
    tensor = torch.tensor(features, dtype=torch.float32)
    network.projection.fit(tensor)
    network.memory.fit_exact(network.represent(tensor), torch.tensor(targets, dtype=torch.float32), noise=0.3)

    def covariance(first, second):
        def distances(one, two):
            return ((one[:, None] - two[None]) ** 2).sum(2)
        z = [(some - features.mean(0)) / features.std(0) for some in (first, second)]
        # 40 clips span 39 directions: what of a new clip lies outside of them does not count.
        axes = np.linalg.svd((features - features.mean(0)) / features.std(0), full_matrices=False)[2][:39]
        return (np.exp(-distances(z[0] @ axes.T, z[1] @ axes.T) / (4 * features.shape[1]))
                + 0.5 * np.exp(-distances(first[:, -128:], second[:, -128:]) / 0.08))
    inverse = np.linalg.inv(covariance(features, features) + 0.3 * np.eye(40))
    expected = targets.mean(0) + covariance(other, features) @ inverse @ (targets - targets.mean(0))
    given = network.represent(torch.tensor(other, dtype=torch.float32))
    with torch.no_grad():
        scores = network(given)
    assert np.abs(scores.numpy() - expected).max() < 1e-4 and np.abs(expected - targets.mean(0)).max() > 0.05

    checkpoint = checkpoint_of(network, "FaceResNet29_v1.0", config)
    with torch.no_grad():
        assert torch.allclose(checkpoint.build("memory.pt")(given), scores, atol=1e-6)
    for damaged in (torch.zeros(11, 3), torch.zeros(5), torch.zeros(10**6, 2)):
        with pytest.raises(UserError, match="memory.pt: does not fit this network: size mismatch for memory"):
            load_network_state(network, {**network.state_dict(), "memory.points": damaged}, "memory.pt")


def test_centres_are_means_of_many_clips_of_several_speakers_and_hold_no_descriptor():
    """The centres are means of clips; the weights are those of the subset of regressors (Quinonero-Candela 2005)."""
    generator = np.random.default_rng(1)
    rows = np.concatenate([generator.normal(place, 1, (150, 8)) for place in generator.normal(0, 6, (4, 8))])
    rows = rows.astype(np.float32)
    speakers = generator.integers(0, 60, 600).astype(str)
    targets = generator.uniform(0.3, 0.7, (600, 5)).astype(np.float32)
    memory = GaussianProcess(width=8, components=8, descriptor_size=0)
    memory.fit_centres(torch.from_numpy(rows), torch.from_numpy(targets), speakers, number=100, noise=0.3)
    centres = memory.points.numpy()
    assert 4 <= len(centres) <= 600 // 20 and memory.descriptors.numel() == 0
    clips, of_speakers = memory.clips.numpy(), memory.speakers.numpy()
    assert clips.min() >= 10 and of_speakers.min() >= 5 and clips.sum() == 600 and (of_speakers <= clips).all()
    # Every clip is in just one of the means.
    assert np.allclose(np.average(centres, axis=0, weights=clips), rows.mean(0), atol=1e-4)
    assert ((rows[:, None] - centres[None]) ** 2).sum(2).min() > 1e-3  # no centre is a clip

    def covariance(first, second):
        return np.exp(-((first[:, None].astype(float) - second[None]) ** 2).sum(2) / (4 * 8))
    cross = covariance(rows, centres)
    weights = np.linalg.solve(cross.T @ cross + 0.3 * (covariance(centres, centres) + 1e-6 * np.eye(len(centres))),
                              cross.T @ (targets - targets.mean(0)))
    expected = targets.mean(0) + covariance(rows[:9], centres) @ weights
    assert np.abs(memory(torch.from_numpy(rows[:9])).numpy() - expected).max() < 1e-4
    # Too few clips or speakers: nobody is kept.
    memory.fit_centres(torch.from_numpy(rows[:60]), torch.from_numpy(targets[:60]), np.repeat(["a", "b"], 30), 100, 0.3)
    assert len(memory.points) == 0


def test_scores_are_five_numbers_between_0_and_1():
    network = build_network(architecture_named("ResNet18_v1.0"), dataclasses.replace(SMALL, heads=3), "none").eval()
    chips = torch.randint(0, 256, (2, 3, 224, 224), dtype=torch.uint8)
    scores = network(chips)
    assert scores.shape == (2, 5) and 0 < scores.min() and scores.max() < 1
    assert torch.allclose(network(network.represent(network.features(chips))), scores)
    assert torch.allclose(network(chips, of_each_head=True).mean(0), scores)


def test_face_network_agrees_with_dlib(chalearn_dir):
    """50 real face chips: the descriptor of the PyTorch module against dlib's own."""
    import dlib
    portraits = zipfile.ZipFile(chalearn_dir / "portraits_train.zip")
    names = sorted(name for name in portraits.namelist() if name.endswith(".jpg"))[::220][:50]
    dlib_network = dlib.face_recognition_model_v1(str(packaged_model(FACE_WEIGHTS)))
    network = build_network(architecture_named("FaceResNet29_v1.0"), SMALL, "dlib").eval()
    chips, expected = [], []
    for name in names:
        picture = cv2.imdecode(np.frombuffer(portraits.read(name), np.uint8), cv2.IMREAD_COLOR_RGB)
        # The network's second view is the chip's middle three quarters: 150 of 200 pixels, no scaling.
        whole = cv2.resize(picture[20:190, :170], (200, 200))
        chip = np.ascontiguousarray(whole[25:175, 25:175])
        assert chip.shape[0] == FACE_INPUT_SIZE
        chips.append(torch.from_numpy(whole).permute(2, 0, 1))
        expected.append(list(dlib_network.compute_face_descriptor(chip)))
    with torch.inference_mode():
        descriptors = network.features(torch.stack(chips))[:, -128:]
    difference = (descriptors - torch.tensor(expected)).abs().max()
    print(f"largest difference of 50 x 128 numbers: {difference:.1e}")
    assert len(chips) == 50 and difference < 1e-5


def test_damaged_face_weights_are_refused(tmp_path):
    whole = open(packaged_model(FACE_WEIGHTS), "rb").read()
    contents = {"truncated.dat": whole[:1_000_000], "text.dat": b"no network" * 1000, "empty.dat": b"",
                "other.dat": whole[5000:], "damaged.dat": whole[:2000] + b"\xff" * 4000 + whole[6000:]}
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError, match=name) as caught:
            read_face_weights(path)
        assert "\n" not in str(caught.value)


def test_weights_from_a_file(tmp_path):
    import torchvision
    torch.manual_seed(1)
    state = torchvision.models.resnet18(weights=None).state_dict()
    path = tmp_path / "resnet18.pt"
    torch.save(state, path)
    network = build_network(architecture_named("ResNet18_v1.0"), SMALL, str(path))
    assert torch.equal(network.backbone.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])
    with pytest.raises(UserError, match="Missing key.*layer1.2.bn1"):
        build_network(architecture_named("ResNet34_v1.0"), SMALL, str(path))
    torch.save({**state, "surprise": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="Unexpected key.*surprise"):
        build_network(architecture_named("ResNet18_v1.0"), SMALL, str(path))
    with pytest.raises(UserError, match="no such file"):
        build_network(architecture_named("ResNet18_v1.0"), SMALL, "nowhere.pt")
    with pytest.raises(UserError, match="takes imagenet, none or a path"):
        build_network(architecture_named("ResNet18_v1.0"), SMALL, "dlib")


def checkpoint_of(network, name="ResNet18_v1.0", settings=SMALL):
    architecture = architecture_named(name)
    return Checkpoint(architecture, settings, DEFAULT_PREPROCESSING, network.state_dict(), dict.fromkeys(TRAITS, 0.5),
                      ["a.1", "b.1"], ["a", "b"], "train", 1, {"loss_train": 0.1})


def content_of(network):
    return {"format": FORMAT, "traits": list(TRAITS), **vars(checkpoint_of(network)),
            "architecture": dataclasses.asdict(architecture_named("ResNet18_v1.0")),
            "config": dataclasses.asdict(SMALL)}


class _Touch:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_checkpoints_run_no_code_and_damage_is_named(tmp_path):
    network = build_network(architecture_named("ResNet18_v1.0"), SMALL, "none").eval()
    path = tmp_path / "checkpoint_best.pt"
    checkpoint_of(network).save(path)
    assert os.listdir(tmp_path) == [path.name]
    again = load_checkpoint(path).build(path)
    chips = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    assert torch.equal(again(chips), network(chips))

    mark, evil = tmp_path / "it_ran", tmp_path / "evil.pt"
    for key in ("architecture", "config", "network", "new"):
        for content in ({**content_of(network), key: _Touch(mark)},
                        {**content_of(network), key: {"deep": [_Touch(mark)]}}):
            for old_format in (False, True):
                torch.save(content, evil, _use_new_zipfile_serialization=not old_format)
                with pytest.raises(UserError, match="evil.pt"):
                    load_checkpoint(evil)
                assert not mark.exists()
    no_such = {**content_of(network)["architecture"], "backbone": "resnet99"}
    for key, value in {"architecture": no_such, "config": {"l1": 10**9, "l2": 8, "dropout": 0.1, "heads": 1},
                       "traits": ["O"], "network": {}, "format": 99}.items():
        torch.save({**content_of(network), key: value}, evil)
        with pytest.raises(UserError):
            load_checkpoint(evil).build(evil)


def test_fuzzed_checkpoints(tmp_path, long_run):
    """Checkpoints with mutated bytes (headers, pickled part, directory of the zip) are read or refused in one line."""
    path = tmp_path / "mutated.pt"
    network = build_network(architecture_named("ResNet18_v1.0"), SMALL, "none")
    torch.save({**content_of(network), "network": {"w": torch.zeros(3)}}, path)
    whole = path.read_bytes()
    generator = random.Random(7)
    refused = 0
    count = 10_000 if long_run else 2000
    for _ in range(count):
        data = bytearray(whole)
        for _ in range(generator.choice([1, 2, 5])):
            where = generator.randrange(len(data))
            data[where:where + generator.choice([1, 1, 4, 40])] = generator.randbytes(generator.choice([1, 1, 4]))
        path.write_bytes(data)
        try:
            load_checkpoint(path)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    print(f"{count} mutated checkpoints: {refused} refused, {count - refused} read")
    assert refused > count / 4


def test_not_a_checkpoint(tmp_path):
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.pt").write_text("hello")
    for name in ("empty.pt", "text.pt", "missing.pt"):
        with pytest.raises(UserError, match=name):
            load_file(tmp_path / name, "a checkpoint")


def test_load_model_and_load_trained():
    network = load_model("ResNet18_v1.0", {"l1": 16, "l2": 8}, "none").eval()
    assert network(torch.zeros(2, 3, 224, 224, dtype=torch.uint8)).shape == (2, 5)
    with pytest.raises(UserError, match="unknown setting 'L1'"):
        load_model("ResNet18_v1.0", {"L1": 16}, "none")
    trained, checkpoint = load_trained("pretrained")
    assert not trained.training and checkpoint.preprocessing["size"] == 224
    assert trained(torch.zeros(2, 3, 224, 224, dtype=torch.uint8)).shape == (2, 5)
