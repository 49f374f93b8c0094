"""Faces in pictures: read a picture, find the faces, turn them upright, write them as chips."""
import io
import os
import re
from collections import Counter
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import AvifImagePlugin, Image, ImageOps, TiffImagePlugin, UnidentifiedImageError, WebPImagePlugin

from first_impressions.common.command_line import UserError, printable
from first_impressions.common.constants import (
    FACE_MARK,
    FACE_SIZE,
    FOUND_BY_CNN,
    FRAME_MARK,
    JPEG_QUALITY,
    MAX_PIXELS,
    NO_FACE,
    PICTURE_SUFFIXES,
    clip_stem,
    face_name,
)
from first_impressions.extraction import detectors
from first_impressions.extraction.detectors import DETECTORS, SAME_FACE, SMALLEST_BOX, Box, FoundFace, resized
from first_impressions.extraction.frames import choose_frames
from first_impressions.extraction.sources import encode_jpeg, source_of_frame
from first_impressions.jobs.failures import read_failures
from first_impressions.jobs.target_folder import check_name, find_files, write_file

PICTURE_FORMATS = ["JPEG", "PNG", "BMP", *(plugin.format for plugin in (
    WebPImagePlugin.WebPImageFile, TiffImagePlugin.TiffImageFile, AvifImagePlugin.AvifImageFile))]
# Endings of pictures that neither OpenCV nor Pillow reads. Reported, since skipping them would hide missing pictures.
OTHER_PICTURE_SUFFIXES = frozenset([".dng", ".heics", ".heifs", ".jp2", ".jxl"])
EIGHT_BIT_MODES = frozenset(["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB"])  # of Pillow
HEIC_BRANDS = frozenset([b"avif", b"avis", b"heic", b"heim", b"heis", b"heix", b"hevc", b"hevx", b"mif1", b"msf1"])

# Longest side in pixels of the pictures searched one after the other, whether in colour, and the confidence from which
# a face found there ends the search. dlib's smallest face is 80 pixels wide: at a coarse scale a smaller one gets a low
# confidence and a box that is too large, so it is settled at a finer scale. Grey takes two thirds of the time of
# colour. Two weak faces at one place at two scales are one clear face; that spares the last, slow search. Chosen on 600
# frames of 20 clips: if dlib's detector at full size with one upsampling has a face, the largest here is the same one.
COARSE_SEARCHES = ((320, False, 0.5), (480, False, 0.3), (640, True, 0.15))
WEAK_CONFIDENCE = -0.2
# The part of a picture that is searched around a place where a face is expected: how many times as wide as the face,
# and how wide in pixels the face becomes in it (the detector's smallest face is 80). Chosen on 600 frames of 20 clips.
REGION = 1.6
FACE_WIDTH = 88
# Beside a face of at least CLEAR_CONFIDENCE a weaker one counts if it is also seen at another scale: in one of these
# widths with at least SEEN_AGAIN_CONFIDENCE. A patch of cloth that the detector takes for a face has 0 to 0.2 at one
# scale and at most 0.21 in these; the true faces of 20 clips that are weak beside a clear one have 0.5 and more.
CLEAR_CONFIDENCE = 0.5
OTHER_WIDTHS = (84, 96, 80, 88, 92, 100, 108)
SEEN_AGAIN_CONFIDENCE = 0.3
TURNED_SIDE = 960   # longest side in pixels of the pictures that are turned; faces of a twelfth of it are found
MOST_FRAMES = 3     # of a clip are looked at again: the first ones of the draw, which stay the same if more are drawn
NEAR_STEP = 1.25    # two boxes that differ by no more than this factor may be of faces of one size: a step, rounded

Image.MAX_IMAGE_PIXELS = None  # the limit here is checked on the header, before anything is decoded
cv2.setNumThreads(1)
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # of odd TIFF files, for instance


@dataclass(frozen=True)
class CropSettings:
    """How faces become chips.

    predictor: path of the landmark model, None for the 5-point one; size: width and height of a chip in pixels;
    padding: margin around the landmarks, in parts of the face's size; find_all: all faces of a picture, not only the
    largest; quality: of JPEG, 1 to 100; detector: a key of DETECTORS.
    """
    predictor: str | None = None
    size: int = FACE_SIZE
    padding: float = detectors.PADDING
    find_all: bool = False
    quality: int = JPEG_QUALITY
    detector: str = "auto"


# ---------------------------------------------------------------- finding

def find_faces(picture: np.ndarray, find_all: bool = False, detector: str = "hog") -> list[FoundFace]:
    """Return the faces in a picture, the largest first.

    picture: uint8 RGB array H x W x 3, C-contiguous; detector: as in CropSettings, but without a second look. The HOG
    detector's search goes from coarse to fine and ends at the first scale with a clear face: smaller faces beside it
    may be left out, unless find_all asks for them.
    """
    if find := DETECTORS[detector].find:
        return true_faces(picture, find(picture))
    faces, *_ = search_faces(picture)
    return with_further_faces(picture, faces) if find_all else faces


def with_further_faces(picture: np.ndarray, faces: list[FoundFace]) -> list[FoundFace]:
    """Return the faces found in a picture, unchanged, and further ones that the finest search has."""
    known, faces = faces, list(faces)
    for further in (*detectors.find_finest(picture), *detectors.find_small(picture)):
        if all(further.box.overlap(face.box) < SAME_FACE for face in faces):
            faces.append(further)
    return true_faces(picture, faces, known)


def search_faces(picture: np.ndarray, finest_width: float = 0.0) -> tuple[list[FoundFace], list[FoundFace], float]:
    """Return (faces, doubtful, smallest): what find_faces returns; what else may be a face at the scale where the
    search ended; and the width in pixels of the smallest face that can be found there, at the finest scale
    finest_width: that of the smallest faces that are worth the slow search."""
    longest, weak = max(picture.shape[:2]), []
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    for side, in_colour, threshold in COARSE_SEARCHES:
        if side > longest:
            break
        scale = longest / side
        found = detectors.find_hog(resized(picture if in_colour else grey, 1 / scale), WEAK_CONFIDENCE, scale)
        if found and max(face.confidence for face in found) >= threshold:
            # A weak one beside a clear one is noise, mostly.
            clear = true_faces(picture, [face for face in found if face.confidence >= 0])
            return clear, [face for face in found if face.confidence < 0], SMALLEST_BOX * scale
        if found and any(found[0].box.overlap(earlier.box) > 0.5 for earlier in weak):
            return found[:1], found[1:], SMALLEST_BOX * scale
        weak += found[:1]
    faces = true_faces(picture, detectors.find_finest(picture, finest_width))
    if not faces and finest_width < SMALLEST_BOX:
        faces = true_faces(picture, detectors.find_small(picture))
    return faces, [], finest_width


def true_faces(picture: np.ndarray, faces: list[FoundFace], known: Container[FoundFace] = ()) -> list[FoundFace]:
    """Return the faces without weak ones beside a clear one that are not seen at another scale, the
    largest first: by their boxes, and if these are within a step of the largest by the landmarks. known: faces that are
    kept anyway."""
    if max((face.confidence for face in faces), default=0.0) >= CLEAR_CONFIDENCE:
        faces = [face for face in faces if face in known or face.confidence >= CLEAR_CONFIDENCE or any(
            near.box.overlap(face.box) > SAME_FACE for width in OTHER_WIDTHS
            for near in faces_near(picture, face.box, width, SEEN_AGAIN_CONFIDENCE))]
    if len(faces) < 2:
        return faces
    widest = max(face.box.width for face in faces)
    sizes = {face: (face.box.width * NEAR_STEP >= widest and detectors.face_size(picture, face.box), face.box.area)
             for face in faces}
    return sorted(faces, key=sizes.get, reverse=True)


def faces_near(picture: np.ndarray, box: Box, width: int = FACE_WIDTH, threshold: float = 0.0) -> list[FoundFace]:
    """Return the faces around a box, the largest first: one fast search, in grey, in which a face as large as the box
    is `width` pixels wide."""
    (x, y), reach = box.centre, round(REGION * box.width / 2)
    left, top = max(0, x - reach), max(0, y - reach)
    region = picture[top:max(0, y + reach), left:max(0, x + reach)]
    if not region.size:  # the clip's pictures have become smaller
        return []
    scale = width / box.width
    region = resized(cv2.cvtColor(region, cv2.COLOR_RGB2GRAY), scale)
    return [face._replace(box=face.box.moved(left, top)) for face in detectors.find_hog(region, threshold, 1 / scale)]


def faces_from_width(picture: np.ndarray, width: float) -> list[FoundFace]:
    """Return what may be a face of at least a width in pixels, also a doubtful one, the largest first: one fast
    search, in grey."""
    scale = max(width / SMALLEST_BOX, 0.5, max(picture.shape[:2]) / detectors.FINEST_SIDE)
    return detectors.find_hog(resized(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), 1 / scale), WEAK_CONFIDENCE, scale)


def look_again(picture: np.ndarray, detector: str) -> tuple[list[FoundFace], str]:
    """Return (faces, reason): those that a second look at a picture finds, uint8 RGB H x W x 3, by the CNN detector,
    the largest first, and a line for failures.csv, in any case. detector: as in CropSettings; with "auto" the CNN
    detector is asked if the picture shows no clear face when it is turned.

    It is asked last: it also finds faces that lie on their side, which the landmarks cannot turn upright. Of a turned
    picture it is asked only if the HOG detector sees a face there without being sure.
    """
    scale = TURNED_SIDE / max(picture.shape[:2])
    small = resized(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), scale)
    for quarters in (1, 2, 3) if min(small.shape) >= SMALLEST_BOX else ():
        turned, turned_small = (np.ascontiguousarray(np.rot90(side, -quarters)) for side in (picture, small))
        found = detectors.find_hog(turned_small, 0.0, 1 / scale)
        if any(face.confidence >= CLEAR_CONFIDENCE for face in found) or (found and detector == "auto" and any(
                face.box.overlap(seen.box) > SAME_FACE for face in detectors.find_cnn(turned) for seen in found)):
            return [], (f"{NO_FACE}; one is found if the picture is turned by {90 * quarters} degrees clockwise: "
                        "turn the file")
    faces = true_faces(picture, detectors.find_cnn(picture)) if detector == "auto" else []
    if faces:
        return faces, FOUND_BY_CNN
    return [], f"{NO_FACE}, upright or turned" + (", by either detector" if detector == "auto" else "")


# ---------------------------------------------------------------- pictures

def unreadable_kind(path: str | os.PathLike) -> str | None:
    """Return a problem for a picture of a kind that cannot be read here, by its name's ending; None for other files."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in OTHER_PICTURE_SUFFIXES:
        return None
    return f"a picture in the format {suffix[1:].upper()}, which cannot be read here; convert it to JPEG"


def find_pictures(folder: str | os.PathLike, exclude: str | os.PathLike | None = None,
                  passed_over: Counter | None = None) -> Iterator[tuple[str, str | None]]:
    """Yield (path, problem) for every picture in a folder, as target_folder.find_files does; pictures of a kind that
    cannot be read here have a problem."""
    for path, problem in find_files(folder, PICTURE_SUFFIXES | OTHER_PICTURE_SUFFIXES, exclude, passed_over):
        yield path, problem or unreadable_kind(path)


def read_picture(path: str | os.PathLike) -> np.ndarray:
    """Return a picture file as uint8 RGB array H x W x 3, turned as its EXIF tag asks.

    Alpha is dropped, grey and CMYK become RGB, 16 bits become 8. Raises UserError for damaged files, files over
    MAX_PIXELS and files of other formats, OSError for one that cannot be opened.
    """
    data = Path(path).read_bytes()
    if not data:
        raise UserError("is empty; replace or remove it")
    is_heic = data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS
    formats = PICTURE_FORMATS
    if is_heic:
        from pillow_heif import options, register_heif_opener  # only here: one more library for each worker

        options.DECODE_THREADS = 1
        register_heif_opener()
        formats = [*PICTURE_FORMATS, "HEIF"]
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UserError(f"{width} x {height} pixels are over the limit of {MAX_PIXELS // 10**6} million; "
                                "scale it down")
            if is_heic:
                return _eight_bit(image)
            # OpenCV fills the missing part of a truncated JPEG with grey; Pillow refuses it, but takes longer.
            if image.format in ("JPEG", "MPO") and b"\xff\xd9" not in data[-1024:]:
                image.load()
            picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
            return _eight_bit(image) if picture is None else picture
    except (MemoryError, UserError):
        raise
    except UnidentifiedImageError:
        raise UserError("no picture that can be read (" + (
            "damaged" if is_heic else "neither JPEG, PNG, BMP, WebP, TIFF, AVIF nor HEIC") + "); replace or remove it"
            ) from None
    except Exception as error:
        reason = printable(str(error).strip())
        raise UserError(f"no picture that can be read ({reason}); replace or remove it") from None


def _eight_bit(image):
    """Return what read_picture does of an image of Pillow's. Raises UserError if its values have no known range."""
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode == "I;16":
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    if image.mode not in EIGHT_BIT_MODES:
        raise UserError(f"a picture in the format {image.format} with pixels of another kind than 8 or 16 bits (mode "
                        f"{image.mode}), which cannot be read here; convert it to JPEG")
    return np.ascontiguousarray(image.convert("RGB"))


# ---------------------------------------------------------------- writing

def stem_of(path: str, frame_dir: str) -> str:
    """Return a frame's path relative to frame_dir without its ending: the name that its chips begin with.

    In a folder of its own, a clip's pictures may have any names: <clip>/frame_7.jpg gives <clip>/<clip>__frame_7.
    """
    folder, name = os.path.split(os.path.relpath(path, frame_dir))
    stem = os.path.splitext(name)[0]
    if folder and FRAME_MARK not in stem:
        number = re.fullmatch(r"[\W_]*(?:frame|image|img)?[\W_]*([0-9]+)", stem, re.IGNORECASE)
        stem = f"{clip_stem(folder)}{FRAME_MARK}{number[1] if number else stem.strip('_')}"
    return os.path.join(folder, stem)


def write_chips(picture: np.ndarray, faces: list[FoundFace], face_dir: str, frame_stem: str,
                settings: CropSettings, source: str) -> list[str]:
    """Write the chip of the largest face of a frame, or of all, and return their names. Call it inside open_target.

    picture: uint8 RGB array H x W x 3; faces: in it, the largest first; source: as in sources.source_of.
    """
    names = []
    # The first name comes last: if it exists, all the others do.
    for number in range(len(faces) if settings.find_all else min(1, len(faces)), 0, -1):
        chip = detectors.align_face(picture, faces[number - 1].box, settings.predictor, settings.size, settings.padding)
        names.append(face_name(frame_stem, number))
        write_file(face_dir, names[-1], encode_jpeg(chip, settings.quality, source))
    return names


def extract_faces(path: str, frame_dir: str, face_dir: str, settings: CropSettings,
                  again: bool = False) -> tuple[int, int, list[str]]:
    """Write the chips of one frame to face_dir; return (made, present, problems) as Job.run asks.

    again: take a second look, at a frame of a clip in none of which there was a face. Call it inside
    target_folder.open_target. Raises UserError for a picture that cannot be read, OSError for a full disk.
    """
    stem = stem_of(path, frame_dir)
    check_name(face_dir, face_name(stem))
    picture = read_picture(path)
    if again:
        faces, reason = look_again(picture, settings.detector)
    else:
        faces, reason = find_faces(picture, settings.find_all, settings.detector), NO_FACE
    names = write_chips(picture, faces, face_dir, stem, settings, source_of_frame(path, stem))
    return len(names), 0, [reason] if again or not names else []


def find_second_look(frame_dir: str, face_dir: str) -> tuple[dict[str, list[str]], set[str]]:
    """Return {path: reasons} of failures.csv, and of these the paths to look at again: of clips without a face
    a few frames, as many and the same as of a clip in one pass, and pictures that are not of a clip."""
    failures, frames, again = read_failures(face_dir), {}, set()
    by_cnn = {stem_of(path, frame_dir) for path, reasons in failures.items() if reasons[0] == FOUND_BY_CNN}
    for path, (reason, *_) in failures.items():
        clip, _, index = stem_of(path, frame_dir).rpartition(FRAME_MARK)
        if NO_FACE in reason or reason == FOUND_BY_CNN:
            of_clip = frames.setdefault(clip or path, {})
            of_clip[int(index) if clip and index.isdecimal() else -len(of_clip)] = path
    for path, _ in find_files(face_dir, [".jpg"]):
        stem = os.path.relpath(path, face_dir).rpartition(FACE_MARK)[0]
        if stem not in by_cnn:
            frames.pop(stem.rpartition(FRAME_MARK)[0], None)
    for clip, of_clip in frames.items():
        chosen = choose_frames(os.path.basename(clip), of_clip, MOST_FRAMES, 0)
        again.update(of_clip[index] for index in chosen if failures[of_clip[index]][0] == NO_FACE)
    return failures, again
