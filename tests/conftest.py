"""Shared by the tests: running the real scripts, the real clips if they are here, a small demo data set.

    make test                              everything
    make test PYTEST_ARGS="-k frames"      a part
    make test PYTEST_ARGS=--long           with the long fuzz runs
    make test PYTEST_ARGS="-n 0"           one test at a time

`make test` runs two test files at once (pytest-xdist). So no test may look at the whole machine: look at the processes
that the test itself started.
"""
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from first_impressions.common.command_line import UserError

REPOSITORY = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for path in map(shutil.which, BROWSERS) if path), None)
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, or needs several Ray nodes")

# Before anything imports torch: the tests start several processes at once, which share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if sys.platform == "linux":
    # PR_CAPBSET_DROP, CAP_SYS_NICE: Chromium, started by root, gives itself and the tests real-time priority, and can
    # starve the whole machine for ever.
    ctypes.CDLL(None).prctl(24, 23)


def pytest_addoption(parser):
    parser.addoption("--long", action="store_true", help="run the fuzz tests in full length (an hour or more)")


# Two processes each take the next file: the long ones first, so that both end at about the same time. The first of them
# make the chips and the training that others share, or do without.
LONG_FILES = ("test_training", "test_preprocessing_faults", "test_one_pass", "test_faults", "test_predict", "test_app",
              "test_gallery", "test_foreign_files",
              "test_people", "test_export", "test_pretrained", "test_demo", "test_faces", "test_unpack_chalearn",
              "test_feature_cluster", "test_model_architectures", "test_frames", "test_gpu_benchmark")


def pytest_collection_modifyitems(items):
    def place(item):
        return LONG_FILES.index(item.path.stem) if item.path.stem in LONG_FILES else len(LONG_FILES)

    items.sort(key=place)


@pytest.fixture
def long_run(request):
    """True if pytest got --long: fuzz tests then try as many files as was promised, else a few of them."""
    return request.config.getoption("--long")


@pytest.fixture(scope="session")
def chalearn_dir():
    """Folder with the real ChaLearn clips and labels; the test skips if there is none."""
    folder = Path(os.environ.get("CHALEARN_DIR") or REPOSITORY.parent / "shared" / "chalearn").resolve()
    if not (folder / "annotation_training.pkl").is_file():
        pytest.skip(f"no ChaLearn data in {folder} (set CHALEARN_DIR)")
    return folder


def run_script_in(folder, script, *arguments, env=None, timeout=120, check=True, stdin=None):
    """Run a script of this repository with this Python and return its CompletedProcess (text).

    folder: working directory. script: path from the repository's top. arguments: anything str() makes an argument of.
    env: variables added to this process's; the value None takes one away. check: a status other than 0 fails the test.
    After timeout seconds the script and all it started are killed and the test fails.
    """
    variables = {**os.environ, **(env or {})}
    variables = {name: str(value) for name, value in variables.items() if value is not None}
    command = [sys.executable, str(REPOSITORY / script), *map(str, arguments)]
    process = subprocess.Popen(command, cwd=folder, env=variables, text=True, encoding="utf-8",
                               errors="backslashreplace", start_new_session=True,
                               stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        output, errors = process.communicate(stdin, timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, errors = process.communicate()
        pytest.fail(f"{command} took more than {timeout} s\n{output}\n{errors}")
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    if check and process.returncode != 0:
        pytest.fail(f"{command} ended with status {process.returncode}\n{output}\n{errors}")
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


@pytest.fixture
def run_script(tmp_path):
    """run_script(script, *arguments, cwd=tmp_path, env=None, timeout=120, check=True, stdin=None): run_script_in."""
    def run(script, *arguments, cwd=tmp_path, **options):
        return run_script_in(cwd, script, *arguments, **options)
    return run


@contextlib.contextmanager
def signals_kept():
    """Give signals back their handlers after a script's main() has run in this process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@pytest.fixture
def run(monkeypatch, tmp_path, capfd):
    """run(module, *arguments): a script's main() as its command line runs it, in tmp_path; returns (status, stdout,
    stderr).

    Without the seconds that a process takes to start. For what a process alone shows (signals, full disks, what
    libraries print at the end) there is run_script.
    """
    monkeypatch.chdir(tmp_path)

    def call(module, *arguments):
        capfd.readouterr()
        try:
            status = module.main([str(argument) for argument in arguments]) or 0
        except UserError as error:
            status = 2
            assert "\n" not in str(error)
            print(error, file=sys.stderr)
        except SystemExit as error:
            status = error.code
        return status, *capfd.readouterr()

    with signals_kept():
        yield call


def listen_to_ctrl_c():
    """For preexec_fn: a test suite that was started in the background, or by nohup, hands down what is ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """made_once(name, make): the folder that make(folder) has filled, once for all test processes. Not for writing."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # each of xdist's processes has a folder of its own in there

    def folder_of(name, make):
        folder, done = base / name, base / f"{name}.done"
        with FileLock(base / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a process that failed to make it
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def demo_data(made_once):
    """Data folder with clips of the demo and the faces in three frames of each; those of the test clips are there, too.
    Not for writing."""
    def make(folder):
        run_script_in(folder, "demo/make_demo_data.py", "data",
                      "--clips-train", 16, "--clips-valid", 2, "--clips-test", 6)
        for split in ("train", "valid"):
            run_script_in(folder, "pre-processing/extract_faces_from_videos.py",
                          f"data/{split}/videos", f"data/{split}/faces", 3)
        run_script_in(folder, "pre-processing/extract_frames_from_videos.py", "data/test/videos", "data/test/frames", 3)
        run_script_in(folder, "pre-processing/extract_faces_from_frames.py", "data/test/frames", "data/test/faces")
    return made_once("demo", make) / "data"


def write_chips(folder, clips_of_split, faces_a_clip=2, seed=0):
    """Write a data folder of made-up 224 px chips and labels, without videos: each score steers the colour of one band
    of the picture between blue and red, so there is something to learn in seconds. clips_of_split: {split: clips}."""
    import cv2
    import numpy as np
    import pandas

    from first_impressions.common.constants import TRAITS

    generator = np.random.default_rng(seed)
    number = 0
    for split, clips in clips_of_split.items():
        faces = folder / split / "faces"
        faces.mkdir(parents=True)
        rows = []
        for _ in range(clips):
            clip, scores = f"speaker{number % 17:04d}.{number:03d}", generator.uniform(0.1, 0.9, 5)
            number += 1
            rows.append((clip, *scores))
            for frame in range(faces_a_clip):
                picture = generator.integers(0, 100, (224, 224, 3)).astype(float)
                for band, score in enumerate(scores):
                    picture[band * 45:band * 45 + 40] += [120 * (1 - score), 60, 120 * score]
                cv2.imwrite(str(faces / f"{clip}__frame_{frame}_aligned.jpg"), picture.clip(0, 255).astype(np.uint8))
        table = pandas.DataFrame(rows, columns=["clip", *TRAITS])
        table["clip"] += ".mp4"
        table.to_csv(folder / split / "labels.csv", index=False)
    return folder


@pytest.fixture(scope="session")
def chip_data(made_once):
    """Data folder of made-up chips: 48 training, 16 validation and 16 test clips with two faces each. Do not write into
    it; trainings keep their features there, so that the next one need not compute them."""
    def make(folder):
        write_chips(folder / "data", {"train": 48, "valid": 16, "test": 16})
    return made_once("chips", make) / "data"


@pytest.fixture(scope="session")
def trained(made_once, chip_data):
    """Folder runs/ with the experiment `one`, a small training on all of the made-up chips, evaluated on the test
    clips. Not for writing."""
    def make(folder):
        run_script_in(folder, "train.py", 2, "one", "FaceResNet29_v1.0", "true", 16, "--l1", 16, "--l2", 8,
                      "--data-dir", chip_data)
        run_script_in(folder, "evaluate.py", "one", "--data-dir", chip_data)
    return made_once("trained", make) / "runs"


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium; the test skips if there is none."""
    if BROWSER is None:
        pytest.skip("no Chromium or Chrome on this machine (Debian: apt-get install chromium)")
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        instance = playwright.chromium.launch(executable_path=BROWSER, args=FLAGS)
        yield instance
        instance.close()


@pytest.fixture
def small_disk(tmp_path):
    """A function that gives a disk in memory the size it is called with ("1m") and returns its folder; skips if
    mounting is not allowed."""
    folder = tmp_path / "small"
    folder.mkdir()

    def resize(size):
        done = subprocess.run(["mount", "-t", "tmpfs", "-o",
                               f"remount,size={size}" if os.path.ismount(folder) else f"size={size}",
                               "tmpfs", folder], capture_output=True)
        if done.returncode:
            pytest.skip("mounting a small tmpfs is not allowed here")
        return folder

    yield resize
    if os.path.ismount(folder):
        subprocess.run(["umount", folder], check=True)
