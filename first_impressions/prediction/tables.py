"""Tables of scores: their columns, CSV and JSON files, the table that predict.py prints."""
import json
import os
import re
import shutil
from pathlib import Path

import pandas

from first_impressions.common.command_line import UserError
from first_impressions.common.constants import MEANS_COLUMN, NEUROTICISM_MEANS, TRAITS
from first_impressions.common.files import atomic_write

SHORTEST_NAME = 20  # characters of a file's name that are printed at least

SPREADS, LOWS, HIGHS, HALF_WIDTHS, PERCENTILES = (
    tuple(f"{kind}_{trait}" for trait in TRAITS) for kind in ("spread", "low", "high", "half_width", "percentile"))
PIECE_COLUMNS = ("piece", "start", "end")
COLUMNS = ("clip", "person", *PIECE_COLUMNS, *TRAITS, MEANS_COLUMN, *LOWS, *HIGHS, "note", "problem")
ALL_COLUMNS = (*COLUMNS[:-2], "frames", "faces", "others", "confidence", "detector", *SPREADS, *HALF_WIDTHS,
               *PERCENTILES, *COLUMNS[-2:])
FRAME_COLUMNS = ("clip", "frame", "seconds", "person", "left", "top", "right", "bottom", "confidence", "detector",
                 *TRAITS)
WHOLE_NUMBERS = ("person", "piece", "frames", "faces", "others")    # also if a row lacks them


def table_of(rows: list[dict], columns: tuple[str, ...]) -> pandas.DataFrame:
    """Return rows as a table of these columns, those of pieces only if there are any."""
    table = pandas.DataFrame(rows, columns=list(columns))
    table = table.astype({name: "Int64" for name in WHOLE_NUMBERS if name in table})
    return table.drop(columns=list(PIECE_COLUMNS)) if "piece" in table and table["piece"].isna().all() else table


def high_means_calm(row: dict) -> bool:
    """Return whether the neuroticism of a row is emotional stability, as in the challenge's labels."""
    return row[MEANS_COLUMN] == NEUROTICISM_MEANS[True]


def check_replaceable(option: str, path: Path) -> None:
    """Raise UserError if a file exists that is not a table of this suite: a slip must not replace somebody's labels."""
    if path.is_file() and path.stat().st_size:
        start = r'(clip,|\[\s*{\s*"clip": ".*",\s*")(person|frame)\b'   # of CSV or JSON
        if not re.match(start, path.read_text(encoding="utf-8-sig", errors="replace")):
            raise UserError(f"{option} {path}: exists and is not a table of predict.py; name another file")


def csv_text(table: pandas.DataFrame) -> str:
    """Return a table as CSV; what a row lacks is empty."""
    return table.to_csv(index=False, float_format="%.6f", lineterminator="\n")


def write_table(path: Path, table: pandas.DataFrame) -> None:
    """Write a table as .csv or .json; what a row lacks is empty, in JSON null."""
    if path.suffix.lower() == ".json":
        text = json.dumps(json.loads(table.to_json(orient="records", double_precision=6)), indent=2) + "\n"
    else:
        text = csv_text(table)
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def print_table(scored: pandas.DataFrame, everything: bool) -> None:
    """Print the scores of each file, person and piece, a table of ALL_COLUMNS without problems, in lines as wide as the
    terminal; everything: also frames, faces and the mean spread."""
    names = scored["clip"].map(os.path.basename)
    if names.nunique() < scored["clip"].nunique():  # files of one name in several folders
        names = scored["clip"]
    shown = scored[list(TRAITS)].map("{:.3f}".format)
    shown.columns = [trait if len(trait) < 10 else f"{trait[:8]}." for trait in TRAITS]
    if "piece" in scored:
        shown.insert(0, "seconds", [f"{start:.0f}-{end:.0f}" if end > 0 else "all"
                                    for start, end in zip(scored["start"], scored["end"])])
    if scored["person"].max() > 1:
        shown.insert(0, "person", scored["person"])
    if everything:
        shown[["frames", "faces"]] = scored[["frames", "faces"]].astype(object).fillna("-")
        shown["spread"] = scored[list(SPREADS)].mean(axis=1).map("{:.3f}".format)
    lines = shown.to_string(index=False).splitlines()
    width = max(SHORTEST_NAME, shutil.get_terminal_size((120, 0)).columns - len(lines[0]) - 1)
    names = ["clip", *(name if len(name) <= width else f"...{name[3 - width:]}" for name in names)]
    for name, line in zip(names, lines):
        print(name.ljust(max(map(len, names))), line)
    halves = scored[list(HALF_WIDTHS)].astype(float).mean(axis=1).dropna()
    bounds = sorted({f"{half:.2f}" for half in (halves.min(), halves.max())})
    notes = [f"4 of 5 labels lie within ± {' to '.join(bounds)} of the score"] if len(halves) else []
    notes += ["neuroticism: high means calm"] if high_means_calm(scored.iloc[0]) else []
    notes += ["spread: standard deviation over the faces"] if everything else []
    if notes:
        print("; ".join(notes))
