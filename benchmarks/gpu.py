"""Measure how many faces per second the networks take, and whether the device waits for their files.

    python benchmarks/gpu.py data/train/faces
    python benchmarks/gpu.py CHIP_DIR --batch-size 512 --num-workers 16 --out gpu.csv
    python benchmarks/gpu.py CHIP_DIR --quick

On the first GPU, or on the CPU if there is none. A row for each job and precision (bfloat16 if the device computes in
it): faces per second of one batch that stays on the device (the limit), from the files in CHIP_DIR, the ratio of both,
and the peak memory of the device. Times are wall times, so the machine must be quiet. Features are of a face or its
mirror image in turn. Weights are random numbers, but for dlib's network. Then torch.profiler looks at some steps of the
training for what makes the processor wait for the device. --quick: one batch of two faces; to see that all works, not
to measure.
"""
import os
import platform
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import first_impressions.common.startup  # noqa: F401  (before torch)

import numpy as np
import pandas
import torch
from made_up import with_made_up_labels

from dataset import FaceDataset
from first_impressions.common.command_line import UserError, make_parser, run_script, usable_cores, whole_number
from first_impressions.common.device import Machine, autocast_dtype, pick_device, seed_everything
from first_impressions.common.files import atomic_write, check_output_file
from first_impressions.data.splits import Split, list_faces
from first_impressions.networks.network import Architecture, PersonalityNetwork, build_network, sides_of_clip
from first_impressions.networks.settings import Plan, Settings
from first_impressions.training.feature_cache import features_of_dataset
from first_impressions.training.inputs import FaceChips, features_of_chips
from first_impressions.training.loop import fit, start_training
from model_architectures import architecture_named

STEPS = 20      # of an epoch, or batches of features
# Of torch.profiler: what makes the processor wait for the device, or brings numbers back from it. The profiler itself
# ends with cudaDeviceSynchronize, so that one does not count.
WAITS = ("cudaStreamSynchronize", "cudaEventSynchronize", "Memcpy DtoH", "aten::_local_scalar_dense")
JOBS = ("FaceResNet29_v1.0, features", "ResNet18_v1.0, features", "ResNet50, layers 1 to 4 trained")


def network_of(job: str) -> PersonalityNetwork:
    """Return the network of a job: a named one, or a ResNet-50 all of whose layers are trained, which none is."""
    architecture = Architecture("ResNet50", "resnet50", ("layer1", "layer2", "layer3", "layer4"), ("l1", "l2"))
    if job in JOBS[:2]:
        architecture = architecture_named(job.split(",")[0])
    return build_network(architecture, Settings(memory="none"), "dlib" if job == JOBS[0] else "none")


def split_of(chip_dir: Path, number: int) -> Split:
    """Return this many chips of a folder, again and again if it has fewer, as a Split with made-up labels. Raises
    UserError for fewer than the two that a step of training needs."""
    if not chip_dir.is_dir():
        raise UserError(f"{chip_dir}: no such folder; name one with face chips")
    faces = list_faces(chip_dir)
    if len(faces) < 2:
        raise UserError(f"{chip_dir}: holds fewer than two face chips; extract_faces_from_videos.py makes them")
    faces = faces.iloc[np.resize(np.arange(len(faces)), number)].reset_index(drop=True)
    return with_made_up_labels(faces, sorted(set(faces["clip"])))


class RepeatedBatch(FaceChips):
    """A source of which every batch is the first one, which stays on the device."""

    def batches(self, network, batches, epoch=0):
        """Yield (rows, chips) for each batch of row numbers."""
        chips = torch.stack([self.dataset[row][0] for row in range(len(batches[0]))]).to(self.machine.device)
        for batch in batches:
            yield np.asarray(batch), chips


def training_speed(network: PersonalityNetwork, source: FaceChips, plan: Plan, after_step=None) -> float:
    """Return the faces per second of the last epoch of a training."""
    state = start_training(network, source, plan)
    return list(fit(state, plan, source, after_step=after_step, show_progress=False))[-1]["samples_per_second"]


@torch.inference_mode()
def feature_speeds(network: PersonalityNetwork, source: FaceChips, batch_size: int) -> tuple[float, float]:
    """Return the faces per second whose features are computed, of a repeated batch and from files."""
    device, speeds = source.machine.device, []
    batches = [list(range(batch_size))] * (len(source) // batch_size)
    _, chips = next(RepeatedBatch(source.dataset, source.machine).batches(network, batches))
    sides = sides_of_clip(batch_size).to(device)
    features_of_chips(network, chips, sides)    # to warm up
    for compute in (lambda: [features_of_chips(network, chips, sides) for _ in batches],
                    lambda: features_of_dataset(source.dataset, partial(features_of_chips, network), "benchmark",
                                                source.machine, batch_size)):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        begin = time.perf_counter()
        compute()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        speeds.append(len(source) / (time.perf_counter() - begin))
    return speeds[0], speeds[1]


def measure(job: str, source: FaceChips, batch_size: int, epochs: int) -> dict:
    """Return the row of the table on one job with the precision of the source's machine; epochs: of a training run, the
    last one is timed."""
    seed_everything(0)
    machine = source.machine
    network = machine.place(network_of(job))
    if machine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(machine.device)
    if network.frozen:
        limit, from_files = feature_speeds(network, source, batch_size)
    else:
        plan = Plan(Settings(), epochs, batch_size)
        limit, from_files = (training_speed(network, some, plan)
                             for some in (RepeatedBatch(source.dataset, machine), source))
    memory = torch.cuda.max_memory_allocated(machine.device) / 2**20 if machine.device.type == "cuda" else None
    return {"job": job, "precision": machine.precision, "batch_size": batch_size, "limit": limit,
            "from_files": from_files, "ratio": from_files / limit, "memory_mb": memory}


def print_waits(network: PersonalityNetwork, source: FaceChips, batch_size: int, mixup: float) -> None:
    """Print what torch.profiler saw of waits between the first step of an epoch and the last, which waits for the
    losses."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if source.machine.device.type == "cuda" else []
    profiler, last = torch.profiler.profile(activities=activities), len(source) // batch_size - 1

    def after_step(state):
        if state.step == 1:
            profiler.start()
        if state.step == last:
            profiler.stop()

    training_speed(network, source, Plan(Settings(mixup=mixup), 1, batch_size), after_step)
    events = [event.name for event in profiler.events()]
    counts = {wait: sum(name.startswith(wait) for name in events) / max(1, last - 1) for wait in WAITS}
    found = ", ".join(f"{name} {count:.1f}" for name, count in counts.items() if count)
    print(f"waits in a step of training, mixup {mixup}: {found or 'none'}")


def name_of(device: torch.device) -> str:
    """Return the device's name as its maker has it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    models = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
              if line.startswith("model name")] if os.path.exists("/proc/cpuinfo") else []
    return f"{models[0] if models else platform.processor() or device.type}, {torch.get_num_threads()} threads"


def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("chip_dir", metavar="CHIP_DIR", type=Path, help="folder with face chips")
    parser.add_argument("--batch-size", type=whole_number, default=256, help="faces (default: 256)")
    parser.add_argument("--num-workers", type=whole_number, default=usable_cores(),
                        help="processes that read chips (default: the processor's cores)")
    parser.add_argument("--out", type=Path, default=Path("gpu.csv"), help="the table as CSV")
    parser.add_argument("--quick", action="store_true", help="few faces")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    check_output_file("--out", args.out)
    # The first of two epochs warms up.
    batch_size, steps, epochs = (2, 3, 1) if args.quick else (args.batch_size, STEPS, 2)
    dataset = FaceDataset(split_of(args.chip_dir, batch_size * steps))
    device = pick_device()
    print(f"device: {name_of(device)}; batches of {batch_size} faces, {args.num_workers} processes read them; "
          f"torch {torch.__version__}", flush=True)
    precisions = ["float32"] if autocast_dtype("auto", device) is None else ["float32", "bfloat16"]
    sources = [FaceChips(dataset, Machine(device, precision, "off", args.num_workers)) for precision in precisions]
    rows = [measure(job, source, batch_size, epochs) for job in JOBS for source in sources]
    print(pandas.DataFrame(rows).to_string(index=False, float_format="{:.3g}".format))
    for mixup in (0.0, 0.2):
        print_waits(sources[-1].machine.place(network_of(JOBS[2])), sources[-1], batch_size, mixup)
    with atomic_write(args.out) as partial_table:
        pandas.DataFrame(rows).assign(device=name_of(device)).to_csv(partial_table, index=False)
    print(f"table: {args.out}")
    return 0


if __name__ == "__main__":
    run_script(main)
