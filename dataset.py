"""The Dataset of face chips, over the splits of a data folder.

A data folder holds data/{train,valid,test}/{videos,frames,faces} and for each split its labels (see labels.py). Look at
what the suite makes of a data folder:

    python dataset.py data
    python dataset.py data --speaker-regex '(.*)_[0-9]+'      the speaker in names such as anna_12.mp4
    python dataset.py mydata --split 3:1:1 --seed 0           train, valid and test by speakers from mydata/labels.csv
    python dataset.py data --verify                           are ChaLearn's clips all there, with the official bytes?

From Python, for a network and a loop of your own:

    from dataset import FaceDataset
    from first_impressions.data.splits import load_split
    loader = torch.utils.data.DataLoader(FaceDataset(load_split("data", "train")), batch_size=32, shuffle=True)
    for chips, labels in loader:        # uint8 32 x 3 x 224 x 224, float32 32 x 5 in [0, 1]
        ...
"""
import first_impressions.common.startup  # noqa: F401  (before torch)

import itertools
import shlex
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.data import Dataset

from first_impressions.common.command_line import UserError, counted, make_parser, printable, run_script, seed_number
from first_impressions.common.constants import CLIP_SUFFIXES, FACE_SIZE, LABEL_TABLE, SPLITS, TRAITS, clip_name
from first_impressions.common.files import check_output_file
from first_impressions.data.chips import read_chip
from first_impressions.data.division import divide, shares
from first_impressions.data.official_clips import DIFFERING_CLIPS, verify_clips
from first_impressions.data.splits import Split, add_speaker_option, describe, faces_command, load_split
from first_impressions.jobs.target_folder import find_files


def augmentation(strength: float) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Return torchvision transforms for a uint8 3 x H x W chip: small crops, colour and erasing; None for 0."""
    if not strength:
        return None
    from torchvision.transforms import v2  # here, since it takes seconds, which most trainings can do without

    return v2.Compose([
        v2.RandomResizedCrop(FACE_SIZE, scale=(1 - 0.3 * strength, 1.0), ratio=(0.95, 1.05), antialias=True),
        v2.ColorJitter(brightness=0.3 * strength, contrast=0.3 * strength, saturation=0.3 * strength,
                       hue=0.02 * strength),
        v2.RandomErasing(p=0.25 * strength, scale=(0.02, 0.1)),
    ])


class FaceDataset(Dataset):
    """The face chips of a Split and the labels of their clips.

    dataset[i] is (chip uint8 tensor 3 x size x size RGB, label float32 tensor 5 in [0, 1] in the order of TRAITS), size
    as the faces were made (224); it raises UserError for a chip that cannot be read. augment: strength of random crops,
    colour and erasing, 0 to 1. What is random depends only on (seed, epoch, i), so it is the same for any number of
    workers; set epoch before each pass.
    """

    def __init__(self, split: Split, augment: float = 0.0, seed: int = 0):
        self.split = split
        self.paths = split.faces["path"].tolist()
        # NaN for a clip without a label.
        self.labels = torch.tensor(split.labels.reindex(split.faces["clip"]).to_numpy(), dtype=torch.float32)
        self.size = split.preprocessing["size"]
        self.transform = augmentation(augment)
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        chip = read_chip(self.paths[i], self.size)
        if self.transform is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed((self.seed * 1_000_003 + self.epoch) * 10_000_019 + i)
                chip = self.transform(chip)
        return chip, self.labels[i]


def print_split(split: Split, video_dir: Path) -> None:
    """Print what is known of a split: its clips, labels, examples of the speaker rule, videos without labels."""
    print(describe(split))
    means, stds = split.labels.mean(), split.labels.std()
    print("    " + ", ".join(f"{trait} {means[trait]:.3f} ± {stds[trait]:.3f}" for trait in TRAITS))
    examples = [f"{clip} -> {speaker}" for clip, speaker in split.speakers.drop_duplicates().head(3).items()]
    print("    speakers: " + printable(", ".join(examples))
          + ("; each clip is taken for a speaker of its own, as no name matches --speaker-regex"
             if (split.speakers == split.speakers.index).all() else ""))
    videos = {clip_name(path) for path, _ in find_files(video_dir, CLIP_SUFFIXES)} if video_dir.is_dir() else set()
    for kind, clips in (("videos without a label", videos - set(split.labels.index)),
                        ("labels without a video", set(split.labels.index) - videos)):
        if videos and clips:
            print(f"    {kind}: {len(clips)} (the first: {printable(min(clips))})")


def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("data_dir", metavar="DATA_DIR", help="data folder with train, valid and test")
    add_speaker_option(parser)
    parser.add_argument("--split", type=shares, metavar="A:B:C", help="make train, valid and test in these shares, no "
                        f"speaker in two of them, from DATA_DIR/{LABEL_TABLE} and DATA_DIR/videos or faces; the files "
                        "are linked, not moved")
    parser.add_argument("--seed", type=seed_number, default=0, help="of the draw of --split")
    parser.add_argument("--verify", action="store_true", help="compare the clips with the challenge's 10,000 by size "
                        f"and SHA-256; those that differ are listed in DATA_DIR/{DIFFERING_CLIPS}")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the list of --verify to this file")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    if not Path(args.data_dir).is_dir():
        raise UserError(f"{args.data_dir}: no such folder")
    if args.verify:
        table = args.out or Path(args.data_dir, DIFFERING_CLIPS)
        check_output_file("--out", table)
        return 0 if verify_clips(args.data_dir, table) else 1
    if args.split:
        divide(Path(args.data_dir), args.split, args.speaker_regex, args.seed)
        print(f"next: {printable(shlex.join(['python', 'dataset.py', args.data_dir]))}")
        return 0
    splits = []
    for name in SPLITS:
        if not Path(args.data_dir, name).is_dir():
            print(f"{name}: not there")
            continue
        splits.append(load_split(args.data_dir, name, args.speaker_regex, need_faces=False))
        print_split(splits[-1], Path(args.data_dir, name, "videos"))
    if not splits:
        raise UserError(f"{args.data_dir}: contains no folder train, valid or test; the README says how to lay out "
                        "the data, and --split 3:1:1 divides one folder of clips")
    lines = []
    for first, second in itertools.combinations(splits, 2):
        known = second.speakers[second.speakers.isin(set(first.speakers))]
        if len(known):
            lines.append(f"{counted(known.nunique(), 'speaker')} of {second.name} in {first.name}, too: "
                         f"{100 * len(known) / len(second.speakers):.0f} % of its clips")
    print("\n".join(lines) or "no speaker is in two splits")
    for split in splits:
        if split.faces.empty:
            print(f"next: {faces_command(Path(args.data_dir, split.name))}")
            break


if __name__ == "__main__":
    run_script(main)
