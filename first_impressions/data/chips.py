"""Face chips read in batches: one chip, the order of an epoch, the loader over a Dataset of chips."""
import functools
import math
import os
import shutil
import signal
import sys

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from first_impressions.common.command_line import UserError, printable

SHARED_MEMORY = "/dev/shm"
PREFETCHED = 4      # batches per worker


def read_chip(path: str | os.PathLike, size: int) -> torch.Tensor:
    """Return a face chip as uint8 3 x size x size RGB tensor. Raises UserError for a file that is not a whole JPEG."""
    try:
        with open(path, "rb") as file:
            data = file.read()
        # A JPEG ends with this mark; OpenCV fills up what is missing of a truncated one with grey and says nothing.
        if b"\xff\xd9" not in data[-64:]:
            raise ValueError("it is not a whole JPEG")
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        if picture is None:
            raise ValueError("it is not a JPEG that OpenCV can decode")
    except (cv2.error, ValueError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]}); "
                        "delete it and make the faces again") from None
    if picture.shape[:2] != (size, size):
        picture = cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(picture).permute(2, 0, 1)


def epoch_batches(number_of_rows: int, batch_size: int, seed: int, epoch: int, rank: int = 0,
                  world_size: int = 1) -> list[list[int]]:
    """Return the shuffled batches of an epoch as a list of lists of row numbers, for one of several processes. The
    order depends only on (seed, epoch). Every process gets the same number of batches; the last rows are repeated from
    the beginning if they do not divide evenly."""
    order = np.random.default_rng([seed, epoch]).permutation(number_of_rows)
    per_process = math.ceil(number_of_rows / world_size)
    order = np.resize(order, per_process * world_size)[rank::world_size]
    batches = [order[start:start + batch_size].tolist() for start in range(0, per_process, batch_size)]
    if len(batches) > 1 and len(batches[-1]) == 1:
        alone = batches.pop()  # one sample has no deviation to be standardised by
        batches[-1] += alone
    return batches


def _read_rows(dataset: Dataset, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (chips uint8 B x 3 x size x size, rows int64 B) of a Dataset of (chip, label). A chip that cannot be read
    is named on stderr and left out."""
    chips, kept = [], []
    for row in rows:
        try:
            chips.append(dataset[row][0])
            kept.append(row)
        except UserError as error:
            print(f"warning: left out {printable(error)}", file=sys.stderr)
    return (torch.stack(chips) if chips else torch.empty(0, 3, 1, 1, dtype=torch.uint8),
            torch.tensor(kept, dtype=torch.int64))


def _leave_interrupts_to_the_parent(_):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # else every process prints a traceback at Ctrl-C


def chip_loader(dataset: Dataset, batches: list[list[int]], num_workers: int, device: torch.device) -> DataLoader:
    """Return a DataLoader over the given batches of row numbers of a dataset.FaceDataset: it yields (chips, rows), as
    tensors uint8 B x 3 x size x size and int64 B, without the chips that cannot be read.

    Raises UserError if the workers' batches do not fit into /dev/shm: PyTorch would wait for them for ever.
    """
    if num_workers and batches and os.path.isdir(SHARED_MEMORY):
        needed = num_workers * PREFETCHED * max(map(len, batches)) * 3 * dataset.size ** 2
        free = shutil.disk_usage(SHARED_MEMORY).free
        if needed > free:
            raise UserError(f"--num-workers {num_workers}: needs {needed / 1e6:.0f} MB of {SHARED_MEMORY}, which has "
                            f"{free / 1e6:.0f} MB left; give --num-workers 0, or in Docker --shm-size")
    return DataLoader(range(len(dataset)), batch_sampler=batches, num_workers=num_workers,
                      collate_fn=functools.partial(_read_rows, dataset), pin_memory=device.type == "cuda",
                      worker_init_fn=_leave_interrupts_to_the_parent,
                      prefetch_factor=PREFETCHED if num_workers else None)
