"""Settings: their bounds, the networks they are for, and what a configuration that was found brings along."""
import json
import math

import pytest

import train
import train_resnet_raytune_hyperparams as search
from conftest import write_chips
from first_impressions.common.command_line import UserError
from first_impressions.networks.settings import Settings, names_with_effect, resolve_settings
from model_architectures import ARCHITECTURES, architecture_named

MODEL = "FaceResNet29_v1.0"


@pytest.mark.parametrize("name, value", [
    pytest.param("l1", 10**400, id="l1-huge"),
    ("l1", 0), ("l1", 8.0), ("dropout", 0.96), ("heads", 65), ("components", True), ("memory", "all"),
    ("memory_weight", 1.1), ("lr", math.nan), ("lr", math.inf), ("lr", "0.1"), ("mixup", -0.1), ("loss", "hinge"),
    ("hflip", 1), ("warmup", -0.1)])
def test_values_out_of_bounds_are_named(name, value):
    with pytest.raises(UserError, match=f"^{name}: .* is not ") as caught:
        resolve_settings({name: value})
    assert "\n" not in str(caught.value)


def test_each_network_has_its_settings():
    always = {"heads", "lr", "weight_decay", "warmup", "loss", "mixup"}
    regression = {"memory", "memory_weight", "noise", "centres"}
    trained, frozen = {"backbone_lr_factor", "layer_decay", "augment", "hflip"}, {"components", "one_face"}
    of_name = {"ResNet18_v1.0": frozen | {"l1", "l2", "dropout"}, "ResNet18_v3.0": trained | {"l1", "l2", "dropout"},
               "ResNet34_v2.0": frozen, "ResNet101_v1.0": frozen | {"l1", "l2", "l3", "dropout"},
               "ResNet101_v2.0": frozen, MODEL: frozen | regression | {"l1", "l2", "dropout"}}
    for name, names in of_name.items():
        assert set(names_with_effect(ARCHITECTURES[name])) == always | names, name
    face = architecture_named(MODEL)
    assert {"hflip", "centres"}.isdisjoint(names_with_effect(face, Settings(memory="exact")))
    assert regression & set(names_with_effect(face, Settings(memory="none"))) == {"memory"}


def dry_run(run, data, config, *words):
    with open("found.json", "w") as file:
        json.dump(config, file)
    status, output, errors = run(train, 2, "a", MODEL, "true", 8, "--data-dir", data, "--config", "found.json",
                                 "--dry-run", *words)
    return status, output, errors


def test_a_found_configuration_brings_its_weights_rule_and_form(run, tmp_path):
    data = write_chips(tmp_path / "data", {"train": 10})
    found = {"model": MODEL, "weights": "none", "val_split": "speaker", "seed": 3, "speaker_regex": r"(.)peaker.*",
             "memory": "exact", "memory_weight": 0.7, "batch_size": 64}
    status, output, _ = dry_run(run, data, found)
    assert status == 0 and "with none weights" in output and "10 clips of 1 speaker" in output
    assert '"memory": "exact", "memory_weight": 0.7' in output
    # An option wins; the weight of another form of the regression is not taken.
    status, output, errors = dry_run(run, data, found, "--weights", "dlib", "--memory", "centres")
    assert status == 0 and "with dlib weights" in output and '"memory": "centres", "memory_weight": 0.3' in output
    assert "memory_weight 0.7 was found for memory exact and is left out" in errors
    assert '"memory_weight": 0.6' in dry_run(run, data, found, "--memory", "centres", "--memory-weight", 0.6)[1]
    for change in ({"val_split": "both"}, {"seed": -1}, {"weight": 0}, {"memory_weight": 2}, {"speaker_regex": "("}):
        status, _, errors = dry_run(run, data, {**found, **change})
        assert status == 2 and len(errors.splitlines()) == 1, (change, errors)


def test_space_in_a_file(run, chip_data, tmp_path):
    def searched(space):
        (tmp_path / "mine.json").write_text(json.dumps(space))
        return run(search, 2, 1, "s", MODEL, "--data-dir", chip_data, "--space", "mine.json", "--dry-run")

    status, output, errors = searched({"lr": {"loguniform": [2e-4, 3e-3]}, "l1": {"choice": [16, 32]}, "l3": 4,
                                       "heads": {"grid_search": [1, 2, 3]}, "memory": "centres", "batch_size": 16})
    assert status == 0 and "6 trials" in output and "lr: Float (0.0002, 0.003)" in output and "l3" not in output
    assert "memory: 'centres'" in output and "6 trials, 2 with each" in errors
    for space, complaint in (({"lr": {"loguniform": [0, 1]}, "batch_size": 8}, "lr"), ({"lr": 0.1}, "no batch_size"),
                             ({"lr": {"gamma": 1}, "batch_size": 8}, "gamma"), ({"LR": 0.1, "batch_size": 8}, "LR"),
                             ({"dropout": {"choice": [2]}, "batch_size": 8}, "dropout"), ([], "mine.json")):
        status, _, errors = searched(space)
        assert status == 2 and complaint in errors and len(errors.splitlines()) == 1, errors


def test_seeds_are_trained_one_after_the_other(run, chip_data, tmp_path):
    command = [1, "mine", MODEL, "true", 16, "--data-dir", chip_data, "--l1", 16, "--l2", 8, "--seeds", 2]
    status, output, errors = run(train, *command)
    assert status == 0, errors
    assert output.splitlines()[-1] == f"next: python evaluate.py mine_seed0 mine_seed1 --data-dir {chip_data}"
    records = [json.loads((tmp_path / "runs" / f"mine_seed{seed}" / "args.json").read_text()) for seed in (0, 1)]
    assert [record["used"]["seed"] for record in records] == [0, 1]
    assert run(train, *command)[0] == 2
    (tmp_path / "runs" / "mine_seed1" / "checkpoint_last.pt").unlink()
    status, output, _ = run(train, *command, "--resume")
    assert status == 0 and "mine_seed0: all 1 epochs are done" in output and output.count("epoch 1/1: loss") == 1
