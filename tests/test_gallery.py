"""The gallery of media on every way in: frame script, face script, one pass, predict.py, the page.

    make test PYTEST_ARGS="-k gallery --long -s"      all of it, and its table

The oracles are the scenes that the media show, which no decoder has touched, and a plain decode by PyAV and Pillow. A
new medium is a line in gallery.py. The short run takes every third.
"""
import collections
import os
import random

import av
import cv2
import numpy as np
import pytest

import app
import extract_faces_from_frames
import extract_faces_from_videos
import extract_frames_from_videos
import predict
from conftest import signals_kept
from first_impressions.extraction.frames import FrameSettings
from first_impressions.extraction.packets import list_packets
from first_impressions.prediction.scoring import load_scorer
from fuzz_media import mutate
from gallery import CLIPS, MEDIA, PICTURES
from read_back import failures_in, overlap, rows_of

FEW = 3     # frames in which faces are searched


def reasons_in(folder):
    """Return {name of the file: its reasons in failures.csv, as one text}."""
    reasons = collections.defaultdict(str)
    for name, reason in failures_in(folder):
        reasons[name] += reason + "\n"
    return reasons


def boxes_in(table):
    """Return {file: {frame: (seconds, box)}} from a table of faces of predict.py."""
    boxes = collections.defaultdict(dict)
    for row in rows_of(table):
        box = [int(row[edge]) for edge in ("left", "top", "right", "bottom")]
        boxes[os.path.basename(row["clip"])][int(row["frame"])] = float(row["seconds"] or "nan"), box
    return boxes


class Gallery:
    """The media of this run and what each way in made of them, in one folder."""

    def __init__(self, folder, long_run):
        self.folder = folder
        self.clips, self.pictures = (media if long_run else media[::3] for media in (CLIPS, PICTURES))
        self.media = [*self.clips, *self.pictures]
        for kind, media in (("clips", self.clips), ("pictures", self.pictures)):
            (folder / kind).mkdir()
            for medium in media:
                # Pillow and PyAV know the formats by the names' endings.
                medium.make(folder / kind / medium.file)
        clips, pictures = folder / "clips", folder / "pictures"
        with signals_kept():
            self.run(extract_frames_from_videos, clips, folder / "all_frames", 100)
            self.run(extract_frames_from_videos, clips, folder / "frames", FEW)
            self.run(extract_faces_from_frames, folder / "frames", folder / "two_steps")
            self.run(extract_faces_from_frames, pictures, folder / "picture_faces")
            self.run(extract_faces_from_videos, clips, folder / "one_pass", FEW)
            self.run(predict, "pretrained", clips, pictures, "--frames", FEW, "--out", folder / "scores.csv",
                     "--per-frame", folder / "faces.csv")
            self.run(predict, "pretrained", folder / "frames", "--per-frame", folder / "faces_of_frames.csv")
        self.scores = {os.path.basename(row["clip"]): row for row in rows_of(folder / "scores.csv")}
        self.faces, self.faces_of_frames = boxes_in(folder / "faces.csv"), boxes_in(folder / "faces_of_frames.csv")

    def run(self, script, *arguments):
        assert script.main([str(argument) for argument in arguments]) == 0

    def path(self, medium):
        return self.folder / ("clips" if medium in self.clips else "pictures") / medium.file


@pytest.fixture(scope="module")
def gallery(tmp_path_factory, request):
    return Gallery(tmp_path_factory.mktemp("gallery"), request.config.getoption("--long"))


def difference(first, second):
    return np.abs(first.astype(int) - second).mean() if first.shape == second.shape else 255.0


def plain_decode(path):
    """Return all pictures of a clip's best stream as Pillow has them, BGR, decoded from the first packet on."""
    with av.open(str(path)) as container:
        return [np.array(frame.to_image().convert("RGB"))[:, :, ::-1]
                for frame in container.decode(container.streams.best("video"))]


def test_the_table_has_no_name_twice():
    assert len({medium.file.rsplit(".", 1)[0] for medium in MEDIA}) == len(MEDIA) >= 100


def test_frames_are_the_scenes_and_a_plain_decode(gallery):
    wrong = []
    for medium in gallery.clips:
        made = {int(path.stem.rsplit("_", 1)[1]): cv2.imread(str(path)) for path in
                (gallery.folder / "all_frames").glob(f"{medium.file.rsplit('.', 1)[0]}__frame_*.jpg")}
        if medium.problem or medium.colours is None:
            wrong += [medium.name] if bool(made) == bool(medium.problem) else []
            continue
        plain = [medium.turn(picture) for picture in plain_decode(gallery.path(medium))]
        is_hdr = "dynamic range" in medium.note
        if not sorted(made) == list(range(len(medium.frames))) == list(range(len(plain))):
            wrong.append(f"{medium.name}: frames {sorted(made)}, plain decode {len(plain)}")
            continue
        truths = {scene: medium.truth(index) for index, scene in enumerate(medium.frames)}
        for index, picture in made.items():
            distances = {scene: difference(truth, picture) for scene, truth in truths.items()}
            if min(distances, key=distances.get) != medium.frames[index] or min(distances.values()) > medium.colours:
                wrong.append(f"{medium.name}: frame {index} shows scene {min(distances, key=distances.get)}, "
                             f"off by {min(distances.values()):.1f}")
            if not is_hdr and difference(plain[index], picture) > 2.5:
                wrong.append(f"{medium.name}: frame {index} is not that of a plain decode")
    assert not wrong


def test_times_are_those_of_the_scenes(gallery):
    wrong = []
    for medium in gallery.clips:
        if medium.problem or medium.colours is None:
            continue
        expected = [medium.seconds_of(index) for index in range(len(medium.frames))]
        seconds = list_packets(gallery.path(medium)).seconds
        if len(seconds) != len(expected) or np.abs(seconds - expected).max() > 0.012:
            wrong.append(f"{medium.name}: {seconds.round(3).tolist()}")
        wrong += [f"{medium.name}: predict.py says {found} s of frame {index}"
                  for index, (found, _) in gallery.faces[medium.file].items() if abs(found - expected[index]) > 0.012]
    assert not wrong


def test_every_way_says_the_same_of_what_cannot_be_read(gallery):
    frames, faces, pictures = (reasons_in(gallery.folder / name) for name in ("frames", "one_pass", "picture_faces"))
    for medium in gallery.media:
        row = gallery.scores[medium.file]
        ways = [frames, faces] if medium in gallery.clips else [pictures]
        if medium.problem:
            assert medium.problem in row["problem"], medium.name
            assert all(medium.problem in reasons[medium.file] for reasons in ways), medium.name
        elif medium.colours is not None:
            assert medium.note in row["note"] and bool(medium.note) == bool(row["note"]), (medium.name, row["note"])
            assert not row["problem"], (medium.name, row["problem"])
        assert "unexpected" not in row["problem"] + "".join(reasons[medium.file] for reasons in ways), medium.name


def test_every_way_finds_the_same_faces(gallery):
    others, count = [], 0
    for medium in gallery.clips:
        if medium.problem or medium.colours is None:
            continue
        stem = medium.file.rsplit(".", 1)[0]
        drawn = [path.stem for path in (gallery.folder / "frames").glob(f"{stem}__frame_*.jpg")]
        assert len(drawn) == min(FEW, len(medium.frames)), medium.name
        for frame in drawn:
            count += 1
            face = gallery.faces[medium.file].get(int(frame.rsplit("_", 1)[1]))
            of_frame = gallery.faces_of_frames[f"{frame}.jpg"].get(0)
            chips = [cv2.imread(str(gallery.folder / way / f"{frame}_aligned.jpg"))
                     for way in ("two_steps", "one_pass")]
            if face is None or of_frame is None or any(chip is None for chip in chips):
                others.append(f"{frame}: not found on every way")
            # A clip's faces are searched near the one before: a box may be a step of the detector's sizes off.
            elif overlap(face[1], of_frame[1]) < 0.5 or difference(*chips) > 15:
                others.append(f"{frame}: another face")
    for medium in gallery.pictures:
        count += not medium.problem
        chip = gallery.folder / "picture_faces" / f"{medium.file.rsplit('.', 1)[0]}_aligned.jpg"
        if not medium.problem and not (chip.is_file() and gallery.faces[medium.file]):
            others.append(f"{medium.name}: not found on every way")
    print(f"{count} frames and pictures")
    assert count and len(others) <= 0.02 * count, others


def test_the_page_scores_them(gallery, long_run):
    media = gallery.media if long_run else gallery.media[::8]
    paths = [str(gallery.path(medium)) for medium in media]
    page = app.App(load_scorer("pretrained", "runs"), FrameSettings(FEW), 2, 10**9, 10**6, 500)
    *_, (progress, results) = page.score(paths, False)
    for medium in media:
        entry = results[results.index(medium.file):].split("</article>")[0]
        if medium.problem or medium.colours is not None:
            assert ("Not scored" in entry) == bool(medium.problem), medium.name
            assert medium.note in entry and (medium.problem.lower() in entry.lower() or "dng" in medium.file)


def test_mutated_media_through_predict(gallery, tmp_path, run, long_run):
    seeds = [gallery.path(medium) for medium in gallery.media if not medium.problem]
    seeds = [path for path in seeds if path.stat().st_size < 300_000]
    number = 2000 if long_run else 30
    (tmp_path / "mutated").mkdir()
    for index in range(number):
        seed = seeds[index % len(seeds)]
        path = tmp_path / "mutated" / f"{index:04}_{seed.name}"
        path.write_bytes(mutate(seed.read_bytes(), random.Random(f"predict/{index}")))
    status, _, errors = run(predict, "pretrained", "mutated", "--frames", FEW, "--out", "scores.csv")
    rows = rows_of(tmp_path / "scores.csv")
    problems = [row["problem"] for row in rows if row["problem"]]
    notes = sum(bool(row["note"]) for row in rows)
    faceless = sum(problem.startswith("no face") for problem in problems)
    print(f"{number} mutated media: {number - len(problems)} scored ({notes} with a note), {faceless} without a face, "
          f"{len(problems) - faceless} refused")
    assert status == 0 and len(rows) == number and "Traceback" not in errors
    assert " @ 0x" not in errors, "a line of FFmpeg's own"
    bad = [problem for problem in problems if problem.startswith(("unexpected", "its process", "no progress"))]
    assert not bad


def test_the_table_of_formats_and_ways_in(gallery, long_run):
    table = collections.defaultdict(collections.Counter)
    for medium in gallery.media:
        stem, ending = medium.file.rsplit(".", 1)
        row = table[ending]
        row["media"] += 1
        if medium.problem or medium.colours is None:
            row["refused, damaged"] += 1
            continue
        folders = ("frames", "two_steps", "one_pass") if medium in gallery.clips else ("picture_faces",)
        for folder in folders:
            names = f"{stem}__frame_*.jpg" if medium in gallery.clips else f"{stem}_aligned.jpg"
            made = len(list((gallery.folder / folder).glob(names)))
            row[folder.replace("picture_faces", "two_steps")] += made
        row["predict.py"] += len(gallery.faces[medium.file])
    columns = ("media", "refused, damaged", "frames", "two_steps", "one_pass", "predict.py")
    lines = [("format", *columns), *((ending, *(row[column] for column in columns))
                                     for ending, row in sorted(table.items()))]
    lines.append(("all", *(sum(row[column] for row in table.values()) for column in columns)))
    print()
    for line in lines:
        print("| " + " | ".join(map(str, line)) + " |")
    assert lines[-1][1] == len(gallery.media) and lines[-1][6] > 2 * lines[-1][2]
