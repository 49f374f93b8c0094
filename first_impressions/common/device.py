"""Where the work is done: the device, the type of mixed precision, and the processes that torchrun started."""
import argparse
import os
import random
from dataclasses import dataclass

import numpy as np
import torch
from torch import distributed

from first_impressions.common.command_line import whole_number


def pick_device() -> torch.device:
    """Return the first of CUDA, Apple's MPS and the CPU that is there."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """Return the type for mixed precision, or None for float32. precision: auto, bfloat16 or float32.

    auto takes bfloat16 where the device computes in it natively (Ampere and later, CPUs with AVX512-BF16 or AMX).
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

    @classmethod
    def from_options(cls, args: argparse.Namespace) -> "Machine":
        """Return the Machine that the options of add_machine_options ask for, on the best device."""
        return cls(pick_device(), args.precision, args.cache, args.num_workers, args.ray_address)

    def place(self, network: torch.nn.Module) -> torch.nn.Module:
        """Return the network on the device, with its type of mixed precision set."""
        network = network.to(self.device)
        network.compute_dtype = autocast_dtype(self.precision, self.device)
        return network


def add_machine_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that Machine.from_options reads."""
    group = parser.add_argument_group("machine")
    group.add_argument("--precision", choices=("auto", "bfloat16", "float32"), default="auto",
                       help="of backbone and heads; auto: bfloat16 where the device computes in it")
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


# ---------------------------------------------------------------- processes of torchrun

def start_processes() -> None:
    """Join the other processes where torchrun started this one."""
    if "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
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


def any_process(flag: bool, device: torch.device) -> bool:
    """Return True in every process as soon as the flag is set in one."""
    if world_size() == 1:
        return flag
    votes = torch.tensor(float(flag), device=device)
    distributed.all_reduce(votes, op=distributed.ReduceOp.MAX)
    return bool(votes)
