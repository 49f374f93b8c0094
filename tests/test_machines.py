"""Machines that are not this one: the cores of a job, GPUs that cannot be used, Apple's MPS, Windows."""
import argparse
import os
import shutil
import subprocess
import sys
import warnings
import zipfile

import pandas
import pytest
import torch

import app
import evaluate
import predict
import train
import train_resnet_raytune_hyperparams as search
from conftest import REPOSITORY, linux_only, write_chips
from first_impressions.common import command_line
from first_impressions.common.command_line import UserError
from first_impressions.common.constants import TRAITS
from first_impressions.common.device import pick_device
from first_impressions.data.labels import SPEAKER_REGEX

# ---------------------------------------------------------------- cores


def cores_with(monkeypatch, tmp_path, place, **quotas):
    """Return usable_cores() of a process on 64 cores in the control group of a line of /proc/self/cgroup; quotas: the
    files of the groups, as folder__name="content"."""
    (tmp_path / "cgroup").write_text(f"12:memory:/elsewhere\n{place}\n")
    for name, content in quotas.items():
        path = tmp_path / "fs" / name.replace("__", "/").replace("max", "cpu.max").replace("cfs", "cpu.cfs")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    monkeypatch.setattr(command_line, "CGROUPS_OF_PROCESS", str(tmp_path / "cgroup"))
    monkeypatch.setattr(command_line, "CGROUPS", str(tmp_path / "fs"))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    return command_line.usable_cores()


def test_cores_are_those_of_the_job_not_of_the_node(monkeypatch, tmp_path):
    """The affinity, and the quota of the control group or of one above it, in both versions of control groups."""
    def cores(number, place, **quotas):
        return cores_with(monkeypatch, tmp_path / str(number), place, **quotas)

    for number in range(7):
        (tmp_path / str(number)).mkdir()
    assert cores(0, "0::/") == 64                                                   # no quota at all
    assert cores(1, "0::/job/step", job__max="400000 100000", job__step__max="max 100000") == 4
    assert cores(2, "0::/job/step", job__max="max 100000", job__step__max="150000 100000") == 2
    assert cores(3, "0::/", max="10000 100000") == 1                                # as inside a container
    assert cores(4, "4:cpu,cpuacct:/docker/12ab", **{"cpu,cpuacct__cfs_quota_us": "300000",
                                                     "cpu,cpuacct__cfs_period_us": "100000"}) == 3
    assert cores(5, "1:cpu:/", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000") == 64
    assert cores(6, "0::/", max="rubbish") == 64
    monkeypatch.setattr(command_line, "CGROUPS_OF_PROCESS", str(tmp_path / "none"))
    assert command_line.usable_cores() == 64
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)                     # macOS
    assert command_line.usable_cores() == os.cpu_count()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_default_of_workers_is_the_jobs_cores(run_script):
    """A process that may use one core starts one worker by default, in every script that has --workers."""
    core = min(os.sched_getaffinity(0))
    script = REPOSITORY / "pre-processing" / "extract_frames_from_videos.py"
    command = (f"import os, sys; os.sched_setaffinity(0, {{{core}}}); "
               "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])")
    result = subprocess.run([sys.executable, "-c", command, str(script), "--help"], capture_output=True, text=True)
    assert "(default: 1)" in result.stdout.rpartition("--workers")[2].partition("--ray")[0]
    sources = [path.read_text() for path in [*REPOSITORY.glob("*.py"), *REPOSITORY.glob("first_impressions/*/*.py")]]
    assert not any("default=os.cpu_count()" in source for source in sources)


# ---------------------------------------------------------------- devices

@pytest.fixture
def gpu(monkeypatch):
    """gpu(capability=..., error=...): this machine seems to have two CUDA GPUs; error: raised by the first operation
    there."""
    ones = torch.ones

    def make(capability=(9, 0), compiled=("sm_75", "sm_80", "sm_90", "compute_120"), error=None):
        def first_operation(*size, device=None, **options):
            if error and torch.device(device or "cpu").type == "cuda":
                raise error
            return ones(*size, **options)

        for name, value in (("is_available", True), ("device_count", 2), ("get_device_capability", capability),
                            ("get_arch_list", list(compiled)), ("get_device_name", "Tesla P100")):
            monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
        monkeypatch.setattr(torch, "ones", first_operation)
        pick_device.cache_clear()

    yield make
    pick_device.cache_clear()


@pytest.mark.parametrize("capability, usable", [((6, 0), False), ((7, 0), False), ((7, 5), True), ((8, 6), True),
                                                ((9, 0), True), ((10, 0), False), ((12, 0), True), ((12, 1), True)])
def test_gpu_older_than_the_wheel_is_left_alone(gpu, capfd, capability, usable):
    """Its compute capability is compared with what PyTorch was compiled for; one line, and the CPU computes."""
    gpu(capability)
    assert pick_device().type == ("cuda" if usable else "cpu")
    assert pick_device().type == ("cuda" if usable else "cpu")
    errors = capfd.readouterr().err
    if usable:
        assert not errors
    else:
        assert errors.count("\n") == 1 and "Tesla P100" in errors and errors.endswith("computing on the CPU\n")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB. GPU 0 has ..."),
                                   torch.AcceleratorError("CUDA error: no kernel image is available\nCUDA kernel er"),
                                   AssertionError("Torch not compiled with CUDA enabled")])
def test_gpu_that_fails_at_once_costs_one_warning(gpu, capfd, error):
    """Out of memory because others use it, no kernel, no driver: in auto the CPU computes, else one line says why."""
    gpu(error=error)
    assert pick_device().type == "cpu"
    reason = str(error).splitlines()[0].partition(". ")[0]
    assert capfd.readouterr().err == f"warning: the GPU cannot be used ({reason}); computing on the CPU\n"
    with pytest.raises(UserError, match=reason):
        pick_device("cuda:1")


def test_gpu_that_was_asked_for(gpu, monkeypatch):
    """Numbers count from 0; under torchrun cuda is the process's own GPU."""
    with pytest.raises(UserError, match="no CUDA GPU here; --device cpu needs no GPU"):
        pick_device("cuda")
    with pytest.raises(UserError, match="no Apple GPU here"):
        pick_device("mps")
    gpu()
    assert pick_device("cuda") == pick_device("cuda:0") == torch.device("cuda:0")
    assert pick_device("cuda:1") == torch.device("cuda:1") and pick_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="they count from 0 to 1"):
        pick_device("cuda:2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    pick_device.cache_clear()
    assert pick_device() == pick_device("cuda") == torch.device("cuda:1")


def test_driver_that_is_too_old_is_said_in_one_line(monkeypatch, capfd):
    """PyTorch then finds no GPU, and says why in a warning of many lines."""
    def is_available():
        warnings.warn("CUDA initialization: The NVIDIA driver on your system is too old (found version 11040). Please "
                      "update your GPU driver by downloading ... (Triggered internally at CUDAFunctions.cpp:109.)",
                      stacklevel=2)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    pick_device.cache_clear()
    assert pick_device().type == "cpu"
    assert capfd.readouterr().err == ("warning: the GPU cannot be used (CUDA initialization: The NVIDIA driver on your "
                                      "system is too old (found version 11040)); computing on the CPU\n")
    pick_device.cache_clear()


def test_search_hands_its_device_to_the_trials(gpu, monkeypatch):
    """On this machine what can be used, on a cluster what was asked for; a number restricts what Ray hands out."""
    def device_of(name, address=None):
        return search.device_of_trials(argparse.Namespace(device=name, ray_address=address))

    gpu(error=RuntimeError("CUDA error: out of memory"))
    assert device_of("auto") == device_of("cpu") == "cpu"
    assert device_of("auto", "10.0.0.1:6379") == "auto" and device_of("cuda:1", "auto") == "cuda"
    gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    assert device_of("cuda") == "cuda" and os.environ["CUDA_VISIBLE_DEVICES"] == "4,5"
    assert device_of("cuda:1") == "cuda" and os.environ["CUDA_VISIBLE_DEVICES"] == "5"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert device_of("cuda:1") == "cuda" and os.environ["CUDA_VISIBLE_DEVICES"] == "1"
    assert device_of("cuda:3") == "cuda" and os.environ["CUDA_VISIBLE_DEVICES"] == "-1"


@pytest.mark.parametrize("script", [train, search, evaluate, predict, app])
def test_every_script_that_computes_has_device(run, script):
    """Wrong names and devices that are not there end in one line."""
    status, out, err = run(script, "--help")
    assert "--device {auto,cpu,cuda,cuda:N,mps}" in out
    words = {train: (1, "x", "FaceResNet29_v1.0", "true", 8), search: (1, 1, "x", "FaceResNet29_v1.0"),
             evaluate: ("pretrained",), predict: ("pretrained", "x.mp4"), app: ()}[script]
    status, out, err = run(script, *words, "--device", "gpu")
    assert status == 2 and err.count("\n") == 1 and "auto, cpu, cuda, cuda:N, mps" in err


# What is trained, searched, scored and explained, in the order in which each needs the one before it.
ON_THE_DEVICE = """
import sys
sys.path[:0] = [{suite!r}, {tests!r}]
import first_impressions.common.startup
import torch
import pretended_device
from first_impressions.common import device
device.pick_device = lambda wanted="auto": torch.device(pretended_device.DEVICE)
import evaluate, predict, train
from ray import tune
from first_impressions.training import search_trial
from dataset import FaceDataset
from model_architectures import architecture_named, load_trained
data = ["--data-dir", {data!r}]
with pretended_device.pretended_device():
    for name, model, *options in (("exact", "FaceResNet29_v1.0"),
                                  ("centres", "FaceResNet29_v1.0", "--memory", "centres"),
                                  ("trained", "FaceResNet29_v2.0", "--mixup", "0.2")):
        assert not train.main(["1", name, model, "false", "8", *data, "--l1", "16", "--l2", "8", *options])
        assert name == "centres" or not evaluate.main([name, *data])
    assert load_trained("exact")[0].mean.device.type == pretended_device.DEVICE
    picture = {picture!r}
    assert not predict.main(["pretrained", picture, "--explain", "maps", "--out", "scores.csv", "--workers", "1"])
    reports = []
    tune.report = lambda figures, **_: reports.append(figures)
    tune.get_checkpoint = lambda: None
    tune.get_context = lambda: type("Context", (), {{"get_trial_name": staticmethod(lambda: "trial_0")}})
    search = search_trial.Search(architecture_named("FaceResNet29_v1.0"), FaceDataset, 1, 0, "dlib", {data!r},
                                 "official", {speakers!r}, device.Machine(torch.device("cpu")), "trials")
    search_trial.run_trial({{"l1": 16, "l2": 8, "batch_size": 8}}, search)
    assert len(reports) == 1
"""


def test_nothing_of_double_precision_is_made_on_a_gpu(tmp_path, run):
    """Training of all kinds, evaluation, prediction, heat maps and a trial of the search work on a device that, as
    Apple's, has no float64, refuses tensors of two devices in one operation and copies without waiting only from memory
    that stays; the scores are those of the CPU."""
    picture, script = REPOSITORY / "tests" / "foreign" / "turned_by_exif.jpg", tmp_path / "on_the_device.py"
    data = write_chips(tmp_path / "data", {"train": 24, "valid": 3, "test": 3}, faces_a_clip=1)
    script.write_text(ON_THE_DEVICE.format(suite=str(REPOSITORY), tests=str(REPOSITORY / "tests"), data=str(data),
                                           picture=str(picture), speakers=SPEAKER_REGEX))
    result = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert not result.returncode, result.stderr
    assert run(predict, "pretrained", picture, "--device", "cpu", "--out", "cpu.csv", "--workers", 1)[0] == 0
    ours, cpu = (pandas.read_csv(tmp_path / name)[list(TRAITS)].to_numpy() for name in ("scores.csv", "cpu.csv"))
    assert abs(ours - cpu).max() < 0.02     # one of them in bfloat16, if this CPU computes in it


# ---------------------------------------------------------------- installation

def wheel(folder, version):
    """Write a wheel of that version with the name of PyTorch and nothing in it, and the page of a simple index."""
    place = folder / "torch"
    place.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(place / f"torch-{version}-py3-none-any.whl", "w") as file:
        info = f"torch-{version}.dist-info"
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    links = "".join(f'<a href="{path.name}">{path.name}</a>' for path in sorted(place.glob("*.whl")))
    (place / "index.html").write_text(f"<!DOCTYPE html><html><body>{links}</body></html>")
    return folder.as_uri()


@pytest.fixture
def make_install(tmp_path):
    """make_install(*arguments): what `make install` prints, in a copy of the Makefile with one requirement, torch, and
    a Python of its own; what is installed stays in tmp_path/.venv."""
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    (tmp_path / "requirements.txt").write_text("torch==2.15.0\n")
    (tmp_path / "requirements-app.txt").touch()
    (tmp_path / "requirements-dev.txt").touch()
    of_others = ("PIP_", "MAKE", "MFLAGS", "CPU", "TORCH_CPU")   # of the make that runs this test
    environment = {name: value for name, value in os.environ.items() if not name.startswith(of_others)}
    environment |= {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1",
                    "PIP_INDEX_URL": wheel(tmp_path / "usual", "2.15.0")}

    def install(*arguments):
        result = subprocess.run(["make", "install", f"PYTHON={sys.executable}", *arguments], cwd=tmp_path, text=True,
                                env=environment, capture_output=True)
        assert not result.returncode, result.stderr
        return result.stdout, [path.name for path in tmp_path.glob(".venv/lib/python3*/site-packages/torch-*")]

    return install


@linux_only
def test_install_without_cuda(make_install, tmp_path):
    """pip prefers PyTorch's +cpu versions to the same ones of the usual index; an update keeps to them; an index that
    cannot be reached costs a line. The wheels stand in for the real ones, whose index could not be tried."""
    output, installed = make_install("CPU=1", "TORCH_CPU=file:///nowhere")
    assert "cannot be reached, so it is the one with CUDA" in output and installed == ["torch-2.15.0.dist-info"]
    (tmp_path / "requirements.txt").write_text("torch==2.15.1\n")
    wheel(tmp_path / "usual", "2.15.1")
    index = wheel(tmp_path / "cpu", "2.15.1+cpu")
    output, installed = make_install("CPU=1", f"TORCH_CPU={index}")
    assert "without CUDA" in output and installed == ["torch-2.15.1+cpu.dist-info"]
    (tmp_path / "requirements.txt").write_text("torch==2.16.0\n")
    wheel(tmp_path / "usual", "2.16.0")
    wheel(tmp_path / "cpu", "2.16.0+cpu")
    assert make_install(f"TORCH_CPU={index}")[1] == ["torch-2.16.0+cpu.dist-info"]
    assert not make_install()[0]


# ---------------------------------------------------------------- systems

@pytest.mark.parametrize("script", ["train.py", "train_resnet_raytune_hyperparams.py", "evaluate.py", "predict.py",
                                    "export.py", "app.py", "dataset.py", "model_architectures.py",
                                    *(f"pre-processing/{name}" for name in (
                                        "extract_frames_from_videos.py", "extract_faces_from_frames.py",
                                        "extract_faces_from_videos.py", "unpack_chalearn.py"))])
def test_windows_is_named_before_anything_else(script):
    """A system without these signals, and without the libraries that are not yet installed there, gets one line."""
    command = (f"import runpy, signal, sys; del signal.SIGHUP, signal.pthread_sigmask; sys.argv = [{script!r}]; "
               f"sys.path[:] = [path for path in sys.path if 'site-packages' not in path]; "
               f"sys.path.insert(0, {str((REPOSITORY / script).parent)!r}); "
               f"runpy.run_path({str(REPOSITORY / script)!r}, run_name='__main__')")
    result = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True)
    assert result.returncode == 2 and result.stderr.count("\n") == 1, result.stderr
    assert "runs on Linux and macOS" in result.stderr and "wsl --install" in result.stderr


def test_full_temporary_folder_is_named(run_script, small_disk):
    """The disk of TMPDIR, where the faces lie until they are scored, is not that of the results."""
    disk = small_disk("8k")
    picture = REPOSITORY / "tests" / "foreign" / "turned_by_exif.jpg"
    result = run_script("predict.py", "pretrained", picture, "--workers", 1, env={"TMPDIR": disk}, check=False)
    assert result.returncode == 1 and f"no space left on the disk of {disk}/face-chips-" in result.stderr


def test_pictures_are_read_by_processes_that_are_started_anew(chip_data, tmp_path):
    """As on macOS, where a DataLoader's processes are not copies of their parent: all they need can be sent to them."""
    command = (f"import multiprocessing, sys\nmultiprocessing.set_start_method('spawn')\n"
               f"sys.path.insert(0, {str(REPOSITORY)!r})\n"
               "import torch\nfrom dataset import FaceDataset\nfrom first_impressions.data.chips import chip_loader\n"
               "from first_impressions.data.splits import load_split\n"
               f"data = FaceDataset(load_split({str(chip_data)!r}, 'test'), augment=0.5)\n"
               "print([len(rows) for _, rows in chip_loader(data, [[0, 1], [2]], 1, torch.device('cpu'))])")
    result = subprocess.run([sys.executable, "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout == "[2, 1]\n", result.stderr
