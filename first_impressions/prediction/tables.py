"""Tables of scores: their columns, CSV and JSON files, the table that predict.py prints."""
import csv
import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

import numpy as np

from first_impressions.common.command_line import UserError
from first_impressions.common.constants import MEANS_COLUMN, NEUROTICISM_MEANS, TRAITS
from first_impressions.common.files import atomic_write

LINE_WIDTH = 120    # characters of the printed table, if the output is not a terminal
SHORTEST_NAME = 20  # characters of a file's name that are printed at least


def _columns(prefix):
    return tuple(f"{prefix}_{trait}" for trait in TRAITS)


SPREADS, LOWS, HIGHS, HALF_WIDTHS, PERCENTILES = map(_columns, ("spread", "low", "high", "half_width", "percentile"))
PIECE_COLUMNS = ("piece", "start", "end")
COLUMNS = ("clip", "person", *PIECE_COLUMNS, *TRAITS, MEANS_COLUMN, *LOWS, *HIGHS, "note", "problem")
ALL_COLUMNS = (*COLUMNS[:-2], "frames", "faces", "others", "confidence", "detector", *SPREADS, *HALF_WIDTHS,
               *PERCENTILES, *COLUMNS[-2:])
FRAME_COLUMNS = ("clip", "frame", "seconds", "person", "left", "top", "right", "bottom", "confidence", "detector",
                 *TRAITS)


def columns_of(rows: list[dict], everything: bool = False) -> list[str]:
    """Return the columns of a table of people: the short ones or all, those of pieces only if there are any."""
    in_pieces = any(row.get("piece") is not None for row in rows)
    return [name for name in (ALL_COLUMNS if everything else COLUMNS) if in_pieces or name not in PIECE_COLUMNS]


def high_means_calm(row: dict) -> bool:
    """Return whether the neuroticism of a row is emotional stability, as in the challenge's labels."""
    return row[MEANS_COLUMN] == NEUROTICISM_MEANS[True]


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
            values = [[row.get(column) for column in columns] for row in rows]
            json.dump([{column: round(value, 6) if isinstance(value, float) else value
                        for column, value in zip(columns, of_row)} for of_row in values], file, indent=2)
            file.write("\n")
        else:
            write_csv(file, columns, rows)


def print_table(scored: list[dict], everything: bool) -> None:
    """Print the scores of each file, person and piece, in lines as wide as the terminal; everything: also frames, faces
    and the mean spread."""
    names = {row["clip"]: os.path.basename(row["clip"]) for row in scored}
    if len(set(names.values())) < len(names):  # files of one name in several folders
        names = {path: path for path in names}
    columns = {"clip": [names[row["clip"]] for row in scored]}
    if any(row["person"] > 1 for row in scored):
        columns["person"] = [str(row["person"]) for row in scored]
    if any(row["piece"] for row in scored):
        columns["seconds"] = [f"{row['start']:.0f}-{row['end']:.0f}" if row["piece"] else "all" for row in scored]
    columns.update({trait if len(trait) < 10 else f"{trait[:8]}.": [f"{row[trait]:.3f}" for row in scored]
                    for trait in TRAITS})
    if everything:
        columns.update({name: [str(row[name] or "-") for row in scored] for name in ("frames", "faces")})
        columns["spread"] = [f"{np.mean([row[spread] for spread in SPREADS]):.3f}" for row in scored]
    widths = {title: max(map(len, (title, *cells))) for title, cells in columns.items()}
    left = shutil.get_terminal_size((LINE_WIDTH, 0)).columns - sum(widths.values()) + widths["clip"] - len(widths)
    widths["clip"] = min(widths["clip"], max(SHORTEST_NAME, left))
    columns["clip"] = [name if len(name) <= widths["clip"] else f"...{name[3 - widths['clip']:]}"
                       for name in columns["clip"]]
    for line in zip(*([title, *cells] for title, cells in columns.items())):
        print(" ".join(cell.ljust(width) if title == "clip" else cell.rjust(width)
                       for cell, (title, width) in zip(line, widths.items())))
    halves = [np.mean([row[name] for name in HALF_WIDTHS]) for row in scored if row[HALF_WIDTHS[0]] is not None]
    notes = [f"4 of 5 labels lie within ± {' to '.join(sorted({f'{half:.2f}' for half in (min(halves), max(halves))}))}"
             " of the score"] if halves else []
    notes += ["neuroticism: high means calm"] if high_means_calm(scored[0]) else []
    notes += ["spread: standard deviation over the faces"] if everything else []
    if notes:
        print("; ".join(notes))
