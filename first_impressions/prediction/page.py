"""HTML of app.py's page: the results of a file with its pictures inside, tables as links that hold the data.

Nothing here becomes a file on the server, so no result is left over.
"""
import base64
import html
import os
from collections.abc import Iterable

import numpy as np
import pandas

from first_impressions.common.command_line import counted
from first_impressions.common.constants import COLOURS, TRAITS
from first_impressions.extraction.sources import encode_jpeg
from first_impressions.prediction.tables import csv_text, high_means_calm

LONGEST_PROBLEM = 300  # characters; messages of libraries may hold whole arrays
TITLE = "Apparent personality"
INTRODUCTION = """# Apparent personality
How strangers would judge the people in your clips and pictures by their faces: the Big Five traits, each from 0 to 1.
"""
CAUTION = """**What the scores are not.** They do not measure what a person is like: they predict first impressions,
with all prejudices of those who gave them. {stability}Do not use them for decisions on people. Nothing leaves this
computer; files and results are deleted when you close the page, after an hour, or when the program ends.
"""
STABILITY = "*Neuroticism* is emotional stability here, as in the data: high means calm. "
CSS = """
.gradio-container { max-width: 1000px !important; margin: 0 auto !important; }
#progress .html-container, #results .html-container { padding: 0 !important; }
#progress progress { width: 100%; height: .5rem; accent-color: var(--color-accent); }
#results article { border-top: 1px solid var(--border-color-primary); padding: 1rem 0; overflow-wrap: anywhere; }
#results .pair { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 1.5rem;
  margin-bottom: 1rem; }
#results figure { margin: 0 0 1.25rem !important; overflow-x: auto; contain: inline-size; }
#results figure img { max-width: 100%; height: auto; border-radius: 6px; background: #fff; }
#results figure.strip img { width: 100%; min-width: 900px; }
#results figcaption { margin-top: .25rem; }
#results figcaption, #results .meta { color: var(--body-text-color); opacity: .75; font-size: .875rem; }
#results h2 { font-size: 1.125rem; margin: 0 0 .25rem; }
#results h3 { font-size: 1rem; margin: 1rem 0 .25rem; }
#results .problem h2::before { content: "\\26A0\\FE0E  "; }
#results .row { display: grid; grid-template-columns: 1fr auto; gap: .125rem .75rem; margin: 0 0 .625rem; }
#results .row > .bar, #results .row > .range { grid-column: 1 / -1; }
#results .bar { position: relative; height: .75rem; border-radius: 3px; background: var(--border-color-primary); }
#results .bar b { position: absolute; inset: 0 auto 0 0; border-radius: 3px; }
#results .bar i { position: absolute; top: 50%; height: 0; border-top: 2px solid var(--body-text-color); }
#results .bar i::before, #results .bar i::after { content: ""; position: absolute; top: -6px; height: 10px;
  border-left: 2px solid var(--body-text-color); }
#results .bar i::before { left: 0; } #results .bar i::after { right: 0; }
#results .number { font-variant-numeric: tabular-nums; font-weight: 600; }
#results a.download { display: inline-block; margin: 0 1rem .75rem 0; text-decoration: underline; }
#recording [aria-label^="Trim video"] { display: none; }  /* needs a library from elsewhere */
@media (max-width: 960px) { #results figure.strip figcaption::after { content: " (scroll sideways to see all)"; } }
@media (max-width: 640px) { #results .pair { grid-template-columns: minmax(0, 1fr); gap: 0; } }
"""


def file_name(path: str) -> str:
    """Return the name that a file had in the browser, for the page."""
    return html.escape(os.path.basename(path))


def show_progress(done: int, total: int, scored: int) -> str:
    """Return a bar and a line on how many of the files are done, in the end on how many of them could be scored."""
    if done == total:
        return f'<p role="status">{scored} of {counted(total, "file")} scored.</p>'
    return (f'<p role="status">{done} of {counted(total, "file")} done</p>'
            f'<progress max="{total}" value="{done}" aria-label="progress"></progress>')


def show_problem(path: str, problem: str) -> str:
    """Return the entry of a file that could not be scored: one sentence."""
    problem = problem if len(problem) <= LONGEST_PROBLEM else problem[:LONGEST_PROBLEM] + " ..."
    sentence = problem[:1].upper() + problem[1:].rstrip(".") + "."
    return (f'<article class="problem"><h2>{file_name(path)}</h2>'
            f"<p>Not scored. {html.escape(sentence)}</p></article>")


def show_people(people: list[dict]) -> str:
    """Return the bars of each person of a file, with intervals and percentiles if the experiment has them. people: rows
    of tables.ALL_COLUMNS."""
    names = {trait: trait.capitalize() for trait in TRAITS}
    if high_means_calm(people[0]):
        names["neuroticism"] += " <small>(high means calm)</small>"
    lines = []
    for row in people:
        if len(people) > 1:
            lines.append(f"<h3>Person {row['person']}</h3>")
        lines += [_bar(row, trait, names[trait], colour) for trait, colour in COLOURS.items()]
    if any(row.get(f"low_{TRAITS[0]}") is not None for row in people):
        lines.append('<p class="meta">Lines on the bars: four of five judgements lie within.</p>')
    return "".join(lines)


def _bar(row, trait, name, colour):
    score, low, high = (row.get(name) for name in (trait, f"low_{trait}", f"high_{trait}"))
    percentile = row.get(f"percentile_{trait}")
    parts = [] if low is None else [f"{low:.2f} to {high:.2f}"]
    if percentile is not None:
        parts.append(f"higher than {percentile:.0f} % of the training clips")
    whisker = "" if low is None else f'<i style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"></i>'
    return (f'<div class="row"><span>{name}</span><span class="number">{score:.2f}</span>'
            f'<span class="bar" aria-hidden="true"><b style="width:{100 * score:.1f}%;background:rgb{colour}"></b>'
            f'{whisker}</span><span class="range meta">{", ".join(parts)}</span></div>')


def show_picture(picture: np.ndarray, caption: str, strip: bool = False) -> str:
    """Return a figure with a picture, uint8 RGB, inside. strip: wide, scrolled sideways on a narrow page."""
    data = base64.b64encode(encode_jpeg(picture, 88)).decode()
    caption, kind = html.escape(caption), "strip" if strip else "photo"
    return (f'<figure class="{kind}"><img alt="{caption}" src="data:image/jpeg;base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>")


def show_file(path: str, meta: str, parts: Iterable[str]) -> str:
    """Return the entry of a scored file: its name, a line on its frames, figures and bars."""
    return f'<article><h2>{file_name(path)}</h2><p class="meta">{html.escape(meta)}</p>{"".join(parts)}</article>'


def table_link(table: pandas.DataFrame, name: str, text: str) -> str:
    """Return a link that holds a table as CSV and saves it under the name."""
    table = table.assign(clip=table["clip"].map(os.path.basename))
    data = base64.b64encode(csv_text(table).encode()).decode()
    return f'<a class="download" download="{name}" href="data:text/csv;charset=utf-8;base64,{data}">{text}</a>'
