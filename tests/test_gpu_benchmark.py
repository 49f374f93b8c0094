"""The benchmark of GPUs runs on the CPU, too, and its figures are of all jobs."""
import csv
import importlib

from conftest import REPOSITORY
from first_impressions.common.device import autocast_dtype, pick_device

SCRIPT = "benchmarks/gpu.py"


def test_quick_run(chip_data, tmp_path, run_script):
    result = run_script(SCRIPT, chip_data / "train" / "faces", "--quick", "--num-workers", 0, "--out", "gpu.csv",
                        timeout=600)
    precisions = ["float32"] + ["bfloat16"] * (autocast_dtype("auto", pick_device()) is not None)
    rows = list(csv.DictReader((tmp_path / "gpu.csv").open()))
    assert [(row["job"].split(",")[0], row["precision"]) for row in rows] == [
        (job, precision) for job in ("FaceResNet29_v1.0", "ResNet18_v1.0", "ResNet50")
        for precision in precisions]
    for row in rows:
        limit, from_files = float(row["limit"]), float(row["from_files"])
        assert limit > 0 and from_files > 0 and abs(float(row["ratio"]) - from_files / limit) < 1e-6
        assert row["device"] and row["device"] in result.stdout and row["job"] in result.stdout
    assert result.stdout.count("waits in a step of training") == 2


def test_wrong_folders_cost_one_line(tmp_path, run, monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    gpu = importlib.import_module("gpu")
    (tmp_path / "empty").mkdir()
    for name in ("missing", "empty"):
        status, _, errors = run(gpu, name)
        assert status == 2 and len(errors.splitlines()) == 1 and name in errors
    status, _, errors = run(gpu, tmp_path, "--out", f"{__file__}/gpu.csv")
    assert status == 2 and len(errors.splitlines()) == 1 and "cannot be made" in errors
