"""Device, mixed precision and the processes that torchrun started."""
import argparse
import functools
import os
import random
import re
import sys
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import distributed

from first_impressions.common.command_line import UserError, usable_cores, whole_number

PROBE = 2**25   # float32 numbers, twice: 256 MB of a GPU, without which no network and batch find room there


def device_name(text: str) -> str:
    """argparse type: auto, cpu, cuda, cuda:N or mps."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?|mps", text):
        raise argparse.ArgumentTypeError(f"{text[:40]!r} is not one of auto, cpu, cuda, cuda:N, mps")
    return text


@functools.cache    # one warning for a process, and one trial of the GPU
def pick_device(wanted: str = "auto") -> torch.device:
    """Return the device that device_name allows; auto: the first of CUDA, Apple's MPS and the CPU that is there.

    A GPU that is there but cannot be used costs a warning and the CPU takes its place in auto, else a UserError. cuda
    without a number is the GPU of this process of torchrun, or the first. PyTorch's threads become no more than the
    cores of the job: it counts those of a container's machine.
    """
    torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
    if wanted == "cpu":
        return torch.device("cpu")
    with warnings.catch_warnings(record=True) as told:  # PyTorch tells of old GPUs and drivers in many lines
        warnings.simplefilter("always")
        name = wanted
        if wanted == "auto":
            # The processes of torchrun cannot exchange what lies on MPS.
            has_mps = torch.backends.mps.is_available() and "LOCAL_RANK" not in os.environ
            name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if name == "cuda" else torch.device(name)
        problem = _problem_of(device)
    if wanted != "auto" and problem:
        raise UserError(f"--device {wanted}: {problem}; --device cpu needs no GPU")
    drivers = [str(warning.message) for warning in told if "driver" in str(warning.message).lower()]
    problem = problem or (_first_sentence(drivers[0]) if name == "cpu" and drivers else None)
    if problem:
        print(f"warning: the GPU cannot be used ({problem}); computing on the CPU", file=sys.stderr)
        return torch.device("cpu")
    return device


def _first_sentence(text):
    return re.split(r"\. |\n", " ".join(text.partition("(Triggered")[0].split(" ")))[0].strip().rstrip(".")


def _problem_of(device):
    """Return why a device cannot be used, or None."""
    try:
        if device.type == "cuda":
            if not torch.cuda.is_available():
                return "PyTorch finds no CUDA GPU here"
            if device.index >= torch.cuda.device_count():
                return f"there is no such GPU, they count from 0 to {torch.cuda.device_count() - 1}"
            capability = torch.cuda.get_device_capability(device)
            if not _is_compiled_for(capability, torch.cuda.get_arch_list()):
                return (f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]}, "
                        f"which PyTorch {torch.__version__} was not compiled for")
        elif device.type == "mps" and not torch.backends.mps.is_available():
            return "PyTorch finds no Apple GPU here"
        float(torch.ones(PROBE, device=device).add(1).sum())
    except (RuntimeError, AssertionError) as error:     # of CUDA: no kernel for it, out of memory, no driver
        return _first_sentence(str(error)) or type(error).__name__
    return None


def _is_compiled_for(capability, compiled):
    """Return whether code for the architectures compiled, as sm_80 or compute_120, runs on a GPU of that compute
    capability: machine code on later ones of the same major version, PTX on all later ones (CUDA C++ Programming Guide,
    "Compute Capabilities"). AMD's names, as gfx90a, say nothing of it."""
    known = [re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]*", name) for name in compiled]
    known = [(match[1], (int(match[2]), int(match[3]))) for match in known if match]
    return not known or any(arch <= capability and (kind == "compute" or arch[0] == capability[0])
                            for kind, arch in known)


def send(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor of the CPU on the device, without waiting for the copy if that is safe: MPS may read the memory
    after it has been given up (pytorch/pytorch#189690)."""
    return tensor.to(device, non_blocking=device.type == "cuda")


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the type for mixed precision, or None for float32. precision: auto, bfloat16 or float32.

    auto takes bfloat16 if the device computes in it natively (Ampere and later, CPUs with AVX512-BF16 or AMX).
    """
    if precision == "float32":
        return None
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native or precision == "bfloat16" else None


@dataclass(frozen=True)
class Machine:
    """How the work is done. Results do not depend on it, but for rounding."""
    device: torch.device
    precision: str = "auto"     # of backbone and heads: auto, bfloat16 or float32
    cache: str = "float16"      # type of the cached features of a frozen backbone, or off
    num_workers: int = 0        # processes that read pictures
    ray_address: str | None = None  # of the cluster that computes the features of a frozen backbone
    wanted: str = "auto"        # the device that was asked for, which a cluster's machines look for themselves

    @classmethod
    def from_options(cls, args: argparse.Namespace) -> "Machine":
        """Return the Machine that the options of add_machine_options ask for."""
        return cls(pick_device(args.device), args.precision, args.cache, args.num_workers, args.ray_address,
                   args.device.partition(":")[0])

    def place(self, network: torch.nn.Module) -> torch.nn.Module:
        """Return the network on the device, with its type of mixed precision set."""
        network = network.to(self.device)
        network.compute_dtype = autocast_dtype(self.precision, self.device)
        return network


def add_device_options(parser: argparse.ArgumentParser, precision: str = "auto") -> None:
    """Add --device, which pick_device takes, and --precision with this default."""
    parser.add_argument("--device", type=device_name, default="auto", metavar="{auto,cpu,cuda,cuda:N,mps}",
                        help="auto: a GPU if there is one that can be used")
    parser.add_argument("--precision", choices=("auto", "bfloat16", "float32"), default=precision,
                        help="of backbone and heads. float32: the same scores on every machine. bfloat16: about half "
                        "the time if the processor computes in it; a face's scores change by up to 0.012, a clip's by "
                        "up to 0.004. auto: bfloat16 if the device computes in it")


def add_machine_options(parser: argparse.ArgumentParser, precision: str = "auto") -> None:
    """Add the options that Machine.from_options reads. precision: the default."""
    group = parser.add_argument_group("machine")
    add_device_options(group, precision)
    group.add_argument("--cache", choices=("float16", "float32", "off"), default="float16",
                       help="keep the features of a frozen backbone on disk, in this type")
    group.add_argument("--num-workers", type=whole_number, default=0, help="processes that read pictures")
    group.add_argument("--ray-address", default=os.environ.get("RAY_ADDRESS"),
                       help="a running Ray cluster, or `auto`: trials, and the features of a frozen backbone, are "
                       "computed there (default: RAY_ADDRESS, else this machine alone)")


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def start_processes() -> None:
    """Join the other processes if torchrun started this one."""
    if "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        # What lies on the CPU goes through gloo, what lies on GPUs through NCCL.
        distributed.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def rank() -> int:
    """Return the number of this process, 0 for the main one."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes that train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_main_process() -> bool:
    """Return whether this is the process that prints and writes."""
    return rank() == 0


def any_process(flag: bool) -> bool:
    """Return True in every process as soon as the flag is set in one."""
    if world_size() == 1:
        return flag
    votes = torch.tensor(float(flag))
    distributed.all_reduce(votes, op=distributed.ReduceOp.MAX)
    return bool(votes)
