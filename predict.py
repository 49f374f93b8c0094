"""Score any clip, picture or folder of them with a trained experiment.

    python predict.py EXPERIMENT clip.mp4
    python predict.py EXPERIMENT holiday/ portrait.jpg --out scores.csv
    python predict.py EXPERIMENT clip.mp4 --annotate annotated      pictures with the face and five bars
    python predict.py EXPERIMENT clip.mp4 --explain heat_maps       where in the face each score comes from
    python predict.py EXPERIMENT group.mp4 --faces all              every face, numbered from left to right

Frames are drawn, faces found and aligned as by the two pre-processing scripts, but in memory. A clip's scores are the mean
over its frames; spread is the standard deviation over them. Heat maps and their scores are of one face, of the middle
frame. The challenge's neuroticism is emotional stability in truth: high means calm. A file that cannot be scored costs a
line on stderr and, with --out, stands in the table with its problem.
"""
import contextlib
import functools
import os
import sys
from pathlib import Path

from command_line import UserError, make_parser, positive_int, printable, progress_bar, run_script, written_aside

# The processes that find faces import this file too; without the models they start in a fraction of the time.
if __name__ == "__main__":
    import numpy as np
    import pandas
    import torch

    from dataset import FACE_SIZE, TRAITS
    from evaluate import load_experiment, score_chips

sys.path.insert(0, str(Path(__file__).resolve().parent / "pre-processing"))
import cv2  # noqa: E402

import extract_faces_from_frames  # noqa: E402
import extract_frames_from_videos  # noqa: E402
import process_files  # noqa: E402

SUFFIXES = extract_frames_from_videos.CLIP_SUFFIXES | extract_faces_from_frames.PICTURE_SUFFIXES
NO_FACE = "no face found"
ANNOTATED_HEIGHT = 720
JPEG_QUALITY = 95  # the default of both pre-processing scripts
BAR_COLOURS = ((31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189))  # RGB


# ---------------------------------------------------------------- in the processes that find faces

@functools.lru_cache(maxsize=1)
def _models(predictor):
    return extract_faces_from_frames.load_models(predictor)


def faces_of_file(path, number_of_frames, seed, size, padding, find_all, predictor, keep_picture):
    """Return (number of frames, faces, picture) of a clip or picture file.

    faces: list of (frame index, face number, chip uint8 RGB size x size x 3); faces of one frame are numbered from 0, from
    left to right. picture: None, or with keep_picture (JPEG bytes, [rectangles]) of the middle frame with a face.
    Raises UserError for a file that cannot be read.
    """
    if os.path.splitext(path)[1].lower() in extract_frames_from_videos.CLIP_SUFFIXES:
        frames = ((index, _as_read_from_file(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))) for index, picture in
                  extract_frames_from_videos.read_frames(path, number_of_frames, seed))
    else:
        frames = [(0, extract_faces_from_frames.read_picture(path))]
    faces, pictures, count = [], [], 0
    for index, picture in frames:
        count += 1
        rectangles = extract_faces_from_frames.find_faces(picture, _models(predictor), find_all)
        rectangles = sorted(rectangles, key=lambda box: box.left()) if find_all else rectangles[:1]
        for number, rectangle in enumerate(rectangles):
            chip = extract_faces_from_frames.align_face(picture, rectangle, _models(predictor), size, padding)
            faces.append((index, number, _as_read_from_file(chip)))
        if rectangles and keep_picture:
            pictures.append(_small_jpeg(picture, rectangles))
    return count, faces, pictures[len(pictures) // 2] if pictures else None


def _as_read_from_file(picture):
    """Return an RGB picture as it comes back from the JPEG file that the pre-processing would write: networks were trained
    on those."""
    data = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)


def _small_jpeg(picture, rectangles):
    scale = min(1, ANNOTATED_HEIGHT / picture.shape[0])
    size = [max(1, round(length * scale)) for length in picture.shape[1::-1]]
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    return data, [[round(edge * scale) for edge in (box.left(), box.top(), box.right(), box.bottom())] for box in rectangles]


# ---------------------------------------------------------------- scores

def score_faces(network, chips, device):
    """Return float32 scores N x 5 in [0, 1] of a list of uint8 RGB chips."""
    with torch.inference_mode():
        batch = torch.from_numpy(np.stack(chips)).permute(0, 3, 1, 2).to(device)
        return torch.cat([score_chips(network, some) for some in batch.split(64)]).cpu().numpy()


def rows_of_file(path, count, faces, scores):
    """Return one row for each face number of a file: clip, face, the mean scores, frames, faces, spread_<trait>."""
    rows = []
    numbers = np.array([number for _, number, _ in faces])
    for number in np.unique(numbers):
        of_face = scores[numbers == number]
        rows.append({"clip": path, "face": int(number) + 1, **dict(zip(TRAITS, of_face.mean(0).tolist())), "frames": count,
                     "faces": len(of_face), **{f"spread_{trait}": float(value) for trait, value in zip(TRAITS, of_face.std(0))},
                     "problem": ""})
    return rows


def annotate(picture, rows):
    """Return a BGR picture with a box around each face and, at its side, five bars with the scores."""
    data, boxes = picture
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    thickness = max(1, round(image.shape[0] / 300))
    for number, (left, top, right, bottom) in enumerate(boxes):
        cv2.rectangle(image, (left, top), (right, bottom), (255, 255, 255), thickness + 2)
        cv2.rectangle(image, (left, top), (right, bottom), (40, 40, 40), thickness)
        if len(boxes) > 1:
            cv2.putText(image, str(number + 1), (left + 6, bottom - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (255, 255, 255), 2, cv2.LINE_AA)
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
            cv2.putText(panel, f"{row[trait]:.2f}", (288, y), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (40, 40, 40), 1, cv2.LINE_AA)
        y += 14
    if panel.shape[0] > image.shape[0]:
        image = cv2.copyMakeBorder(image, 0, panel.shape[0] - image.shape[0], 0, 0, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    return np.hstack([image, panel])


def _write_table(path, rows):
    table = pandas.DataFrame(rows, columns=["clip", "face", *TRAITS, "frames", "faces", *(f"spread_{t}" for t in TRAITS), "problem"])
    table = table.astype(dict.fromkeys(["face", "frames", "faces"], "Int64"))  # whole numbers beside empty cells
    with written_aside(path) as aside:
        if path.suffix.lower() == ".json":
            aside.write_text(table.to_json(orient="records", indent=2, double_precision=6) + "\n")
        else:
            table.to_csv(aside, index=False, float_format="%.6f")


def _plain_name(path, taken):
    """Return a file name for a clip's picture: its stem, numbered where another folder has one of the same name."""
    stem = Path(path).stem
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}_{number}"
    taken.add(name)
    return name


# ---------------------------------------------------------------- command line

def files_below(paths):
    """Yield (path, known) as process_files.map_files takes them, for files and all clips and pictures in folders."""
    for path in paths:
        if os.path.isdir(path):
            for found, problem in sorted(process_files.find_files(path, SUFFIXES), key=lambda entry: entry[0]):
                yield found, (None, problem) if problem else None
        elif os.path.splitext(path)[1].lower() not in SUFFIXES:
            yield path, (None, "neither a clip nor a picture by its name's ending")
        else:
            yield path, None


def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("experiment", metavar="EXPERIMENT", help="name of a folder in --runs-dir")
    parser.add_argument("paths", metavar="PATH", nargs="+", help="clips, pictures or folders of them")
    parser.add_argument("--out", metavar="FILE", help="write the table as .csv or .json")
    parser.add_argument("--annotate", metavar="DIR", help="write a picture of each file with the face and five bars")
    parser.add_argument("--explain", metavar="DIR", help="write heat maps: where in the face each score comes from")
    parser.add_argument("--frames", type=positive_int, default=10, help="frames drawn from a clip")
    parser.add_argument("--faces", choices=("largest", "all"), default="largest", help="which faces of a frame are scored")
    parser.add_argument("--predictor", metavar="FILE", help="landmark model of dlib (default: the 5-point one)")
    parser.add_argument("--runs-dir", default="runs", help="folder of the experiments")
    parser.add_argument("--workers", type=positive_int, default=os.cpu_count(), help="processes that find faces")
    parser.add_argument("--precision", choices=("auto", "bfloat16", "float32"), default="auto", help="of the backbone")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of frames")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    out = Path(args.out) if args.out else None
    if out and out.suffix.lower() not in (".csv", ".json"):
        raise UserError(f"--out {out}: name a file that ends in .csv or .json")
    if out and not out.parent.is_dir():
        raise UserError(f"--out {out}: the folder {out.parent} does not exist")
    for path in args.paths:
        if not os.path.lexists(path):
            raise UserError(f"{path}: no such file or folder")
    network, checkpoint, device = load_experiment(args.experiment, args.runs_dir, args.precision)
    crop = checkpoint["preprocessing"]
    function = functools.partial(faces_of_file, number_of_frames=args.frames, seed=args.seed, size=crop.get("size", FACE_SIZE),
                                 padding=crop["padding"], find_all=args.faces == "all", predictor=args.predictor,
                                 keep_picture=bool(args.annotate))
    for folder in filter(None, (args.annotate, args.explain)):
        Path(folder).mkdir(parents=True, exist_ok=True)
    if args.explain:
        from explain import explain_chips, overlay
    rows, taken, status = [], set(), 0
    total = sum(1 for _ in files_below(args.paths))
    if not total:
        raise UserError(f"{args.paths[0]}: holds no clip and no picture")
    try:
        with contextlib.closing(process_files.map_files(function, files_below(args.paths), min(args.workers, total))) as results, \
                progress_bar(total=total, unit="file") as bar:
            for path, result, problem in results:
                bar.update()
                if problem is None and not result[1]:
                    problem = NO_FACE
                if problem is not None:
                    rows.append({"clip": path, "problem": problem})
                    bar.write(f"warning: {printable(path)}: {printable(problem)}", file=sys.stderr)
                    continue
                count, faces, picture = result
                scores = score_faces(network, [chip for _, _, chip in faces], device)
                of_file = rows_of_file(path, count, faces, scores)
                rows += of_file
                name = _plain_name(path, taken)
                if args.annotate:
                    cv2.imwrite(str(Path(args.annotate) / f"{name}_scores.jpg"), annotate(picture, of_file))
                if args.explain:
                    _, _, chip = faces[len(faces) // 2]
                    chips = torch.from_numpy(chip).permute(2, 0, 1)[None].to(device)
                    maps = explain_chips(network, chips)[0]
                    picture = overlay(chips[0].cpu().numpy(), maps, scores[len(faces) // 2])
                    cv2.imwrite(str(Path(args.explain) / f"{name}_heat_maps.png"), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    except KeyboardInterrupt:
        print("stopped by Ctrl-C" + ("; what was scored so far follows" if rows else " before any file was scored"), file=sys.stderr)
        status = 130
    scored = [row for row in rows if not row["problem"]]
    if status and not rows:
        return status
    if scored:
        shown = pandas.DataFrame(scored)
        shown["clip"] = shown["clip"].map(lambda path: printable(os.path.basename(path)))
        columns = ["clip", *(["face"] if args.faces == "all" else []), *TRAITS, "frames", "faces"]
        shown["spread"] = shown[[f"spread_{trait}" for trait in TRAITS]].mean(axis=1)
        print(shown[[*columns, "spread"]].to_string(index=False, float_format="{:.3f}".format))
    if out:
        _write_table(out, rows)
    results = [str(place) for place in (out, args.annotate, args.explain) if place]
    print(f"{len({row['clip'] for row in scored})} of {len({row['clip'] for row in rows})} files scored"
          + (f"; results: {', '.join(results)}" if results else "; --out scores.csv writes the table to a file"))
    return status or (0 if scored else 1)


if __name__ == "__main__":
    run_script(main)
