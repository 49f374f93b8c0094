"""Measure how many faces per second the networks take, and whether the device waits for their files.

    python benchmarks/gpu.py data/train/faces
    python benchmarks/gpu.py CHIP_DIR --num-workers 16 --out gpu.csv
    python benchmarks/gpu.py CHIP_DIR --quick

On the first GPU, or on the CPU if there is none. A row for each job, precision (bfloat16 if the device
computes in it), and without and with torch.compile: faces per second of one batch that stays on the device (the limit),
from the files in CHIP_DIR, the ratio of both, and the peak memory of the device. The batch size is doubled until that
gains less than 5 %. Times are wall times, so the machine must be quiet. Features are of a face and its mirror image.
Weights are random numbers, but for dlib's network.

Then torch.profiler looks at some steps of the training for what makes the processor wait for the device. --quick: few
faces, one batch size, no torch.compile; to see that all works, not to measure.
"""
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import first_impressions.common.startup  # noqa: F401  (before torch)

# isort: split
import numpy as np
import pandas
import torch

from dataset import FaceDataset
from first_impressions.common.command_line import UserError, make_parser, run_script, usable_cores, whole_number
from first_impressions.common.constants import DEFAULT_PREPROCESSING, TRAITS
from first_impressions.common.device import Machine, autocast_dtype, pick_device, seed_everything
from first_impressions.common.files import atomic_write, check_output_file
from first_impressions.data.chips import chip_loader
from first_impressions.data.labels import speakers_of
from first_impressions.data.splits import Split, list_faces
from first_impressions.networks.network import BACKBONES, PersonalityNetwork, build_network, make_head
from first_impressions.networks.settings import Plan, Settings
from first_impressions.training.feature_cache import features_of_dataset
from first_impressions.training.inputs import FaceChips, features_of_chips
from first_impressions.training.loop import fit, start_training
from first_impressions.training.samples import Samples
from model_architectures import architecture_named

BATCH_SIZES = (32, 64, 128, 256, 512, 1024, 2048)
LEAST_GAIN = 1.05       # a larger batch is worth it from here on
STEPS = 20              # of a training run on one batch, in each of two epochs
PROFILED_STEPS = 5
LEAST_BATCHES = 2       # of faces from files
QUICK_FACES, QUICK_BATCH, QUICK_STEPS = 2, 2, 1
# Of torch.profiler: what makes the processor wait for the device, or brings numbers back from it. The profiler itself
# ends with cudaDeviceSynchronize, so that one does not count.
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "Memcpy DtoH", "aten::_local_scalar_dense")
STAGES = ("layer1", "layer2", "layer3", "layer4")


@dataclass(frozen=True)
class Job:
    """What is measured: the features of a frozen backbone, or the training of one."""
    name: str
    make_network: Callable[[], PersonalityNetwork]
    is_training: bool = False


def trained_resnet50() -> PersonalityNetwork:
    """Return a ResNet-50 all of whose layers are trained, with the default head, of random weights. No named network is
    that; ResNet18_v3.0 is its smaller sister."""
    settings = Settings()
    network = PersonalityNetwork(BACKBONES["resnet50"], STAGES)
    network.heads.append(make_head(network.head_width, [settings.l1, settings.l2], [settings.dropout] * 2))
    return network.to(memory_format=torch.channels_last)


def named(name: str, weights: str) -> Callable[[], PersonalityNetwork]:
    """Return a function that builds a named network, without regression."""
    return lambda: build_network(architecture_named(name), Settings(memory="none"), weights)


JOBS = (Job("FaceResNet29_v1.0, features", named("FaceResNet29_v1.0", "dlib")),
        Job("ResNet18_v1.0, features", named("ResNet18_v1.0", "none")),
        Job("ResNet50, layers 1 to 4 trained", trained_resnet50, is_training=True))


def split_of(chip_dir: Path, most: int | None) -> Split:
    """Return the chips of a folder as a Split with made-up labels, at most this many. Raises UserError for fewer than
    the two that a step of training needs."""
    if not chip_dir.is_dir():
        raise UserError(f"{chip_dir}: no such folder; name one with face chips")
    faces = list_faces(chip_dir).iloc[:most]
    if len(faces) < 2:
        raise UserError(f"{chip_dir}: holds fewer than two face chips; extract_faces_from_videos.py makes them")
    clips = sorted(set(faces["clip"]))
    scores = np.random.default_rng(0).uniform(0.2, 0.8, (len(clips), len(TRAITS)))
    return Split("chips", faces, pandas.DataFrame(scores, index=clips, columns=list(TRAITS)),
                 pandas.Series(speakers_of(clips), index=clips), DEFAULT_PREPROCESSING)


class RepeatedBatch:
    """A source like features.FaceChips, but one batch of chips, on the device, is all that it ever gives."""

    of_clips = False

    def __init__(self, chips: torch.Tensor, split: Split, steps: int):
        """chips: uint8 B x 3 x H x W; steps: of an epoch."""
        self.chips = chips
        self.clips = np.resize(split.faces["clip"].to_numpy(), steps * len(chips))
        self.usable = np.arange(len(self.clips))

    def __len__(self) -> int:
        return len(self.clips)

    def batches(self, network: PersonalityNetwork, batches: list[list[int]],
                epoch: int = 0) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
        """Yield (rows, chips) for each batch of row numbers."""
        for batch in batches:
            yield np.asarray(batch), self.chips


# ---------------------------------------------------------------- one measurement

def wait_for(device: torch.device) -> None:
    """Return when the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def first_chips(split: Split, number: int, device: torch.device) -> torch.Tensor:
    """Return uint8 number x 3 x H x W on the device: chips of a split, again and again if it has fewer."""
    rows = np.resize(np.arange(len(split.faces)), number).tolist()
    chips = torch.stack([FaceDataset(split)[row][0] for row in rows])
    return chips.to(device)


def training_speed(network: PersonalityNetwork, samples: Samples, batch_size: int, machine: Machine,
                   warm_up: bool) -> float:
    """Return the faces per second of an epoch. warm_up: of a second one, after one that does not count."""
    plan = Plan(Settings(), 2 if warm_up else 1, batch_size)
    state = start_training(network, samples, plan, machine)
    return list(fit(state, plan, samples, show_progress=False))[-1]["samples_per_second"]


@torch.inference_mode()
def feature_speed(network: PersonalityNetwork, chips: torch.Tensor, steps: int) -> float:
    """Return the faces per second whose features are computed, of one batch again and again."""
    for _ in range(2 if steps > 1 else 1):  # to warm up
        features_of_chips(network, chips)
    wait_for(chips.device)
    begin = time.perf_counter()
    for _ in range(steps):
        features_of_chips(network, chips)
    wait_for(chips.device)
    return steps * len(chips) / (time.perf_counter() - begin)


def limit_of(job: Job, network: PersonalityNetwork, split: Split, batch_size: int, machine: Machine,
             steps: int) -> float:
    """Return the faces per second of one batch that stays on the device."""
    chips = first_chips(split, batch_size, machine.device)
    if not job.is_training:
        return feature_speed(network, chips, steps)
    samples = Samples(split, RepeatedBatch(chips, split, steps))
    return training_speed(network, samples, batch_size, machine, warm_up=steps > 1)


def repeated(split: Split, number: int) -> Split:
    """Return a split of this many faces: the split's own, again and again if it has fewer."""
    return replace(split, faces=split.faces.iloc[np.resize(np.arange(len(split.faces)), number)].reset_index(drop=True))


def speed_from_files(job: Job, network: PersonalityNetwork, split: Split, batch_size: int, machine: Machine,
                     warm_up: bool) -> float:
    """Return the faces per second from their files, as training and evaluation read them: whole batches of the size
    whose limit was measured, so that torch.compile has its code for them."""
    split = repeated(split, max(len(split.faces) // batch_size, LEAST_BATCHES) * batch_size)
    if job.is_training:
        samples = Samples(split, FaceChips(FaceDataset(split), machine))
        return training_speed(network, samples, batch_size, machine, warm_up)
    begin = time.perf_counter()
    features_of_dataset(FaceDataset(split), partial(features_of_chips, network), job.name, machine, batch_size)
    wait_for(machine.device)
    return len(split.faces) / (time.perf_counter() - begin)


def best_batch(job: Job, network: PersonalityNetwork, split: Split, machine: Machine,
               is_quick: bool) -> tuple[int, float]:
    """Return (batch size from which on doubling gains less than 5 % or memory ends, faces per second at it)."""
    if is_quick:
        return QUICK_BATCH, limit_of(job, network, split, QUICK_BATCH, machine, QUICK_STEPS)
    best = (BATCH_SIZES[0], limit_of(job, network, split, BATCH_SIZES[0], machine, STEPS))
    for size in BATCH_SIZES[1:]:
        try:
            speed = limit_of(job, network, split, size, machine, STEPS)
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            return best
        if speed < LEAST_GAIN * best[1]:
            return best
        best = (size, speed)
    return best


def measure(job: Job, split: Split, machine: Machine, is_compiled: bool, is_quick: bool) -> dict:
    """Return the row of the table on one job with one precision."""
    seed_everything(0)
    network = machine.place(job.make_network())
    if is_compiled:
        network.backbone.compile()
    batch_size, limit = best_batch(job, network, split, machine, is_quick)
    memory = None
    if machine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(machine.device)
        limit_of(job, network, split, batch_size, machine, QUICK_STEPS)
        memory = torch.cuda.max_memory_allocated(machine.device) / 2**20
    from_files = speed_from_files(job, network, split, batch_size, machine, warm_up=not is_quick)
    return {"job": job.name, "precision": machine.precision, "compiled": "yes" if is_compiled else "no",
            "batch_size": batch_size, "limit": limit, "from_files": from_files, "ratio": from_files / limit,
            "memory_mb": memory}


def reading_speed(split: Split, machine: Machine) -> float:
    """Return the chips a second that are read from their files, with nothing done to them."""
    rows = np.array_split(np.arange(len(split.faces)), max(1, len(split.faces) // 64))
    dataset = FaceChips(FaceDataset(split), machine).dataset
    begin = time.perf_counter()
    for _ in chip_loader(dataset, [batch.tolist() for batch in rows], machine.num_workers, machine.device):
        pass
    return len(split.faces) / (time.perf_counter() - begin)


# ---------------------------------------------------------------- waits

def waits_in_steps(network: PersonalityNetwork, split: Split, machine: Machine, plan: Plan,
                   steps: int) -> dict[str, float]:
    """Return {event of WAITS: how often in a step} of this many steps in the middle of an epoch of training.fit, read
    from files. The end of an epoch, which has to wait for its losses, is not among them."""
    split = repeated(split, (steps + 4) * plan.batch_size)
    samples = Samples(split, FaceChips(FaceDataset(split), machine))
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if machine.device.type == "cuda" else []
    profiler = torch.profiler.profile(activities=activities)

    def after_step(state):
        if state.step == 2:
            profiler.start()
        elif state.step == 2 + steps:
            profiler.stop()

    for _ in fit(start_training(network, samples, plan, machine), plan, samples, after_step=after_step,
                 show_progress=False):
        pass
    counts = dict.fromkeys(WAITS, 0)
    for event in profiler.events():
        for wait in WAITS:
            counts[wait] += event.name.startswith(wait)
    return {wait: count / steps for wait, count in counts.items()}


def print_waits(split: Split, machine: Machine, batch_size: int, is_quick: bool) -> None:
    """Print what torch.profiler saw of waits in steps of the training, without and with mixup. --quick: in one step of
    a small network."""
    make_network, steps = (named("FaceResNet29_v3.0", "none"), QUICK_STEPS) if is_quick else (
        trained_resnet50, PROFILED_STEPS)
    for mixup in (0.0, 0.2):
        seed_everything(0)
        plan = Plan(Settings(mixup=mixup), 1, batch_size)
        waits = waits_in_steps(machine.place(make_network()), split, machine, plan, steps)
        found = ", ".join(f"{name} {count:.1f}" for name, count in waits.items() if count)
        print(f"waits in a step of training, mixup {mixup}: {found or 'none'}")


# ---------------------------------------------------------------- command line

def name_of(device: torch.device) -> str:
    """Return the device's name as its maker has it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    models = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
              if line.startswith("model name")] if os.path.exists("/proc/cpuinfo") else []
    return f"{models[0] if models else platform.processor() or device.type}, {torch.get_num_threads()} threads"


def print_table(rows: list[dict]) -> None:
    """Print the rows; faces per second."""
    print(f"{'job':<32} {'precision':<9} {'compiled':<8} {'batch':>5} {'limit':>9} {'files':>9} {'ratio':>6} {'MB':>7}")
    for row in rows:
        memory = "" if row["memory_mb"] is None else f"{row['memory_mb']:.0f}"
        print(f"{row['job']:<32} {row['precision']:<9} {row['compiled']:<8} {row['batch_size']:>5} "
              f"{row['limit']:>9.1f} {row['from_files']:>9.1f} {row['ratio']:>6.2f} {memory:>7}")


def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("chip_dir", metavar="CHIP_DIR", type=Path, help="folder with face chips")
    parser.add_argument("--num-workers", type=whole_number, default=usable_cores(),
                        help="processes that read chips (default: the processor's cores)")
    parser.add_argument("--out", type=Path, default=Path("gpu.csv"), help="the table as CSV")
    parser.add_argument("--quick", action="store_true", help="few faces, one batch size, no torch.compile")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    check_output_file("--out", args.out)
    split = split_of(args.chip_dir, QUICK_FACES if args.quick else None)
    device = pick_device()
    machine = Machine(device, cache="off", num_workers=args.num_workers)
    print(f"device: {name_of(device)}; {len(split.faces)} faces, {args.num_workers} processes read them; "
          f"torch {torch.__version__}")
    print(f"reading alone: {reading_speed(split, machine):.0f} chips a second", flush=True)
    precisions = ["float32", "bfloat16"]
    if autocast_dtype("auto", device) is None:
        precisions.remove("bfloat16")
        print("bfloat16 is left out: this device does not compute in it")
    rows = []
    for job in JOBS:
        for precision in precisions:
            for is_compiled in (False,) if args.quick else (False, True):
                rows.append(measure(job, split, replace(machine, precision=precision), is_compiled, args.quick))
                print(f"done: {job.name}, {precision}{', compiled' if is_compiled else ''}", file=sys.stderr)
    print_table(rows)
    print_waits(split, machine, QUICK_BATCH if args.quick else rows[-1]["batch_size"], args.quick)
    with atomic_write(args.out) as partial:
        pandas.DataFrame(rows).assign(device=name_of(device)).to_csv(partial, index=False)
    print(f"table: {args.out}")
    return 0


if __name__ == "__main__":
    run_script(main)
