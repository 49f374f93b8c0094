"""Measure predict.py: how long it takes to score one picture, start and all, and its memory over the length of a clip.

    python benchmarks/prediction.py CLIP
    python benchmarks/prediction.py CLIP --hours 2 --out prediction.csv

The picture is a frame of the clip, scored by the model that comes with the suite, beside Python's `import torch` alone;
each time is the least of three, in seconds of one core (`taskset`). The clip is then repeated until it lasts two
minutes, and until it lasts the hours asked for. Memory is the most that predict.py and its worker hold together at any
moment in pages of their own (RssAnon in /proc, so Linux alone), without those of libraries' files.
"""
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import first_impressions.common.startup  # noqa: F401  (before torch)

import av
import pandas

from first_impressions.common.command_line import UserError, make_parser, positive_int, run_script
from first_impressions.common.files import check_output_file

REPOSITORY = Path(__file__).resolve().parents[1]
PREDICT = [sys.executable, REPOSITORY / "predict.py", "pretrained"]
SHORT = 120                 # seconds
SECONDS_BETWEEN_LOOKS = 0.1
RUNS = {"10 frames": [], "--every 2 --per-frame --plot --annotate": [
    "--every", "2", "--per-frame", "frames.csv", "--plot", "course", "--annotate", "annotated"]}


def repeat_clip(clip: Path, seconds: int, target: Path) -> float:
    """Write the clip's pictures again and again, not encoded anew, until it lasts this long; return its length."""
    with av.open(str(clip)) as source, av.open(str(target), "w") as made:
        stream = source.streams.video[0]
        copy = made.add_stream_from_template(stream)
        packets = [packet for packet in source.demux(stream) if packet.size]
        length = max(packet.pts + packet.duration for packet in packets) - min(packet.dts for packet in packets)
        limit, shift = seconds / stream.time_base, 0
        while shift < limit:
            for packet in packets:
                again = av.Packet(bytes(packet))
                again.pts, again.dts, again.duration = packet.pts + shift, packet.dts + shift, packet.duration
                again.is_keyframe, again.time_base, again.stream = packet.is_keyframe, packet.time_base, copy
                made.mux(again)
            shift += length
        return float(shift * stream.time_base)


def own_megabytes(process: int) -> float:
    """Return the memory of its own of a process and of all that it started, in MB."""
    total, waiting = 0, [process]
    while waiting:
        number = waiting.pop()
        try:
            status = Path(f"/proc/{number}/status").read_text()
            waiting += map(int, Path(f"/proc/{number}/task/{number}/children").read_text().split())
        except OSError:
            continue  # it has ended
        total += next((int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")), 0)
    return total / 1000


def measure_memory(clip: Path, options: list[str], folder: Path) -> dict:
    """Return the most memory and the seconds of a run of predict.py with one worker."""
    begin, most = time.perf_counter(), 0.0
    process = subprocess.Popen([*PREDICT, clip, "--workers", "1", *options], cwd=folder, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        most = max(most, own_megabytes(process.pid))
        time.sleep(SECONDS_BETWEEN_LOOKS)
    if process.returncode:
        raise SystemExit("predict.py failed")
    return {"megabytes": most, "seconds": time.perf_counter() - begin}


def seconds_of(command: list) -> float:
    """Return the least seconds of three runs of a command on one core."""
    def run():
        begin = time.perf_counter()
        subprocess.run(["taskset", "--cpu-list", "0", *command], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - begin
    return min(run() for _ in range(3))


def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("clip", metavar="CLIP", type=Path, help="a clip that shows a face")
    parser.add_argument("--hours", type=positive_int, default=2, help="length of the long clip")
    parser.add_argument("--out", type=Path, default=Path("prediction.csv"), help="the table as CSV")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    check_output_file("--out", args.out)
    if not args.clip.is_file():
        raise UserError(f"{args.clip}: no such file")
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with av.open(str(args.clip)) as container:
            next(container.decode(video=0)).to_image().save(folder / "picture.png")
        picture, torch = seconds_of([*PREDICT, folder / "picture.png"]), seconds_of([sys.executable, "-c",
                                                                                      "import torch"])
        print(f"one picture on one core: {picture:.2f} s; import torch alone: {torch:.2f} s", flush=True)
        for seconds in (SHORT, args.hours * 3600):
            clip = folder / f"clip{args.clip.suffix}"
            length = repeat_clip(args.clip, seconds, clip)
            for run, options in RUNS.items():
                rows.append({"minutes": length / 60, "megabytes on disk": os.path.getsize(clip) / 1e6, "run": run,
                             **measure_memory(clip, options, folder)})
                print({key: value if isinstance(value, str) else round(value, 1) for key, value in rows[-1].items()},
                      flush=True)
    pandas.DataFrame(rows).assign(picture_seconds=picture, torch_seconds=torch).to_csv(args.out, index=False)
    print(f"table: {args.out}")


if __name__ == "__main__":
    run_script(main)
