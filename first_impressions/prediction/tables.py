"""Tables of scores: their columns, CSV and JSON files, the table that predict.py prints."""
import csv
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

import numpy as np

from first_impressions.common.command_line import UserError, printable
from first_impressions.common.constants import TRAITS
from first_impressions.common.files import atomic_write

LONGEST_NAME = 60   # characters of a file's name that are printed; one long name would widen all lines


def _columns(prefix):
    return tuple(f"{prefix}_{trait}" for trait in TRAITS)


SPREADS, LOWS, HIGHS, HALF_WIDTHS, PERCENTILES = map(_columns, ("spread", "low", "high", "half_width", "percentile"))
PIECE_COLUMNS = ("piece", "start", "end")
COLUMNS = ("clip", "person", *PIECE_COLUMNS, *TRAITS, *LOWS, *HIGHS, "note", "problem")
ALL_COLUMNS = (*COLUMNS[:-2], "frames", "faces", "others", "confidence", "detector", *SPREADS, *HALF_WIDTHS,
               *PERCENTILES, *COLUMNS[-2:])
FRAME_COLUMNS = ("clip", "frame", "seconds", "person", "left", "top", "right", "bottom", "confidence", "detector",
                 *TRAITS)


def columns_of(rows: list[dict], everything: bool = False) -> list[str]:
    """Return the columns of a table of people: the short ones or all, those of pieces only if there are any."""
    in_pieces = any(row.get("piece") is not None for row in rows)
    return [name for name in (ALL_COLUMNS if everything else COLUMNS) if in_pieces or name not in PIECE_COLUMNS]


def check_replaceable(option: str, path: Path) -> None:
    """Raise UserError if a file exists that is not a table of this suite: a slip must not replace somebody's labels."""
    if path.is_file() and path.stat().st_size:
        start = "".join(path.read_text(encoding="utf-8", errors="replace")[:200].split()).replace('"', "").lstrip("[{")
        if not start.startswith(("clip,person", "clip,frame")) and not re.match("clip:[^,]*,(person|frame):", start):
            raise UserError(f"{option} {path}: exists and is not a table of predict.py; name another file")


def write_csv(file: TextIO, columns: Iterable[str], rows: Iterable[dict]) -> None:
    """Write rows as CSV with a header; what a row lacks is empty, other keys are left out."""
    writer = csv.DictWriter(file, list(columns), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: f"{value:.6f}" if isinstance(value, float) else value for key, value in row.items()}
                     for row in rows)


def write_table(path: Path, columns: Iterable[str], rows: list[dict]) -> None:
    """Write rows as .csv or .json; what a row lacks is empty, in JSON null."""
    with atomic_write(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        if path.suffix.lower() == ".json":
            json.dump([{column: _rounded(row.get(column)) for column in columns} for row in rows], file, indent=2)
            file.write("\n")
        else:
            write_csv(file, columns, rows)


def _rounded(value):
    return round(value, 6) if isinstance(value, float) else value


def print_table(scored: list[dict], with_people: bool, neuroticism_is_stability: bool) -> None:
    """Print the scores of each file and piece; with_people: also the number of the person."""
    in_pieces = any(row["piece"] is not None for row in scored)
    lines = [["clip", *(["person"] if with_people else []), *(["seconds"] if in_pieces else []), *TRAITS, "frames",
              "faces", "spread"]]
    names = {row["clip"]: os.path.basename(row["clip"]) for row in scored}
    if len(set(names.values())) < len(names):  # files of one name in several folders
        names = {path: path for path in names}
    for row in scored:
        piece = "all" if row["piece"] is None else f"{row['start']:.0f}-{row['end']:.0f}"
        name = printable(names[row["clip"]])
        name = name if len(name) <= LONGEST_NAME else f"...{name[3 - LONGEST_NAME:]}"
        lines.append([name, *([str(row["person"])] if with_people else []), *([piece] if in_pieces else []),
                      *(f"{row[trait]:.3f}" for trait in TRAITS), str(row["frames"] or "-"), str(row["faces"]),
                      f"{np.mean([row[spread] for spread in SPREADS]):.3f}"])
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print(" ".join(word.rjust(width) for word, width in zip(line, widths)))
    widths = np.array([[row[name] for name in HALF_WIDTHS] for row in scored if row[HALF_WIDTHS[0]] is not None])
    if len(widths):
        least, most = widths.mean(1).min(), widths.mean(1).max()
        between = f"{least:.2f}" if round(least, 2) == round(most, 2) else f"{least:.2f} to {most:.2f}"
        print(f"4 of 5 labels lie within ± {between} of the score; ", end="")
    print("spread: standard deviation over the frames"
          + ("; neuroticism: high means calm" if neuroticism_is_stability else ""))
