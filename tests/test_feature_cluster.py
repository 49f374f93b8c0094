"""The features of a frozen backbone, computed on a Ray cluster of two nodes on this machine."""
import os
import subprocess
import sys

import train
from conftest import REPOSITORY, linux_only, write_chips

CLUSTER = """
import sys
sys.path.insert(0, sys.argv[1])
from first_impressions.common import ray_cluster
import ray
import numpy as np, torch
from pathlib import Path
from ray.cluster_utils import Cluster
from first_impressions.training import feature_cache
from first_impressions.data.splits import load_split
from first_impressions.common.device import Machine
from first_impressions.training.inputs import make_samples
from first_impressions.networks.network import build_network
from dataset import FaceDataset
from first_impressions.networks.settings import Settings
from model_architectures import architecture_named

feature_cache.FACES_A_TASK = 10
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False,
                                                        "node_ip_address": "127.0.0.1"})
cluster.add_node(num_cpus=1, node_ip_address="127.0.0.1")
split = load_split(sys.argv[2], "train")
Path(split.faces["path"].iloc[7]).write_text("broken")
network = build_network(architecture_named("FaceResNet29_v1.0"), Settings(memory="none"),
                        "dlib").eval()
here = Machine(torch.device("cpu"), cache="off")
local = make_samples(network, FaceDataset(split), here)
spread = make_samples(network, FaceDataset(split), Machine(
    torch.device("cpu"), cache="float32", ray_address=cluster.address))
rows = np.arange(len(local))
print("rows:", len(spread), "faces:", spread.faces.sum(), "same clips:", list(spread.clips) == list(local.clips))
print("largest difference:", max(float((spread.features(rows, form) - local.features(rows, form)).abs().max())
                                 for form in (0, 1)))
cluster.shutdown()
"""


@linux_only
def test_rows_come_back_from_a_cluster(tmp_path):
    data = write_chips(tmp_path / "data", {"train": 12})
    (tmp_path / "cluster.py").write_text(CLUSTER)
    environment = {**os.environ, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    result = subprocess.run([sys.executable, "cluster.py", str(REPOSITORY), str(data)], cwd=tmp_path, env=environment,
                            capture_output=True, text=True, timeout=180)
    assert "rows: 12 faces: 23 same clips: True" in result.stdout, result.stdout + result.stderr
    difference = float(result.stdout.split("largest difference:")[1])
    assert difference < 1e-4
    assert "left out 1 face of " in result.stderr


def test_no_cluster_is_one_line(chip_data, run):
    status, _, errors = run(train, 2, "a", "FaceResNet29_v1.0", "true", 16, "--data-dir", chip_data, "--ray-address",
                            "127.0.0.1:1", "--cache", "off")
    assert status == 2 and "no Ray cluster answers" in errors and len(errors.splitlines()) == 1
