"""Measure how time and memory of training FaceResNet29_v1.0 grow with the number of clips, on made-up features.

    python benchmarks/scale.py                          10,000 and 100,000 clips
    python benchmarks/scale.py --million                1,000,000 clips too
    python benchmarks/scale.py --clips 2000             another number

Each number of clips has a process of its own, which trains with centres through the suite's own functions, and a file
of features in --folder (34 KB per clip; removed at the end). Times are CPU seconds of one thread. peak: memory of the
process so far; own: the most in this step without mapped files. Listing is measured on a folder of empty files.
"""
import contextlib
import functools
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import threading
import time
import tracemalloc
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import first_impressions.common.startup  # noqa: F401  (before torch)

import pandas
import torch
from made_up import BYTES_A_CLIP, FACES_A_CLIP, made_up_samples, write_file
from prediction import own_megabytes

from first_impressions.common.command_line import UserError, make_parser, positive_int, run_script
from first_impressions.common.constants import face_name, frame_name
from first_impressions.common.device import Machine, seed_everything
from first_impressions.common.files import check_output_file
from first_impressions.data.splits import list_faces
from first_impressions.networks.gaussian_process import GaussianProcess
from first_impressions.networks.network import build_network
from first_impressions.networks.principal_components import PrincipalComponents
from first_impressions.networks.settings import Plan, resolve_settings, settle_gp
from first_impressions.training.inputs import ClipFeatures, score_rows
from first_impressions.training.loop import fit, start_training
from model_architectures import architecture_named

MODEL, EPOCHS, BATCH_SIZE = "FaceResNet29_v1.0", 10, 128
SIZES, MILLION = (10_000, 100_000), 1_000_000
CLIPS_LISTED = 1000
ROOM_BESIDE = 2 * 10**9     # bytes that stay free on the disk


class Steps:
    """The table of one process: a row for each step."""

    def __init__(self, clips: int):
        self.clips = clips
        self.rows = []

    @contextlib.contextmanager
    def step(self, name: str):
        """Measure the block as a step of that name."""
        own, ended = [own_megabytes(os.getpid())], threading.Event()

        def watch():
            while not ended.wait(0.05):
                own.append(own_megabytes(os.getpid()))
        watcher = threading.Thread(target=watch)
        watcher.start()
        started, wall = time.process_time(), time.monotonic()
        try:
            yield
        finally:
            seconds, wall = time.process_time() - started, time.monotonic() - wall
            ended.set()
            watcher.join()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self.rows.append({"clips": self.clips, "step": name, "CPU s": round(seconds, 2), "wall s": round(wall, 2),
                          "peak MB": round(peak), "own MB": round(max([*own, own_megabytes(os.getpid())]))})

    def watch_calls(self, owner: type, method: str, name: str) -> None:
        """Make every call of a class's method a step of that name."""
        original = getattr(owner, method)

        @functools.wraps(original)
        def measured(*arguments, **options):
            with self.step(name):
                return original(*arguments, **options)
        setattr(owner, method, measured)


def measure_size(clips: int, path: Path) -> list[dict]:
    """Train on the features of this many clips and score them; return a row per step. Runs in a process of its own."""
    torch.set_num_threads(1)
    seed_everything(0)
    steps, machine = Steps(clips), Machine(torch.device("cpu"))
    with steps.step("start, labels and speakers"):
        samples = made_up_samples(clips, machine, path)
    settings = settle_gp(resolve_settings({"memory": "centres"}), clips, architecture_named(MODEL).has_gp)
    plan = Plan(settings, EPOCHS, BATCH_SIZE)
    network = machine.place(build_network(architecture_named(MODEL), settings, "dlib"))
    steps.watch_calls(PrincipalComponents, "fit", "projection: principal components")
    steps.watch_calls(ClipFeatures, "_project", "projected rows of all clips")
    steps.watch_calls(GaussianProcess, "fit_centres", "regression on centres")
    state = start_training(network, samples, plan)
    with steps.step(f"heads, {EPOCHS} epochs"):
        for _ in fit(state, plan, samples, show_progress=False):
            pass
    with steps.step("scores of all clips"):
        score_rows(state.network, samples)
    return steps.rows


def measure_listing(folder: Path) -> list[dict]:
    """Return the row on listing faces."""
    face_dir = folder / "faces"
    face_dir.mkdir()
    for clip in range(CLIPS_LISTED):
        for frame in range(FACES_A_CLIP):
            (face_dir / face_name(Path(frame_name(f"clip{clip:07}.000", frame)).stem)).touch()
    steps, number = Steps(CLIPS_LISTED), CLIPS_LISTED * FACES_A_CLIP
    with steps.step(f"listing {FACES_A_CLIP} faces of each clip"):
        faces = list_faces(face_dir)
    tracemalloc.start()
    list_faces(face_dir)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"listing: {1e6 * steps.rows[0]['CPU s'] / number:.1f} microseconds per face; the table holds "
          f"{faces.memory_usage(deep=True).sum() / number:.0f} bytes per face, at most {most / number:.0f} meanwhile")
    return steps.rows


def in_new_process(function, *arguments) -> list[dict] | None:
    """Return what a function gives in a process of its own, whose memory is then its alone."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("--clips", type=positive_int, nargs="+", default=SIZES, help="numbers of clips")
    parser.add_argument("--million", action="store_true",
                        help=f"also {MILLION:,} clips: {MILLION * BYTES_A_CLIP / 1e9:.0f} GB on the disk")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()),
                        help="where the features are written")
    parser.add_argument("--out", type=Path, default=Path("scale.csv"), help="the table as CSV")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    check_output_file("--out", args.out)
    sizes = [*args.clips, *([MILLION] if args.million else [])]
    needed, free = max(sizes) * BYTES_A_CLIP + ROOM_BESIDE, shutil.disk_usage(args.folder).free
    if free < needed:
        raise UserError(f"--folder {args.folder}: {free / 1e9:.0f} GB are free, {needed / 1e9:.0f} are needed; "
                        "name another")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        rows = in_new_process(measure_listing, Path(folder))
        for size in sizes:
            path = Path(folder, "features.sqlite")
            in_new_process(write_file, size, path)
            rows += in_new_process(measure_size, size, path)
            print(f"{size:,} clips: {path.stat().st_size / size:,.0f} bytes per clip on the disk", flush=True)
            path.unlink()
    table = pandas.DataFrame(rows)
    table.to_csv(args.out, index=False)
    print(f"{table.to_string(index=False)}\ntable: {args.out}")


if __name__ == "__main__":
    run_script(main)
