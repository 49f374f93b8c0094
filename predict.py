"""Score any clip, picture or folder of them with a trained experiment.

    python predict.py EXPERIMENT clip.mp4
    python predict.py EXPERIMENT holiday/ portrait.jpg --out scores.csv
    python predict.py EXPERIMENT clip.mp4 --annotate annotated      pictures with the face and five bars
    python predict.py EXPERIMENT clip.mp4 --explain heat_maps       where in the face each score comes from
    python predict.py EXPERIMENT group.mp4 --faces all              every face, numbered from left to right

Frames are drawn, faces found and aligned as by extract_faces_from_videos.py, but in memory. A clip's scores are the
mean over its frames; spread is the standard deviation over them; four of five labels lie within ± 80 % of the score.
Heat maps and their scores are of one face, of the middle frame. The challenge's neuroticism is emotional stability in
truth: high means calm. A file that cannot be scored costs a line on stderr and, with --out, a row with its problem.
"""
import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from command_line import (
    UserError,
    atomic_write,
    disk_error,
    make_parser,
    positive_int,
    printable,
    progress_bar,
    run_script,
    seed_number,
)

import cv2
import numpy as np
import pandas
import torch

from checkpoint import find_checkpoint, load_experiment
from device import Machine, pick_device
from experiment import experiment_folder
from features import score_clip
from intervals import Intervals
from labels import CLIP_SUFFIXES, NO_FACE, PICTURE_SUFFIXES, TRAITS
from model_architectures import PersonalityNetwork

sys.path.insert(0, str(Path(__file__).resolve().parent / "pre-processing"))
from clip_faces import FaceSettings, KeptPicture, faces_of_file
from find_faces import OTHER_PICTURE_SUFFIXES, find_predictor, unreadable_kind
from target_folder import find_files
from worker_pool import map_files

SUFFIXES = CLIP_SUFFIXES | PICTURE_SUFFIXES
SPREADS = tuple(f"spread_{trait}" for trait in TRAITS)
HALF_WIDTHS = tuple(f"half_width_{trait}" for trait in TRAITS)
LONGEST_STEM = 200  # bytes of a picture's name before its ending; a file's name has at most 255
BAR_COLOURS = ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189))  # RGB


# ---------------------------------------------------------------- scores

def score_file(network: PersonalityNetwork, intervals: Intervals | None, path: str, count: int,
               faces: list[tuple[int, int, np.ndarray]]) -> tuple[list[dict], np.ndarray]:
    """Return (one row of the table for each face number of a file, scores of every face, float32 N x 5)."""
    chips = torch.from_numpy(np.stack([chip for _, _, chip in faces])).permute(0, 3, 1, 2).to(network.mean.device)
    numbers = np.array([number for _, number, _ in faces])
    rows, all_scores = [], np.empty((len(faces), len(TRAITS)), dtype=np.float32)
    for number in np.unique(numbers):
        scores, all_scores[numbers == number] = score_clip(network, chips[torch.from_numpy(numbers == number)])
        of_number = all_scores[numbers == number]
        widths = intervals.half_widths(np.array([len(of_number)]))[0] if intervals else [None] * len(TRAITS)
        rows.append({"clip": path, "face": int(number) + 1, **dict(zip(TRAITS, scores.tolist())),
                     "frames": count, "faces": len(of_number), **dict(zip(SPREADS, of_number.std(0).tolist())),
                     **dict(zip(HALF_WIDTHS, widths)), "problem": ""})
    return rows, all_scores


def annotate(picture: KeptPicture, rows: list[dict]) -> np.ndarray:
    """Return a BGR picture with a box around each face and, at its side, five bars with the scores."""
    boxes = picture.boxes
    image = cv2.imdecode(np.frombuffer(picture.jpeg, np.uint8), cv2.IMREAD_COLOR)
    thickness = max(1, round(image.shape[0] / 300))
    for number, (left, top, right, bottom) in enumerate(boxes):
        cv2.rectangle(image, (left, top), (right, bottom), (255, 255, 255), thickness + 2)
        cv2.rectangle(image, (left, top), (right, bottom), (40, 40, 40), thickness)
        if len(boxes) > 1:
            cv2.putText(image, str(number + 1), (left + 6, bottom - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.7,
                        (255, 255, 255), 2, cv2.LINE_AA)
    # The bars stand beside the picture, where they hide nothing.
    line, width = 26, 330
    panel = np.full((max(image.shape[0], (line * 6 + 14) * len(rows)), width, 3), 255, np.uint8)
    y = 0
    for row in rows:
        y += line
        name = f"face {row['face']}" if len(rows) > 1 else "apparent personality"
        cv2.putText(panel, name, (12, y), cv2.FONT_HERSHEY_SIMPLEX, 0.55, (0, 0, 0), 1, cv2.LINE_AA)
        for trait, colour in zip(TRAITS, BAR_COLOURS):
            y += line
            cv2.putText(panel, trait, (12, y), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (40, 40, 40), 1, cv2.LINE_AA)
            cv2.rectangle(panel, (160, y - 13), (280, y + 2), (225, 225, 225), -1)
            cv2.rectangle(panel, (160, y - 13), (160 + round(120 * row[trait]), y + 2), colour[::-1], -1)
            cv2.putText(panel, f"{row[trait]:.2f}", (288, y), cv2.FONT_HERSHEY_SIMPLEX, 0.45,
                        (40, 40, 40), 1, cv2.LINE_AA)
        y += 14
    if panel.shape[0] > image.shape[0]:
        image = cv2.copyMakeBorder(image, 0, panel.shape[0] - image.shape[0], 0, 0, cv2.BORDER_CONSTANT,
                                   value=(255, 255, 255))
    return np.hstack([image, panel])


# ---------------------------------------------------------------- results

@dataclass
class Results:
    """What was scored so far, and where the pictures go."""
    network: PersonalityNetwork
    intervals: Intervals | None
    annotate_dir: Path | None
    explain_dir: Path | None
    rows: list[dict] = field(default_factory=list)      # of the table
    names: set[str] = field(default_factory=set)        # of the pictures

    def add(self, path: str, count: int, faces: list[tuple[int, int, np.ndarray]], picture: KeptPicture | None) -> None:
        """Score the faces of a file and write its pictures."""
        rows, scores = score_file(self.network, self.intervals, printable(path), count, faces)
        self.rows += rows
        name = _plain_name(path, self.names)
        if self.annotate_dir:
            write_picture(self.annotate_dir / f"{name}_scores.jpg", annotate(picture, rows))
        if self.explain_dir:
            from explain import explain_chips, overlay  # here, since its library takes seconds to import
            _, _, chip = faces[len(faces) // 2]
            chips = torch.from_numpy(chip).permute(2, 0, 1)[None].to(self.network.mean.device)
            maps = explain_chips(self.network, chips)[0]
            heat = overlay(chips[0].cpu().numpy(), maps, scores[len(faces) // 2])
            write_picture(self.explain_dir / f"{name}_heat_maps.png", cv2.cvtColor(heat, cv2.COLOR_RGB2BGR))

    def add_problem(self, path: str, problem: str) -> None:
        """Note a file that could not be scored."""
        self.rows.append({"clip": printable(path), "problem": printable(problem)})

    @property
    def scored(self) -> list[dict]:
        """The rows with scores."""
        return [row for row in self.rows if not row["problem"]]


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write a BGR picture so that the file under its name is always whole. Raises OSError where the disk is full."""
    with atomic_write(path) as partial:
        partial.write_bytes(cv2.imencode(path.suffix, picture)[1].tobytes())


def _write_table(path, rows):
    columns = ["clip", "face", *TRAITS, "frames", "faces", *SPREADS, *HALF_WIDTHS, "problem"]
    table = pandas.DataFrame(rows, columns=columns)
    table = table.astype(dict.fromkeys(["face", "frames", "faces"], "Int64"))  # whole numbers beside empty cells
    with atomic_write(path) as partial:
        if path.suffix.lower() == ".json":
            partial.write_text(table.to_json(orient="records", indent=2, double_precision=6) + "\n")
        else:
            table.to_csv(partial, index=False, float_format="%.6f")


def _plain_name(path, taken):
    """Return a file name for a clip's picture: its stem, numbered where another folder has one of the same name."""
    stem = os.fsdecode(os.fsencode(printable(Path(path).stem))[:LONGEST_STEM])
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}_{number}"
    taken.add(name)
    return name


def print_table(scored: list[dict], with_faces: bool) -> None:
    """Print the scores of each file; with_faces: also the number of the face."""
    shown = pandas.DataFrame(scored)
    shown["clip"] = shown["clip"].map(lambda path: printable(os.path.basename(path)))
    shown["spread"] = shown[list(SPREADS)].mean(axis=1)
    columns = ["clip", *(["face"] if with_faces else []), *TRAITS, "frames", "faces", "spread"]
    if shown[HALF_WIDTHS[0]].notna().all():
        shown["± 80 %"] = shown[list(HALF_WIDTHS)].mean(axis=1)
        columns.append("± 80 %")
    print(shown[columns].to_string(index=False, float_format="{:.3f}".format))


# ---------------------------------------------------------------- command line

def files_below(paths: list[str]) -> Iterator[tuple[str, tuple | None]]:
    """Yield (path, known) as map_files takes them, for files and for all clips and pictures in folders."""
    for path in paths:
        if os.path.isdir(path):
            for found, problem in sorted(find_files(path, SUFFIXES | OTHER_PICTURE_SUFFIXES),
                                         key=lambda entry: entry[0]):
                problem = problem or unreadable_kind(found)
                yield found, (None, problem) if problem else None
        elif os.path.splitext(path)[1].lower() not in SUFFIXES:
            yield path, (None, "neither a clip nor a picture by its name's ending")
        else:
            yield path, None


def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("experiment", metavar="EXPERIMENT", help="name of a folder in --runs-dir")
    parser.add_argument("paths", metavar="PATH", nargs="+", help="clips, pictures or folders of them")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the table as .csv or .json")
    parser.add_argument("--annotate", metavar="DIR", type=Path,
                        help="write a picture of each file with the face and five bars")
    parser.add_argument("--explain", metavar="DIR", type=Path,
                        help="write heat maps: where in the face each score comes from")
    parser.add_argument("--frames", type=positive_int, default=10, help="frames drawn from a clip")
    parser.add_argument("--faces", choices=("largest", "all"), default="largest",
                        help="which faces of a frame are scored")
    parser.add_argument("--predictor", metavar="FILE", help="landmark model of dlib (default: the 5-point one)")
    parser.add_argument("--runs-dir", default="runs", help="folder of the experiments")
    parser.add_argument("--workers", type=positive_int, default=os.cpu_count(), help="processes that find faces")
    parser.add_argument("--precision", choices=("auto", "bfloat16", "float32"), default="auto", help="of the backbone")
    parser.add_argument("--seed", type=seed_number, default=0, help="of the choice of frames")
    return parser.parse_args(argv)


def check_arguments(args):
    """Raise UserError for what would only show after the work."""
    find_checkpoint(experiment_folder(args.runs_dir, args.experiment))
    if args.out and args.out.suffix.lower() not in (".csv", ".json"):
        raise UserError(f"--out {args.out}: name a file that ends in .csv or .json")
    if args.out and not args.out.parent.is_dir():
        raise UserError(f"--out {args.out}: the folder {args.out.parent} does not exist")
    for path in args.paths:
        if not os.path.lexists(path):
            raise UserError(f"{path}: no such file or folder")
    if args.out and args.out.is_dir():
        raise UserError(f"--out {args.out}: is a folder; name a file in it")
    for folder in filter(None, (args.annotate, args.explain)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot be made ({error.strerror}); "
                            "name another folder for the pictures") from None
    for folder in filter(None, (args.out.parent if args.out else None, args.annotate, args.explain)):
        if not os.access(folder, os.W_OK):
            raise UserError(f"{folder}: cannot be written; name another folder")


def main(argv=None):
    args = parse_args(argv)
    check_arguments(args)
    network, checkpoint = load_experiment(args.experiment, args.runs_dir, Machine(pick_device(), args.precision))
    crop = checkpoint.preprocessing
    settings = FaceSettings(args.frames, args.seed, crop["size"], crop["padding"], args.faces == "all",
                            find_predictor(args.predictor), bool(args.annotate))
    total, status = sum(1 for _ in files_below(args.paths)), 0
    if not total:
        raise UserError(f"{args.paths[0]}: holds no clip and no picture")
    intervals = Intervals(**checkpoint.intervals) if checkpoint.intervals else None
    results, failure = Results(network, intervals, args.annotate, args.explain), None
    function = functools.partial(faces_of_file, settings=settings)
    try:
        with contextlib.closing(map_files(function, files_below(args.paths), min(args.workers, total))) as answers, \
                progress_bar(total=total, unit="file") as bar:
            for path, answer, problem in answers:
                bar.update()
                if problem is None and not answer[1]:
                    problem = NO_FACE
                if problem is None:
                    results.add(path, *answer)
                else:
                    results.add_problem(path, problem)
                    bar.write(f"warning: {printable(path)}: {printable(problem)}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C; what was scored so far follows" if results.rows else
              "stopped by Ctrl-C before any file was scored", file=sys.stderr)
        status = 130
        if not results.rows:
            return status
    except OSError as error:
        if disk_error(error) is None or not results.rows:
            raise
        failure = error  # what was scored is shown before the line on the full disk
    if results.scored:
        print_table(results.scored, with_faces=args.faces == "all")
    if args.out:
        _write_table(args.out, results.rows)
    if failure:
        raise failure
    written = [str(place) for place in (args.out, args.annotate, args.explain) if place]
    print(f"{len({row['clip'] for row in results.scored})} of {len({row['clip'] for row in results.rows})} files scored"
          + (f"; results: {', '.join(written)}" if written else "; --out scores.csv writes the table to a file"))
    return status or (0 if results.scored else 1)


if __name__ == "__main__":
    run_script(main)
