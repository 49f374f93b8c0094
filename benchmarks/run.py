"""Measure how fast the suite is, each figure against a named baseline in the same run.

    python benchmarks/run.py ../shared/chalearn/clips ../shared/chalearn/portraits_train.zip
    python benchmarks/run.py CLIP_DIR PORTRAITS_ZIP --faces 2000 --out benchmarks.csv

CLIP_DIR: clips that show faces. PORTRAITS_ZIP: pictures of faces named <clip>__frame_<index>.jpg. Times are CPU seconds of
one process and thread, so that a busy machine disturbs them little; two workers against one take wall time and want a quiet
machine. ratio = ours / baseline for times.
"""
import sys
import tempfile
import time
import zipfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "benchmarks")]

from command_line import UserError, make_parser, positive_int, run_script  # noqa: E402

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import pandas  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from torchvision import transforms  # noqa: E402

import preprocessing  # noqa: E402
from dataset import TRAITS, FaceDataset, Features, Split, list_faces, speakers_of  # noqa: E402
from evaluate import score_chips  # noqa: E402
from model_architectures import FaceMemory, autocast_dtype, build_network  # noqa: E402
from train import DEFAULTS, fit, make_source, seed_everything  # noqa: E402

TRIALS, EPOCHS, BATCH_SIZE = 20, 10, 128


def seconds_of(function, repeat=1):
    """Return the CPU seconds of a call, the least of some."""
    times = []
    for _ in range(repeat):
        begin = time.process_time()
        function()
        times.append(time.process_time() - begin)
    return min(times)


def portrait_split(portraits, folder, number_of_faces):
    """Write portraits as 224 px chips and return a Split of them with made-up labels: speed does not depend on either."""
    face_dir = folder / "data" / "train" / "faces"
    face_dir.mkdir(parents=True)
    with zipfile.ZipFile(portraits) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))[:number_of_faces]
        for name in names:
            picture = cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), cv2.IMREAD_COLOR)
            chip = cv2.resize(picture[:picture.shape[1]], (224, 224))
            cv2.imwrite(str(face_dir / (Path(name).stem + "_aligned.jpg")), chip, [cv2.IMWRITE_JPEG_QUALITY, 95])
    faces = list_faces(face_dir)
    clips = sorted(set(faces["clip"]))
    labels = pandas.DataFrame(np.random.default_rng(0).uniform(0.2, 0.8, (len(clips), 5)), index=clips, columns=list(TRAITS))
    return Split("train", faces, labels, pandas.Series(speakers_of(clips), index=clips), {"size": 224, "padding": 0.25})


def measure_search(split):
    """Return the row on a search of ResNet18_v1.0 with and without cached features."""
    settings = {**DEFAULTS, "heads": 1}
    device = torch.device("cpu")

    def train(epochs, cache, split):
        seed_everything(0)
        network = build_network("ResNet18_v1.0", settings, "none")
        network.compute_dtype = autocast_dtype("auto", device)
        fit(network, "ResNet18_v1.0", split, None, settings, epochs, BATCH_SIZE, 0, device, cache, show_progress=False)

    # The trials of a search share one file of features: keep the random weights, and so the key, the same.
    cached = seconds_of(lambda: [train(EPOCHS, "float16", split) for _ in range(TRIALS)])
    uncached = seconds_of(lambda: train(1, "off", split)) * TRIALS * EPOCHS
    return (f"search, {TRIALS} trials x {EPOCHS} epochs, ResNet18_v1.0, {len(split.faces)} faces",
            "no cache (1 trial x 1 epoch, multiplied)", uncached, cached, cached / uncached, 1 / 50)


def measure_decoding(split):
    """Return the row on reading chips, against the original's path: Pillow, then torchvision's transforms."""
    dataset = FaceDataset(split)
    rows = list(range(min(1000, len(dataset))))
    batches = [rows[start:start + 64] for start in range(0, len(rows), 64)]
    original = transforms.Compose([transforms.Resize(224), transforms.ToTensor(),
                                   transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])

    def as_the_original():
        for batch in batches:
            torch.stack([original(Image.open(dataset.paths[row]).convert("RGB")) for row in batch])

    ours = seconds_of(lambda: [dataset.__getitems__(batch) for batch in batches], repeat=3)
    theirs = seconds_of(as_the_original, repeat=3)
    print(f"reading chips: {len(rows) / ours:.0f} chips/s on one core (goal 2500)")
    return ("reading chips", "Pillow and torchvision's transforms", theirs, ours, ours / theirs, None)


def measure_forward(split, name):
    """Return the row on the forward pass: channels-last and bfloat16 where the CPU has it, against plain float32."""
    torch.manual_seed(0)
    network = build_network(name, {**DEFAULTS, "heads": 1}, "dlib" if name.startswith("Face") else "none").eval()
    # Features of random weights are huge; standardised as after training, the scores are like real ones.
    chips = FaceDataset(split).__getitems__(list(range(64)))[0]
    with torch.inference_mode():
        network.train()
        network(chips)
        network.eval()
        network.to(memory_format=torch.contiguous_format)
        plain = score_chips(network, chips)
        baseline = seconds_of(lambda: score_chips(network, chips), repeat=3)
        network.to(memory_format=torch.channels_last)
        network.compute_dtype = autocast_dtype("auto", torch.device("cpu"))
        ours = score_chips(network, chips)
        fast = seconds_of(lambda: score_chips(network, chips), repeat=3)
    print(f"forward pass, {name}: {128 / baseline:.0f} -> {128 / fast:.0f} pictures/s in {network.compute_dtype or 'float32'}, "
          f"largest difference of a score {float((plain - ours).abs().max()):.4f}")
    return f"forward pass, {name}", "float32", baseline, fast, fast / baseline, None


def print_cost(split, seconds_a_clip, seconds_a_frame):
    """Print what the challenge (6,000 / 2,000 / 2,000 clips, 30 frames each) costs on this CPU with FaceResNet29_v1.0.

    split: faces to measure on; seconds_a_clip: of drawing 30 frames; seconds_a_frame: of finding a face. Every figure is
    multiplied from a measured one; no trial of the search is stopped early, which a real one does.
    """
    settings, model, device = dict(DEFAULTS), "FaceResNet29_v1.0", torch.device("cpu")
    network = build_network(model, settings, "dlib")
    network.compute_dtype = autocast_dtype("auto", device)
    clips = list(split.labels.index)
    training, validation = split.only(clips[len(clips) // 4:], "training"), split.only(clips[:len(clips) // 4], "validation")
    features = seconds_of(lambda: [make_source(network, model, part, settings, device, "float16", 0, False, 0)
                                   for part in (training, validation)]) / len(split.faces)

    def epochs(number, settings, validation):
        seed_everything(0)
        network = build_network(model, settings, "dlib")
        return seconds_of(lambda: fit(network, model, training, validation, settings, number, BATCH_SIZE, 0, device,
                                      show_progress=False))

    without = {**settings, "memory": 0.0}
    usual = {**without, "l1": 512, "l2": 128}  # the middle of the search space
    validated = (epochs(3, usual, validation) - epochs(1, usual, validation)) / 2
    plain = (epochs(3, without, None) - epochs(1, without, None)) / 2
    # All is proportional to the number of faces, but for the memory, which keeps MOST_FACES of them whatever their number.
    many = 30 * 6000 / len(training.faces)
    kept = Features([np.random.default_rng(0).standard_normal((2, FaceMemory.MOST_FACES, network.memory.width), np.float32)])
    memory = seconds_of(lambda: network.memory.fit(kept.rows(np.arange(len(kept)), np.zeros(len(kept), dtype=bool)),
                                                   torch.rand(len(kept), len(TRAITS))))
    parts = {"frames, 10,000 clips x 30": 10_000 * seconds_a_clip, "faces in 300,000 frames": 300_000 * seconds_a_frame,
             "features of 300,000 faces and their mirror images": 300_000 * features,
             f"search, {TRIALS} trials x {EPOCHS} epochs of 180,000 faces": TRIALS * EPOCHS * validated * many,
             f"final training, {EPOCHS} epochs of 240,000 faces": EPOCHS * plain * many * 8000 / 6000 + memory}
    print("\nThe challenge's 10,000 clips x 30 frames with FaceResNet29_v1.0, core-hours on this CPU:")
    for name, seconds in (*parts.items(), ("sum", sum(parts.values()))):
        print(f"  {name:<60} {seconds / 3600:.2f}")


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
    for path in (args.clip_dir, args.portraits):
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
    torch.set_num_threads(1)
    frames, faces = preprocessing.measure_frames(args.clip_dir), preprocessing.measure_faces(args.clip_dir)
    rows = [*frames, *faces, *preprocessing.measure_workers(args.clip_dir)]
    with tempfile.TemporaryDirectory() as folder:
        split = portrait_split(args.portraits, Path(folder), args.faces)
        rows += [measure_decoding(split), measure_forward(split, "ResNet18_v1.0"), measure_forward(split, "FaceResNet29_v1.0"),
                 measure_search(split)]
        # The numbers of clips and frames stand in the rows' names.
        print_cost(split, frames[0][3] / int(frames[0][0].split()[4]), faces[0][3] / int(faces[0][0].split()[1]))
    preprocessing.print_table(rows)
    table = pandas.DataFrame(rows, columns=["what", "baseline", "baseline_seconds", "our_seconds", "ratio", "goal"])
    table.to_csv(args.out, index=False)
    if args.memory:
        preprocessing.measure_memory()
    print(f"table: {args.out}")
    return 0


if __name__ == "__main__":
    run_script(main)
