"""Machines that are not this one: the cores of a job, GPUs that cannot be used, Apple's MPS, Windows."""
import os
import subprocess
import sys

import pytest

from conftest import REPOSITORY
from first_impressions.common import command_line

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
