"""HTML of app.py's page: its parts are macros of page_template.html, their looks are in page.css.

Pictures and tables lie inside the page. Nothing here becomes a file on the server, so no result is left over.
"""
import base64
import os
from pathlib import Path

import jinja2
import numpy as np
import pandas

from first_impressions.common.command_line import counted
from first_impressions.common.constants import COLOURS
from first_impressions.extraction.sources import encode_jpeg
from first_impressions.prediction.drawings import draw_boxes, draw_heat_maps, plot_course
from first_impressions.prediction.tables import csv_text, high_means_calm

CSS = Path(__file__).with_name("page.css")


def _jpeg(picture: np.ndarray) -> str:
    return base64.b64encode(encode_jpeg(picture, 88)).decode()


def _csv(table: pandas.DataFrame) -> str:
    names = table["clip"].map(os.path.basename)  # as the files were called in the browser
    return base64.b64encode(csv_text(table.assign(clip=names)).encode()).decode()


_environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True,
                                  undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
_environment.filters.update(basename=os.path.basename, jpeg=_jpeg, csv=_csv)
_environment.globals.update(colours=COLOURS, counted=counted, high_means_calm=high_means_calm, draw_boxes=draw_boxes,
                            draw_heat_maps=draw_heat_maps, plot_course=plot_course)
parts = _environment.get_template("page_template.html").module
