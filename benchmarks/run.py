"""Measure how fast the suite is, each figure against a named baseline in the same run.

    python benchmarks/run.py ../shared/chalearn/clips ../shared/chalearn/portraits_train.zip
    python benchmarks/run.py CLIP_DIR PORTRAITS_ZIP --faces 2000 --out benchmarks.csv

CLIP_DIR: clips that show faces. PORTRAITS_ZIP: pictures of faces named <clip>__frame_<index>.jpg. Times are CPU seconds
of one process and thread, so that a busy machine disturbs them little; two workers against one take wall time and want
a quiet machine. ratio = ours / baseline for times.
"""
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import first_impressions.common.startup  # noqa: F401  (before torch)

import cv2
import numpy as np
import pandas
import preprocessing
import torch
from made_up import BYTES_A_CLIP, FACES_A_CLIP, made_up_samples, with_made_up_labels
from PIL import Image
from torchvision import transforms

from dataset import FaceDataset
from first_impressions.common.command_line import UserError, make_parser, positive_int, run_script
from first_impressions.common.constants import FACE_SIZE, JPEG_QUALITY, face_name
from first_impressions.common.device import Machine, autocast_dtype, seed_everything
from first_impressions.common.files import check_output_file
from first_impressions.data.splits import Split, list_faces
from first_impressions.networks.network import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PersonalityNetwork,
    build_network,
)
from first_impressions.networks.settings import Plan, resolve_settings, settle_gp
from first_impressions.prediction.scoring import score_clip
from first_impressions.training.conformal import calibrate
from first_impressions.training.feature_cache import features_of_dataset
from first_impressions.training.inputs import FaceChips, features_of_chips, make_samples
from first_impressions.training.loop import fit, start_training
from first_impressions.training.samples import Samples
from model_architectures import architecture_named

TRIALS, EPOCHS, BATCH_SIZE = 20, 10, 128
FINAL_EPOCHS = 30
FEATURE_CLIPS = 20
TRAINING_CLIPS, VALIDATION_CLIPS, CLIPS = 6000, 2000, 10_000    # of the challenge, the last with the test clips
MIDDLE = {"l1": 512, "l2": 128, "mixup": 0.2}                   # of the search space
FACE_MODEL, OTHER_MODEL = "FaceResNet29_v1.0", "ResNet18_v1.0"


def seconds_of(function: Callable, repeat: int = 1) -> float:
    """Return the CPU seconds of a call, the least of some."""
    times = []
    for _ in range(repeat):
        begin = time.process_time()
        function()
        times.append(time.process_time() - begin)
    return min(times)


def machine_with(cache: str = "float16") -> Machine:
    """Return the CPU as a machine."""
    return Machine(torch.device("cpu"), cache=cache)


def plan_for(model: str, clips: int, epochs: int, changes: dict) -> Plan:
    """Return the plan of a training run on this many clips with the default settings, changed."""
    settings = settle_gp(resolve_settings(changes), clips, architecture_named(model).has_gp)
    return Plan(settings, epochs, BATCH_SIZE)


def make_network(model: str, plan: Plan) -> PersonalityNetwork:
    """Return a new network on the CPU; random numbers stand for ImageNet's weights, dlib's are there."""
    seed_everything(0)
    network = build_network(architecture_named(model), plan.settings,
                            "dlib" if model == FACE_MODEL else "none")
    return machine_with().place(network)


def portrait_split(portraits: Path, folder: Path, number_of_faces: int) -> Split:
    """Write portraits as chips and return a Split of them with made-up labels: speed does not depend on either."""
    face_dir = folder / "data" / "train" / "faces"
    face_dir.mkdir(parents=True)
    with zipfile.ZipFile(portraits) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))[:number_of_faces]
        for name in names:
            picture = cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), cv2.IMREAD_COLOR)
            chip = cv2.resize(picture[:picture.shape[1]], (FACE_SIZE, FACE_SIZE))
            path = face_dir / face_name(Path(name).stem)
            cv2.imwrite(str(path), chip, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    faces = list_faces(face_dir)
    return with_made_up_labels(faces, sorted(set(faces["clip"])))


def train(network: PersonalityNetwork, plan: Plan, samples: Samples, validation: Samples | None = None) -> None:
    """Train a network, as search_trial.py and train.py do."""
    state = start_training(network, samples, plan)
    for _ in fit(state, plan, samples, validation, show_progress=False):
        pass


# ---------------------------------------------------------------- rows of the table

def measure_search(split: Split) -> tuple:
    """Return the row on a search of ResNet18_v1.0: clip features, computed once for all trials, against reading and
    computing every face anew in every epoch of every trial."""
    plan = plan_for(OTHER_MODEL, len(split.labels), EPOCHS, MIDDLE)

    def clips_for(network):
        # The random weights are the same, and so is the key of the cache: the trials share one file of rows.
        return make_samples(network, FaceDataset(split), machine_with())

    def trial():
        network = make_network(OTHER_MODEL, plan)
        train(network, plan, clips_for(network))

    ours = seconds_of(lambda: [trial() for _ in range(TRIALS)])
    chips = FaceChips(FaceDataset(split), machine_with("off"))
    one_epoch = plan_for(OTHER_MODEL, len(split.labels), 1, MIDDLE)
    network = make_network(OTHER_MODEL, one_epoch)
    state = start_training(network, clips_for(network), one_epoch)
    uncached = seconds_of(lambda: list(fit(state, one_epoch, chips, show_progress=False))) * TRIALS * EPOCHS
    return (f"search, {TRIALS} trials x {EPOCHS} epochs, {OTHER_MODEL}, {len(split.faces)} faces",
            "no cache (1 trial x 1 epoch, multiplied)", uncached, ours, ours / uncached, 1 / 50)


def measure_decoding(split: Split) -> tuple:
    """Return the row on reading chips, against the original's path: Pillow, then torchvision's transforms."""
    dataset = FaceDataset(split)
    rows = list(range(min(1000, len(dataset))))
    batches = [rows[start:start + 64] for start in range(0, len(rows), 64)]
    original = transforms.Compose([transforms.Resize(FACE_SIZE), transforms.ToTensor(),
                                   transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)])

    def as_the_original():
        for batch in batches:
            torch.stack([original(Image.open(dataset.paths[row]).convert("RGB")) for row in batch])

    ours = seconds_of(lambda: [dataset[row] for batch in batches for row in batch], repeat=3)
    theirs = seconds_of(as_the_original, repeat=3)
    print(f"reading chips: {len(rows) / ours:.0f} chips/s on one core (goal 2500)")
    return ("reading chips", "Pillow and torchvision's transforms", theirs, ours, ours / theirs, None)


def measure_forward(split: Split, model: str) -> tuple:
    """Return the row on the forward pass: channels-last and bfloat16 if the CPU has it, against plain float32."""
    network = make_network(model, plan_for(model, 64, 1, {}))
    chips = torch.stack([chip for chip, _ in map(FaceDataset(split).__getitem__, range(64))])
    # Features of random weights are huge; standardised as after training, the scores are like real ones.
    with torch.inference_mode():
        network.train()
        network(chips)
    network.eval()
    network.to(memory_format=torch.contiguous_format)
    network.compute_dtype = None
    _, plain = score_clip(network, [chips], len(chips))
    baseline = seconds_of(lambda: score_clip(network, [chips], len(chips)), repeat=3)
    network.to(memory_format=torch.channels_last)
    network.compute_dtype = autocast_dtype("auto", torch.device("cpu"))
    _, ours = score_clip(network, [chips], len(chips))
    fast = seconds_of(lambda: score_clip(network, [chips], len(chips)), repeat=3)
    pictures = 2 * len(chips)   # with the mirror images
    print(f"forward pass, {model}: {pictures / baseline:.0f} -> {pictures / fast:.0f} pictures/s in "
          f"{network.compute_dtype or 'float32'}, largest difference of a score {np.abs(plain - ours).max():.4f}")
    return f"forward pass, {model}", "float32", baseline, fast, fast / baseline, None


def measure_features(split: Split) -> tuple:
    """Return the row on the features of clips of 30 faces, most of which are seen from one side, against all faces with
    their mirror images; both in turn."""
    faces = split.faces.iloc[:FEATURE_CLIPS * FACES_A_CLIP]
    faces = faces.assign(clip=[split.labels.index[number // FACES_A_CLIP] for number in range(len(faces))])
    dataset = FaceDataset(replace(split, faces=faces))
    network = make_network(FACE_MODEL, plan_for(FACE_MODEL, len(split.labels), 1, {}))

    def all_mirrored(chips, sides):
        return features_of_chips(network, chips, torch.full_like(sides, 0.5))

    times = [seconds_of(partial(features_of_dataset, dataset, backbone, "benchmark", machine_with("off")))
             for backbone in 2 * (all_mirrored, partial(features_of_chips, network))]
    baseline, ours = min(times[::2]), min(times[1::2])
    return f"features of {len(faces)} faces, 30 a clip", "all mirror images", baseline, ours, ours / baseline, 0.55


# ---------------------------------------------------------------- what the challenge costs

def seconds_of_training() -> tuple[float, float, float]:
    """Return the CPU seconds of one trial of the search, of the final training and of its calibration.

    On made-up rows of as many clips as the challenge has; the projection and the regression are part of each.
    """
    machine = machine_with()
    training, validation = made_up_samples(TRAINING_CLIPS, machine), made_up_samples(VALIDATION_CLIPS, machine)
    trial_plan = plan_for(FACE_MODEL, TRAINING_CLIPS, EPOCHS, MIDDLE)
    trial = seconds_of(lambda: train(make_network(FACE_MODEL, trial_plan), trial_plan, training, validation))
    samples = made_up_samples(TRAINING_CLIPS + VALIDATION_CLIPS, machine)
    plan = plan_for(FACE_MODEL, len(samples), FINAL_EPOCHS, {})
    final = seconds_of(lambda: train(make_network(FACE_MODEL, plan), plan, samples))
    return trial, final, seconds_of(lambda: calibrate(architecture_named(FACE_MODEL), samples, plan, "dlib", machine))


def print_cost(features: float, seconds_a_clip: float, seconds_a_frame: float) -> None:
    """Print what the challenge's clips, 30 frames each, cost on this CPU with FaceResNet29_v1.0.

    features: seconds per face; seconds_a_clip: of drawing 30 frames; seconds_a_frame: of finding a face. Every figure
    is measured or multiplied from a measured one. No trial of the search is stopped early, as a real search does.
    """
    trial, final, calibration = seconds_of_training()
    faces, both = CLIPS * FACES_A_CLIP, TRAINING_CLIPS + VALIDATION_CLIPS
    parts = {f"frames, {CLIPS:,} clips x {FACES_A_CLIP}": CLIPS * seconds_a_clip,
             f"faces in {faces:,} frames": faces * seconds_a_frame,
             f"features of {faces:,} faces": faces * features,
             f"search, {TRIALS} trials x {EPOCHS} epochs of {TRAINING_CLIPS:,} clips": TRIALS * trial,
             f"final training, {FINAL_EPOCHS} epochs of {both:,} clips": final,
             "its intervals (a second training, on 3/4 of the clips)": calibration}
    print(f"\nThe challenge's {CLIPS:,} clips x {FACES_A_CLIP} frames with {FACE_MODEL}, core-hours on this CPU:")
    for name, seconds in (*parts.items(), ("sum", sum(parts.values()))):
        print(f"  {name:<60} {seconds / 3600:.3f}")
    print(f"Features of {CLIPS:,} clips on the disk: {CLIPS * BYTES_A_CLIP / 1e6:.0f} MB, "
          f"{BYTES_A_CLIP:,} bytes per clip")


# ---------------------------------------------------------------- command line

def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("clip_dir", metavar="CLIP_DIR", type=Path)
    parser.add_argument("portraits", metavar="PORTRAITS_ZIP", type=Path)
    parser.add_argument("--faces", type=positive_int, default=2000, help="portraits taken")
    parser.add_argument("--out", type=Path, default=Path("benchmarks.csv"), help="the table as CSV")
    parser.add_argument("--memory", action="store_true", help="also the peak memory over up to 100,000 files (minutes)")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    check_output_file("--out", args.out)
    for path in (args.clip_dir, args.portraits):
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
    torch.set_num_threads(1)
    frames, faces = preprocessing.measure_frames(args.clip_dir), preprocessing.measure_faces(args.clip_dir)
    rows = [*frames, *faces, *preprocessing.measure_one_pass(args.clip_dir),
            *preprocessing.measure_workers(args.clip_dir),
            *preprocessing.measure_workers(args.clip_dir, script=preprocessing.ONE_PASS_SCRIPT)]
    with tempfile.TemporaryDirectory() as folder:
        split = portrait_split(args.portraits, Path(folder), args.faces)
        rows += [measure_decoding(split), measure_forward(split, OTHER_MODEL), measure_forward(split, FACE_MODEL),
                 measure_search(split), measure_features(split)]
        # The numbers of clips and frames stand in the rows' names.
        print_cost(rows[-1][3] / int(rows[-1][0].split()[2]), frames[0][3] / int(frames[0][0].split()[4]),
                   faces[0][3] / int(faces[0][0].split()[1]))
    preprocessing.print_table(rows)
    table = pandas.DataFrame(rows, columns=["what", "baseline", "baseline_seconds", "our_seconds", "ratio", "goal"])
    table.to_csv(args.out, index=False)
    if args.memory:
        preprocessing.measure_memory()
    print(f"table: {args.out}")
    return 0


if __name__ == "__main__":
    run_script(main)
