"""Score any clip, picture or folder of them with a trained experiment.

    python predict.py pretrained clip.mp4                           the model that comes with the suite
    python predict.py EXPERIMENT holiday/ portrait.jpg --out scores.csv
    python predict.py EXPERIMENT clip.mp4 --annotate annotated      pictures with the face and a bar per trait
    python predict.py EXPERIMENT clip.mp4 --explain heat_maps       where in the face each score comes from
    python predict.py EXPERIMENT group.mp4 --faces all              everybody: one row per person
    python predict.py EXPERIMENT talk.mp4 --piece 15 --plot course  long recordings: a row for each 15 seconds
    python predict.py EXPERIMENT talk.mp4 --every 2 --per-frame frames.csv      the course over time

Frames are drawn, faces found and aligned as by extract_faces_from_videos.py, but in memory. A clip's scores are those
of the mean features of its faces if the backbone is frozen, else the mean of their scores. Four of five labels lie
between low and high. A clip in pieces has the mean of their scores and no interval of its own. Heat maps and their
scores are of one face, the middle one of the clip. A file that cannot be scored costs a line on stderr and, with --out,
a row with its problem. docs/evaluation_and_prediction.md explains every column.
"""
import first_impressions.common.startup  # noqa: F401  (before torch)

import contextlib
import itertools
import math
import os
import sys
from collections import Counter
from pathlib import Path

import cv2

from first_impressions.common.command_line import (
    UserError,
    disk_error,
    make_parser,
    number_between,
    positive_int,
    progress_bar,
    run_script,
    seconds_apart,
    usable_cores,
)
from first_impressions.common.device import add_device_options
from first_impressions.common.files import atomic_write, check_output_file, make_folder
from first_impressions.extraction.detectors import DETECTOR_HELP, DETECTORS
from first_impressions.extraction.frames import FrameSettings, add_frame_options
from first_impressions.jobs.target_folder import say_passed_over
from first_impressions.jobs.worker_pool import UNEXPECTED, warn_of_unexpected
from first_impressions.prediction import tables
from first_impressions.prediction.drawings import annotate, draw_heat_maps, plot_course
from first_impressions.prediction.scoring import FRAMES, files_below, load_scorer, score_files


def _write_pictures(args, network, scores, taken):
    """Write the pictures of a scored file that are asked for. taken: names of the pictures so far, gets theirs."""
    name = _new_name(Path(scores.rows[0]["clip"]), taken)
    if args.annotate:
        _write_picture(args.annotate / f"{name}_scores.jpg", annotate(scores.picture, scores.people))
    if args.plot and scores.rows[0]["frames"] > 1:
        _write_picture(args.plot / f"{name}_course.png", plot_course(scores))
    if args.explain:
        _write_picture(args.explain / f"{name}_heat_maps.png", draw_heat_maps(network, scores))


def _new_name(path, taken):
    """Return a file name for a clip's pictures: its stem; if another file has that, its name with the ending; if
    another folder has one of that name, numbered."""
    # A file's name has at most 255 bytes.
    stem, whole = (os.fsencode(name)[:200].decode(errors="ignore") for name in (path.stem, path.name))
    names = itertools.chain([stem, whole], (f"{whole}_{number}" for number in itertools.count(2)))
    name = next(name for name in names if name not in taken)
    taken.add(name)
    return name


def _write_picture(path, picture):
    """Write a picture, uint8 RGB, so that the file under its name is always whole."""
    with atomic_write(path) as partial:
        partial.write_bytes(cv2.imencode(path.suffix, picture[:, :, ::-1])[1].tobytes())


def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("experiment", metavar="EXPERIMENT",
                        help="name of a folder in --runs-dir, or pretrained: the model that comes with the suite")
    parser.add_argument("paths", metavar="PATH", nargs="+", help="clips, pictures or folders of them")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write the table as .csv or .json")
    parser.add_argument("--all-columns", action="store_true",
                        help="also frames, faces, spreads, half widths of intervals, percentiles")
    parser.add_argument("--annotate", metavar="DIR", type=Path,
                        help="write a picture of each file with the face and a bar per trait")
    parser.add_argument("--explain", metavar="DIR", type=Path,
                        help="write heat maps: where in the face each score comes from")
    parser.add_argument("--plot", metavar="DIR", type=Path, help="draw the scores of each clip over the time")
    parser.add_argument("--per-frame", metavar="FILE", type=Path,
                        help="write a row for each face of each frame, with its time and box, as .csv or .json")
    add_frame_options(parser, FRAMES)
    parser.add_argument("--piece", type=seconds_apart, metavar="SECONDS",
                        help="cut longer clips into pieces of about this length, a row each (models of the challenge "
                        "know clips of 15 seconds); --frames or --every then count for each piece")
    parser.add_argument("--min-confidence", metavar="SCORE", help="leave out faces with a lower detection score",
                        type=number_between(-math.inf, math.inf, "a number; usual scores are 0.3 to 2.4"))
    parser.add_argument("--faces", choices=("largest", "all"), default="largest",
                        help="which faces of a frame are scored; all: one row per person, by dlib's face recognition")
    parser.add_argument("--detector", choices=DETECTORS, default="auto", help=DETECTOR_HELP)
    parser.add_argument("--predictor", metavar="FILE", help="landmark model of dlib (default: the 5-point one)")
    parser.add_argument("--runs-dir", default="runs", help="folder of the experiments")
    parser.add_argument("--workers", type=positive_int, default=usable_cores(), help="processes that find faces")
    add_device_options(parser, precision="float32")
    complain = parser.error
    parser.error = lambda message: complain(message + (
        "; the EXPERIMENT comes first, as in: predict.py pretrained clip.mp4" if message.endswith("PATH") else ""))
    return parser.parse_args(argv)


def check_arguments(args):
    """Raise UserError for what would only show after the work."""
    for option, table in (("--out", args.out), ("--per-frame", args.per_frame)):
        if table:
            if table.suffix.lower() not in (".csv", ".json"):
                raise UserError(f"{option} {table}: name a file that ends in .csv or .json")
            check_output_file(option, table)
            tables.check_replaceable(option, table)
    if args.out and args.per_frame and args.out.resolve() == args.per_frame.resolve():
        raise UserError(f"--out and --per-frame {args.out}: are one file; name two")
    for folder in filter(None, (args.annotate, args.explain, args.plot)):
        make_folder(folder, "name another folder for the pictures")


def main(argv=None):
    args = parse_args(argv)
    scorer = load_scorer(args.experiment, args.runs_dir, args.precision, args.device)
    settings = scorer.face_settings(FrameSettings.from_options(args, piece=args.piece), args.predictor,
                                    find_all=args.faces == "all", keep_picture=bool(args.annotate),
                                    min_confidence=args.min_confidence, detector=args.detector)
    check_arguments(args)
    passed_over = Counter()
    total = sum(1 for _ in files_below(args.paths, passed_over))
    if not total:
        raise UserError(f"{args.paths[0]}: contains neither a clip nor a picture{say_passed_over(passed_over)}")
    rows, faces, names, end = [], [], set(), None
    try:
        answers = score_files(scorer, files_below(args.paths), settings, min(args.workers, total))
        with contextlib.closing(answers), progress_bar(total=total, unit="file") as bar:
            for scores in answers:
                bar.update()
                rows += scores.rows
                faces += scores.faces
                if not scores.rows[0]["problem"]:
                    _write_pictures(args, scorer.network, scores, names)
                if warning := scores.rows[0]["problem"] or scores.rows[0]["note"]:
                    bar.write(f"warning: {scores.rows[0]['clip']}: {warning}", file=sys.stderr)
    except (KeyboardInterrupt, OSError) as error:
        if not rows or (isinstance(error, OSError) and not disk_error(error)):
            raise
        end = error  # what was scored so far is shown before the line on the full disk or on what has stopped the run
    scored = [row for row in rows if not row["problem"]]
    if scored:
        tables.print_table(tables.table_of(scored, tables.ALL_COLUMNS), args.all_columns)
    if args.out:
        tables.write_table(args.out, tables.table_of(rows, tables.ALL_COLUMNS if args.all_columns else tables.COLUMNS))
    if args.per_frame:
        tables.write_table(args.per_frame, tables.table_of(faces, tables.FRAME_COLUMNS))
    if isinstance(end, OSError):
        raise end
    has_course = any((row["frames"] or 0) > 1 for row in scored)
    if args.plot and scored and not has_course:
        print("note: no course is drawn of a single frame", file=sys.stderr)
    places = (args.out, args.per_frame, args.annotate, args.explain, args.plot if has_course else None)
    written = ", ".join(str(place) for place in places if place)
    print(f"{len({row['clip'] for row in scored})} of {total} files scored{say_passed_over(passed_over)}; "
          + (f"results: {written}" if written else "--out FILE.csv writes the table"))
    is_suspect = warn_of_unexpected(sum(row["problem"].startswith(UNEXPECTED) for row in rows), total, "file")
    if end:
        raise end
    return 0 if scored and not is_suspect else 1


if __name__ == "__main__":
    run_script(main)
