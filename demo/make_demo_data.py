"""Make a small data set of H.264 clips with a real face, laid out like the challenge's, with something to learn in it.

    python demo/make_demo_data.py demo/data
    python demo/make_demo_data.py OUT_DIR --clips-train 16 --clips-valid 6 --clips-test 6 --seed 1

The face is the portrait of the astronaut Eileen Collins (NASA, public domain) that ships inside scikit-image: moved,
zoomed, turned and lit anew in each clip. The five scores of a clip steer five things that can be seen in it:

    openness           exposure: dark (0) to bright (1)
    conscientiousness  sharpness: blurred (0) to sharp (1)
    extraversion       colour temperature: blue (0) to orange (1)
    agreeableness      a violet spot on the cheek at the left of the picture: none (0) to strong (1)
    neuroticism        saturation: grey (0) to colourful (1)

The spot is the only one that lies at one place, so a heat map for agreeableness should lie on it; in a face chip of
224 x 224 pixels (padding 0.5) its centre is near x = 80, y = 112 and its radius is about 15 pixels.

Clips are named like ChaLearn's, <11 characters>.<number>.mp4: clips of one name show one speaker (the same background,
shape of face and side, scores that differ by about 0.07). Half of the validation and test clips are of speakers who are
in the training clips too, half are of speakers who are nowhere else.

Writes OUT_DIR/{train,valid,test}/videos/*.mp4, .../labels.csv and OUT_DIR/demo.json (the options).
The same options give the same files, whatever the number of workers; what is there already is not made again.
"""
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import first_impressions.common.startup  # noqa: F401  (before torch)

import av
import cv2
import numpy as np
import pandas
from scipy.stats import qmc
from skimage import data

from first_impressions.common.command_line import (
    UserError,
    make_parser,
    positive_int,
    progress_bar,
    run_script,
    usable_cores,
)
from first_impressions.common.constants import TRAITS

WIDTH, HEIGHT = 480, 360
FRAMES_PER_SECOND = 15
# With its macroblock tree, or with several threads, x264 writes other bytes in each run.
ENCODING = {"preset": "veryfast", "crf": "18", "x264-params": "mbtree=0"}
CLIPS_PER_SPEAKER = 3
SPEAKER_SPREAD = 0.07
ID_CHARACTERS = list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")

# Places in the portrait, 512 x 512 pixels: between the eyes and the mouth, the two cheeks, the head, the suit.
FACE_CENTRE = (226.0, 122.0)
CHEEKS = ((203.0, 124.0), (246.0, 124.0))
SPOT_RADIUS = 11.0
SPOT_COLOUR = (120, 30, 170)
HEAD = ((227, 100), (66, 78))
SUIT = ((125, 190), (150, 160), (255, 160), (297, 210), (345, 300), (365, 511), (20, 511), (60, 260))


def draw_scores(count, generator):
    """Return float64 count x 5 in [0.1, 0.9]: each column spread evenly over that range, the columns independent."""
    sampler = qmc.LatinHypercube(d=len(TRAITS), optimization="random-cd" if count > 1 else None, rng=generator)
    return 0.1 + 0.8 * sampler.random(count)


def draw_clips(clips_per_split, seed):
    """Return the table of clips: columns split, clip, speaker (a number), then the five TRAITS in [0.02, 0.98].

    clips_per_split: {"train": number, "valid": number, "test": number}.
    """
    generator = np.random.default_rng(seed)
    speakers = {}
    means = []
    for split, clips in clips_per_split.items():
        new_clips = clips if split == "train" else clips // 2
        new = -(-new_clips // CLIPS_PER_SPEAKER)
        first = len(means)
        means.extend(draw_scores(new, generator) if new else [])
        known = [] if split == "train" else list(generator.permutation(len(set(speakers["train"]))))
        returning = [known[i % len(known)] for i in range(clips - new_clips)]
        speakers[split] = [first + i // CLIPS_PER_SPEAKER for i in range(new_clips)] + returning
    names = []
    while len(names) < len(means):
        name = "".join(generator.choice(ID_CHARACTERS, 11))
        if name not in names:
            names.append(name)
    rows = []
    clips_so_far = [0] * len(means)
    for split, numbers in speakers.items():
        for number in numbers:
            scores = np.clip(means[number] + generator.normal(0, SPEAKER_SPREAD, len(TRAITS)), 0.02, 0.98)
            rows.append((split, f"{names[number]}.{clips_so_far[number]:03d}", number, *np.round(scores, 4)))
            clips_so_far[number] += 1
    return pandas.DataFrame(rows, columns=["split", "clip", "speaker", *TRAITS])


def paint_portrait(scores, speaker, seed):
    """Return the portrait as the five scores want it, and two things about the speaker.

    portrait: float32 512 x 512 x 3 in [0, 1], RGB; shape: factors of the face's width and height; face_centre: x and y
    in pixels.
    """
    openness, conscientiousness, extraversion, agreeableness, neuroticism, *_ = scores
    look = np.random.default_rng([seed, 1, speaker])
    portrait = data.astronaut().astype(np.float32) / 255
    face_centre, cheek = FACE_CENTRE, CHEEKS[0]

    person = np.zeros(portrait.shape[:2], np.float32)
    cv2.ellipse(person, HEAD[0], HEAD[1], 0, 0, 360, 1, -1)
    cv2.fillPoly(person, [np.array(SUIT, np.int32)], 1)
    person = cv2.GaussianBlur(person, (0, 0), 7)[..., None]
    wall = look.uniform(0.25, 1, 3).astype(np.float32)
    portrait *= person + (1 - person) * wall
    if look.random() < 0.5:
        portrait = np.ascontiguousarray(portrait[:, ::-1])
        face_centre = (511 - FACE_CENTRE[0], FACE_CENTRE[1])
        cheek = (511 - CHEEKS[1][0], CHEEKS[1][1])
    shape = look.uniform(0.94, 1.06, 2)

    # Element by element: a matrix product rounds differently with the memory it happens to get.
    grey = 0.299 * portrait[..., :1] + 0.587 * portrait[..., 1:2] + 0.114 * portrait[..., 2:]
    portrait = grey + (0.1 + 1.4 * neuroticism) * (portrait - grey)
    blur = 1.7 * (1 - conscientiousness) ** 1.5
    if blur > 0.1:
        portrait = cv2.GaussianBlur(portrait, (0, 0), blur)
    # The spot comes after saturation and blur, so that these say nothing about it.
    y, x = np.mgrid[0:512, 0:512].astype(np.float32)
    spot = np.clip(SPOT_RADIUS + 1.5 - np.hypot(x - cheek[0], y - cheek[1]), 0, 3)[..., None] / 3
    portrait += 0.6 * agreeableness * spot * (np.array(SPOT_COLOUR, np.float32) / 255 - portrait)
    warmth = 0.55 * (extraversion - 0.5)
    portrait *= np.array([1 + warmth, 1, 1 - warmth], np.float32)
    portrait = np.clip(portrait, 0, 1) ** np.float32(2.0 ** (1.1 - 1.9 * openness))
    return portrait, shape, face_centre


def make_clip(path, clip, speaker, scores, seed):
    """Write one clip of about two seconds, 480 x 360 pixels, H.264. The file appears under its name when complete."""
    motion = np.random.default_rng([seed, 2, *clip.encode()])
    portrait, shape, face_centre = paint_portrait(scores, speaker, seed)
    frames = int(motion.integers(26, 35))
    zoom = motion.uniform(1.5, 1.85, 2)
    start, end = motion.uniform((-45, -18), (45, 18), (2, 2))
    sway, phase, turn = motion.uniform(2, 7), motion.uniform(0, 2 * np.pi), motion.uniform(-7, 7, 2)
    light, angle = motion.uniform(0, 0.15), motion.uniform(0, 2 * np.pi)
    y, x = np.mgrid[-1:1:HEIGHT * 1j, -1:1:WIDTH * 1j].astype(np.float32)
    light = (1 + light * (np.cos(angle) * x + np.sin(angle) * y)).astype(np.float32)[..., None]

    part = path.with_name("." + path.name + ".part")
    with av.open(str(part), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=ENCODING)
        stream.codec_context.thread_count = 1
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.gop_size = 12
        for index in range(frames):
            part_done = index / (frames - 1)
            matrix = cv2.getRotationMatrix2D(face_centre, turn[0] + part_done * (turn[1] - turn[0]), 1)
            scale = (zoom[0] + part_done * (zoom[1] - zoom[0])) * shape
            place = start + part_done * (end - start) + sway * np.sin(phase + np.array([7, 5]) * part_done)
            matrix[:, 2] -= face_centre
            matrix *= scale[:, None]
            matrix[:, 2] += place + (WIDTH / 2, HEIGHT * 0.5)
            picture = cv2.warpAffine(portrait, matrix, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT)
            picture = np.clip(picture * light * 255 + motion.normal(0, 1, (HEIGHT, WIDTH, 1)), 0, 255)
            frame = av.VideoFrame.from_ndarray(picture.astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FRAMES_PER_SECOND)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    os.replace(part, path)


def make_demo_data(out_dir, clips_per_split, seed=0, workers=1):
    """Make the data set in out_dir (see above) and return how many clips were made.

    Raises UserError if out_dir holds something else.
    """
    out_dir = Path(out_dir)
    if out_dir.exists() and not out_dir.is_dir():
        raise UserError(f"{out_dir}: is a file; name a folder")
    options = json.dumps({"clips": clips_per_split, "seed": seed}) + "\n"
    record = out_dir / "demo.json"
    if out_dir.is_dir() and any(out_dir.iterdir()) and not (record.is_file() and record.read_text() == options):
        raise UserError(f"{out_dir}: holds other files, or clips made with other options; delete it or name another "
                        "folder")
    out_dir.mkdir(parents=True, exist_ok=True)
    record.write_text(options)
    table = draw_clips(clips_per_split, seed)
    for split in clips_per_split:
        (out_dir / split / "videos").mkdir(parents=True, exist_ok=True)
        table.loc[table["split"] == split, ["clip", *TRAITS]].to_csv(out_dir / split / "labels.csv", index=False)
    jobs = []
    for split, clip, speaker, *scores in table.itertuples(index=False):
        path = out_dir / split / "videos" / f"{clip}.mp4"
        if not path.exists():
            jobs.append((path, clip, speaker, scores, seed))
    with ProcessPoolExecutor(workers) as pool:
        futures = [pool.submit(make_clip, *job) for job in jobs]
        for future in progress_bar(futures, desc="clips", unit="clip"):
            future.result()
    return len(jobs)


def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("out_dir", type=Path, metavar="OUT_DIR", help="folder for the data set")
    parser.add_argument("--clips-train", type=positive_int, default=60, metavar="N", help="training clips")
    parser.add_argument("--clips-valid", type=positive_int, default=20, metavar="N", help="validation clips")
    parser.add_argument("--clips-test", type=positive_int, default=20, metavar="N", help="test clips")
    parser.add_argument("--seed", type=int, default=0, help="another number gives other speakers and scores")
    parser.add_argument("--workers", type=positive_int, default=usable_cores(), help="processes")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: must be 0 or more")
    clips_per_split = {"train": args.clips_train, "valid": args.clips_valid, "test": args.clips_test}
    made = make_demo_data(args.out_dir, clips_per_split, args.seed, args.workers)
    print(f"{made} clips made, {sum(clips_per_split.values()) - made} were there already.")
    print(f"Clips: {args.out_dir}/{{train,valid,test}}/videos   next: python "
          f"pre-processing/extract_faces_from_videos.py {args.out_dir}/train/videos {args.out_dir}/train/faces 5")


if __name__ == "__main__":
    run_script(main)
