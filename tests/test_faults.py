"""Classes of faults that a hostile user found: nothing is destroyed before it can be replaced, no wrong figure without
a word, one bad thing does not stop the rest, what is read is checked where it is read, done is said when it is done."""
import contextlib
import copy
import functools
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pandas
import pytest
import torch

import evaluate
import export
import predict
import train
import train_resnet_raytune_hyperparams as search
from conftest import REPOSITORY, write_chips
from first_impressions.common import experiment
from first_impressions.common.command_line import UserError, run_script
from first_impressions.common.constants import TRAITS
from first_impressions.common.experiment import finish_replacement, start_replacement
from first_impressions.common.files import remove
from first_impressions.data import chips
from first_impressions.data.splits import Split, list_faces, load_split, split_by_speaker
from first_impressions.networks.checkpoint import load_checkpoint
from first_impressions.networks.losses import ccc_loss
from make_media import portrait, write_clip
from model_architectures import load_trained
from read_back import contents

MODEL = "FaceResNet29_v1.0"
SMALL = ["--l1", "16", "--l2", "8"]


@pytest.fixture
def runs(trained, tmp_path):
    """A copy of the folder of the trained experiment, tmp_path/runs, to be damaged; with an exported model."""
    copied = shutil.copytree(trained, tmp_path / "runs")
    (copied / "one" / "model.onnx").write_text("exported before")
    return copied


# ---------------------------------------------------------------- a replacement does not destroy before it can replace

def test_overwrite_keeps_the_old_training_until_the_new_one_has_a_checkpoint(run, runs, chip_data):
    before = contents(runs)
    data = ["--data-dir", chip_data, *SMALL, "--overwrite"]
    for more in (["1"], ["16", "--lr", "1e30"], ["16", "--dry-run"], ["1", "--dry-run"]):
        status, _, errors = run(train, 1, "one", MODEL, "true", *more, *data)
        assert status == (0 if more == ["16", "--dry-run"] else 2), errors
        assert contents(runs) == before, more
    assert run(train, 1, "one", MODEL, "true", 16, *data)[0] == 0
    after = contents(runs)
    assert {"args.json", "training.csv", "checkpoint_last.pt"} < {Path(path).name for path in after}
    assert not [path for path in after if "evaluation" in path or Path(path).name == "model.onnx" or ".new" in path]
    assert len(pandas.read_csv(runs / "one" / "training.csv")) == 1


def test_killed_overwrite_leaves_the_old_training(run, runs, chip_data, tmp_path):
    """Meanwhile another run in the same folder is refused."""
    before = contents(runs)
    command = list(map(str, ("5000", "one", MODEL, "true", "16", *SMALL, "--data-dir", chip_data)))
    process = subprocess.Popen([sys.executable, REPOSITORY / "train.py", *command, "--overwrite"], cwd=tmp_path,
                               stdout=subprocess.PIPE, text=True)
    try:
        for line in process.stdout:
            if line.startswith("epoch 3"):
                break
        process.send_signal(signal.SIGSTOP)  # it holds the folder, but not the processor
        status, _, errors = run(train, *command, "--overwrite")
        assert status == 2 and "another run is working there" in errors
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
    left = {path: data for path, data in contents(runs).items() if ".new" not in Path(path).parts}
    assert left == before
    assert load_checkpoint(runs / "one" / "checkpoint_last.pt").epoch == 2


@pytest.mark.parametrize("steps", range(9))
def test_a_replacement_that_is_killed_at_any_step_is_finished_by_the_next_run(tmp_path, monkeypatch, steps):
    for name in ("args.json", "training.csv", "checkpoint_last.pt", "checkpoint_best.pt", "evaluation_test/plot.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("old")
    start_replacement(tmp_path)
    new = {name: b"new" for name in ("args.json", "events.out.tfevents.1", "checkpoint_last.pt")}
    for name, data in new.items():
        (tmp_path / ".new" / name).write_bytes(data)
    calls = itertools.count()

    def until_killed(function):
        def step(*arguments):
            if next(calls) == steps:
                raise SystemExit
            function(*arguments)
        return step

    with monkeypatch.context() as killed:
        killed.setattr(experiment, "remove", until_killed(remove))
        killed.setattr(os, "replace", until_killed(os.replace))
        with contextlib.suppress(SystemExit):
            finish_replacement(tmp_path)
    finish_replacement(tmp_path)
    assert contents(tmp_path) == new and next(calls) >= steps


def test_search_asks_ray_before_it_touches_the_old_search(run, chip_data, tmp_path):
    folder = tmp_path / "runs" / "search"
    (folder / "search" / "trial_00000").mkdir(parents=True)
    for name in ("search_args.json", "trials.csv", "best_config.json", "search/trial_00000/training.csv"):
        (folder / name).write_text("{}")
    before, started = contents(folder), time.monotonic()
    status, _, errors = run(search, 2, 2, "search", MODEL, "--data-dir", chip_data, "--overwrite",
                            "--ray-address", "127.0.0.1:1")
    assert status == 2 and "no Ray cluster answers" in errors and time.monotonic() - started < 60
    assert contents(folder) == before


def test_a_search_does_not_mix_with_trials_whose_record_is_gone(tmp_path):
    (tmp_path / "search" / "trial_00007").mkdir(parents=True)
    assert not search.prepare_folder(tmp_path, {"used": "new"}, SimpleNamespace(resume=False))
    assert not (tmp_path / "search").exists()


@pytest.mark.parametrize("has_result", [False, True])
def test_a_killed_search_has_replaced_the_old_one_only_with_a_result(tmp_path, has_result):
    old = ("search_args.json", "trials.csv", "best_config.json", "search/trial_00000/training.csv")
    for name in old:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("old")
    assert not search.prepare_folder(tmp_path, {"used": "new"}, SimpleNamespace(resume=False))
    (tmp_path / "search" / "trial_00001").mkdir(parents=True)
    if has_result:
        (tmp_path / "search" / "trial_00001" / "training.csv").write_text("new")
    for _ in range(2):  # also if the first one is killed at its end
        search.settle_trials(tmp_path)
    texts = {name: text.decode() for name, text in contents(tmp_path).items()}
    assert texts == ({"search/trial_00001/training.csv": "new", "search_args.json": '{\n  "used": "new"\n}\n'}
                     if has_result else dict.fromkeys(old, "old"))


# ---------------------------------------------------------------- no wrong figure without a word

def test_speakers_held_out_are_a_fifth_whatever_the_seed():
    sizes = [40, 20, 10, 10, 5, 5, 4, 3, 2, 1]
    clips = [f"s{speaker}.{number:03}" for speaker, size in enumerate(sizes) for number in range(size)]
    clips_of_two = [f"s{speaker}.{number}" for speaker in range(2) for number in range(10)]
    for names, least in ((clips, 15), (clips_of_two, 10)):
        speakers = pandas.Series([name.split(".")[0] for name in names], index=names)
        split = Split("train", pandas.DataFrame({"path": names, "clip": names}),
                      pandas.DataFrame(0.5, index=names, columns=list(TRAITS)), speakers, {})
        for seed in range(20):
            training, held_out = split_by_speaker(split, 0.2, seed)
            assert least <= len(held_out.labels) <= max(least, 20)
            assert not set(training.speakers) & set(held_out.speakers)
    alone = split.only([clip for clip in clips_of_two if clip.startswith("s1")], "alone")
    with pytest.raises(UserError, match="of 1 speaker, 2 are needed"):
        split_by_speaker(alone, 0.2, 0)


def test_two_clips_of_one_name_and_linked_folders(tmp_path):
    faces = write_chips(tmp_path / "data", {"train": 4}) / "train" / "faces"
    elsewhere = tmp_path / "elsewhere"
    faces.rename(elsewhere)
    (faces / "0001").parent.mkdir()
    (faces / "0001").symlink_to(elsewhere)
    (elsewhere / "loop").symlink_to(faces)
    assert len(list_faces(faces)) == 8
    (faces / "0002").mkdir()
    shutil.copy(next(elsewhere.glob("*.jpg")), faces / "0002")
    with pytest.raises(UserError, match="both have faces of a clip called") as caught:
        list_faces(faces)
    assert "0001" in str(caught.value) and "0002" in str(caught.value)


def test_file_names_of_another_unicode_form(tmp_path):
    data = write_chips(tmp_path / "data", {"train": 2})
    labels = pandas.read_csv(data / "train" / "labels.csv")
    old = labels["clip"][0].removesuffix(".mp4")
    labels.loc[0, "clip"] = "Jos\u00e9.001.mp4"
    labels.to_csv(data / "train" / "labels.csv", index=False)
    for path in (data / "train" / "faces").glob(f"{old}__*"):
        path.rename(path.with_name(path.name.replace(old, "Jose\u0301.001")))
    assert "Jos\u00e9.001" in set(load_split(data, "train").faces["clip"])


def test_copied_data_can_be_resumed_on_and_moved_data_are_no_warning(run, runs, chip_data, tmp_path):
    copied = shutil.copytree(chip_data, tmp_path / "data", ignore=shutil.ignore_patterns("features"),
                             copy_function=shutil.copyfile)
    status, _, errors = run(train, 2, "one", MODEL, "true", 16, *SMALL, "--data-dir", copied, "--resume")
    assert status == 0 and not errors
    moved = (runs / "one" / "args.json").read_text().replace(str(chip_data), "/gone/data")
    (runs / "one" / "args.json").write_text(moved)
    status, _, errors = run(evaluate, "one", "--data-dir", copied)
    assert status == 0 and "/gone/data" not in errors


# ---------------------------------------------------------------- one bad thing does not stop the rest

def test_a_trait_that_is_constant_within_a_batch_does_not_spoil_the_ccc_loss(run, tmp_path):
    scores, targets = torch.rand(8, 5, requires_grad=True), torch.rand(8, 5)
    targets[:, 2] = 0.5
    loss = ccc_loss(scores, targets)
    loss.backward()
    rest = [0, 1, 3, 4]
    assert loss.item() == pytest.approx(ccc_loss(scores[:, rest], targets[:, rest]).item(), abs=1e-6)
    assert torch.isfinite(scores.grad).all() and not scores.grad[:, 2].any()
    assert torch.isfinite(ccc_loss(scores, torch.full((8, 5), 0.5)))
    data = write_chips(tmp_path / "data", {"train": 7, "valid": 3})
    status, output, errors = run(train, 3, "one", MODEL, "false", 2, "--data-dir", data, "--loss", "ccc", *SMALL,
                                 "--memory", "none")
    assert status == 0 and "epoch 3/3" in output and "Traceback" not in errors


@pytest.mark.parametrize("cache", ["float16", "off"])
def test_unreadable_faces_are_left_out(run, tmp_path, cache):
    data = write_chips(tmp_path / "data", {"train": 33, "valid": 3})
    faces = sorted((data / "train" / "faces").glob("*.jpg"))
    faces[0].unlink()
    faces[-1].write_bytes(b"")  # alone in the last batch of 64
    command = [1, "one", MODEL, "false", 16, "--data-dir", data, *SMALL, "--cache", cache]
    status, _, errors = run(train, *command)
    assert status == 0 and errors.count(faces[-1].name) >= 1 and "Traceback" not in errors
    for path in faces[1:]:
        path.write_bytes(b"")
    status, _, errors = run(train, *command, "--overwrite")
    assert status == 2 and "can be read" in errors.splitlines()[-1]


def test_predict_with_odd_names_and_full_targets(run, runs, tmp_path, small_disk):
    folder = tmp_path / "clips"
    folder.mkdir()
    clip = write_clip(folder / "fine.mp4", frames=2, size=(320, 320), picture=lambda *_: portrait(320))
    shutil.copy(clip, os.fsencode(folder) + b"/bad\xff.mp4")
    shutil.copy(clip, folder / ("x" * 251 + ".mp4"))
    picture_dir = tmp_path / "pictures"
    status, output, errors = run(predict, "one", folder, "--frames", 1, "--out", tmp_path / "o.csv",
                                 "--annotate", picture_dir)
    assert status == 0 and "3 of 3 files scored" in output, errors
    assert len(pandas.read_csv(tmp_path / "o.csv")) == 3 and len(list(picture_dir.iterdir())) == 3

    (tmp_path / "folder.csv").mkdir()
    for option, target in (("--out", tmp_path / "folder.csv"), ("--annotate", tmp_path / "o.csv"),
                           ("--explain", tmp_path / "o.csv" / "below")):
        status, output, errors = run(predict, "one", folder, option, target)
        assert status == 2 and str(target) in errors and not output, (option, errors)

    disk = small_disk("24k")
    result = subprocess.run([sys.executable, REPOSITORY / "predict.py", "one", folder / "fine.mp4", "--frames", "1",
                             "--annotate", disk], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1 and "no space left" in result.stderr and "fine.mp4" in result.stdout
    assert "results:" not in result.stdout and not [path for path in disk.iterdir() if path.name != ".lock"]


# ---------------------------------------------------------------- what is read is checked where it is read

def damaged(value):
    """Return other values of a key than a checkpoint has there."""
    if not torch.is_tensor(value):
        return [None, "text", -1, 1.5, [], {}, [None], {"a": 1}, float("nan"), torch.zeros(2)]
    return [None, "text", torch.zeros(3, 1, 7),
            torch.full_like(value, float("nan")) if value.is_floating_point() else torch.zeros(9)]


def variants(content, every):
    """Yield (name, content) of a checkpoint's content with each key in turn taken away or changed, at every depth.

    every: try just one of this many changes of a key, another one at the next key.
    """
    def below(path, value):
        yield path
        if isinstance(value, dict) and (len(path) < 2 or path[0] != "training"):
            for key in list(value)[:6]:
                yield from below((*path, key), value[key])

    def copy_down_to(path):
        """Return a copy of the content, and the dictionary in it that holds the last key of the path."""
        other = copy.copy(content)
        place = other
        for parent in path[:-1]:
            place[parent] = copy.copy(place[parent])
            place = place[parent]
        return other, place

    number = 0
    for key, value in content.items():
        for path in below((key,), value):
            other, place = copy_down_to(path)
            old = place.pop(path[-1])
            yield f"without {path}", other
            number += 1
            for damage in damaged(old)[number % every::every]:
                other, place = copy_down_to(path)
                place[path[-1]] = damage
                yield f"{path} = {str(damage)[:20]}", other


def test_damaged_checkpoints_are_one_line_each(trained, tmp_path, long_run):
    """Every key that any script reads, taken away or changed: refused in one line, or the same scores as before."""
    content = torch.load(trained / "one" / "checkpoint_last.pt")
    path = tmp_path / "checkpoint_last.pt"
    refused = accepted = 0
    for name, other in variants(content, every=1 if long_run else 7):
        torch.save(other, path)
        try:
            checkpoint = load_checkpoint(path)
            network = checkpoint.build(path)
            with torch.no_grad():
                scores = network(network.represent(torch.zeros(2, len(network.projection.mean))))
            assert torch.isfinite(scores).all(), name
            assert pandas.Series(checkpoint.constant)[list(TRAITS)].between(0, 1).all(), name
            assert {"size", "padding"} <= checkpoint.preprocessing.keys() and set(checkpoint.clips) is not None
            accepted += 1
        except UserError as error:
            refused += 1
            assert "\n" not in str(error) and str(path) in str(error), name
    print(f"{refused} refused, {accepted} read")
    assert refused > 4 * accepted


def test_old_formats_and_missing_keys_by_the_real_command(run, runs, chip_data):
    path = runs / "one" / "checkpoint_last.pt"
    content = torch.load(path)
    for change in ({"format": 1}, {"constant": None}, {"clips": "abc"}, {"preprocessing": {"size": 224}}):
        torch.save({**content, **change}, path)
        for module, arguments in ((evaluate, ["one", "--data-dir", chip_data]),
                                  (predict, ["one", chip_data / "test" / "faces"]), (export, ["one"])):
            status, _, errors = run(module, *arguments)
            assert status == 2 and len(errors.splitlines()) == 1 and str(path.name) in errors
    torch.save(content, path)
    path.rename(path.with_name("checkpoint_previous.pt"))
    assert run(export, "one", "--out", "x.pt")[0] == 2
    assert run(evaluate, "one", "--data-dir", chip_data)[0] == 0


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(runs, capsys):
    last = runs / "one" / "checkpoint_last.pt"
    shutil.copy(last, last.with_name("checkpoint_previous.pt"))
    last.write_bytes(b"")
    assert load_trained("one", runs)[1].epoch == 2
    errors = capsys.readouterr().err
    assert f"{last}: is damaged" in errors and "falling back" in errors


def test_small_shared_memory_is_noticed_before_the_workers_wait_for_ever(run, chip_data, small_disk, monkeypatch):
    monkeypatch.setattr(chips, "SHARED_MEMORY", small_disk("1m"))
    status, _, errors = run(train, 1, "a", MODEL, "true", 16, "--data-dir", chip_data, "--cache", "off", *SMALL,
                            "--num-workers", 2)
    assert status == 2 and "--num-workers 0" in errors and "--shm-size" in errors and len(errors.splitlines()) == 1


def test_ray_without_a_folder_of_its_own_is_one_line(run_script, chip_data, tmp_path):
    long = tmp_path / ("slurm_jobdir_" * 8)
    long.mkdir()
    result = run_script("train_resnet_raytune_hyperparams.py", 1, 1, "s", MODEL, "--data-dir", chip_data,
                        env={"TMPDIR": long}, check=False)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "RAY_TMPDIR" in result.stderr.splitlines()[-1]


def test_clips_without_a_face_do_not_count(run, tmp_path):
    data = write_chips(tmp_path / "data", {"train": 10})
    table = pandas.read_csv(data / "train" / "labels.csv")
    others = pandas.DataFrame([{"clip": f"nobody.{number}", **dict.fromkeys(TRAITS, 1.0)} for number in range(6)])
    pandas.concat([table, others]).to_csv(data / "train" / "labels.csv", index=False)
    status, output, _ = run(train, 1, "some", MODEL, "true", 8, "--data-dir", data, *SMALL)
    assert status == 0 and "train: 10 clips of 10 speakers" in output and "left out: 6 clips" in output
    checkpoint = load_checkpoint(tmp_path / "runs" / "some" / "checkpoint_last.pt")
    assert checkpoint.constant["openness"] == pytest.approx(table["openness"].mean())
    assert sorted(checkpoint.clips) == sorted(clip.removesuffix(".mp4") for clip in table["clip"])


def test_data_with_training_clips_only(run, tmp_path):
    import dataset
    data = write_chips(tmp_path / "data", {"train": 10})
    assert run(train, 1, "all", MODEL, "true", 8, "--data-dir", data, *SMALL)[0] == 0
    # Too few clips for a centre; what changes nothing is named.
    status, _, errors = run(train, 1, "few", MODEL, "true", 8, "--data-dir", data, *SMALL, "--memory", "centres",
                            "--hflip", "false", "--layer-decay", "0.5", "--l3", "9")
    assert status == 0 and "without effect here: --l3, --layer-decay, --hflip" in errors
    (data / "test").symlink_to(data / "train")
    status, _, errors = run(evaluate, "few", "--data-dir", data)
    assert status == 0 and "10 of these 10 clips are among those that the experiment learned from" in errors
    (data / "test").unlink()
    status, _, errors = run(train, 1, "part", MODEL, "false", 8, "--data-dir", data, *SMALL)
    assert status == 2 and "--val-split speaker" in errors
    status, output, _ = run(dataset, data)
    assert status == 0 and "valid: not there" in output and "10 clips" in output


@pytest.mark.parametrize("arguments, complaint", [
    (["2", "a", MODEL, "true", "4", "--seed", "9" * 23], "whole number"),
    (["9" * 30, "a", MODEL, "true", "4"], "NUM_EPOCHS"),
    (["2", "n" * 300, MODEL, "true", "4"], "longer than 200 bytes"),
    (["2", "a", MODEL, "true", "4", "--runs-dir", "a_file"], "a_file: is not a folder"),
    (["2", "a", MODEL, "true", "4", "--runs-dir", "a_file/runs"], "cannot be made"),
    (["2", ".new", MODEL, "true", "4"], "plain name"),
    (["2", "two\nlines", MODEL, "true", "4"], r"EXPERIMENT 'two\nlines': give a plain name"),
    (["2", "a", MODEL, "true", "4", "--speaker-regex", r"^.+\.\d+$"], r"needs a group, as in '^(.+)\.\d+$'"),
])
def test_impossible_arguments_are_one_line(run, chip_data, tmp_path, arguments, complaint):
    (tmp_path / "a_file").touch()
    status, _, errors = run(train, *arguments, "--data-dir", chip_data)
    assert status == 2 and complaint in errors and len(errors.splitlines()) == 1


def test_the_originals_own_search_space(run, chip_data, monkeypatch):
    space = """{"l1": tune.sample_from(lambda _: 2 ** np.random.randint(2, 9)), "lr": tune.loguniform(1e-4, 1e-1),
                "batch_size": tune.choice([2, 4, 8, 16])}"""
    monkeypatch.setattr(search, "config", eval(space, vars(search)))
    status, output, errors = run(search, 2, 1, "s", MODEL, "--data-dir", chip_data, "--dry-run")
    assert status == 0 and "lr: Float (0.0001, 0.1)" in output, errors


def test_export_on_a_full_disk(run, runs, small_disk, monkeypatch):
    disk = small_disk("1m")
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)  # run_script sets another
    command = SimpleNamespace(main=functools.partial(run_script, export.main))
    for file_format, name in (("torch", "model.pt2"), ("onnx", "model.onnx")):
        status, _, errors = run(command, "one", "--format", file_format, "--out", disk / name)
        assert status == 1 and "no space left" in errors.splitlines()[-1], errors
        assert not os.listdir(disk)
