"""Search, training, evaluation: the real scripts on small data, and what a user sees of them."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate
import train
import train_resnet_raytune_hyperparams
from conftest import REPOSITORY, listen_to_ctrl_c, signals_kept, write_chips
from dataset import FaceDataset
from first_impressions.common.command_line import UserError
from first_impressions.common.constants import TRAITS
from first_impressions.common.device import Machine
from first_impressions.data.splits import load_split
from first_impressions.networks.checkpoint import load_checkpoint
from first_impressions.networks.network import build_network
from first_impressions.networks.settings import Plan, Settings
from first_impressions.training.inputs import make_samples
from first_impressions.training.loop import fit, start_training
from model_architectures import architecture_named

SMALL_HEAD = ["--l1", 32, "--l2", 16, "--dropout", 0.1]


def network_of(path):
    return load_checkpoint(path).network


def assert_equal_states(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), key


def losses_of(folder):
    return pandas.read_csv(folder / "training.csv")["loss_train"].tolist()


def test_train_and_evaluate(run, chip_data, tmp_path):
    status, output, errors = run(train, 25, "first", "FaceResNet29_v1.0", "false", 16, "--data-dir", chip_data,
                                 *SMALL_HEAD)
    assert status == 0, errors
    folder = tmp_path / "runs" / "first"
    assert {"args.json", "training.csv", "checkpoint_best.pt", "checkpoint_last.pt"} <= set(os.listdir(folder))
    history = pandas.read_csv(folder / "training.csv")
    best = load_checkpoint(folder / "checkpoint_best.pt")
    assert len(history) == 25 and history["accuracy_mean"].idxmax() + 1 == best.epoch
    # Of clip features the L1 loss is 1 - the accuracy.
    assert np.allclose(history["loss_valid"], 1 - history["accuracy_mean"], atol=1e-5)
    # No accuracy without its gain over the constant: the mean label of the training clips, here on the validation's.
    labels, mean = load_split(chip_data, "valid").labels, load_split(chip_data, "train").labels.mean()
    constant = 1 - (labels - mean).abs().to_numpy().mean()
    assert np.allclose(history["gain_mean"], history["accuracy_mean"] - constant, atol=1e-6)
    said = [line for line in output.splitlines() if "accuracy" in line]
    assert len(said) == 26 and all(", gain " in line for line in said) and "mean label of the training" in said[-1]
    rates = history["learning_rate_heads"]
    assert 0 < rates.iat[-1] < rates.iat[12] < rates.max() <= 1e-3 + 1e-12

    status, output, _ = run(evaluate, "first", "--data-dir", chip_data)
    assert status == 0 and "Pearson r" in output and "original repository" not in output, "of ChaLearn's clips alone"
    metrics = json.loads((folder / "evaluation_test" / "metrics.json").read_text())
    assert metrics["clips"] == 16 and metrics["traits"]["mean"]["pearson"] > 0.5
    table = pandas.read_csv(folder / "evaluation_test" / "predictions.csv", index_col="clip")
    errors = np.abs(table[list(TRAITS)].to_numpy() - table[[f"label_{trait}" for trait in TRAITS]].to_numpy())
    assert metrics["traits"]["mean"]["accuracy"] == pytest.approx(1 - errors.mean(), abs=1e-5)
    assert all((folder / "evaluation_test" / f"{trait}.png").stat().st_size > 10_000 for trait in TRAITS)

    # A second evaluation takes the place of the first in TensorBoard, and its table has the figure on the test clips.
    assert run(evaluate, "first", "--data-dir", chip_data)[0] == 0
    assert len(list((folder / "evaluation_test").glob("events.out.tfevents.*"))) == 1
    log = EventAccumulator(str(folder)).Reload()
    assert [event.value for event in log.Scalars("hparam/accuracy_test")] == [
        pytest.approx(metrics["traits"]["mean"]["accuracy"])]
    tags = {"hparam/accuracy_mean", "hparam/loss_valid", "accuracy/openness", "gain/mean", "pearson/mean"}
    assert tags <= set(log.Tags()["scalars"])

    # Nothing is overwritten silently.
    status, _, errors = run(train, 25, "first", "FaceResNet29_v1.0", "false", 16, "--data-dir", chip_data)
    assert status == 2 and "--resume" in errors
    assert len(pandas.read_csv(folder / "training.csv")) == 25


def test_scrambled_pictures_teach_nothing(tmp_path):
    """What the original did to every picture: H x W x 3 read as 3 x H x W. A network must notice the difference."""
    import cv2
    data = write_chips(tmp_path / "data", {"train": 64, "valid": 32}, faces_a_clip=1)
    settings = Settings(l1=32, l2=16, dropout=0.1, memory="exact", memory_weight=0.7)
    plan, machine = Plan(settings, num_epochs=25, batch_size=16), Machine(torch.device("cpu"))

    def best_pearson():
        torch.manual_seed(0)
        network = build_network(architecture_named("FaceResNet29_v1.0"), plan.settings, "dlib")
        samples, validation = (make_samples(network, FaceDataset(split), machine)
                               for split in (load_split(data, "train"), load_split(data, "valid")))
        state = start_training(network, samples, plan)
        return max(record["pearson_mean"] for record in fit(state, plan, samples, validation, show_progress=False))

    straight = best_pearson()
    for split in ("train", "valid"):
        for path in load_split(data, split).faces["path"]:
            picture = cv2.imread(path)
            scrambled = picture.ravel().reshape(3, *picture.shape[:2])
            cv2.imwrite(path, np.ascontiguousarray(np.moveaxis(scrambled, 0, -1)))
    scrambled = best_pearson()
    print(f"Pearson r {straight:.3f}, on scrambled pictures {scrambled:.3f}")
    assert straight > 0.6 and scrambled < straight - 0.2


def test_cached_and_uncached_training_have_the_same_losses(run, tmp_path):
    data = write_chips(tmp_path / "data", {"train": 24, "valid": 6})
    for cache in ("float32", "off"):
        status, _, errors = run(train, 3, f"cache_{cache}", "FaceResNet29_v1.0", "false", 16, "--data-dir", data,
                                "--cache", cache, "--precision", "float32", "--mixup", 0, *SMALL_HEAD)
        assert status == 0, errors
    first, second = losses_of(tmp_path / "runs" / "cache_float32"), losses_of(tmp_path / "runs" / "cache_off")
    print(f"largest difference of losses: {np.abs(np.subtract(first, second)).max():.1e}")
    assert np.abs(np.subtract(first, second)).max() < 1e-4


RESUMED = [4, "EXPERIMENT", "FaceResNet29_v2.0", "false", 4, *SMALL_HEAD, "--mixup", 0.2,
           "--augment", 0.5, "--precision", "float32"]


def resumed_command(experiment, data):
    return [str(word) if word != "EXPERIMENT" else experiment for word in (*RESUMED, "--data-dir", data)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """(data folder, experiment folder) of a training run that nothing interrupted, of three steps per epoch."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    data = write_chips(folder / "data", {"train": 10, "valid": 4}, faces_a_clip=1)
    with signals_kept():
        train.main([*resumed_command("whole", data), "--runs-dir", str(folder / "runs")])
    return data, folder / "runs" / "whole"


def test_interrupted_and_resumed_training_is_the_same(run, uninterrupted, tmp_path):
    """Three times in one training: by SIGTERM, by Ctrl-C, and by SIGKILL while its last checkpoint is written."""
    data, whole = uninterrupted
    command, folder = resumed_command("broken", data), tmp_path / "runs" / "broken"
    last, previous = folder / "checkpoint_last.pt", folder / "checkpoint_previous.pt"
    for number, how in ((signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C"), (signal.SIGKILL, None)):
        previous.unlink(missing_ok=True)
        process = subprocess.Popen([sys.executable, REPOSITORY / "train.py", *command], cwd=tmp_path, text=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
                                   env={**os.environ, "SECONDS_BETWEEN_CHECKPOINTS": "0"}, preexec_fn=listen_to_ctrl_c)
        deadline = time.monotonic() + 60
        while not previous.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.poll() is None, process.communicate()
        process.send_signal(number)
        errors = process.communicate(timeout=30)[1]
        assert process.returncode == (128 + number if how else -number)
        assert how is None or (f"stopped by {how}" in errors and "--resume" in errors)
        command = [*resumed_command("broken", data), "--resume"]
    last.write_bytes(previous.read_bytes()[:100_000])
    status, _, errors = run(train, *command)
    assert status == 0 and "falling back" in errors
    for name in (last.name, "checkpoint_best.pt"):
        assert_equal_states(network_of(whole / name), network_of(folder / name))
    assert losses_of(whole) == losses_of(folder)


def test_second_ctrl_c_while_the_state_is_saved(run, chip_data, monkeypatch, capfd):
    after_step = train.TrainingRun.after_step

    def press(self, state):
        self.has_begun = True
        signal.raise_signal(signal.SIGINT)
        after_step(self, state)

    monkeypatch.setattr(train.TrainingRun, "after_step", press)
    monkeypatch.setattr(train.TrainingRun, "save", lambda self, state: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run(train, 2, "pressed", "FaceResNet29_v1.0", "true", 16, "--data-dir", chip_data, *SMALL_HEAD)
    assert "what was done since the last checkpoint is lost" in capfd.readouterr().err


def test_resuming_with_other_settings_is_refused(run, uninterrupted):
    data, whole = uninterrupted
    status, _, errors = run(train, *resumed_command("whole", data), "--runs-dir", whole.parent, "--resume", "--lr", 0.1)
    assert status == 2 and "lr" in errors


def test_two_processes_under_torchrun(uninterrupted, tmp_path):
    """Two gloo processes on the CPU see halves of each epoch and end with the same weights."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
               REPOSITORY / "train.py", "2", "pair", "FaceResNet29_v2.0", "false", "4", "--data-dir", uninterrupted[0],
               *map(str, SMALL_HEAD)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("epoch 2/2") == 1
    assert json.loads((tmp_path / "runs" / "pair" / "args.json").read_text())["used"]["processes"] == 2
    assert np.isfinite(losses_of(tmp_path / "runs" / "pair")).all()


def test_full_disk(run_script, run, small_disk):
    """First the features do not fit, then the second checkpoint; with room the same command, or --resume, finishes."""
    disk = small_disk("200m")
    write_chips(disk / "data", {"train": 12, "valid": 4}, faces_a_clip=1)
    used = shutil.disk_usage(disk).used
    small_disk(used + 200_000)
    command = [3, "full", "FaceResNet29_v1.0", "true", 8, *SMALL_HEAD, "--data-dir", disk / "data", "--runs-dir", disk]

    def assert_refused():
        result = run_script("train.py", *command, env={"SECONDS_BETWEEN_CHECKPOINTS": 0}, check=False)
        assert result.returncode == 1 and "no space left" in result.stderr, result.stderr
        assert len(result.stderr.splitlines()) == 1, result.stderr
        assert not [path for path in disk.rglob("*") if ".partial" in path.name]

    assert_refused()
    small_disk(used + 44_000_000)
    shutil.rmtree(disk / "full")
    assert_refused()
    assert load_checkpoint(disk / "full" / "checkpoint_previous.pt").training["step"] > 0
    small_disk("200m")
    assert run(train, *command, "--resume")[0] == 0
    assert len(pandas.read_csv(disk / "full" / "training.csv")) == 3
    assert load_checkpoint(disk / "full" / "checkpoint_last.pt")


def open_ports(mark):
    """The TCP ports, of the processes that have a variable in their environment, which listen on another address than
    loopback's, as Linux lists them. mark: bytes, NAME=value."""
    sockets = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                sockets |= {os.readlink(path) for path in (process / "fd").iterdir()}
        except OSError:  # it has ended
            continue
    ports = set()
    for path in Path("/proc/net").glob("tcp*"):
        for line in path.read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            address, port = local.split(":")
            # Words of 32 bits in the machine's byte order: 127.0.0.1 is 0100007F, and ::1 ends in 01000000.
            if state == "0A" and not address.endswith(("7F", "01000000")) and f"socket:[{inode}]" in sockets:
                ports.add(int(port, 16))
    return ports


def test_search_killed_resumed_and_used(run_script, run, chip_data, tmp_path):
    """The driver is killed in the middle and one trial always fails: the rest is finished, the best used."""
    # The script as a user would have edited it: with the last learning rate the loss is not finite.
    text = (REPOSITORY / "train_resnet_raytune_hyperparams.py").read_text()
    edited = tmp_path / "train_resnet_raytune_hyperparams.py"
    text = text.replace('"lr": tune.loguniform(2e-4, 3e-3)', '"lr": tune.grid_search([1e-3, 2e-3, 1e30])')
    # As in the original's script.
    edited.write_text(text.replace('"l2": tune.choice([64, 128, 256])',
                                   '"l2": tune.sample_from(lambda _: 2 ** np.random.randint(6, 9))'))
    search = [sys.executable, edited, "1", "4", "search", "FaceResNet29_v1.0", "--data-dir", chip_data]
    search = list(map(str, search))
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), "STARTED_BY": str(tmp_path)}
    folder = tmp_path / "runs" / "search"
    process = subprocess.Popen(search, cwd=tmp_path, env=variables, stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(folder.glob("search/*/training.csv")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert process.poll() is None
    assert not open_ports(f"STARTED_BY={tmp_path}".encode())
    process.kill()
    process.wait()

    status, _, errors = run(train_resnet_raytune_hyperparams, *search[2:])
    assert status == 2 and "--resume" in errors
    other = [word if word != "FaceResNet29_v1.0" else "FaceResNet29_v2.0" for word in search[2:]]
    status, _, errors = run(train_resnet_raytune_hyperparams, *other, "--resume")
    assert status == 2 and "FaceResNet29_v1.0" in errors

    result = subprocess.run([*search, "--resume"], cwd=tmp_path, env=variables, capture_output=True, text=True,
                            timeout=240)
    assert result.returncode == 0, result.stderr
    trials = pandas.read_csv(folder / "trials.csv")
    ended = trials["status"].replace("stopped early", "finished")  # ASHA stops whichever of the two is behind
    assert sorted(zip(trials["lr"], ended)) == [(1e-3, "finished"), (2e-3, "finished"), (1e30, "failed")]
    assert "1 failed, 0 are unfinished" in result.stdout and "failed twice and left out" in result.stderr
    assert "3 trials, 1 with each" in result.stderr  # of the grid
    assert result.stdout.count(", gain ") == result.stdout.count("accuracy 0.") == trials["best_gain"].count() + 1
    # The best over all epochs, as the trial's own log says.
    log = pandas.read_csv(folder / "search" / trials["trial"][0] / "training.csv")
    assert log["accuracy_mean"].max() == pytest.approx(trials["best_accuracy"][0])
    assert trials["best_accuracy"][0] == trials["best_accuracy"].max()
    scalars = set(EventAccumulator(str(folder / "search" / trials["trial"][0])).Reload().Tags()["scalars"])
    assert {"hparam/accuracy_mean", "hparam/loss_valid", "accuracy/openness", "pearson/mean"} <= scalars
    best = json.loads((folder / "best_config.json").read_text())
    assert best["l1"] == trials["l1"][0] and best["model"] == "FaceResNet29_v1.0"

    status, _, errors = run(train, 2, "final", "FaceResNet29_v1.0", "true", 16, "--data-dir", chip_data, "--config",
                            folder / "best_config.json")
    assert status == 0, errors
    content = load_checkpoint(tmp_path / "runs" / "final" / "checkpoint_last.pt")
    # A batch larger than the training set is all of it.
    status, _, errors = run(train, 4, "again", "FaceResNet29_v1.0", "false", min(best["batch_size"], 48),
                            "--data-dir", chip_data, "--config", folder / "best_config.json")
    assert status == 0, errors
    again = losses_of(tmp_path / "runs" / "again")
    assert again[:len(log)] == pytest.approx(log["loss_train"].tolist(), rel=1e-4)
    assert {"weights": "dlib", "val_split": "official", "seed": 0, "memory": "exact"}.items() <= best.items()
    assert content.config.l1 == best["l1"] and len(content.clips) == 64 and content.trained_on == "train+valid"
    assert not (tmp_path / "runs" / "final" / "checkpoint_best.pt").exists()


@pytest.mark.parametrize("arguments, complaint", [
    (["0", "a", "ResNet18_v1.0", "true", "4"], "NUM_EPOCHS"),
    (["ten", "a", "ResNet18_v1.0", "true", "4"], "'ten'"),
    (["2", "a", "ResNet18", "true", "4"], "ResNet18_v1.0"),
    (["2", "a", "ResNet18_v1.0", "maybe", "4"], "neither true nor false"),
    (["2", "a", "ResNet18_v1.0", "true", "4096"], "BATCH_SIZE 4096"),
    (["2", "../a", "ResNet18_v1.0", "true", "4"], "plain name"),
    (["2", "a", "ResNet18_v1.0", "true", "4", "--data-dir", "nowhere"], "nowhere"),
    (["2", "a", "ResNet18_v1.0", "true", "4", "--weights", "nowhere.pt"], "nowhere.pt"),
    (["2", "a", "ResNet18_v1.0", "true", "4", "--config", "nowhere.json"], "nowhere.json"),
    (["2", "a", "ResNet18_v1.0", "true", "4", "--loss", "hinge"], "mse"),
])
def test_wrong_arguments_of_training(chip_data, tmp_path, monkeypatch, capsys, arguments, complaint):
    monkeypatch.chdir(tmp_path)
    if "--data-dir" not in arguments:
        arguments = [*arguments, "--data-dir", str(chip_data)]
    with pytest.raises((UserError, SystemExit)) as caught:
        train.main(arguments)
    said = str(caught.value) if caught.type is UserError else capsys.readouterr().err
    assert complaint in said and "\n" not in said.strip().splitlines()[-1]
    assert caught.type is UserError or caught.value.code == 2
    assert not (tmp_path / "runs").exists() or not os.listdir(tmp_path / "runs")
