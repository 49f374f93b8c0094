"""The options, the settings noted in preprocessing.json and the last line of the two scripts that make faces."""
import argparse
import shlex
from pathlib import Path

import dlib

from first_impressions.common.command_line import number_between, printable, whole_number_between
from first_impressions.common.constants import FACE_SIZE, SPLITS
from first_impressions.extraction.detectors import DETECTOR_HELP, DETECTORS, PADDING, find_predictor, predictor_note
from first_impressions.extraction.faces import CropSettings
from first_impressions.jobs.target_folder import read_settings


def add_face_options(parser: argparse.ArgumentParser) -> None:
    """Add the argument PREDICTOR and the options on how faces become chips."""
    parser.add_argument("predictor", metavar="PREDICTOR", nargs="?", help="dlib's landmark model, 5 or 68 points")
    parser.add_argument("--size", type=whole_number_between(1, 4096), default=FACE_SIZE,
                        help="width and height of a chip in pixels")
    parser.add_argument("--padding", type=number_between(0, 5, "a number from 0 to 5"), default=PADDING,
                        help="margin around the face, in parts of its size, 0 to 5")
    parser.add_argument("--faces", choices=["largest", "all"], default="largest",
                        help="which faces of a frame to write")
    parser.add_argument("--detector", choices=DETECTORS, help=DETECTOR_HELP + " (default: auto; in a folder that has "
                        "faces already, as they were made)")


def crop_settings(args: argparse.Namespace) -> CropSettings:
    """Return the options as CropSettings. Raises UserError for a landmark model that cannot be used."""
    detector = args.detector or read_settings(args.face_dir, {"detector": "auto"}).get("detector", "hog")
    return CropSettings(find_predictor(args.predictor), args.size, args.padding, args.faces == "all", args.quality,
                        detector)


def noted_settings(crop: CropSettings) -> dict:
    """Return what preprocessing.json says of the chips. It does not name the HOG detector, which older folders have."""
    return {"size": crop.size, "padding": crop.padding, "faces": "all" if crop.find_all else "largest",
            "quality": crop.quality, "predictor": predictor_note(crop.predictor), "dlib": dlib.__version__,
            **({} if crop.detector == "hog" else {"detector": crop.detector})}


def next_command(face_dir: str) -> str:
    """Return, for the last line, what to run next: the faces of a split that has none, else the search."""
    from first_impressions.data.splits import faces_command, list_faces  # here, since pandas takes half a second

    split_dir = Path(face_dir).parent
    if Path(face_dir).name != "faces" or split_dir.name not in SPLITS:
        return "training takes them from DATA_DIR/{train,valid,test}/faces"
    data_dir = split_dir.parent
    for other in SPLITS:
        if (data_dir / other).is_dir() and list_faces(data_dir / other / "faces").empty:
            return faces_command(data_dir / other)
    option = "" if str(data_dir) == "data" else f" --data-dir {shlex.quote(str(data_dir))}"
    return f"python train_resnet_raytune_hyperparams.py 20 30 search FaceResNet29_v1.0{printable(option)}"
