"""Tolerant reader of tables that people write (labels, predictions, groups, speakers): read correctly or refused in one
line.

Spreadsheets export the same table in many forms. Read are UTF-8 and UTF-16, with or without a byte order mark; commas,
semicolons, tabs or bars between the cells; decimal points or decimal commas; blank lines, blanks around cells, empty
columns at the end and columns that are not needed; and names of columns in any case, also as the challenge spells them.
"""
import codecs
import csv
import io
import math
import os
import re
from pathlib import Path

import pandas

from first_impressions.common.command_line import UserError

SIZE_LIMIT = 200_000_000  # bytes
SEPARATORS = (",", ";", "\t", "|")
# What else a column may be called, after the letters are lowered and a leading `value` is taken away. The challenge's
# submissions have VideoName, ValueOpenness and ValueNeurotisicm.
OTHER_NAMES = {"videoname": "clip", "video": "clip", "neurotisicm": "neuroticism"}
BLANKS = " \t\r\n\u00a0\ufeff"  # around cells; other control characters are damage
NUMBER = re.compile(r"[+-]?([0-9]+[.,]?[0-9]*|[.,][0-9]+)([eE][+-]?[0-9]+)?")


def read_table(path: str | os.PathLike, needed: tuple[str, ...],
               optional: tuple[str, ...] | None = ()) -> pandas.DataFrame:
    """Return the columns that are needed, and the optional ones that are there (None: all), of a table in a file.
    Cells are text without blanks around them; the index is the number of each row's line in the file. Raises UserError
    if a column is missing or there twice, or a row has more or fewer cells than the header."""
    text = _decode(Path(path))
    rows = _rows(path, text, needed)
    header, _ = rows[0]
    places = _places(path, header, needed, optional)
    named = max(number for number, name in enumerate(header, 1) if name)    # empty columns may follow
    for row, line in rows[1:]:
        while len(row) > len(header) and not row[-1]:
            row.pop()
        if not named <= len(row) <= len(header):
            raise UserError(f"{path}: line {line} has {len(row)} cells, the header {named}; correct the line (a "
                            "decimal comma needs quotes or another separator)")
    return pandas.DataFrame([[row[place] for place in places.values()] for row, _ in rows[1:]], dtype=object,
                            columns=list(places), index=[line for _, line in rows[1:]])


def check_table(path: Path) -> None:
    """Raise UserError if a path is not that of a file, or the file is too large for labels or scores."""
    if not path.is_file():
        raise UserError(f"{path}: {'is a folder; name a file' if path.is_dir() else 'no such file'}")
    if path.stat().st_size > SIZE_LIMIT:
        raise UserError(f"{path}: is larger than any table of clips ({SIZE_LIMIT // 10**6} MB)")


def _decode(path):
    """Return the text of a file."""
    check_table(path)
    data = path.read_bytes()
    if data.startswith(b"PK\3\4"):
        raise UserError(f"{path}: is a spreadsheet's own file; save it as CSV")
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif len(data) > 1 and 0 in data[:2]:
        encoding = "utf-16-be" if data[0] == 0 else "utf-16-le"
    else:
        encoding = "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        text = data[:error.start].decode(encoding, "ignore") + "\0"
    if "\0" in text:
        line = text[:text.index("\0")].count("\n") + 1
        raise UserError(f"{path}: line {line} is not text in UTF-8; save the file as CSV UTF-8")
    return text


def _parse(text, separator):
    """Return [(cells, number of the line)] of the rows that are not empty."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows, line = [], 1
    for row in reader:
        cells = [cell.strip(BLANKS) for cell in row]
        if any(cells):
            rows.append((cells, line))
        line = reader.line_num + 1
    return rows


def _rows(path, text, needed):
    """Return the rows of the table, the header first, with the separator that makes most of the header."""
    first = re.match(r"\s*\"?sep=(.)\"?[ \t]*\r?\n", text)  # a spreadsheet's own hint
    if first:
        text = "\n" * text[:first.end()].count("\n") + text[first.end():]
    tables, problem = [], "it is empty"
    for separator in [first[1]] if first else SEPARATORS:
        try:
            rows = _parse(text, separator)
        except csv.Error as error:
            problem = error
        else:
            tables += [rows] if rows else []
    if not tables:
        raise UserError(f"{path}: cannot be read as a table ({problem}); write CSV with the columns {','.join(needed)}")
    return max(tables, key=lambda rows: (sum(_meaning(name) in needed for name in rows[0][0]), len(rows[0][0])))


def _meaning(name):
    plain = re.sub(r"^value[_ ]?", "", name.casefold())
    return OTHER_NAMES.get(plain, plain)


def _places(path, header, needed, optional):
    """Return {column: its place in a row}."""
    places = {}
    for place, name in enumerate(header):
        meaning = _meaning(name)
        if meaning in places:
            raise UserError(f"{path}: two columns are called {meaning}: {header[places[meaning]]!r} and "
                            f"{name!r}; remove one")
        if meaning and (optional is None or meaning in needed or meaning in optional):
            places[meaning] = place
    missing = [column for column in needed if column not in places]
    if missing:
        name = "`clip`" if "clip" in missing else f"for {', '.join(missing)}"
        raise UserError(f"{path}: has no column {name}; its columns are {', '.join(header)}")
    return places


def numbers_of(table: pandas.DataFrame, columns: tuple[str, ...], path: str | os.PathLike) -> pandas.DataFrame:
    """Return columns of a table as float64.

    Raises UserError that names the cell that is not a number, or a file that mixes decimal points and decimal commas.
    """
    texts, marks = table[list(columns)], {}
    for column in columns:
        for line, text in texts[column].items():
            if not NUMBER.fullmatch(text) or not math.isfinite(float(text.replace(",", "."))):
                raise UserError(f"{path}: line {line}, clip {table.at[line, 'clip']}, {column}: {text!r} is not a "
                                "number; correct it or remove the clip")
            for mark in set(",.").intersection(text):
                marks.setdefault(mark, (line, column, text))
    if len(marks) == 2:
        (line, column, text), (other, _, other_text) = marks[","], marks["."]
        raise UserError(f"{path}: line {line}, {column}: {text!r} has a decimal comma, but line {other} has "
                        f"{other_text!r}; write all numbers alike")
    return texts.map(lambda text: float(text.replace(",", "."))).astype("float64")
