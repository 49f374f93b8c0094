"""Scores of clips and pictures, whose faces worker processes find; shared by predict.py and app.py."""
import contextlib
import functools
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import cv2
import numpy as np
import pandas
import torch

from first_impressions.common.command_line import UserError, printable, usable_cores
from first_impressions.common.constants import (
    CLIP_SUFFIXES,
    MEANS_COLUMN,
    NEUROTICISM_MEANS,
    NO_FACE,
    PICTURE_SUFFIXES,
    TRAITS,
)
from first_impressions.common.device import Machine, pick_device
from first_impressions.common.files import private_folder
from first_impressions.data.splits import check_same_faces
from first_impressions.extraction.clip_faces import FaceSettings, FileFaces, KeptPicture, faces_of_file
from first_impressions.extraction.detectors import find_predictor, predictor_note
from first_impressions.extraction.faces import OTHER_PICTURE_SUFFIXES, unreadable_kind
from first_impressions.extraction.frames import FrameSettings, number_of_pieces, piece_of
from first_impressions.jobs.target_folder import find_files
from first_impressions.jobs.worker_pool import map_files
from first_impressions.networks.checkpoint import Checkpoint, load_experiment
from first_impressions.networks.network import PersonalityNetwork, sides_of_clip
from first_impressions.prediction import tables

SUFFIXES = CLIP_SUFFIXES | PICTURE_SUFFIXES
WHOLE_UP_TO = 60    # seconds; of a longer clip that is not cut into pieces no interval is known
FRAMES = 10         # drawn from a clip by default
BATCH_SIZE = 32     # chips that are scored at once


@dataclass
class FileScores:
    """Scores of a file. rows: one per person, each followed by those of the pieces of a clip in pieces, with columns of
    tables.ALL_COLUMNS; faces: one per face, with tables.FRAME_COLUMNS; chip: that of the middle face, uint8 RGB
    3 x H x W. If there is a problem, one row names it, and all else is empty."""
    rows: list[dict]
    faces: list[dict] = field(default_factory=list)
    picture: KeptPicture | None = None
    chip: torch.Tensor | None = None

    @property
    def people(self) -> list[dict]:
        """The rows of people."""
        return [row for row in self.rows if "piece" not in row]


@torch.inference_mode()
def score_clip(network: PersonalityNetwork, batches: Iterable[torch.Tensor],
               faces: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (scores of the clip, 5, scores of each face, N x 5), float32 in [0, 1], of batches of uint8 chips
    B x 3 x H x W on the network's device, N faces in all, in the order of their files' names.

    A frozen network scores the mean features of the clip, seen as sides_of_clip says, and those of each face with its
    mirror image; a trained one scores each face with its mirror image, and the mean is the clip's.
    """
    total, of_faces, sides = 0.0, [], sides_of_clip(faces).to(network.mean.device)
    for chips in batches:
        if network.frozen:
            both, (seen, sides) = network.features_of_both(chips), sides.tensor_split([len(chips)])
            total = total + (both * seen.T[:, :, None]).sum(0).cpu().double().sum(0, keepdim=True)
            of_faces.append(network(network.represent(both.mean(0))))
        else:
            of_faces.append(network.scores_of_faces(chips))
    of_faces = torch.cat(of_faces)
    if network.frozen:
        of_clip = network(network.represent((total / faces).float().to(of_faces.device)))[0]
    else:
        of_clip = of_faces.mean(0)
    return of_clip.cpu().numpy(), of_faces.cpu().numpy()


@dataclass
class Scorer:
    """A trained network and its checkpoint, which knows its faces and what its scores mean."""
    network: PersonalityNetwork
    checkpoint: Checkpoint

    def face_settings(self, frames: FrameSettings, predictor: str | None = None, **options) -> FaceSettings:
        """Return the settings of the faces that the network was trained on. options: further fields of FaceSettings.
        Raises UserError for a landmark model that cannot be used or is not that of the training."""
        predictor = find_predictor(predictor)
        crop = self.checkpoint.preprocessing
        check_same_faces({"predictor": predictor_note(predictor)}, crop, "the faces here",
                         "those that the network was trained on")
        return FaceSettings(predictor, crop["size"], crop["padding"], frames=frames, **options)

    def score_faces(self, path: str, found: FileFaces, settings: FrameSettings) -> FileScores:
        """Return the scores of the faces of a file, of which there is at least one. settings: those of its frames."""
        number, is_long = number_of_pieces(found.length, settings), found.length > WHOLE_UP_TO
        if is_long and number == 1:
            found.notes.append(f"{found.length / 60:.1f} minutes long, but the model knows short clips: scored without "
                               "intervals; --piece 15 gives both for each 15 seconds")
        person = np.array([face.person for face in found.faces])
        piece = np.zeros_like(person)
        if number > 1:
            piece = piece_of([face.seconds for face in found.faces], found.length, number)
        scores, rows = np.empty((len(person), len(TRAITS)), np.float32), []
        for one in np.unique(person):
            of_person = []
            for part in np.unique(piece[person == one]):
                places = np.flatnonzero((person == one) & (piece == part))
                # In the order of the names that their chips would have on the disk.
                named = sorted(places, key=lambda place: f"{found.faces[place].frame}_")
                batches = (_read_chips(found, named[start:start + BATCH_SIZE]).to(self.network.mean.device)
                           for start in range(0, len(named), BATCH_SIZE))
                of_part, scores[named] = score_clip(self.network, batches, len(named))
                of_person.append(self._row(path, found, places, of_part, scores[places], number > 1 or not is_long))
                if number > 1:
                    start, end = (found.length / number * np.array([part, part + 1])).tolist()
                    of_person[-1].update(frames=None, piece=int(part) + 1, start=start, end=end)
            if number > 1:  # the pieces are equally long, so their plain mean is the one weighted by length
                mean, places = np.mean([[row[trait] for trait in TRAITS] for row in of_person], 0), person == one
                rows.append(self._row(path, found, np.flatnonzero(places), mean, scores[places], False))
            rows += of_person
        faces = [{"clip": printable(path), **face._asdict(), **face.box._asdict(), **dict(zip(TRAITS, of_face))}
                 for face, of_face in zip(found.faces, scores.tolist())]
        return FileScores(rows, faces, found.picture, _read_chips(found, [len(faces) // 2])[0])

    def _row(self, path, found, places, scores, of_faces, has_interval):
        """Return a row of the table of people: the scores, and those of the faces at some places that they come from;
        without what the checkpoint does not know."""
        faces = [found.faces[place] for place in places]
        row = {"clip": printable(path), "person": faces[0].person, **dict(zip(TRAITS, map(float, scores))),
               MEANS_COLUMN: NEUROTICISM_MEANS[self.checkpoint.neuroticism_is_stability], "frames": found.frames,
               "faces": len(faces), "others": found.others,
               "confidence": float(np.mean([face.confidence for face in faces])), "detector": faces[0].detector,
               **dict(zip(tables.SPREADS, of_faces.std(0).tolist())),
               "note": printable("; ".join(found.notes)), "problem": ""}
        if has_interval and self.checkpoint.intervals:
            widths = self.checkpoint.intervals.half_widths(np.array([len(faces)]))[0]
            for names, values in ((tables.HALF_WIDTHS, widths), (tables.LOWS, (scores - widths).clip(0, 1)),
                                  (tables.HIGHS, (scores + widths).clip(0, 1))):
                row.update(zip(names, values.tolist()))
        if quantiles := self.checkpoint.label_quantiles:
            for name, trait in zip(tables.PERCENTILES, TRAITS):
                row[name] = float(np.interp(row[trait], quantiles[trait], np.arange(101)))
        return row


def _read_chips(found, places):
    """Return the chips of the faces at some places, uint8 RGB N x 3 x H x W, whose JPEGs lie in one file."""
    jpegs = np.memmap(found.chips, np.uint8, "r")
    chips = [cv2.imdecode(jpegs[slice(*found.faces[place].chip)], cv2.IMREAD_COLOR_RGB) for place in places]
    return torch.from_numpy(np.stack(chips)).permute(0, 3, 1, 2)


def load_scorer(experiment: str, runs_dir: str, precision: str = "float32", device: str = "auto") -> Scorer:
    """Return the Scorer of an experiment; device: as pick_device takes it. Raises UserError if there is none."""
    return Scorer(*load_experiment(experiment, runs_dir, Machine(pick_device(device), precision)))


def files_below(paths: Iterable[str], passed_over: Counter | None = None) -> Iterator[tuple[str, tuple | None]]:
    """Yield (path, known) as score_files takes them, for files and for all clips and pictures in folders; what is named
    twice comes once. passed_over: as in find_files. Raises UserError for a path that is not there, before all else."""
    if missing := [path for path in paths if not os.path.lexists(path)]:
        raise UserError(f"{missing[0]}: no such file or folder")
    seen, kinds = set(), SUFFIXES | OTHER_PICTURE_SUFFIXES
    for place in paths:
        found = sorted(find_files(place, kinds, passed_over=passed_over)) if os.path.isdir(place) else [(place, None)]
        for path, problem in found:
            problem = problem or unreadable_kind(path)
            if not problem and os.path.splitext(path)[1].lower() not in SUFFIXES:
                problem = "neither a clip nor a picture by its name's ending"
            elif not problem and not os.path.isfile(path):  # a named pipe, for example, would be waited for
                problem = "neither a file nor a folder, or a link to nothing"
            if os.path.abspath(path) not in seen:
                seen.add(os.path.abspath(path))
                yield path, (None, problem) if problem else None


def score_files(scorer: Scorer, files: Iterable[tuple[str, tuple | None]], settings: FaceSettings,
                workers: int) -> Iterator[FileScores]:
    """Yield the FileScores of each file, in their order. files: (path, None), or (path, (None, problem)) for one that
    is not to be read. Take it in contextlib.closing, so that the worker processes end with the loop."""
    least = settings.min_confidence
    with private_folder("face-chips-") as chip_dir:
        function = functools.partial(faces_of_file, settings=settings, chip_dir=str(chip_dir))
        with contextlib.closing(map_files(function, files, workers)) as answers:
            for path, found, problem in answers:
                if problem or not found.faces:
                    too_low = "" if least is None else f" with a detection score of at least {least:g}"
                    problem = problem or "; ".join([found.no_face.replace(NO_FACE, NO_FACE + too_low), *found.notes])
                    yield FileScores([{"clip": printable(path), "problem": printable(problem)}])
                else:
                    yield scorer.score_faces(path, found, settings.frames)
                if found:
                    os.unlink(found.chips)


def predict(paths: str | Iterable[str], model: str = "pretrained", runs_dir: str = "runs",
            frames: FrameSettings | None = None, workers: int | None = None, **options) -> pandas.DataFrame:
    """Return the table of predict.py as a pandas.DataFrame: a row for each file, person and piece, with the columns of
    tables.ALL_COLUMNS.

    paths: a clip, picture or folder, or several; model: an experiment in runs_dir, or "pretrained"; frames: which are
    drawn from a clip, default 10 at random; workers: processes, default the cores of the job; options: further fields
    of clip_faces.FaceSettings, such as find_all=True for everybody in the picture. A file that cannot be scored has a
    row with its problem. Raises UserError for a path or model that is not there.
    """
    paths = [os.fspath(path) for path in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]
    scorer, rows = load_scorer(model, runs_dir), []
    settings = scorer.face_settings(frames or FrameSettings(FRAMES), **options)
    with contextlib.closing(score_files(scorer, files_below(paths), settings, workers or usable_cores())) as answers:
        for scores in answers:
            rows += scores.rows
    return tables.table_of(rows, tables.ALL_COLUMNS)
