"""TensorBoard logs of training, search and evaluation, under the same tags."""
import random
import re
from pathlib import Path

import cv2
import torch
from torch.nn import functional
from torch.utils.data import Dataset
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from first_impressions.common.constants import TRAITS
from first_impressions.data.chips import chip_loader
from first_impressions.evaluation.text import format_table

# The columns of TensorBoard's table of hyperparameters; accuracy_test comes from evaluate.py.
HPARAM_FIGURES = ("accuracy_mean", "gain_mean", "pearson_mean", "accuracy_test", "loss_train", "loss_valid")


def log_epoch(writer: SummaryWriter, record: dict) -> None:
    """Write an epoch's record."""
    for key, value in record.items():
        if key not in ("epoch", "seconds"):
            # accuracy_mean is accuracy/mean, learning_rate_heads is learning_rate/heads
            writer.add_scalar(re.sub(r"^(learning_rate|[a-z]+)_", r"\1/", key), value, record["epoch"])


def log_pictures(writer: SummaryWriter, dataset: Dataset, input_size: int, seed: int) -> None:
    """Write a grid of 32 chips of a dataset.FaceDataset as the network sees them: augmented, scaled to its input."""
    from torchvision.utils import make_grid  # here, since it takes a second

    rows = random.Random(seed).sample(range(len(dataset)), min(32, len(dataset)))
    chips, _ = next(iter(chip_loader(dataset, [rows], 0, torch.device("cpu"))))
    if len(chips):
        size = (input_size, input_size)
        pictures = functional.interpolate(chips.float() / 255, size, mode="bilinear", antialias=True).clamp(0, 1)
        writer.add_image("chips/training", make_grid(pictures))


def log_hyperparameters(writer: SummaryWriter, values: dict, record: dict) -> None:
    """Write a run's values, those that differ between runs, and last or best figures into the table of
    hyperparameters."""
    # TensorBoard takes the columns of the first run it reads for all runs, so each names all of them, also those that
    # it has no figure for; evaluate.py adds the accuracy on the test clips to the runs that it evaluates.
    for summary in hparams(values, dict.fromkeys((f"hparam/{name}" for name in HPARAM_FIGURES), 0.0)):
        writer.file_writer.add_summary(summary)
    for name in HPARAM_FIGURES:
        if record.get(name) is not None:
            writer.add_scalar(f"hparam/{name}", record[name], record["epoch"])


def log_evaluation(run_dir: Path, folder: Path, metrics: dict) -> None:
    """Write an evaluation's figures and its plots of each trait, in place of what an earlier one of the same split
    wrote. run_dir: the experiment's folder; folder: the evaluation's, with the plots as PNG."""
    split = metrics["split"]
    suffix = f".evaluation_{split}"
    for old in (*folder.glob("events.out.tfevents.*"), *run_dir.glob(f"events.out.tfevents.*{suffix}")):
        old.unlink()
    with SummaryWriter(folder) as writer:
        for trait in TRAITS:
            picture = cv2.imread(str(folder / f"{trait}.png"), cv2.IMREAD_COLOR_RGB)
            writer.add_image(f"evaluation_{split}/{trait}", picture, dataformats="HWC")
        for name, row in metrics["traits"].items():
            writer.add_scalar(f"accuracy_{split}/{name}", row["accuracy"])
        writer.add_text(f"evaluation_{split}", f"```\n{format_table(metrics['traits'])}\n```")
    # In the run itself, where TensorBoard's table of hyperparameters looks for it.
    with SummaryWriter(run_dir, filename_suffix=suffix) as of_run:
        of_run.add_scalar(f"hparam/accuracy_{split}", metrics["traits"]["mean"]["accuracy"], metrics["epoch"])
