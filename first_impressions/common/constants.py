"""Constants that all scripts share: the traits and their order, names of files and folders, the form of a face chip.

A data folder holds data/{train,valid,test}/{videos,frames,faces} and the labels of each split. Imports neither PyTorch
nor pandas: workers that find faces need neither.
"""
import os
import unicodedata

# The traits in the order of all scores, labels and columns, each with the colour of its bars and curves, RGB.
COLOURS = {"openness": (31, 119, 180), "conscientiousness": (255, 127, 14), "extraversion": (44, 160, 44),
           "agreeableness": (214, 39, 40), "neuroticism": (148, 103, 189)}
TRAITS = tuple(COLOURS)
# A column of all tables of scores, and its values: what a high neuroticism means. True: with the challenge's labels.
MEANS_COLUMN = "neuroticism_means"
NEUROTICISM_MEANS = {False: "neuroticism", True: "emotional stability"}

SPLITS = ("train", "valid", "test")
ANNOTATION_FILES = {"train": "annotation_training.pkl", "valid": "annotation_validation.pkl",
                    "test": "annotation_test.pkl"}
LABEL_TABLE = "labels.csv"
# A frame is <clip>__frame_<index>.jpg, its face chip <clip>__frame_<index>_aligned.jpg.
FRAME_MARK = "__frame_"
FACE_MARK = "_aligned"
FACE_SIZE = 224     # pixels, width and height of a face chip
JPEG_QUALITY = 95   # of frames and face chips
NO_FACE = "no face found"
FOUND_BY_CNN = "face found by the CNN detector alone"
PREPROCESSING_FILE = "preprocessing.json"   # beside the frames and beside the faces: how they were made
DEFAULT_PREPROCESSING = {"size": FACE_SIZE, "padding": 0.25}    # how the faces were cropped if no such file says so
# Endings of names that are taken for clips and for pictures, in folders and in tables of labels.
CLIP_SUFFIXES = frozenset("""
    .3g2 .3gp .amv .asf .avi .dav .divx .dv .f4v .flv .gif .h264 .h265 .hevc .insv .ivf .lrv .m1v .m2t .m2ts .m2v .m4v
    .mj2 .mjpeg .mjpg .mkv .mod .mov .mp4 .mpe .mpeg .mpg .mts .mxf .nut .obu .ogm .ogv .qt .rm .rmvb .tod .ts .vob
    .webm .wmv .wtv .y4m""".split())
PICTURE_SUFFIXES = frozenset([".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff",
                              ".avif", ".heic", ".heif", ".hif"])
# Folders of NAS boxes and systems, in lower case: their thumbnails and deleted files are nobody's clips and pictures.
SYSTEM_FOLDERS = frozenset(["@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "lost+found", "__macosx",
                            "system volume information"])
MAX_PIXELS = 100_000_000    # of a picture or a clip's frame; larger ones are refused


def frame_name(clip: str, index: int) -> str:
    """Return the name of a clip's frame, index counted from 0 in display order: `abc.000__frame_7.jpg`."""
    return f"{clip}{FRAME_MARK}{index}.jpg"


def face_name(frame_stem: str, number: int = 1) -> str:
    """Return the name of a frame's face chip, the number-th largest of the frame: `abc.000__frame_7_aligned_2.jpg`."""
    return f"{frame_stem}{FACE_MARK}{'' if number == 1 else f'_{number}'}.jpg"


def clip_of_face(name: str) -> str | None:
    """Return the clip that a face chip's file name says it is of, or None for a name that is not a face chip's.

    The clip is what stands before the last `__frame_`, whatever the length of the name.
    """
    clip, mark, rest = name.rpartition(FRAME_MARK)
    if mark and clip and FACE_MARK in rest and name.lower().endswith(".jpg") and not name.startswith("."):
        return clip_name(clip)
    return None


def clip_stem(path: str | os.PathLike) -> str:
    """Return the name that a clip's frames and faces begin with: its file's name without folder and video endings, of
    which batch conversion leaves several: `x/IMG_1.MOV.mp4` -> `IMG_1`."""
    stem = os.path.basename(path)
    while os.path.splitext(stem)[1].lower() in CLIP_SUFFIXES:
        stem = os.path.splitext(stem)[0]
    return stem


def clip_name(text: object) -> str:
    """Return the clip's name in a table or file name: its clip_stem in Unicode's form NFC, which macOS does not write:
    `x\\abc.000.mp4` -> `abc.000`."""
    return clip_stem(unicodedata.normalize("NFC", str(text)).strip().replace("\\", "/")).strip()
